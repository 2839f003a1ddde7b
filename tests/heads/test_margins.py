from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.heads.margins import arcface, combined_margin, cosface

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "margins.npz")
FORMS = {
    "arcface": partial(arcface, margin=0.5),
    "cosface": partial(cosface, margin=0.4),
    "arcface_filter": partial(combined_margin, scale=64.0, m2=0.5, interclass_filter=0.4),
}


def logits_and_gradient(margin):
    cosine = torch.tensor(GOLDEN["cosine"], requires_grad=True)
    before = cosine.detach().clone()
    logits = margin(cosine, torch.tensor(GOLDEN["label"]))
    logits.backward(torch.tensor(GOLDEN["upstream_gradient"]))
    assert torch.equal(cosine.detach(), before), "the margin wrote into its input"
    return logits.detach().numpy(), cosine.grad.numpy()


@pytest.mark.parametrize("form", FORMS)
def test_logits_and_straight_through_gradient_equal_the_golden_ones(form):
    logits, gradient = logits_and_gradient(FORMS[form])
    np.testing.assert_allclose(logits, GOLDEN[f"{form}_logits"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, GOLDEN[f"{form}_gradient_straight_through"], rtol=0, atol=1e-12)


def test_exact_gradient_equals_the_golden_one():
    logits, gradient = logits_and_gradient(partial(arcface, margin=0.5, gradient="exact"))
    np.testing.assert_allclose(logits, GOLDEN["arcface_logits"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(gradient, GOLDEN["arcface_gradient_exact"], rtol=1e-12)


@pytest.mark.parametrize("margins", [{"m1": 1.35}, {"m2": 0.5}, {"m3": 0.35}, {"m1": 0.9, "m2": 0.4, "m3": 0.15}])
def test_exact_gradient_equals_finite_differences(margins):
    torch.manual_seed(0)
    cosine = torch.empty(6, 9, dtype=torch.float64).uniform_(-0.95, 0.95).requires_grad_()
    label = torch.tensor([0, 3, -1, 8, 2, -1])
    function = partial(combined_margin, column_B=label, scale=3.0, gradient="exact", **margins)
    assert torch.autograd.gradcheck(function, cosine)


@pytest.mark.parametrize("gradient", ["straight_through", "exact"])
@pytest.mark.parametrize("value", [-1.0, 1.0, 1.0000001])
def test_angles_of_zero_and_pi_give_finite_numbers(gradient, value):
    cosine = torch.tensor([[value, 0.0]], requires_grad=True)
    logits = arcface(cosine, torch.tensor([0]), gradient=gradient)
    logits.sum().backward()
    assert logits.isfinite().all() and cosine.grad.isfinite().all()


def test_rows_without_a_class_get_no_margin():
    cosine = torch.rand(3, 5)
    assert torch.equal(arcface(cosine, torch.full((3,), -1), scale=64.0), cosine * 64)
