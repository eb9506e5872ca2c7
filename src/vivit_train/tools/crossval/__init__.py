"""`vivit crossval`: a run per fold and seed."""
