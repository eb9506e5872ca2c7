"""Tools that complement training: prepare, doctor, bench, replay and sweeps."""
