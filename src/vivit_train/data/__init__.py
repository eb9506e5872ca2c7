"""Clip tables, sampling, augmentation and loading: from videos and annotations to batches."""
