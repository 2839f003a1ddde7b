"""All of it in a few minutes: synthetic faces, two small backbones by one recipe, both verified on unseen people."""

from pathlib import Path
from typing import Any

import numpy as np

from facebones.config import load_recipe
from facebones.data.folders import open_training_set
from facebones.data.images import decode
from facebones.data.synthetic import synthesize
from facebones.efficiency import describe_backbones
from facebones.evaluation.curves import RocCurve, roc
from facebones.evaluation.pairs import evaluate_pairs
from facebones.reporting.comparison_table import figure_cells
from facebones.reporting.curve_plots import plot_roc
from facebones.reporting.plots import plot_faces, plot_training
from facebones.run_folder import RunFolder
from facebones.tables import MARKS, print_table
from facebones.training.logs import read_metrics, say
from facebones.training.loop import resume, train

BACKBONES = ("shufflefacenet_0_5", "shufflefacenet_1_0")
IDENTITIES, IMAGES_PER_IDENTITY, PAIRS = 400, 10, 600
PEOPLE_SHOWN, FACES_SHOWN = 4, 10


def demo(output: Path, device: str = "auto") -> None:
    """Make data, train, verify, and leave a table and pictures.

    What an earlier call has finished in `output` is kept, and what it began is gone on with.

    Args:
        output: folder for faces, runs and pictures.
        device: "auto", "cpu", "cuda", ...
    """
    data = output / "faces"
    if not data.is_dir():
        say(str(synthesize(data, identities=IDENTITIES, images_per_identity=IMAGES_PER_IDENTITY, pairs=PAIRS)))
    runs = {name: output / "runs" / name for name in BACKBONES}
    for name, run in runs.items():
        _train_once(name, data, run, device)
    results = evaluate_pairs(runs, [data], output=output / "pairs", device=device)
    _draw_faces(data, output / "faces.png")
    plot_training({name: read_metrics(RunFolder(run).metrics) for name, run in runs.items()}, output / "training.png")
    plot_roc(_curves(output / "pairs", results), output / "roc.png", "Synthetic faces of unseen people")
    _print_comparison(results)
    for picture in ("faces.png", "training.png", "roc.png"):
        print(f"picture: {output / picture}")


def _train_once(name: str, data: Path, run: Path, device: str) -> None:
    """Train a backbone by the demo's recipe, or as much of it as is not yet done."""
    if RunFolder(run).result.is_file():
        say(f"{run}: is trained already")
    elif RunFolder(run).config.is_file():
        resume(run, device)
    else:
        train(load_recipe("demo", {"backbone.name": name, "data.path": str(data)}), run, device)


def _draw_faces(data: Path, path: Path) -> None:
    """A row of training images for each of a few people."""
    training_set = open_training_set(data)
    rows = []
    for label in range(PEOPLE_SHOWN):
        indices = np.flatnonzero(training_set.labels == label)[:FACES_SHOWN]
        rows.append([decode(training_set.read(i)[0], training_set.describe(i)) for i in indices.tolist()])
    plot_faces(rows, path, [f"person {label}" for label in range(PEOPLE_SHOWN)])


def _curves(folder: Path, results: dict[str, Any]) -> dict[str, RocCurve]:
    """The ROC of each backbone on each pair set, from the scores that the evaluation has written."""
    curves = {}
    for section in results["sets"]:
        for name in results["models"]:
            with np.load(folder / f"{name}_{section['set']}_scores.npz") as scores:
                curves[f"{name}, {section['set']}"] = roc(-scores["distance"], scores["is_same"])
    return curves


def _print_comparison(results: dict[str, Any]) -> None:
    """Print cost and accuracy; the star and the intervals say whether the difference is real."""
    models, sections = list(results["models"]), results["sets"]
    costs = [describe_backbones(name)[0] for name in models]
    cells = [figure_cells(section["figures"]["accuracy"], models) for section in sections]
    rows = [
        (name, f"{cost['parameters']:,}", f"{cost['macs'] / 1e6:.1f} M", *accuracies)
        for name, cost, *accuracies in zip(models, costs, *cells, strict=True)
    ]
    columns = ("backbone", "parameters", "MACs", *(f"{section['set']}: accuracy [95 %]" for section in sections))
    print_table(columns, rows, title="Unseen synthetic people, ten folds (chance is 50 %)")
    print(MARKS)
