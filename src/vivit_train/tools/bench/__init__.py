"""What is measured, on the machine at hand: the loader, the model, whole training steps."""
