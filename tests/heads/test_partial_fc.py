from functools import partial

import pytest
import torch
from torch.nn import functional

from facebones.heads import PartialFC, arcface

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
    logits, column = module.logits(embedding, label)
    assert logits.shape[1] == max(round(rate * CLASSES), len(label.unique()))
    full, _ = head().logits(embedding, label)  # same seed, same centres
    torch.testing.assert_close(logits[range(BATCH), column], full[range(BATCH), label])


def test_only_sampled_centres_get_a_gradient():
    module, (embedding, label) = head(sample_rate=0.5), batch()
    module(embedding, label).backward()
    touched = module.centres.grad.abs().sum(1) > 0
    assert touched.sum() == CLASSES // 2
    assert touched[label].all()


def test_samples_differ_from_step_to_step_and_follow_the_seed():
    module, (embedding, label) = head(sample_rate=0.5), batch()
    torch.manual_seed(3)
    first, second = module(embedding, label), module(embedding, label)
    torch.manual_seed(3)
    assert module(embedding, label).equal(first) and not first.equal(second)


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
