"""The four ViViT models, and how weights get into them."""
