"""What the heads do at the edges of their inputs, and where they refuse."""

import math

import pytest
import torch
from torch.nn import functional

from facebones.errors import ConfigError
from facebones.heads import create_head, list_heads, lookup_head, register_head, registry
from facebones.heads.registry import ArcFaceOptions, check_head

NAMES = list_heads()


def small(name, **options):
    torch.manual_seed(3)
    return create_head(name, lookup_head(name).options(**options), 10, 8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_cosines_of_one_and_tiny_norms_have_finite_gradients(name, kind):
    head = small(name)
    width = head.centres.shape[1] // 8
    with torch.no_grad():
        head.centres.copy_(torch.eye(10, 8).repeat(1, width))
    # The gradient of a norm of 0 is too large for fp16, in which the gradient scaler skips such a step.
    smallest = 1e-2 if kind == torch.float16 else 0
    embedding = torch.cat([torch.eye(8), -torch.eye(8), smallest * torch.eye(8)[:1], 1e4 * torch.eye(8)[:1]]).to(kind)
    embedding.requires_grad_()
    label = torch.tensor([*range(8), *range(8), 0, 9])
    output = head(embedding, label)
    output.loss.backward()
    assert output.loss.isfinite() and embedding.grad.isfinite().all() and head.centres.grad.isfinite().all()
    assert all(value.isfinite().all() for value in [*head.buffers(), *output.metrics.values()])


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_class_add_nothing_but_the_pull_on_the_norm(name):
    head = small(name, **({"regulariser": 0.0} if name == "magface" else {})).eval()
    embedding, label = torch.randn(6, 8), torch.tensor([1, -1, 3, -1, 9, 1])
    everything = head(embedding, label).loss
    assert torch.allclose(everything, head(embedding[label >= 0], label[label >= 0]).loss, rtol=1e-6)
    assert head(embedding, torch.full((6,), -1)).loss == 0


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_changes_no_state(name):
    head = small(name).eval()
    before = {key: torch.as_tensor(value).clone() for key, value in head.state_dict().items()}
    first, second = (head(torch.ones(4, 8), torch.arange(4)).loss for _ in range(2))
    assert first == second
    assert all(torch.equal(before[key], torch.as_tensor(value)) for key, value in head.state_dict().items())


def test_adaface_of_one_image_keeps_its_deviation():
    head = small("adaface")
    head(torch.ones(1, 8), torch.tensor([2]))
    assert head.deviation == 100 and math.isclose(head.mean, 20 + 0.01 * (math.sqrt(8) - 20), rel_tol=1e-6)


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_adaface_offers_both_gradients(gradient):
    """The slope of the logit of the true class, where nothing is cut off."""
    head = small("adaface", gradient=gradient, momentum=1e-9)
    cosine = torch.tensor([[0.3]], requires_grad=True)
    norm = torch.tensor([60.0])
    logit = head.margined_logits(cosine, torch.tensor([0]), norm, head.margin_state(None))
    logit.backward(torch.ones(1, 1))
    z = 0.333 * (60 - 20) / (100 + 1e-3)
    angle = math.acos(0.3)
    slope = math.sin(angle - 0.4 * z) / math.sin(angle) if gradient == "exact" else 1
    assert math.isclose(cosine.grad.item(), 64 * slope, rel_tol=1e-5)
    assert math.isclose(logit.item(), 64 * (math.cos(angle - 0.4 * z) - (0.4 + 0.4 * z)), rel_tol=1e-5)


def test_subcenters_take_the_nearest_centre_of_each_class():
    head = small("subcenter_arcface", subcenters=3).eval()
    embedding = torch.randn(4, 8)
    each = functional.normalize(embedding) @ functional.normalize(head.centres.view(30, 8)).T
    logits, _ = head.logits(embedding, torch.full((4,), -1))
    assert torch.allclose(logits, 64 * each.view(4, 10, 3).amax(2), atol=1e-4)
    head.train()(embedding, torch.tensor([1, 2, 3, 4])).loss.backward()
    touched = head.centres.grad.view(10, 3, 8).abs().amax(2) > 0
    assert touched.any(dim=1).all() and not touched.all()


def test_sphereface2_balances_its_classes_at_the_start():
    """Orthogonal embeddings: the gradients of the bias cancel."""
    head = small("sphereface2").double()
    embedding = torch.zeros(1, 8, dtype=torch.float64)
    embedding[0, 0] = 1
    with torch.no_grad():
        head.centres.zero_()
        head.centres[:, 1] = 1
        head.bias.fill_(lookup_head("sphereface2").build(head.options, 10, 8).bias.item())
    head(embedding, torch.tensor([4])).loss.backward()
    assert abs(head.bias.grad.item()) < 1e-5


@pytest.mark.parametrize("name", ["sphereface2", "subcenter_arcface"])
def test_a_sample_of_the_centres_is_refused_where_it_means_something_else(name):
    with pytest.raises(ConfigError, match=rf"head {name}: sample_rate 0.5: .*; give 1"):
        small(name, sample_rate=0.5)


@pytest.mark.parametrize("name", NAMES)
def test_each_head_can_be_checked_without_memory_and_without_drawing(name):
    """A hundred million classes of 512 numbers are 200 GB."""
    before = torch.get_rng_state()
    check_head(name, lookup_head(name).options(), 100_000_000, 512)
    assert torch.equal(torch.get_rng_state(), before)


def test_options_that_exclude_each_other_are_found_without_a_training():
    with pytest.raises(ConfigError, match=r"head sphereface2: sample_rate 0\.5"):
        check_head("sphereface2", lookup_head("sphereface2").options(sample_rate=0.5), 100, 8)
    with pytest.raises(ConfigError, match="lower_norm 120 is not below upper_norm 110"):
        check_head("magface", lookup_head("magface").options(lower_norm=120.0), 100, 8)


def test_a_head_of_the_users_that_reads_its_centres_is_left_to_the_training():
    def build(options, num_classes, embedding_size, *, shard=None):
        head = lookup_head("arcface").build(options, num_classes, embedding_size, shard=shard)
        head.first = head.centres.detach().numpy()[0]
        return head

    register_head("reads_for_tests", ArcFaceOptions)(build)
    try:
        check_head("reads_for_tests", ArcFaceOptions(), 10, 8)
    finally:
        registry._REGISTRY.pop("reads_for_tests")


def test_norms_in_the_wrong_order_are_refused():
    with pytest.raises(ConfigError, match="lower_norm 20 is not below upper_norm 10"):
        small("magface", lower_norm=20.0, upper_norm=10.0)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("sphereface2", "subcenter_arcface")])
def test_a_sample_with_all_classes_is_the_whole_loss(name):
    """And the loss of a smaller sample is finite, with gradients for the sampled rows only."""
    whole, sampled = small(name), small(name, sample_rate=0.999)
    sampled.load_state_dict(whole.state_dict())
    embedding, label = torch.randn(6, 8), torch.tensor([1, 2, 3, -1, 5, 5])
    sampled.draw_sample(label)
    assert torch.allclose(whole(embedding, label).loss, sampled(embedding, label).loss, rtol=1e-6)
    few = small(name, sample_rate=0.5)
    few.draw_sample(label)
    few(embedding, label).loss.backward()
    assert few.sampled.leaf.grad.isfinite().all() and few.centres.grad is None
