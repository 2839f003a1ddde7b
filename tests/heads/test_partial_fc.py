import math
from functools import partial

import pytest
import torch
from scipy.stats import chi2
from torch.nn import functional

from facebones.heads import PartialFC, arcface
from facebones.heads.partial_fc import sample_classes

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
    torch.testing.assert_close(module(embedding, label), expected)


def test_label_minus_one_adds_nothing():
    module, (embedding, label) = head(), batch()
    dropped = label.clone()
    dropped[4:] = -1
    torch.testing.assert_close(module(embedding, dropped), module(embedding[:4], label[:4]))
    assert module(embedding, torch.full_like(label, -1)).item() == 0


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
    module(embedding, label).backward()
    assert module.centres.grad is None
    assert module.rows.leaf.grad.shape == (CLASSES // 2, SIZE)
    assert (module.rows.leaf.grad.abs().sum(1) > 0).all()
    assert torch.isin(label, module.rows.index).all()


def test_the_gradient_is_that_of_a_dense_head_of_the_sampled_classes():
    module, (embedding, label) = head(sample_rate=0.5), batch()
    module.draw_sample(label)
    loss = module(embedding, label)
    loss.backward()
    dense = head()
    logits = arcface(embedding.detach() @ functional.normalize(dense.centres).T, label, margin=0.3)
    expected = functional.cross_entropy(logits[:, module.rows.index], torch.searchsorted(module.rows.index, label))
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module.rows.leaf.grad, dense.centres.grad[module.rows.index])


def test_samples_differ_from_step_to_step_and_follow_the_seed():
    module, (_, label) = head(sample_rate=0.5), batch()

    def draw():
        module.draw_sample(label)
        return module.rows.index

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
    assert module.rows.index.max() < 20 and len(module.rows.index) == 10
    logits, column = module.logits(embedding, label)
    assert logits.shape == (BATCH, 10) and (column[~here] == -1).all()
    assert torch.equal(module.rows.index[column[here]], label[here] - 10)


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
        loss = module(embedding.bfloat16(), label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, module(embedding.bfloat16().float(), label))
