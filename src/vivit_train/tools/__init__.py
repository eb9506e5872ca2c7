"""Commands beside training: prepare, doctor, bench, replay, sweeps."""
