"""A protocol of your own: is the nearest other photo one of the same person?

A folder NAME.people holds a subfolder of photos for each person. Evaluate a run on it:

    facebones evaluate sets --import examples/tiny_protocol.py --model runs/mbf --data friends.people
"""

from pathlib import Path

import numpy as np

from facebones.data.image_sources import EncodedImages
from facebones.errors import DataError
from facebones.evaluation.protocol import Features, Protocol, register_protocol
from facebones.statistics.metric import Metric


@register_protocol
class NearestPhoto(Protocol):
    """Share of the photos whose nearest other photo, by cosine, shows the same person."""

    name = "nearest_photo"

    @classmethod
    def find(cls, path: Path) -> "list[NearestPhoto]":
        """The folder itself, if it is called NAME.people."""
        return [cls(path)] if path.is_dir() and path.resolve().suffix == ".people" else []

    def check(self) -> None:
        """Refuse a folder without two photos of one person, before any training."""
        persons = self.persons()
        if len(persons) == len(set(persons)):
            raise DataError(f"{self.path}: no person has two photos; add some as PERSON/PHOTO.jpg")

    def photos(self) -> list[Path]:
        """All photos, in a fixed order."""
        return sorted(self.path.glob("*/*.jpg"))

    def persons(self) -> list[str]:
        """The person in each photo."""
        return [photo.parent.name for photo in self.photos()]

    def images(self) -> EncodedImages:
        """The images to embed."""
        return EncodedImages(self.set, [photo.read_bytes() for photo in self.photos()])

    def evaluate(self, features_NxVxD: Features) -> list[Metric]:
        """One metric from the features (N, V, D): of the photos and, where V = 2, of their mirror images."""
        embedding = features_NxVxD.sum(axis=1)
        embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
        cosine = embedding @ embedding.T
        np.fill_diagonal(cosine, -np.inf)  # not the photo itself
        person = np.array(self.persons())
        rate = float(np.mean(person[cosine.argmax(axis=1)] == person))
        return [Metric(name="nearest", value=rate, main=True)]
