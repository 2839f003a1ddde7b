"""A complete study in a few minutes: synthetic faces, three small backbones under one recipe, and a report."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.datatools.contact_sheet import write_face_sheet
from facebones.study.compare import compare
from facebones.study.study import load_study
from facebones.synthetic.dataset import synthesize
from facebones.system.device import select_device
from facebones.system.progress import say

STUDY = "demo"
IDENTITIES, IMAGES_PER_IDENTITY, PAIRS = 400, 10, 600
PEOPLE_SHOWN, FACES_SHOWN = 6, 8


def demo(output: Path, device: str = "auto") -> dict[str, Any]:
    """Synthesize faces, then compare; the same call resumes a demo that was stopped.

    Args:
        output: folder for the faces, the study and its report.
        device: "auto", "cpu", "cuda", ...

    Returns:
        What `compare` returns.
    """
    on_cpu = select_device(device).type == "cpu"  # refuses an unknown device before anything is drawn
    data = output / "faces"
    if not data.is_dir():
        say(str(synthesize(data, identities=IDENTITIES, images_per_identity=IMAGES_PER_IDENTITY, pairs=PAIRS)))
    _draw_faces(data, output / "faces.png")
    # A training of a network this small does not keep two cores busy.
    jobs = 2 if on_cpu and (os.cpu_count() or 1) > 1 else 1
    return compare(load_study(STUDY, data=str(data)), output / "study", jobs=jobs, device=device)


def _draw_faces(data: Path, path: Path) -> None:
    """Draw a row of training images for each of a few people."""
    training_set = open_training_set(data)
    rows = []
    for label in range(PEOPLE_SHOWN):
        indices = np.flatnonzero(training_set.labels == label)[:FACES_SHOWN]
        faces = [decode(training_set.read(i)[0], training_set.describe(i)) for i in indices.tolist()]
        rows.append((f"person {label}", faces))
    write_face_sheet(path, "People who do not exist", rows)
