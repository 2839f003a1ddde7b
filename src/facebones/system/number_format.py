"""Numbers as text, for people: one rounding for logs, tables, plots and the page."""

import math
from decimal import ROUND_HALF_UP, Decimal

FEWEST_DECIMALS, MOST_DECIMALS = 2, 4
MINUS = "\N{MINUS SIGN}"
SI_PREFIXES = ((1e9, " G"), (1e6, " M"), (1e3, " k"))


def is_number(text: str) -> bool:
    """Whether a text is a number to Python.

    >>> is_number("1e-3"), is_number("1.0.0")
    (True, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return True


def exact(value: float) -> str:
    """A number as short as it can be without being another one.

    >>> exact(0.03), exact(64.0), exact(0.1234567)
    ('0.03', '64', '0.1234567')
    """
    return short if float(short := f"{value:g}") == value else repr(value)


SMALLEST_DECIMAL = 1e-9


def small_rate(value: float) -> str:
    """A rate such as a FAR in decimals, whatever its size; a number beyond any use keeps its exponent.

    >>> small_rate(1e-5), small_rate(0.001), small_rate(1.0), small_rate(1e-300)
    ('0.00001', '0.001', '1', '1e-300')
    """
    return f"{Decimal(f'{value:g}'):f}" if SMALLEST_DECIMAL <= value <= 1 else f"{value:g}"


BEYOND_DECIMALS = 1e15  # a damaged file may say 1e300, which has no decimals


def rounded(value: float, decimals: int = FEWEST_DECIMALS) -> str:
    """A number with this many decimals; the half is rounded away from zero, as on the page of the report.

    What binary fractions add in the last digits is no part of the number: 0.66625 of 800 pairs is 66.63 %, whether it
    was counted or averaged.

    >>> rounded(66.625), rounded(66.62499999999999), rounded(-0.125), rounded(1e-9), rounded(math.nan), rounded(1e300)
    ('66.63', '66.63', '-0.13', '0.00', 'nan', '1e+300')
    """
    if not math.isfinite(value):
        return str(float(value))
    if abs(value) >= BEYOND_DECIMALS:
        return f"{value:.12g}"
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
