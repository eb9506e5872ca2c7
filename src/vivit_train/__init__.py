"""vivit-train: train, evaluate and sweep ViViT (arXiv 2103.15691) on real videos."""
