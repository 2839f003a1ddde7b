"""`seeds: auto`: one seed after the other for all levels, until a difference of so many points would be found.

What decides is the spread between seeds, never whether the difference seen so far is significant: who looks after each
seed and stops at p <= 0.05 finds differences among equals several times as often as the test promises. Nothing but the
finished runs in the study's folder decides, so that a study that was killed goes on as it would have.
"""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facebones.errors import ConfigError, some
from facebones.statistics.seed_power import SeedNoise, detectable_difference, seed_noise, seed_power, seeds_needed
from facebones.study.planned_run import DONE, TO_DO, PlannedRun
from facebones.study.study import FIRST_SEEDS, AutoSeeds, Study

if TYPE_CHECKING:
    from facebones.study.plan import Plan

ALONE = "give the seeds as numbers, or the plain command on each machine"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a study with so many seeds gets one more.

    Attributes:
        seeds: of each level, so far.
        more: whether there is to be one more.
        why: in words.
        set: whose accuracy decides; empty before all runs are done.
        levels: the two that vary most between seeds.
        deviation: their pooled standard deviation between seeds, in points; None if it is not known.
        upper: its upper confidence limit, in points.
        power: of finding the wanted difference between them, if the deviation is at that limit.
        detectable: the smallest difference that would be found with the wanted power, in points, at that limit.
        verdict: the end of `why`: what follows from these numbers.
    """

    seeds: int
    more: bool
    why: str
    set: str = ""
    levels: Sequence[str] = ()
    deviation: float | None = None
    upper: float | None = None
    power: float | None = None
    detectable: float | None = None
    verdict: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return all attributes."""
        return asdict(self)


def seeds_so_far(whole: "Plan") -> "Plan":
    """The part of a plan with all seeds that has been reached; the plan itself where `seeds` are numbers.

    Rounds that have begun belong to it, whatever would be decided now.
    """
    if whole.study.auto_seeds is None:
        return whole
    seeds = FIRST_SEEDS
    while seeds < len(whole.study.seeds) and (_has_begun(whole, seeds) or decide(whole, seeds).more):
        seeds += 1
    return _with_seeds(whole, seeds)


def next_round(whole: "Plan", plan: "Plan") -> tuple["Plan", Decision] | None:
    """What is decided when all trainings of a plan have ended, and the plan for it; None where `seeds` are numbers."""
    if whole.study.auto_seeds is None:
        return None
    decision = decide(whole, len(plan.study.seeds))
    return _with_seeds(whole, decision.seeds + decision.more), decision


def decisions(plan: "Plan") -> list[Decision]:
    """What was decided so far, round by round, as it would be decided today."""
    return [decide(plan, seeds) for seeds in range(FIRST_SEEDS, len(plan.study.seeds) + 1)]


def decide(plan: "Plan", seeds: int) -> Decision:
    """Whether the finished runs of the first seeds call for one more."""
    settings = plan.study.auto_seeds or AutoSeeds()
    runs = [run for run in plan.runs if run.seed < seeds]
    if waiting := [run.name for run in [*runs, *plan.ahead] if run.state != DONE]:
        return Decision(seeds=seeds, more=False, why=f"{seeds} seeds: not decided before {some(waiting)} is done")
    chosen = measured_set(plan)
    levels = _accuracies(runs, chosen)
    if not all(len(values) == seeds for values in levels.values()):
        return Decision(
            seeds=seeds, more=False, why=f"{seeds} seeds: not decided, for a run has no accuracy on {chosen}"
        )
    names, noise = _noisiest(levels, settings.confidence)
    if not noise.deviation:
        reason = f"{seeds} seeds: not decided, for {chosen} accuracy is the same for all seeds of a level"
        return Decision(seeds=seeds, more=False, why=f"{reason}; name a set that is larger or harder (auto_seeds.set)")
    wanted, upper = settings.difference, 100 * noise.upper
    power = seed_power(wanted, upper, seeds)
    found = (
        f"{seeds} seeds: {chosen} accuracy varies by {100 * noise.deviation:.2f} points between seeds of"
        f" {' and '.join(names)}, or up to {upper:.2f}; then a difference of {wanted:g} points would be found with"
        f" {100 * power:.0f} % power"
    )
    verdict, more = _verdict(plan, runs, seeds, enough=power >= settings.power, upper=upper)
    return Decision(
        seeds=seeds,
        more=more,
        why=f"{found}; {verdict}",
        set=chosen,
        levels=names,
        deviation=100 * noise.deviation,
        upper=upper,
        power=power,
        detectable=detectable_difference(upper, seeds, power=settings.power),
        verdict=verdict,
    )


