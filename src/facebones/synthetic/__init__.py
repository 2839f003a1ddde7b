"""Synthetic people, drawn as a pure function of seed, identity and image number."""
