"""The LightningModule and what a run needs around it: schedule, metrics, checkpoints, callbacks."""
