import math
from functools import partial

import pytest
import torch
from scipy.stats import chi2
from torch.nn import functional

from facebones.heads.cosines import cosines, sampled_cosines
from facebones.heads.margins import arcface
from facebones.heads.partial_fc import PartialFC, sample_classes

CLASSES, SIZE, BATCH = 40, 16, 12


def head(**options):
    torch.manual_seed(1)
    return PartialFC(CLASSES, SIZE, partial(arcface, margin=0.3), **options)


def batch():
    torch.manual_seed(2)
    embedding = functional.normalize(torch.randn(BATCH, SIZE)).requires_grad_()
    return embedding, torch.randint(CLASSES, (BATCH,))


def test_rate_one_is_plain_cross_entropy():
    module, (embedding, label) = head(), batch()
    cosine = embedding @ functional.normalize(module.centres).T
    expected = functional.cross_entropy(arcface(cosine, label, margin=0.3), label)
    torch.testing.assert_close(module(embedding, label).loss, expected)


def test_label_minus_one_adds_nothing():
    module, (embedding, label) = head(), batch()
    dropped = label.clone()
    dropped[4:] = -1
    torch.testing.assert_close(module(embedding, dropped).loss, module(embedding[:4], label[:4]).loss)
    assert module(embedding, torch.full_like(label, -1)).loss.item() == 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_sample_holds_every_present_class_and_the_right_number(rate):
    module, (embedding, label) = head(sample_rate=rate), batch()
    module.draw_sample(label)
    logits, column = module.logits(embedding, label)
    assert logits.shape[1] == max(round(rate * CLASSES), len(label.unique()))
    full, _ = head().logits(embedding, label)  # same seed, same centres
    torch.testing.assert_close(logits[range(BATCH), column], full[range(BATCH), label])


def test_only_sampled_centres_get_a_gradient():
    module, (embedding, label) = head(sample_rate=0.5), batch()
    module.draw_sample(label)
    module(embedding, label).loss.backward()
    assert module.centres.grad is None
    assert module.sampled.leaf.grad.shape == (CLASSES // 2, SIZE)
    assert (module.sampled.leaf.grad.abs().sum(1) > 0).all()
    assert torch.isin(label, module.sampled.index).all()


def test_the_gradient_is_that_of_a_dense_head_of_the_sampled_classes():
    module, (embedding, label) = head(sample_rate=0.5), batch()
    module.draw_sample(label)
    loss = module(embedding, label).loss
    loss.backward()
    dense = head()
    direction, index = functional.normalize(embedding.detach()), module.sampled.index
    logits = arcface(direction @ functional.normalize(dense.centres).T, label, margin=0.3)
    expected = functional.cross_entropy(logits[:, index], torch.searchsorted(index, label))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module.sampled.leaf.grad, dense.centres.grad[index])


def test_samples_differ_from_step_to_step_and_follow_the_seed():
    module, (_, label) = head(sample_rate=0.5), batch()

    def draw():
        module.draw_sample(label)
        return module.sampled.index

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw().equal(first) and not first.equal(second)


def test_a_class_that_was_not_drawn_is_refused():
    module, (embedding, label) = head(sample_rate=0.1), batch()
    with pytest.raises(ValueError, match="call draw_sample with all of the step's labels"):
        module(embedding, label)
    module.draw_sample(label[:6])
    missing = torch.isin(label, label[:6], invert=True)
    assert missing.any()
    with pytest.raises(ValueError, match="not in this step's sample"):
        module(embedding, label)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.8, 0.999, 1.0])
def test_a_sample_is_sorted_holds_those_present_and_no_class_twice(rate):
    torch.manual_seed(0)
    present = torch.tensor([7, 0, 99, 7])
    for _ in range(50):
        sample = sample_classes(100, rate, present)
        assert len(sample) == max(math.ceil(rate * 100), 3)
        assert (sample.diff() > 0).all() and sample[0] == 0 and sample[-1] == 99 and 7 in sample


@pytest.mark.parametrize("rate", [0.5, 4 / 6])
def test_every_set_of_others_is_equally_likely(rate):
    """Of 5 classes that are not present, 2 or 3 are drawn: 10 sets; the bound is passed once in 1e5 seeds."""
    torch.manual_seed(0)
    draws, sets = 4000, {}
    for _ in range(draws):
        drawn = tuple(sample_classes(6, rate, torch.tensor([2])).tolist())
        sets[drawn] = sets.get(drawn, 0) + 1
    expected = draws / 10
    assert len(sets) == 10
    assert sum((count - expected) ** 2 / expected for count in sets.values()) < chi2.isf(1e-5, df=9)


