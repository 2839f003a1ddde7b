"""Losses of distillation: values and gradients of the authors' code where it is right, and our definitions."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.heads.distillation import (
    TEACHER_LOSSES,
    AdaDistill,
    Distillation,
    EmbeddingCosine,
    EmbeddingMSE,
    FrozenCentres,
    Relational,
    Teacher,
)
from facebones.recipe_sections import MARGIN_LOSSES, DistillationConfig
from facebones.strict_yaml import limits_of
from facebones.system.distributed import ALONE

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
OPTIONS = {"scale": 64.0, "margin": 0.45, "kind": "arc"}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
KINDS = list(TOLERANCE)


def golden(place, kind=torch.float64):
    value = torch.from_numpy(np.array(GOLDEN[place]))
    return value.to(kind) if value.is_floating_point() else value


def inputs_of(record, kind):
    """Student, teacher, centres and labels of a record."""
    place = f"inputs/{np.array(GOLDEN[f'{record}/input'])}"
    student, teacher, centres = (golden(f"{place}/{name}", kind) for name in ("emb", "teacher", "weight"))
    return student.requires_grad_(), teacher, centres, golden(f"{place}/labels").long()


def close(found, record, name, kind):
    expected = golden(f"{record}/{name}", kind)
    largest = max(1.0, expected.abs().max().item())
    assert (found.detach() - expected).abs().max().item() <= TOLERANCE[kind] * largest, (record, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("record", "loss", "factor"),
    [
        ("kd/mse_raw_synthdistill_s1", EmbeddingMSE(), 1),
        ("kd/cosine_1_minus_mean_s1", EmbeddingCosine(), 1),
        ("kd/mse_normalised_quantface_s1", EmbeddingCosine(), 2 / 32),  # of unit vectors: 2 / D times the cosine's
    ],
)
def test_comparing_embeddings_equals_the_originals(record, loss, factor, kind):
    student, teacher, _, label = inputs_of(record, kind)
    value = factor * loss(student, teacher, label)
    value.backward()
    close(value, record, "loss", kind)
    close(student.grad, record, "grad_emb", kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "steps"), [("arc", 4), ("cos", 2)])
def test_adadistill_equals_the_original_over_several_steps(name, steps, kind):
    built = None
    for number in range(1, steps + 1):
        record = f"adadistill_{name}/config_m0.45_nodup/step{number}"
        student, teacher, centres, label = inputs_of(record, kind)
        built = built or AdaDistill(centres, scale=64.0, margin=0.45, kind=name)
        value = built(student, teacher, label)
        value.backward()
        close(value, record, "loss", kind)
        close(student.grad, record, "grad_emb", kind)
        close(built.centres, record, "kernel_after", kind)


def test_adadistill_at_cosines_near_one():
    """This record's batch repeats classes, so its centres moved as they should not: they are taken as they are."""
    record = "adadistill_arc/edge"
    student, teacher, _, label = inputs_of(record, torch.float64)
    built = AdaDistill(golden(f"{record}/kernel_after"), **OPTIONS).eval()
    value = built(student, teacher, label)
    value.backward()
    close(value, record, "loss", torch.float64)
    close(student.grad, record, "grad_emb", torch.float64)


def test_all_rows_of_a_class_move_its_centre_whatever_their_order():
    """In the authors' code the last row of a class wins."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    first = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    label = torch.tensor([1, 0, 1, -1])
    moved = []
    for order in ([0, 1, 2, 3], [2, 3, 1, 0]):
        built = AdaDistill(first.clone(), **OPTIONS)
        built.move(student[order], teacher[order], label[order])
        moved.append(built.centres)
    assert torch.allclose(*moved, rtol=0, atol=1e-12)
    alone = []
    for row in (0, 2):
        built = AdaDistill(first.clone(), **OPTIONS)
        built.move(student[row : row + 1], teacher[row : row + 1], label[row : row + 1])
        alone.append(built.centres[1])
    assert torch.allclose(moved[0][1], (alone[0] + alone[1]) / 2, rtol=0, atol=1e-12)
    built.eval()
    before = built.centres.clone()
    built(student, teacher, label)
    assert torch.equal(built.centres, before)


def test_relational_compares_the_cosines_of_all_pairs():
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
    cosines = [(0.0, 1.0), (0.5**0.5, 0.0), (0.5**0.5, 0.0)]  # of pairs 01, 02, 12
    expected = sum((a - b) ** 2 for a, b in cosines) / 3
    assert Relational()(student, teacher, torch.zeros(3)).item() == pytest.approx(expected, rel=1e-6)
    turned = teacher @ torch.linalg.qr(torch.randn(3, 3))[0]
    assert Relational()(teacher, 7 * turned, torch.zeros(3)).item() == pytest.approx(0, abs=1e-10)
    assert Relational()(student[:1], teacher[:1], torch.zeros(1)).item() == 0


def test_frozen_centres_are_a_softmax_over_them():
    centres = torch.eye(3, dtype=torch.float64)
    built = FrozenCentres(centres, scale=8.0, margin=0.25, kind="cos")
    student = torch.tensor([[1.0, 2.0, 2.0], [3.0, 0.0, 4.0]], dtype=torch.float64)
    logits = 8 * torch.tensor([[1 / 3 - 0.25, 2 / 3, 2 / 3], [0.6, 0.0, 0.8]], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits[:1], torch.tensor([0]))
    assert built(student, student, torch.tensor([0, -1])).item() == pytest.approx(expected.item(), abs=1e-12)
    assert built.state_dict() == {}


@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_sizes_may_differ(name):
    torch.manual_seed(0)
    teacher = Teacher(size=6, num_classes=3, class_means=lambda: torch.randn(3, 6))
    loss = TEACHER_LOSSES[name].build(teacher, OPTIONS)
    built = Distillation(loss, 4, 6, weight=2.0, world=ALONE, batch_size=5)
    embedding = torch.randn(5, 4, requires_grad=True)
    output = built(embedding.bfloat16(), torch.randn(5, 6), torch.tensor([0, 1, 2, 1, 0]))
    output.loss.backward()
    assert output.loss.item() == pytest.approx(2 * output.metrics["distillation_loss"].item())
    assert embedding.grad.isfinite().all() and embedding.grad.abs().sum() > 0
    assert (built.projection is None) == (name == "relational")
    if built.projection is not None:
        assert built.projection.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", TEACHER_LOSSES)
def test_student_equal_to_its_teacher_has_finite_gradients(name):
    vectors = torch.eye(4).repeat(2, 1).requires_grad_()
    teacher = Teacher(size=4, num_classes=4, class_means=lambda: torch.eye(4))
    built = Distillation(TEACHER_LOSSES[name].build(teacher, OPTIONS), 4, 4, weight=1.0, world=ALONE, batch_size=8)
    output = built(vectors, torch.eye(4).repeat(2, 1), torch.arange(8) % 4)
    output.loss.backward()
    assert output.loss.isfinite() and vectors.grad.isfinite().all()
    if name in ("embedding_cosine", "embedding_mse", "relational"):
        assert output.loss.item() == pytest.approx(0, abs=1e-6)


def test_a_recipe_offers_the_losses_that_there_are():
    (choices,) = (limits_of(item)["choices"] for item in fields(DistillationConfig) if item.name == "loss")
    assert list(choices) == list(TEACHER_LOSSES)


def test_a_recipe_knows_which_losses_have_a_margin():
    assert [name for name, loss in TEACHER_LOSSES.items() if issubclass(loss, FrozenCentres)] == list(MARGIN_LOSSES)
