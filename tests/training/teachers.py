"""Embeddings of a teacher that a test makes up."""

import numpy as np

from facebones.data.folders import open_labelled_images
from facebones.evaluation.feature_store import FeatureFile
from facebones.evaluation.teacher_embeddings import TrainingImages


def write_teacher(folder, data, size=24, views=2, name="teacher"):
    """Embeddings of a training set as `data embed` writes them, of random numbers; returns their path."""
    source = TrainingImages(open_labelled_images(data))
    rows = np.random.default_rng(7).normal(size=(len(source), views, size)).astype(np.float32)
    settings = {"source": source.fingerprint(), "dtype": "float16", "weights_sha256": "ab"}
    with FeatureFile(folder, name, len(source), len(source), settings) as file:
        file.write(0, rows)
    return str(file.path)
