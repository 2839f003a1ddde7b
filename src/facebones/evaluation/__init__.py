"""Embedding of images, and protocols that turn embeddings into metrics."""
