"""`vivit probe`: heads on frozen features."""
