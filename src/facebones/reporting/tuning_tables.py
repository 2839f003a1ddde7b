"""The tables of a tuning: what each backbone chose, and all trials."""

import math
from dataclasses import replace

from facebones.reporting.results import Results
from facebones.reporting.tables import NOTHING, Cell, Table, text_cell
from facebones.reporting.tuning import DONE, FAILED, STOPPED, Trial, TunedBackbone, Tuning, same_value
from facebones.reporting.variants import BACKBONE
from facebones.system.number_format import is_number, percent

HOW_TUNING = (
    "A field shows the recipe's value -> the chosen one, or one value if they are equal. Trial 0 is the recipe as it"
    " is."
)


def tuning_tables(results: Results) -> list[Table]:
    """Of each tuned study, what its backbones chose, and all trials."""
    return [table for tuning in results.tunings for table in (_tuning(results, tuning), _trials(results, tuning))]


def _tuning(results: Results, tuning: Tuning) -> Table:
    """What the trials of each backbone chose."""
    states = (DONE, STOPPED, FAILED)
    left = any(tuned.count(*states) < len(tuned.trials) for tuned in tuning.backbones)
    return Table(
        key="tuning",
        title="Tuning" if len(results.tunings) == 1 else f"Tuning of {tuning.study}",
        note=f"{_what_decided(tuning)} {HOW_TUNING}",
        columns=[
            BACKBONE,
            *tuning.factors,
            "chosen trial",
            *tuning.own,
            "accuracy of trial 0",
            "accuracy of the chosen",
            *(f"trials {state}" for state in states),
            *(["trials left"] if left else []),
        ],
        rows=[
            [
                *_tuned_cells(results, tuning, tuned),
                _chosen(tuned),
                *(
                    _field_cell(own, tuned.chosen.fields.get(name) if tuned.chosen else None)
                    for name, own in tuning.own.items()
                ),
                _accuracy(tuned.trials[0] if tuned.trials else None),
                _accuracy(tuned.chosen),
                *(_count(tuned.count(state)) for state in states),
                *([_count(len(tuned.trials) - tuned.count(*states))] if left else []),
            ]
            for tuned in tuning.backbones
        ],
        section="tuning",
    )


def _what_decided(tuning: Tuning) -> str:
    most = max((len(tuned.trials) for tuned in tuning.backbones), default=0)
    return (
        f"What decided is the accuracy on {tuning.pairs:,} pairs of {tuning.people:,} people on whom no trial trained;"
        f" no reported set took part. The best of {most} trials looks better there than it is: what tuning gains is the"
        " difference between the levels default and tuned."
    )


def _trials(results: Results, tuning: Tuning) -> Table:
    """Every trial."""
    pairs = [(tuned, trial) for tuned in tuning.backbones for trial in tuned.trials]
    has_errors = any(trial.error for _, trial in pairs)
    return Table(
        key="tuning_trials",
        title="All trials" if len(results.tunings) == 1 else f"All trials of {tuning.study}",
        note="The accuracy is that of the last validation on the pairs of held-out people; steps are done / planned.",
        columns=[
            BACKBONE,
            *tuning.factors,
            "trial",
            *tuning.own,
            "accuracy",
            "state",
            "steps",
            *(["error"] if has_errors else []),
        ],
        rows=[
            [
                *_tuned_cells(results, tuning, tuned),
                Cell(text=str(trial.number), value=trial.number),
                *(_drawn(trial, name, own) for name, own in tuning.own.items()),
                _accuracy(trial),
                _state(trial, tuned),
                Cell(text=f"{trial.step:,} / {trial.steps:,}", value=trial.step),
                *([text_cell(trial.error or "")] if has_errors else []),
            ]
            for tuned, trial in pairs
        ],
        section="tuning",
        folded=True,
    )


def _tuned_cells(results: Results, tuning: Tuning, tuned: TunedBackbone) -> list[Cell]:
    """The cells that name a tuned backbone; they are about its variants."""
    about = [
        run.variant
        for run in results.runs
        if run.backbone == tuned.backbone and tuned.levels.items() <= run.levels.items()
    ]
    levels = [text_cell(tuned.levels[name]) if name in tuned.levels else NOTHING for name in tuning.factors]
    return [replace(text_cell(tuned.backbone), about=tuple(dict.fromkeys(about))), *levels]


def _chosen(tuned: TunedBackbone) -> Cell:
    if tuned.chosen is None:
        return text_cell("none: all failed" if 0 < tuned.count(FAILED) == len(tuned.trials) else "none yet")
    number = tuned.chosen.number
    return Cell(text=str(number) if number else "0, the recipe as it is", value=number)


def _field_cell(own: str, chosen: str | None) -> Cell:
    """A field of the space: from the recipe's value to the chosen one."""
    if chosen is None or same_value(own, chosen):
        return _setting(own)
    return replace(_setting(chosen), text=f"{own} -> {chosen}")


def _drawn(trial: Trial, name: str, own: str) -> Cell:
    """A field of a trial; unknown before it is drawn."""
    return _setting(own) if trial.number == 0 else _setting(trial.fields[name]) if name in trial.fields else NOTHING


def _state(trial: Trial, tuned: TunedBackbone) -> Cell:
    words = "FAILED" if trial.state == FAILED else trial.state
    return Cell(text=f"{words}, chosen" if trial == tuned.chosen else words, value=trial.state)


def _setting(text: str) -> Cell:
    return Cell(text=text, value=float(text) if is_number(text) and math.isfinite(float(text)) else text)


def _accuracy(trial: Trial | None) -> Cell:
    if trial is None or trial.accuracy is None:
        return NOTHING
    return Cell(text=percent(trial.accuracy), value=trial.accuracy)


def _count(count: int) -> Cell:
    return Cell(text=str(count), value=count)
