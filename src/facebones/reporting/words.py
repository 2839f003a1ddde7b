"""Metrics as text: the only place where a metric gets its display name.

Everything else handles metrics as data: a name such as "tar", its operating point `at` such as {"far": 1e-4}, and the
protocol and set that it was measured on. A protocol that this module does not know is written from the same fields.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from facebones.system.number_format import percent, percent_interval, small_rate

MOST_LISTED = 4  # names in a sentence; a longer list is counted instead
BUSY = "busy"  # beside a latency that was measured while the machine did other work
MARKS = "best: the best of all; *: not significantly different from the best"

METRICS = {
    "accuracy": "accuracy",
    "tar": "TAR at FAR {far}",
    "auc": "AUC",
    "eer": "EER",
    "rank": "Rank-{rank:g}",
    "tpir": "TPIR at FPIR {fpir}",
    "map": "mAP",
    "fnmr": "FNMR at {discarded:g} discarded",
    "pauc": "pAUC to {discarded:g}",
    "group_deviation": "standard deviation between groups",
    "rank_among": "Rank-{rank:g} among {distractors:,.0f} distractors",
}
FALSE_RATES = ("far", "fpir")
USUAL_RULES = ("", "strict")  # any other rule is part of the display name
DETAILS = {
    "accuracy_std": "std over folds",
    "one_kind_folds": "folds of one kind",
    "tar_at_far_1e3": "TAR at FAR 0.001 as published",
    "tar_at_far_1e3_std": "its std",
    "far": "FAR",
    "far_reached": "FAR reached",
    "published": "TAR as published",
    "strict": "TAR strict",
    "fpir": "FPIR",
    "tpir": "TPIR",
    "auc": "AUC",
    "eer": "EER",
    "xnorm": "XNorm",
}
# Details in percent, as the metrics are. False accept rates are small, and stay fractions.
RATES = ("accuracy_std", "tar_at_far_1e3", "tar_at_far_1e3_std", "published", "strict", "tpir")
PROTOCOLS = {
    "pairs": "",
    "rfw": "",
    "folder": "all pairs",
    "ijb_verification": "1:1",
    "ijb_identification": "1:N",
    "tinyface": "1:N",
    "megaface": "1:N",
}


def metric_words(metric: Any) -> str:
    """Display name of a metric, without its set.

    Args:
        metric: an object or a mapping with `name`, `at` and `rule`.

    >>> metric_words({"name": "tar", "at": {"far": 1e-4}, "rule": "strict"})
    'TAR at FAR 0.0001'
    >>> metric_words({"name": "tpir", "at": {"fpir": 1e-5}, "rule": ""})
    'TPIR at FPIR 0.00001'
    >>> metric_words({"name": "rank", "at": {"rank": 1}}), metric_words({"name": "purity", "at": {"faces": 3}})
    ('Rank-1', 'purity at faces 3')
    """
    name, at, rule = (_field(metric, key) for key in ("name", "at", "rule"))
    suffix = "" if (rule or "") in USUAL_RULES or name not in METRICS else f", {rule}"
    try:
        shown = {key: small_rate(value) if key in FALSE_RATES else value for key, value in at.items()}
        return METRICS[name].format(**shown) + suffix
    except (KeyError, TypeError, ValueError):
        return " ".join([name, *(f"at {key} {_plain(value)}" for key, value in (at or {}).items())])


def set_words(section: Any) -> str:
    """Display name of an evaluated set.

    Args:
        section: an object or a mapping with `protocol`, `set` and `setting`.

    >>> set_words({"protocol": "pairs", "set": "lfw", "setting": ""})
    'lfw'
    >>> set_words({"protocol": "ijb_verification", "set": "IJBC", "setting": "N1D1F1"})
    'IJBC N1D1F1 1:1'
    """
    protocol = _field(section, "protocol")
    return " ".join(
        filter(None, [_field(section, "set"), _field(section, "setting"), PROTOCOLS.get(protocol, protocol)])
    )


def metric_title(metric: Any) -> str:
    """Display name of a metric with its set.

    >>> metric_title({"protocol": "pairs", "set": "lfw", "name": "accuracy", "at": {}})
    'lfw accuracy'
    """
    return f"{set_words(metric)} {metric_words(metric)}"


def headline(metrics: Iterable[Any]) -> list[Any]:
    """Of the metrics of one set, those that tables show first: the main ones, and the TAR at the lowest FAR measured.

    Args:
        metrics: objects or mappings with `name`, `at`, `main` and `values`.

    >>> rates = [{"name": "tar", "at": {"far": far}, "main": False, "values": {"a": 0.9}} for far in (1e-3, 1e-2)]
    >>> accuracy = {"name": "accuracy", "at": {}, "main": True, "values": {"a": 0.9}}
    >>> [metric_words({**one, "rule": ""}) for one in headline([*rates, accuracy])]
    ['accuracy', 'TAR at FAR 0.001']
    """
    measured = [metric for metric in metrics if _field(metric, "values")]
    main = [metric for metric in measured if _field(metric, "main")]
    rates = [metric for metric in measured if _field(metric, "name") == "tar" and "far" in _field(metric, "at")]
    lowest = min(rates, key=lambda metric: _field(metric, "at")["far"], default=None)
    return main if not main or lowest is None or lowest in main else [*main, lowest]


def detail_words(key: str) -> str:
    """Display name of what else a protocol tells, beside its metrics.

    >>> detail_words("far_reached"), detail_words("faces_found")
    ('FAR reached', 'faces found')
    """
    return DETAILS.get(key, key.replace("_", " "))


def _field(record: Any, key: str) -> Any:
    return record.get(key, "") if isinstance(record, Mapping) else getattr(record, key)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


# -------------------------------------------------------------------------------------------------------- numbers


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; a long list is cut and counted.

    >>> listed(["a"]), listed(["a", "b", "c"]), listed(list("abcdefg"))
    ('a', 'a, b and c', '7 (a, b, c, d ...)')
    """
    if len(names) > MOST_LISTED:
        return f"{len(names)} ({', '.join(names[:MOST_LISTED])} ...)"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def spread_words(spread: Any) -> str:
    """A metric of a backbone: over several seeds with its deviation, of one seed with its interval.

    Args:
        spread: an object with `mean`, `deviation`, `low` and `high`, such as `results.Spread`.
    """
    if spread.deviation is None and spread.low is not None and spread.high is not None:
        return percent_interval(spread.mean, spread.low, spread.high)
    return percent(spread.mean, spread.deviation)


def mark_best(cells: Sequence[str], best: int, alike: Sequence[bool]) -> list[str]:
    """Mark the best cell of a column, and those not significantly different from it with a star; see MARKS.

    Args:
        cells: texts of the column.
        best: index of the best.
        alike: of each cell, whether it was tested and is not significantly different from the best; that of the best
            itself does not matter.

    >>> mark_best(["99.1 %", "99.3 %", "95.0 %"], 1, [True, True, False])
    ['99.1 % *', '99.3 % best', '95.0 %']
    """
    marks = ["best" if index == best else "*" if same else "" for index, same in enumerate(alike)]
    return [f"{cell} {mark}".rstrip() for cell, mark in zip(cells, marks, strict=True)]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A table in Markdown; the columns with the indices `right` are right-aligned.

    >>> print(markdown_table(("name", "size"), [("a", "1")], right=(1,)))
    | name | size |
    |---|--:|
    | a | 1 |
    <BLANKLINE>
    """
    rule = "|".join("--:" if number in right else "---" for number in range(len(columns)))
    lines = [f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
