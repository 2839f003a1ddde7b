"""What heads keep from step to step: the same in every process, and untouched by rows that are not finite."""

import math

import pytest
import torch

from facebones.errors import CheckpointError
from facebones.heads import list_heads, lookup_head
from facebones.heads.distillation import AdaDistill
from facebones.heads.partial_fc import PartialFC
from facebones.heads.sharded import create_shared_head
from facebones.system.distributed import ALONE, World

CLASSES, SIZE, BATCH = 5, 8, 6
# Several shards of one process are computed as those of several processes are; of six shards, the last has no class.
SIX_SHARDS = World().with_canonical(6)


def shared(name, world=ALONE, batch_size=BATCH, **options):
    torch.manual_seed(3)
    return create_shared_head(
        name, lookup_head(name).options(**options), CLASSES, SIZE, world=world, batch_size=batch_size
    )


def shards_of(head):
    return [head] if isinstance(head, PartialFC) else head.heads


def buffers_of(head):
    """The buffers of each shard."""
    return [dict(shard.named_buffers()) for shard in shards_of(head)]


# ---------------------------------------------------------------------------------------- ElasticFace draws margins


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_shards_without_a_centre_in_a_step_draw_the_margins_too(rate, plus):
    """At a rate of 0.3 two or three of the classes take part, so that shards lack a centre in one step or the other."""
    options = {"sample_rate": rate, "plus": plus, "deviation": 0.3}
    alone, several = (shared("elasticface", world, **options) for world in (ALONE, SIX_SHARDS))
    for step, label in enumerate([[1, 1, 3, 1, 3, 3], [0, 2, 2, 0, 4, 0], [3, 2, 1, -1, 3, 1]]):
        embedding, losses = torch.randn(BATCH, SIZE), []
        for head in (alone, several):
            torch.manual_seed(step)
            head.draw_sample(torch.tensor(label))
            losses.append(head(embedding, torch.tensor(label)).loss)
        torch.testing.assert_close(losses[1], losses[0])
        for shard in several.heads:
            assert torch.equal(shard.get_extra_state(), alone.get_extra_state())


def test_a_batch_draws_once_and_evaluation_not_at_all():
    head = shared("elasticface", deviation=0.3)
    generator = torch.Generator()
    generator.set_state(head.get_extra_state())
    head(torch.randn(BATCH, SIZE), torch.arange(BATCH) % CLASSES)
    torch.randn(BATCH, generator=generator)
    assert torch.equal(head.get_extra_state(), generator.get_state())
    head.eval()(torch.randn(BATCH, SIZE), torch.arange(BATCH) % CLASSES)
    assert torch.equal(head.get_extra_state(), generator.get_state())


@pytest.mark.parametrize("state", [torch.zeros(5056, dtype=torch.uint8), torch.zeros(3), None], ids=str)
def test_a_damaged_state_of_the_generator_is_refused(state):
    with pytest.raises(CheckpointError, match="head elasticface: no state of a random generator; damaged"):
        shared("elasticface").set_extra_state(state)


# ----------------------------------------------------------------------------------------- rows that are not finite


@pytest.mark.parametrize("world", [ALONE, SIX_SHARDS], ids=["one shard", "six shards"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["adaface", "curricularface"])
def test_rows_that_are_not_finite_move_a_running_state_as_little_as_absent_ones(name, bad, world):
    embedding, label = 20 * torch.randn(BATCH, SIZE), torch.tensor([1, 0, 3, 2, 4, 1])
    kept = [0, 1, 3, 5]
    spoiled = embedding.clone()
    spoiled[2, 3] = spoiled[4] = bad
    head, expected = shared(name, world), shared(name, world, batch_size=len(kept))
    fresh = buffers_of(shared(name, world))
    assert not head(spoiled.half(), label).loss.isfinite()  # so that the scaler skips the step
    expected(embedding[kept].half(), label[kept])
    for found, wanted, before in zip(buffers_of(head), buffers_of(expected), fresh, strict=True):
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value)
            assert not torch.equal(value, before[key])
    before = [{key: value.clone() for key, value in shard.items()} for shard in buffers_of(head)]
    head(torch.full_like(embedding, bad), label)
    for found, wanted in zip(buffers_of(head), before, strict=True):
        assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_adaface_keeps_its_deviation_where_one_norm_alone_is_finite():
    head = shared("adaface")
    embedding = torch.full((BATCH, SIZE), math.nan)
    embedding[2] = 1
    head(embedding, torch.arange(BATCH) % CLASSES)
    assert head.deviation == 100 and math.isclose(head.mean, 20 + 0.01 * (math.sqrt(SIZE) - 20), rel_tol=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_adadistill_moves_its_centres_by_finite_rows_only(bad):
    student, teacher, first = (torch.randn(rows, 3) for rows in (4, 4, 3))
    spoiled_student, spoiled_teacher = student.clone(), teacher.clone()
    spoiled_student[1, 0] = spoiled_teacher[3] = bad
    label, kept = torch.tensor([1, 0, 1, 2]), [0, 2]
    centres = []
    for rows in (
        (spoiled_student, spoiled_teacher, label),
        (student[kept], teacher[kept], label[kept]),
    ):
        built = AdaDistill(first.clone(), scale=64.0, margin=0.45, kind="arc")
        built.move(*rows)
        centres.append(built.centres)
    torch.testing.assert_close(*centres)
    assert torch.equal(centres[0][[0, 2]], first[[0, 2]]) and not torch.equal(centres[0][1], first[1])


# --------------------------------------------------------------------------------------------- norms, for the log


@pytest.mark.parametrize("name", list_heads())
def test_every_head_measures_the_norms_of_the_whole_batch(name):
    embedding, label = 20 * torch.randn(BATCH, SIZE), torch.arange(BATCH) % CLASSES
    norm_B = embedding.norm(dim=1)
    for world in (ALONE, SIX_SHARDS):
        metrics = shared(name, world)(embedding, label).metrics
        assert math.isclose(metrics["norm"], norm_B.mean(), rel_tol=1e-5)
        assert math.isclose(metrics["norm_deviation"], norm_B.std(correction=0), rel_tol=1e-4)
        assert not any(value.requires_grad for value in metrics.values())
