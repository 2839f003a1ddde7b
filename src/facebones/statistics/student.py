"""Student's t distribution for whole degrees of freedom, without scipy.

Source: M. Abramowitz and I. A. Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
"""

import math

import numpy as np

MOST_DEGREES = 10_000  # from here on the normal distribution is the same to four digits


def two_sided_p(t: float, degrees: int) -> float:
    """Probability that |T| >= |t|.

    Below 1e-14 it is rough, and never less than the normal distribution's.

    Raises:
        ValueError: no degrees of freedom.

    >>> round(two_sided_p(2.228139, 10), 6)
    0.05
    """
    if degrees < 1:
        raise ValueError(f"degrees of freedom: {degrees}; give 1 or more")
    normal = math.erfc(abs(t) / math.sqrt(2))
    if degrees > MOST_DEGREES or math.isinf(t):
        return normal
    return min(max(1.0 - _inside(abs(t), degrees), normal), 1.0)


def quantile(level: float, degrees: int) -> float:
    """Bound t with P(|T| < t) = level, by bisection.

    Raises:
        ValueError: a level outside 0 to 1, or no degrees of freedom.

    >>> round(quantile(0.95, 10), 4)
    2.2281
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level: {level}; give a number between 0 and 1, such as 0.95")
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > 1.0 - level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > 1.0 - level else (low, middle)
    return (low + high) / 2


def _inside(t: float, degrees: int) -> float:
    """P(|T| < t): a finite series in the cosine of the angle atan(t / sqrt(degrees))."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    step = np.arange(2 + odd, degrees, 2)  # even: 2, 4, ...; odd: 3, 5, ...
    ratios = (step - 1) / step * cosine**2
    series = 1.0 + float(np.sum(np.cumprod(ratios)))
    if not odd:
        return sine * series
    return 2 / math.pi * (angle + (sine * cosine * series if degrees > 1 else 0.0))
