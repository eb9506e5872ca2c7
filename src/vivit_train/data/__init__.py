"""From annotation files to batches: manifest -> clip -> decode -> augment -> datamodule."""
