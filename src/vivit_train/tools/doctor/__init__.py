"""`vivit doctor`: check the files of a dataset in one pass and report what is wrong with them before training."""
