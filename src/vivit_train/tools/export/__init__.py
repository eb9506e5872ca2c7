"""`vivit export`: a model for other programs."""