def _verdict(plan: "Plan", runs: Sequence[PlannedRun], seeds: int, *, enough: bool, upper: float) -> tuple[str, bool]:
    """In words what follows, and whether it is another seed."""
    settings = plan.study.auto_seeds or AutoSeeds()
    if enough:
        return f"that is enough ({100 * settings.power:g} %)", False
    needed = seeds_needed(settings.difference, upper, power=settings.power)
    about = "more than 1,000" if needed is None else f"about {needed}"
    if seeds >= settings.most:
        return f"not enough, but {seeds} seeds are the most (auto_seeds.most); it would take {about}", False
    if settings.hours:
        spent = _hours(runs)
        if spent is None:
            return "not enough, but runs do not tell their hours, which are limited (auto_seeds.hours)", False
        if spent * (seeds + 1) / seeds > settings.hours:
            after = f"{spent * (seeds + 1) / seeds:.1f} hours"
            return f"not enough, but one seed more would make {after} of training (auto_seeds.hours)", False
    return f"one seed more of up to {settings.most}; it would take {about}", True


def measured_set(plan: "Plan") -> str:
    """The name of the validation set that decides.

    Raises:
        ConfigError: the trainings do not validate on it, or on none at all.
    """
    names = [Path(name).name.removesuffix(".bin") for name in plan.study.resolved_recipe().validation.sets]
    wanted = plan.study.auto_seeds.set if plan.study.auto_seeds else ""
    if not names:
        raise ConfigError("seeds: auto: needs a set that the trainings validate on; name one by pair_sets")
    if wanted and wanted not in names:
        raise ConfigError(f"auto_seeds.set: {wanted} is no validation set of the study; name one of {some(names)}")
    return wanted or names[0]


def check_auto_seeds(plan: "Plan") -> None:
    """Refuse before any training what could not be decided after it.

    Raises:
        ConfigError: no set decides, or there are no two levels.
    """
    if plan.study.auto_seeds is None:
        return
    measured_set(plan)
    if len({run.variant for run in [*plan.runs, *plan.ahead]}) < 2:
        raise ConfigError(
            "seeds: auto: needs two backbones or levels to compare; add one, or give the seeds as numbers"
        )


def refuse_auto_seeds(study: Study, option: str) -> None:
    """Raise ConfigError for an option of a process that does not see the end of all trainings."""
    if study.auto_seeds is not None:
        raise ConfigError(
            f"{option}: does not go with seeds: auto, which decides when all trainings have ended; {ALONE}"
        )


def _has_begun(whole: "Plan", seed: int) -> bool:
    return any(run.state != TO_DO for run in whole.runs if run.seed == seed)


def _with_seeds(whole: "Plan", seeds: int) -> "Plan":
    study = replace(whole.study, seeds=whole.study.seeds[:seeds])
    runs, ahead = ([run for run in part if run.seed < seeds] for part in (whole.runs, whole.ahead))
    return replace(whole, study=study, runs=runs, ahead=ahead)


def _accuracies(runs: Sequence[PlannedRun], chosen: str) -> dict[str, list[float]]:
    """The last accuracy of each run of each level; levels that are the same trainings count once."""
    folders = {run.folder.path: run for run in reversed(runs)}
    levels: dict[str, list[float]] = {}
    for run in reversed(folders.values()):
        for row in run.result()["final"]:
            # Over shuffled folds, if those of the set hold one kind of pair.
            accuracy = row.get("accuracy_shuffled", row.get("accuracy"))
            if row.get("set") == chosen and accuracy is not None:
                levels.setdefault(run.variant, []).append(accuracy)
    return levels


def _noisiest(levels: dict[str, list[float]], confidence: float) -> tuple[tuple[str, ...], SeedNoise]:
    """The two levels whose seeds differ most, and their spread; one level alone has its own."""
    pairs: list[tuple[str, ...]] = [*itertools.combinations(levels, 2)] or [(name,) for name in levels]
    noise = {pair: seed_noise([levels[name] for name in pair], confidence) for pair in pairs}
    names = max(noise, key=lambda pair: noise[pair].upper)
    return names, noise[names]


def _hours(runs: Sequence[PlannedRun]) -> float | None:
    """Hours that finished trainings took at their last rates, one after the other; None if a rate is not known."""
    rates = {run.folder.path: (run.images, run.progress()["images_per_second"]) for run in runs}
    if not all(rate for _, rate in rates.values()):
        return None
    return float(sum(images / rate for images, rate in rates.values())) / 3600
