"""Training images that cannot be read: named once, counted, and more of them than the recipe allows end the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facebones.errors import CheckpointError, DataError
from facebones.system.progress import say


class UnreadableImages:
    """Those that a run has met, whose places others took.

    Args:
        limit: how many there may be.
        total: images of the training set.

    Attributes:
        images: their indices in the training set, as they were met.
    """

    def __init__(self, limit: int, total: int) -> None:
        self.limit, self.total = limit, total
        self.images: list[int] = []

    def add(self, found: Mapping[int, str]) -> None:
        """Take note of images and of what is wrong with them.

        Raises:
            DataError: they are too many.
        """
        for index, reason in found.items():
            if index in self.images:
                continue
            if len(self.images) == self.limit:
                raise DataError(f"{reason} (data.unreadable_limit is {self.limit}, and this is one more)")
            self.images.append(index)
            say(f"note: {reason}; now the next image takes its place ({len(self.images)} of {self.limit} allowed)")

    def load(self, images: Any, path: Path) -> None:
        """Take up the indices that a checkpoint holds.

        Raises:
            CheckpointError: they are none.
        """
        if not isinstance(images, list) or not all(type(i) is int and 0 <= i < self.total for i in images):
            raise CheckpointError(f"{path}: unreadable: holds no indices of images; damaged: restore the file")
        self.images = images
