"""Protocols that turn embeddings into figures."""