def test_a_shard_draws_among_its_own_classes():
    module, (embedding, label) = head(shard=range(10, 30), sample_rate=0.5), batch()
    module.draw_sample(label)
    here = (label >= 10) & (label < 30)
    assert module.sampled.index.max() < 20 and len(module.sampled.index) == 10
    logits, column = module.logits(embedding, label)
    assert logits.shape == (BATCH, 10) and (column[~here] == -1).all()
    assert torch.equal(module.sampled.index[column[here]], label[here] - 10)


@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_state_is_the_whole_centres_at_every_rate(rate):
    module = head(sample_rate=rate)
    assert {key: value.shape for key, value in module.state_dict().items()} == {"centres": (CLASSES, SIZE)}
    assert torch.equal(module.centres, head().centres)


def test_shards_side_by_side_are_the_whole():
    whole, (embedding, label) = head(), batch()
    parts = [head(shard=range(0, 15)), head(shard=range(15, CLASSES))]
    with torch.no_grad():
        for part in parts:
            part.centres.copy_(whole.centres[part.shard.start : part.shard.stop])
    logits = torch.cat([part.logits(embedding, label)[0] for part in parts], dim=1)
    torch.testing.assert_close(logits, whole.logits(embedding, label)[0])
    with pytest.raises(ValueError, match="needs all 40 classes"):
        parts[0](embedding, label)


def test_half_precision_embeddings_are_raised_to_float32():
    module, (embedding, label) = head(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(embedding.bfloat16(), label).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, module(embedding.bfloat16().float(), label).loss)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_raw_embeddings_give_bit_by_bit_what_normalising_before_gives(rate):
    """The reference is torch's `normalize` before cosines, margin and cross-entropy."""
    module, (_, label) = head(sample_rate=rate), batch()
    raw = (30 * torch.randn(BATCH, SIZE)).requires_grad_()
    module.draw_sample(label)
    loss = module(raw, label).loss
    loss.backward()
    found, raw.grad = raw.grad, None
    direction = functional.normalize(raw)
    if rate == 1:
        cosine, column = cosines(direction, module.centres), label
    else:
        column = module.sampled.place(label)
        cosine = sampled_cosines(direction, module.sampled.leaf, module.centres, module.sampled.index)
    logits = arcface(cosine, column, margin=0.3)
    expected = functional.cross_entropy(logits, column, ignore_index=-1, reduction="sum") / BATCH
    expected.backward()
    assert torch.equal(loss, expected) and torch.equal(found, raw.grad)


class NormsAndState(PartialFC):
    """Scales the logits by a moving average of the norms."""

    def __init__(self, shard=None):
        super().__init__(CLASSES, SIZE, self.by_norm, shard=shard)
        self.register_buffer("mean", torch.tensor(0.0))

    @staticmethod
    def by_norm(cosine_BC, column_B, norm_B, state):
        return cosine_BC * (norm_B / state["mean"])[:, None]

    def update_state(self, cosine_BC, column_B, norm_B):
        self.mean.lerp_(norm_B.mean(), 0.5)

    def metrics(self, norm_B):
        return {"norm": norm_B.mean()}


def test_a_margin_gets_norms_and_state_and_a_shard_is_the_same_code():
    torch.manual_seed(1)
    whole = NormsAndState()
    part = NormsAndState(range(10, 30))
    with torch.no_grad():
        part.centres.copy_(whole.centres[10:30])
    raw, label = (30 * torch.randn(BATCH, SIZE)).requires_grad_(), torch.randint(CLASSES, (BATCH,))
    output = whole(raw, label)
    output.loss.backward()
    norms = raw.detach().norm(dim=1)
    torch.testing.assert_close(whole.mean, norms.mean() / 2)
    torch.testing.assert_close(output.metrics["norm"], norms.mean())
    logits, _ = part.logits(raw, label)
    torch.testing.assert_close(logits, whole.eval().logits(raw, label)[0][:, 10:30])
    torch.testing.assert_close(part.mean, whole.mean)  # eval mode leaves the state
    radial = (raw.grad * raw.detach()).sum(1)
    assert (radial.abs() > 1e-6).all(), "the gradient reaches the norms"
    assert list(whole.state_dict()) == ["centres", "mean"]
