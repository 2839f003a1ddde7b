"""Result files of version 0.2.0.dev0 (format 1), translated into format 2; every other module reads only format 2.

Format 1 names a metric by its display text ("TAR at FAR 0.0001"), the parts of a study's evaluation by prefixes
("templates IJBC"), and has one layout for each protocol. It does not say by which version a file was written.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

LOWEST_MAIN_FAR = 1e-4
NAMES = (
    ("tar", "far", re.compile(r"TAR at FAR ([\d.e+-]+)\Z")),
    ("tpir", "fpir", re.compile(r"TPIR at FPIR ([\d.e+-]+)\Z")),
    ("rank", "rank", re.compile(r"Rank-(\d+)\Z")),
)
PLAIN_NAMES = {"accuracy": "accuracy", "AUC": "auc", "EER": "eer"}
PARTS = (  # prefix of a part's name, its kind, and the protocol
    ("pair set ", "set_left_out", None),
    ("pairs", "protocol", "pairs"),
    ("templates ", "protocol", "ijb_verification"),
    ("identification ", "protocol", "ijb_identification"),
    ("profile", "profile", None),
    ("model ", "model_left_out", None),
)


def translate_evaluation(content: Mapping[str, Any], file_name: str) -> dict[str, Any]:
    """The content of pairs.json, templates.json or identification.json in format 2.

    Raises:
        KeyError: or TypeError, AttributeError: the content is not that of format 1.
    """
    if file_name == "pairs.json":
        protocol, results = "pairs", [_pairs(section, content["models"]) for section in content["sets"]]
    elif file_name == "templates.json":
        protocol, results = "ijb_verification", [_verification(content, one) for one in content["verification"]]
    else:
        protocol, results = "ijb_identification", [_identification(content)]
    return {"format": 2, "protocol": protocol, "models": content["models"], "results": results}


def translate_study(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of study.json in format 2, as far as a report reads it.

    Raises:
        KeyError: or TypeError, AttributeError: the content is not that of format 1.
    """
    parts = [_part(name, part) for name, part in content["evaluation"].items()]
    return {**content, "format": 2, "evaluation": parts}


def _part(name: str, part: Mapping[str, Any]) -> dict[str, Any]:
    for prefix, kind, protocol in PARTS:
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            entry = {"kind": kind, **part}
            return entry | ({"protocol": protocol, "set": rest or None} if protocol else {"name": rest})
    raise KeyError(name)


def _pairs(section: Mapping[str, Any], models: Iterable[str]) -> dict[str, Any]:
    where = {"protocol": "pairs", "set": section["set"], "setting": ""}
    files = {model: f"{model}_{section['set']}_scores.npz" for model in section["models"]}
    return _result(where, section, {"roc": files})


def _verification(content: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    setting = section["name"].removeprefix(content["target"]).strip()
    return _result({"protocol": "ijb_verification", "set": Path(content["data"]).name, "setting": setting}, section, {})


def _identification(content: Mapping[str, Any]) -> dict[str, Any]:
    section = content["identification"]
    where = {"protocol": "ijb_identification", "set": Path(content["data"]).name, "setting": content["setting"]}
    return _result(where, section, {"cmc": {model: row["cmc"] for model, row in section["models"].items()}})


def _result(where: Mapping[str, str], section: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    metrics = [_metric(where, name, one) for name, one in section["figures"].items()]
    main = _main(where["protocol"], metrics)
    marked = [{**metric, "main": metric is main} for metric in metrics]
    return {**where, "metrics": marked, "details": section["models"], "curves": dict(curves)}


def _metric(where: Mapping[str, str], words: str, content: Mapping[str, Any]) -> dict[str, Any]:
    name, at = _identity(words)
    measured = content["values"] is not None
    return {
        **where,
        "name": name,
        "at": at,
        "rule": "strict" if name in ("tar", "tpir") else "",
        "higher_is_better": name != "eer",
        "chance": 0.5 if name == "accuracy" else None,
        "reason": None if measured else content["reason"],
        "values": content["values"] if measured else {},
        "intervals": content["intervals"] if measured else {},
        "comparisons": content["comparisons"] if measured else [],
        "best": content.get("best"),
        "not_different_from_best": content.get("not_different_from_best", []),
    }


def _identity(words: str) -> tuple[str, dict[str, float]]:
    """Name and operating point of a display name; an unknown one stays a name without an operating point.

    >>> _identity("TAR at FAR 0.0001"), _identity("Rank-5"), _identity("EER")
    (('tar', {'far': 0.0001}), ('rank', {'rank': 5}), ('eer', {}))
    """
    for name, key, pattern in NAMES:
        if found := pattern.match(words):
            try:
                return name, {key: int(found[1]) if key == "rank" else float(found[1])}
            except ValueError:
                break
    return PLAIN_NAMES.get(words, words), {}


def _main(protocol: str, metrics: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The metric by which backbones are chosen: accuracy, Rank-1, or TAR at the smallest measured FAR from 1e-4 on."""
    measured = [metric for metric in metrics if metric["values"]]
    if protocol == "ijb_verification":
        rates = [one for one in measured if one["name"] == "tar" and one["at"]["far"] >= LOWEST_MAIN_FAR]
        return min(rates, key=lambda metric: metric["at"]["far"], default=None)
    wanted = ("accuracy", {}) if protocol == "pairs" else ("rank", {"rank": 1})
    return next((metric for metric in measured if (metric["name"], metric["at"]) == wanted), None)
