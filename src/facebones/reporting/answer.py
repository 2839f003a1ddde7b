"""The answer in words: which backbone for which budget, and what is not told apart from it, by stated rules."""

from collections.abc import Sequence
from dataclasses import dataclass

from facebones.reporting.results import Results


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a report begins with.

    Attributes:
        sentences: plain text, the most important first.
        rules: how they were made; plain text.
    """

    sentences: Sequence[str]
    rules: Sequence[str]


def answer(results: Results) -> Answer:
    """The answer that the figures give."""
    raise NotImplementedError
