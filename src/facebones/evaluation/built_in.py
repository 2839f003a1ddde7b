"""The protocols of this package by name: what command lines and `protocol` need to know before one is imported.

A new protocol is one file and one line here. With `help`, the command `facebones evaluate NAME` is made from that line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BuiltIn:
    """A protocol of ours, imported at its first use: evaluating pairs needs nothing of the others.

    Attributes:
        module: that registers it.
        may_hold: a quick test of a path, before the module is imported, unless the protocol is asked for by name.
        help: of its command, in one line; empty where the command is written out.
        folder: what `--data` takes, for the help.
        results: what `--output` gets beside NAME.json, likewise.
    """

    module: str
    may_hold: Callable[[Path], bool]
    help: str = ""
    folder: str = ""
    results: str = ""


def _is_ijb(path: Path) -> bool:
    return (path / "meta").is_dir()


def _has_any(*names: str) -> Callable[[Path], bool]:
    return lambda path: any((path / name).is_dir() for name in names)


BUILT_IN = {
    "pairs": BuiltIn("pairs", lambda _: True),
    "ijb_verification": BuiltIn("ijb_verification", _is_ijb),
    "ijb_identification": BuiltIn("ijb_identification", _is_ijb),
    "folder": BuiltIn("folder", lambda _: False),  # many folders hold faces of people
    "tinyface": BuiltIn(
        "tinyface",
        _has_any("Gallery_Match", "Testing_Set/Gallery_Match", "Gallery_Distractor", "Testing_Set/Gallery_Distractor"),
        help="search TinyFace's gallery and distractors with its probes",
        folder="the folder with Testing_Set, or an aligned copy of it",
        results="the features and CMC plots",
    ),
    "rfw": BuiltIn(
        "rfw",
        _has_any("txts/African", "test/txts/African", "txts/Caucasian", "test/txts/Caucasian"),
        help="verify the four groups of RFW, and say how unequal they are",
        folder="the folder with txts and data",
        results="scores and ROC plots",
    ),
    "megaface": BuiltIn(
        "megaface",
        _has_any("distractors", "megaface_images"),
        help="find known people among 10 to 1,000,000 distractors, as MegaFace does",
        folder="a folder with probes/PERSON and distractors",
        results="the features, and plots of Rank-1 and ROC",
    ),
}
