"""docs/backbones.md: all backbones with their cost, and the published study's table beside what its code builds."""

from collections.abc import Iterable, Mapping
from typing import Any

from facebones.backbones.catalogue import read_catalogue
from facebones.reporting.console import markdown_table

# Table 1 of the published study: its name of the backbone, its GFLOPs, its millions of parameters.
STUDY_TABLE = (
    ("r100", 24.255, 65.156),
    ("r50", 12.667, 43.590),
    ("r18", 5.252, 24.025),
    ("mbf", 0.904, 2.060),
    ("sfn0_5", 0.023, 0.455),
    ("sfn1_0", 0.212, 2.889),
    ("sfn1_5", 0.098, 1.524),
    ("sfn2_0", 0.396, 5.918),
    ("mfn_xs", 0.007, 1.038),
    ("mfn_s", 0.018, 1.602),
    ("mfn_m", 0.020, 1.924),
    ("smfn_xs", 0.007, 1.038),
    ("smfn_s", 0.018, 1.602),
    ("smfn_m", 0.020, 1.924),
)
SWAPPED = {"sfn1_0": "sfn1_5", "sfn1_5": "sfn1_0"}
PRINTED_MILLIONS = 1e-3  # the last digit of its parameters, some of which are rounded and some cut

INTRODUCTION = """\
# Backbones

Made by `facebones backbones --markdown`; a test holds it to be up to date. 512-d embeddings, 112x112 input, one image.
MACs are the multiply-accumulates of convolutions and linear layers; FLOPs = 2 x MACs. Unused parameters are those that
the output does not depend on: they never get a gradient, and are part of the parameters.
"""

STUDY = """\
## The published study's table beside its code

The study that this project takes up again printed this table of 14 backbones. Reproduced means: the network that its
code builds under that name has the printed number of parameters, to the last digit printed. Its GFLOPs are twice what
ptflops counts by default, which adds batch normalisation and activations to the multiply-accumulates; so ours, without
them, are lower, and for the reproduced rows ptflops' own count agrees with the study's to the last digit.
"""

CONCLUSION = """\
- **{reproduced} of {all} rows are reproduced.** The ShuffleFaceNet rows are not: its published code builds larger
  networks than those it printed.
- **Two names are swapped:** `sfn1_0` builds the network of width 1.5, and `sfn1_5` that of width 1.0; so are the two
  printed rows. Files of the study load under its own names.
- **{foreign} of the networks are not the papers'.** Its ShuffleFaceNets shrink the map by a max-pool after the stem.
  Its MixFaceNets have no expansion and shrink the map to 2x2, so that the papers' head cannot run: it is built, counted
  among the parameters, and never used. The papers' networks are `shufflefacenet_*`, `mixfacenet_*` and
  `shufflemixfacenet_*` in the table above, and do {least:.1f} to {most:.0f} times the multiply-accumulates.
"""


def backbones_page() -> str:
    """The whole page, as Markdown."""
    rows = {row["name"]: row for row in read_catalogue()}
    called = {known: row for row in rows.values() for known in (row["name"], *row["aliases"])}
    study = [_compare(name, gflops, millions, called[name]) for name, gflops, millions in STUDY_TABLE]
    shares = [_macs_share(row["network"], rows) for row in study if _is_foreign(row["network"])]
    conclusion = CONCLUSION.format(
        reproduced=sum(row["reproduced"] for row in study),
        all=len(study),
        foreign=len(shares),
        least=min(shares),
        most=max(shares),
    )
    return "\n".join([INTRODUCTION, _backbone_table(rows.values()), STUDY, _study_table(study), conclusion])


def _compare(name: str, gflops: float, millions: float, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "network": row["name"],
        "printed": (f"{gflops:.3f}", f"{millions:.3f}"),
        "counted": (f"{2 * row['macs'] / 1e9:.3f}", f"{row['parameters']:,}", f"{row['unused_parameters']:,}"),
        "reproduced": abs(row["parameters"] / 1e6 - millions) < PRINTED_MILLIONS,
    }


def _is_foreign(network: str) -> bool:
    return network.startswith("study_")


def _macs_share(network: str, rows: dict[str, dict[str, Any]]) -> float:
    """How many times the multiply-accumulates of the study's network the paper's has."""
    return float(rows[network.removeprefix("study_")]["macs"] / rows[network]["macs"])


def _backbone_table(rows: Iterable[dict[str, Any]]) -> str:
    columns = ("backbone", "parameters", "unused", "MACs", "also called", "what it is")
    cells = [
        (
            f"`{row['name']}`",
            f"{row['parameters']:,}",
            f"{row['unused_parameters']:,}",
            f"{row['macs'] / 1e6:,.2f} M",
            ", ".join(f"`{alias}`" for alias in row["aliases"]),
            row["summary"],
        )
        for row in rows
    ]
    return markdown_table(columns, cells, right=(1, 2, 3))


def _study_table(study: Iterable[dict[str, Any]]) -> str:
    columns = ("its name", "our name", "printed GFLOPs", "2 x MACs, G", "printed M", "parameters", "unused", "verdict")
    cells = [
        (
            f"`{row['name']}`",
            f"`{row['network']}`",
            row["printed"][0],
            row["counted"][0],
            row["printed"][1],
            *row["counted"][1:],
            _verdict(row),
        )
        for row in study
    ]
    return markdown_table(columns, cells, right=(2, 3, 4, 5, 6))


def _verdict(row: dict[str, Any]) -> str:
    parts = ["reproduced" if row["reproduced"] else "not reproduced"]
    if other := SWAPPED.get(row["name"]):
        parts.append(f"swapped with `{other}`")
    if _is_foreign(row["network"]):
        parts.append("not the paper's network")
    return "; ".join(parts)
