"""Loads and saves weights: image ViTs, the authors' files, Hugging Face, and checkpoints of this package."""
