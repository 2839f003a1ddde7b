"""Learning rates as pure functions of the step, so that a resumed run needs no state for them.

A step is one update of the optimizer, over all its accumulated forward passes.
"""

import math
from collections.abc import Callable, Sequence

from facebones.errors import ConfigError
from facebones.recipe import ScheduleConfig

Schedule = Callable[[int], float]


def polynomial_decay(progress: float, power: float) -> float:
    """Factor that falls from 1 at progress 0 to 0 at progress 1: (1 - progress) ** power.

    >>> polynomial_decay(0.5, power=2)
    0.25
    """
    return float((1.0 - progress) ** power)


def cosine_decay(progress: float) -> float:
    """Factor that falls from 1 at progress 0 to 0 at progress 1 along half a cosine (arXiv 1608.03983).

    >>> round(cosine_decay(0.5), 6)
    0.5
    """
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def step_decay(epoch: float, milestones: Sequence[float], factor: float) -> float:
    """Factor that is multiplied by `factor` at each milestone, in epochs.

    >>> step_decay(12.0, milestones=[10, 18], factor=0.1)
    0.1
    """
    return float(factor ** sum(epoch >= milestone for milestone in milestones))


def build_schedule(config: ScheduleConfig, learning_rate: float, steps_per_epoch: int, epochs: int) -> Schedule:
    """The learning rate of step 0, 1, ... steps_per_epoch * epochs - 1.

    The first step of a warm-up has a rate above 0. The decay runs over the steps after the warm-up.

    Raises:
        ConfigError: a warm-up as long as the training, or `step` without milestones.
    """
    total, warmup = steps_per_epoch * epochs, round(config.warmup_epochs * steps_per_epoch)
    if warmup >= total:
        given = f"schedule.warmup_epochs {config.warmup_epochs:g}"
        raise ConfigError(f"{given} leaves nothing of training.epochs {epochs}; give a shorter warm-up or more epochs")
    if config.name == "step" and not config.milestones:
        raise ConfigError("schedule.name step needs schedule.milestones, the epochs at which the rate falls: 10,16")

    def schedule(step: int) -> float:
        if step < warmup:
            return learning_rate * (step + 1) / warmup
        progress = (step - warmup) / (total - warmup)
        if config.name == "polynomial":
            return learning_rate * polynomial_decay(progress, config.power)
        if config.name == "cosine":
            return learning_rate * cosine_decay(progress)
        return learning_rate * step_decay(step / steps_per_epoch, config.milestones, config.factor)

    return schedule
