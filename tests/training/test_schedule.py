import pytest

from facebones.errors import ConfigError
from facebones.recipe import ScheduleConfig
from facebones.training.optimizer import build_schedule

PER_EPOCH, EPOCHS = 10, 4


def rates(**options):
    schedule = build_schedule(ScheduleConfig(**options), 0.2, PER_EPOCH, EPOCHS)
    return [schedule(step) for step in range(PER_EPOCH * EPOCHS)]


@pytest.mark.parametrize("power", [1, 2])
def test_polynomial(power):
    assert rates(power=power) == pytest.approx([0.2 * (1 - step / 40) ** power for step in range(40)])


@pytest.mark.parametrize("power", [1, 2])
def test_one_step_ahead_is_the_rate_of_the_published_study(power):
    found = rates(power=power, one_step_ahead=True)
    assert found == pytest.approx([0.2 * ((40 - step) / 41) ** power for step in range(40)])
    assert rates(power=power, one_step_ahead=True, warmup_epochs=1)[9:11] == pytest.approx(
        [0.2, 0.2 * (30 / 31) ** power]
    )


def test_step_falls_at_its_milestones_only():
    assert rates(name="step", milestones=[1, 2.5]) == pytest.approx([0.2] * 10 + [0.02] * 15 + [0.002] * 15)


def test_cosine_is_symmetric_about_its_middle():
    found = rates(name="cosine")
    assert found[0] == 0.2 and found[20] == pytest.approx(0.1)
    assert [found[i] + found[40 - i] for i in range(1, 40)] == pytest.approx([0.2] * 39)


@pytest.mark.parametrize("name", ["polynomial", "cosine"])
def test_warmup_rises_linearly_and_the_decay_begins_at_its_end(name):
    found = rates(name=name, warmup_epochs=0.5)
    assert found[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert found[5] == 0.2 and found[6] < 0.2 and 0 < found[-1] < 0.02


def test_a_warmup_ends_within_the_training():
    assert rates(warmup_epochs=3.9)[-1] == 0.2
    with pytest.raises(ConfigError, match=r"warmup_epochs 4 leaves nothing of training\.epochs 4"):
        rates(warmup_epochs=4)


def test_steps_need_milestones():
    with pytest.raises(ConfigError, match=r"schedule\.name step needs schedule\.milestones"):
        rates(name="step")
