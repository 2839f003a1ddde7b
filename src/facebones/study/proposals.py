"""What the trials of a tuning try, when one is stopped, and which is best; the samplers are Optuna's."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from facebones.errors import ConfigError
from facebones.reporting.tuning import DONE, FAILED
from facebones.study.tuning import Dimension
from facebones.study.vary import Fields
from facebones.system.number_format import exact

DIGITS = 3  # of a number that a trial draws
REDRAWS = 50  # until a trial differs from all before
RANDOM_TRIALS = 5  # before the sampler learns from them, trial 0 included
FIRST_FINISHED = 5  # trials, before one is stopped early


class Trial(NamedTuple):
    """What a trial has shown.

    Attributes:
        number: from 0.
        fields: what it sets, "section.field" to text; trial 0 sets nothing.
        accuracies: on the pairs of held-out people, one for each validation.
        state: DONE, STOPPED (it was worse than half of the others on its way) or FAILED.
    """

    number: int
    fields: Fields
    accuracies: Sequence[float]
    state: str = DONE


def propose(space: Mapping[str, Dimension], history: Sequence[Trial], seed: int) -> dict[str, str]:
    """What the next trial sets: the recipe's own values first, then what Optuna's TPE sampler draws.

    The same history and seed give the same proposal, in any process.

    Args:
        space: what can be set.
        history: the trials so far.
        seed: of the study's tuning.

    Raises:
        ConfigError: Optuna is not installed.
    """
    if not history:
        return {}
    tried = [_complete(trial.fields, space) for trial in history]
    for again in range(REDRAWS):
        fields = _draw(space, history, [seed, len(history), again])
        if fields not in tried:
            return fields
    # What the sampler likes best is tried already: take what is left, if all values can be listed.
    listed = itertools.product(*(one.texts() for one in space.values()))
    return next((left for texts in listed if (left := dict(zip(space, texts, strict=True))) not in tried), fields)


def _complete(fields: Fields, space: Mapping[str, Dimension]) -> dict[str, str]:
    """The text of every field of the space: the recipe's own where a trial sets none."""
    return {name: fields.get(name) or str(one.text_of(one.default)) for name, one in space.items()}


def _draw(space: Mapping[str, Dimension], history: Sequence[Trial], seeds: Sequence[int]) -> dict[str, str]:
    optuna = import_optuna()
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, Any] = {}
    for name, one in space.items():
        if one.choices:
            distributions[name] = CategoricalDistribution([*one.choices])
        elif one.whole:
            distributions[name] = IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            distributions[name] = FloatDistribution(one.low, one.high, log=one.log)
    seed = int(np.random.SeedSequence(seeds).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    state = optuna.trial.TrialState
    for trial in history:
        texts = _complete(trial.fields, space)
        study.add_trial(
            optuna.trial.create_trial(
                state=state.COMPLETE if trial.state == DONE else state.PRUNED,
                value=trial.accuracies[-1] if trial.state == DONE else None,
                params={name: text if space[name].choices else float(text) for name, text in texts.items()},
                distributions=distributions,
                # One without values is the worst to the sampler: what fails is not drawn again and again.
                intermediate_values=dict(enumerate(() if trial.state == FAILED else trial.accuracies)),
            )
        )
    drawn = study.ask(distributions).params
    return {name: value if space[name].choices else _rounded(value, space[name]) for name, value in drawn.items()}


def _rounded(value: float, dimension: Dimension) -> str:
    """A drawn number with few digits, inside its range."""
    if dimension.whole:
        return str(value)
    return exact(min(max(float(f"{value:.{DIGITS}g}"), dimension.low), dimension.high))


def import_optuna() -> Any:
    """Optuna, without its messages.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("tune: needs Optuna, which is not installed: pip install 'facebones[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def thresholds(history: Sequence[Trial], validations: int) -> list[float]:
    """What a trial's best accuracy must have reached at each validation but the last, not to be stopped.

    This is Optuna's MedianPruner: the median of the finished trials at the same validation, from the fifth on.

    >>> done = [Trial(number, {}, [0.1 * number, 0.9]) for number in range(5)]
    >>> thresholds(done, 2), thresholds(done[1:], 2)
    ([0.2], [])
    """
    finished = [trial.accuracies for trial in history if trial.state == DONE]
    if len(finished) < FIRST_FINISHED:
        return []
    shared = min(map(len, finished))  # of few steps, or a batch size of its own, a trial may have fewer
    return [statistics.median(one[place] for one in finished) for place in range(min(validations, shared) - 1)]


def best_trial(history: Sequence[Trial]) -> Trial | None:
    """The finished trial with the largest last accuracy, the first of equal ones; None if no trial has finished.

    >>> best_trial([Trial(0, {}, [0.6, 0.7]), Trial(1, {"a": "1"}, [0.9], "stopped early")]).number
    0
    """
    finished = [trial for trial in history if trial.state == DONE]
    return max(finished, key=lambda trial: trial.accuracies[-1]) if finished else None
