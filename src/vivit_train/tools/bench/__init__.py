"""`vivit bench`: measure the data loader, the model and whole training steps on this machine."""
