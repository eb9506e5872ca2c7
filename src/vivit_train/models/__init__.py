"""The four ViViT models of the paper."""
