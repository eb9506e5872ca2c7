"""Loads and saves weights of image ViTs, the authors' code, Hugging Face, and vivit-train."""
