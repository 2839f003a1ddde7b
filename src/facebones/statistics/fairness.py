"""Indices of how unequally a model treats groups of people, from their error rates at one threshold.

FMR is the false match rate (impostor pairs accepted), FNMR the false non-match rate (genuine pairs rejected), of pairs
within a group. Of G groups, with alpha the weight of the FMR:

* largest difference: max - min; largest ratio: max / min, each of the FMR and of the FNMR.
* Fairness Discrepancy Rate, FDR = 1 - (alpha A + (1 - alpha) B), A and B the largest differences. 1 is equal.
* Inequity Rate, IR = A^alpha B^(1 - alpha), A and B the largest ratios. 1 is equal.
* GARBE = alpha A + (1 - alpha) B, A and B the Gini coefficients of the rates, each sum_ij |x_i - x_j| / (2 G^2 mean),
  times G / (G - 1), so that the largest value is 1 for any number of groups. 0 is equal.

A ratio with a rate of 0 is infinite, and the Gini coefficient of nothing but 0 is 0 / 0: the data has too few pairs.
`undefined` says so.

Sources: T. de Freitas Pereira and S. Marcel, "Fairness in biometrics" (arXiv 2011.02395), for the FDR; P. Grother,
"Face Recognition Vendor Test, Part 8: Summarizing demographic differentials" (NIST IR 8429), and J. J. Howard et al.,
"Evaluating proposed fairness models for face recognition algorithms" (arXiv 2203.05051), for the IR; the latter for
GARBE. ISO/IEC 19795-10:2024 is the standard for tests of demographic groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

ALPHA = 0.5  # weight of the FMR, as in the sources


def largest_difference(rate_G: npt.ArrayLike) -> FloatArray:
    """The highest rate minus the lowest, over the last axis.

    >>> float(largest_difference([0.01, 0.02, 0.04]).round(4))
    0.03
    """
    rate = np.asarray(rate_G, dtype=np.float64)
    return np.asarray(rate.max(axis=-1) - rate.min(axis=-1))


def largest_ratio(rate_G: npt.ArrayLike) -> FloatArray:
    """The highest rate divided by the lowest, over the last axis; infinite where the lowest is 0, 1 where all are.

    >>> float(largest_ratio([0.01, 0.02, 0.04]))
    4.0
    """
    rate = np.asarray(rate_G, dtype=np.float64)
    high, low = rate.max(axis=-1), rate.min(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(high > 0, high / low, 1.0))


def gini(rate_G: npt.ArrayLike) -> FloatArray:
    """The Gini coefficient of G >= 2 rates, times G / (G - 1), over the last axis; 0 where all are 0.

    >>> float(gini([0.01, 0.03]).round(4)), float(gini([0.0, 0.0, 0.2]))
    (0.5, 1.0)
    """
    rate = np.asarray(rate_G, dtype=np.float64)
    groups, total = rate.shape[-1], rate.sum(axis=-1)
    apart = np.abs(rate[..., :, None] - rate[..., None, :]).sum(axis=(-2, -1))
    return np.asarray(np.divide(apart, 2 * (groups - 1) * total, out=np.zeros_like(total), where=total > 0))


def fairness_discrepancy_rate(fmr_G: npt.ArrayLike, fnmr_G: npt.ArrayLike, alpha: float = ALPHA) -> FloatArray:
    """FDR, over the last axis.

    >>> float(fairness_discrepancy_rate([0.01, 0.03], [0.1, 0.2]).round(4))
    0.94
    """
    return np.asarray(1 - (alpha * largest_difference(fmr_G) + (1 - alpha) * largest_difference(fnmr_G)))


def inequity_rate(fmr_G: npt.ArrayLike, fnmr_G: npt.ArrayLike, alpha: float = ALPHA) -> FloatArray:
    """IR, over the last axis; infinite where a lowest rate is 0.

    >>> float(inequity_rate([0.01, 0.08], [0.1, 0.2]).round(4))
    4.0
    """
    return np.asarray(largest_ratio(fmr_G) ** alpha * largest_ratio(fnmr_G) ** (1 - alpha))


def garbe(fmr_G: npt.ArrayLike, fnmr_G: npt.ArrayLike, alpha: float = ALPHA) -> FloatArray:
    """GARBE, over the last axis.

    >>> float(garbe([0.01, 0.03], [0.1, 0.1]).round(4))
    0.25
    """
    return np.asarray(alpha * gini(fmr_G) + (1 - alpha) * gini(fnmr_G))


@dataclass(frozen=True, kw_only=True)
class Index:
    """An index as a row of a table.

    Attributes:
        name: key in result files.
        needs: the kinds of rates that it takes, in order: "fmr", "fnmr".
        of: the function of these rates (..., G).
        is_ratio: whether a rate of 0 leaves it without a value.
        equal: its value where all groups are alike.
    """

    name: str
    needs: tuple[str, ...]
    of: Callable[..., FloatArray]
    is_ratio: bool = False
    equal: float = 0.0


INDICES = (
    Index(name="fmr_difference", needs=("fmr",), of=largest_difference),
    Index(name="fmr_ratio", needs=("fmr",), of=largest_ratio, is_ratio=True, equal=1.0),
    Index(name="fnmr_difference", needs=("fnmr",), of=largest_difference),
    Index(name="fnmr_ratio", needs=("fnmr",), of=largest_ratio, is_ratio=True, equal=1.0),
    Index(name="fdr", needs=("fmr", "fnmr"), of=fairness_discrepancy_rate, equal=1.0),
    Index(name="ir", needs=("fmr", "fnmr"), of=inequity_rate, is_ratio=True, equal=1.0),
    Index(name="garbe", needs=("fmr", "fnmr"), of=garbe),
)


def undefined(index: Index, rates: dict[str, Any], groups: Sequence[str]) -> str | None:
    """Why an index of these rates cannot be given, or None.

    Args:
        index: which.
        rates: kind -> (G,) rates.
        groups: (G,) names.

    >>> undefined(INDICES[1], {"fmr": np.array([0.0, 0.1])}, ["young", "old"])
    'no error in young: a ratio to 0 has no value'
    """
    for kind in index.needs:
        clean = [name for name, rate in zip(groups, rates[kind], strict=True) if rate == 0]
        if index.is_ratio and clean:
            return f"no error in {', '.join(clean)}: a ratio to 0 has no value"
        if index.of is garbe and len(clean) == len(groups):
            return f"no error of {kind.upper()} in any group: the Gini coefficient of rates of 0 has no value"
    return None
