"""`vivit features` and `vivit search`: embeddings of videos, and the nearest ones of a video."""
