"""Numbers and metrics as text: the only place where a metric gets its display name and a rate its percent sign.

Everything else handles metrics as data: a name such as "tar", its operating point `at` such as {"far": 1e-4}, and the
protocol and set that it was measured on. A protocol that this module does not know is written from the same fields.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

MOST_LISTED = 4  # names in a sentence; a longer list is counted instead
FEWEST_DECIMALS, MOST_DECIMALS = 2, 4
MARKS = "best: the best of all; *: not significantly different from the best"
MINUS = "\N{MINUS SIGN}"
SI_PREFIXES = ((1e9, " G"), (1e6, " M"), (1e3, " k"))

METRICS = {
    "accuracy": "accuracy",
    "tar": "TAR at FAR {far:g}",
    "auc": "AUC",
    "eer": "EER",
    "rank": "Rank-{rank:g}",
    "tpir": "TPIR at FPIR {fpir:g}",
}
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
PROTOCOLS = {"pairs": "", "ijb_verification": "1:1", "ijb_identification": "1:N"}


def metric_words(metric: Any) -> str:
    """Display name of a metric, without its set.

    Args:
        metric: an object or a mapping with `name`, `at` and `rule`.

    >>> metric_words({"name": "tar", "at": {"far": 1e-4}, "rule": "strict"})
    'TAR at FAR 0.0001'
    >>> metric_words({"name": "rank", "at": {"rank": 1}}), metric_words({"name": "purity", "at": {"faces": 3}})
    ('Rank-1', 'purity at faces 3')
    """
    name, at, rule = (_field(metric, key) for key in ("name", "at", "rule"))
    suffix = "" if (rule or "") in USUAL_RULES or name not in METRICS else f", {rule}"
    try:
        return METRICS[name].format(**at) + suffix
    except (KeyError, ValueError):
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


def rounded(value: float, decimals: int = FEWEST_DECIMALS) -> str:
    """A number with this many decimals; the half is rounded away from zero, as on the page of the report.

    What binary fractions add in the last digits is no part of the number: 0.66625 of 800 pairs is 66.63 %, whether it
    was counted or averaged.

    >>> rounded(66.625), rounded(66.62499999999999), rounded(-0.125), rounded(1e-9), rounded(math.nan)
    ('66.63', '66.63', '-0.13', '0.00', 'nan')
    """
    if not math.isfinite(value):
        return str(float(value))
    exact = Decimal(f"{value:.12g}")
    return f"{exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP):f}"


def percent(rate: float, deviation: float | None = None) -> str:
    """A rate in percent, with its standard deviation if there is one.

    >>> percent(0.666), percent(0.9, 0.01)
    ('66.60 %', '90.00 % ± 1.00')
    """
    spread = "" if deviation is None else f" ± {rounded(100 * deviation)}"
    return f"{rounded(100 * rate)} %{spread}"


def percent_interval(value: float, low: float, high: float) -> str:
    """A rate and its confidence interval in percent: two decimals, or more if the interval is narrow.

    Raises:
        ValueError: the interval is empty or not a number.

    >>> percent_interval(0.97351, 0.96802, 0.97813)
    '97.35 % [96.80, 97.81]'
    >>> percent_interval(0.999731, 0.999702, 0.999758)
    '99.9731 % [99.9702, 99.9758]'
    """
    if not low <= high:
        raise ValueError(f"low, high: {low} to {high} is not an interval; give its lower end first")
    width = 100 * (high - low)
    wanted = 1 - math.floor(math.log10(width)) if width > 0 else FEWEST_DECIMALS  # two digits of the width
    decimals = min(max(wanted, FEWEST_DECIMALS), MOST_DECIMALS)
    middle, lowest, highest = (rounded(100 * rate, decimals) for rate in (value, low, high))
    return f"{middle} % [{lowest}, {highest}]"


def decimal(value: float, deviation: float | None = None) -> str:
    """A number that is not a rate, such as a loss.

    >>> decimal(6.0, 0.25)
    '6.0000 ± 0.2500'
    """
    return rounded(value, 4) + ("" if deviation is None else f" ± {rounded(deviation, 4)}")


def points(difference: float) -> str:
    """A difference of two rates in percentage points, signed; what rounds to zero has no sign.

    >>> points(0.01239), points(-0.00004)
    ('+1.24', '0.00')
    """
    text = rounded(100 * difference)
    if not text.strip("-0."):
        return "0.00"
    return text if text.startswith("-") else f"+{text}"


def p_words(p_value: float) -> str:
    """A p-value with as many digits as it can carry.

    >>> p_words(0.0312), p_words(0.00001)
    ('0.031', '< 0.0001')
    """
    return "< 0.0001" if p_value < 1e-4 else f"{p_value:.4f}" if p_value < 0.01 else f"{p_value:.3f}"


def short_number(value: float) -> str:
    """A large number with three digits and a prefix.

    >>> short_number(150e6), short_number(2e9), short_number(76_561_120), short_number(950)
    ('150 M', '2 G', '76.6 M', '950')
    """
    for size, prefix in SI_PREFIXES:
        if value >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


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
