"""A data format of your own: a CSV file with lines `path,person`.

    facebones train demo --import examples/csv_faces.py --data list.csv --validation.sets people.bin --output runs/csv

The paths start from the folder of the CSV file, and the first line is a heading.
"""

import csv
from pathlib import Path

import numpy as np

from facebones.data.training_set import TrainingSet, register_data_format
from facebones.errors import DataError


@register_data_format
class CsvFaces(TrainingSet):
    """Images and people from a CSV file; the people are numbered in the order of their names."""

    name = "csv"

    @classmethod
    def find(cls, path: Path) -> bool:
        """Whether `path` is a CSV file."""
        return path.is_file() and path.suffix.lower() == ".csv"

    def __init__(self, path: Path) -> None:
        """Read the list; the images are read later, in the data workers."""
        self.path, self.notes = path, []
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        wrong = next((line for line, row in enumerate(rows, start=2) if len(row) != 2), None)
        if wrong or not rows:
            raise DataError(f"{path}, line {wrong or 1}: not a list of faces; write 'path,person' in each line")
        self.files = [file for file, _ in rows]
        self.people, labels = np.unique([person for _, person in rows], return_inverse=True)
        self.labels = labels.astype(np.int64)

    def read(self, index: int) -> tuple[bytes, int]:
        """Read an encoded image and its label."""
        try:
            return (self.path.parent / self.files[index]).read_bytes(), int(self.labels[index])
        except OSError as error:
            raise DataError(f"{self.describe(index)}: cannot be read: {error.strerror}; restore the file") from error

    def describe(self, index: int) -> str:
        """Name an image in an error."""
        return f"{self.path}, line {index + 2}: {self.files[index]}"

    def identity_name(self, label: int) -> str:
        """Name a person in a report of the data."""
        return str(self.people[label])
