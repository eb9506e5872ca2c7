"""ViViT: the four models of the paper."""
