"""Turns videos and annotations into batches: clip tables, sampling, augmentation and loading."""
