"""Locates videos, scans their packets and decodes their frames."""
