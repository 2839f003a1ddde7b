"""facebones: train and compare face-recognition backbones under one fair recipe."""

__version__ = "0.1.0"
