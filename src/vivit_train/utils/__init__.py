"""Utilities shared by the whole package: errors, text, files, and processes."""
