"""What is compared: a variant is a backbone and, where recipes differ, its level of each factor.

A factor is something that differs between the recipes of one backbone: named levels of a study (`vary:`), or a field
in which run folders differ. A variant's runs differ only in their seed.
"""

from collections.abc import Iterable, Mapping

Levels = Mapping[str, str]  # factor to level
BACKBONE = "backbone"  # the factor that every comparison has
TRUTHS = ("true", "false", "yes", "no", "none", "null", "on", "off")


def level_words(factor: str, level: str) -> str:
    """A level where its factor is not named: a number or a truth value says what it is of.

    >>> level_words("loss", "adaface"), level_words("optimizer.learning_rate", "0.03")
    ('adaface', 'learning_rate 0.03')
    """
    return level if _speaks_for_itself(level) else f"{factor.rpartition('.')[2]} {level}"


def _speaks_for_itself(level: str) -> bool:
    return any(letter.isalpha() for letter in level) and not _is_number(level) and level.lower() not in TRUTHS


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def variant_name(backbone: str, levels: Levels) -> str:
    """A variant in tables, plots and sentences.

    >>> variant_name("mobilefacenet", {})
    'mobilefacenet'
    >>> variant_name("mobilefacenet", {"loss": "adaface", "optimizer.learning_rate": "0.03"})
    'mobilefacenet (adaface, learning_rate 0.03)'
    """
    words = ", ".join(level_words(factor, level) for factor, level in levels.items())
    return f"{backbone} ({words})" if words else backbone


def several_levels(levels: Iterable[Levels]) -> list[str]:
    """The factors that have more than one level; to have none of a factor's levels is one, too.

    >>> several_levels([{"loss": "arcface", "data": "all"}, {"loss": "adaface", "data": "all"}])
    ['loss']
    """
    levels = list(levels)
    factors = dict.fromkeys(factor for one in levels for factor in one)
    return [factor for factor in factors if len({one.get(factor) for one in levels}) > 1]
