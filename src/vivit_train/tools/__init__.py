"""Commands beside training: prepare, doctor, bench, replay and sweeps."""
