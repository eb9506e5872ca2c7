"""Reads frames: where a video is stored, when its frames are shown, and how they are decoded."""
