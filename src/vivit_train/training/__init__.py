"""The LightningModule and everything a run needs around it: schedule, metrics, checkpoints, and callbacks."""
