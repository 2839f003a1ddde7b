"""Losses and gradients of the heads equal those that the authors' code gives, where that code does what it says."""

from pathlib import Path

import numpy as np
import pytest
import torch

from facebones.heads import create_head, lookup_head

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "losses.npz")
ARC, COS = "arcface_adaface_repo", "cosface_adaface_repo"
STEPS = [f"step{number}" for number in range(1, 5)]
# record of the golden file: head, its options
CASES = {
    "study_pfc_arcface/s1": ("arcface", {}),
    "study_pfc_arcface/edge": ("arcface", {}),
    "combined_insightface/arc_1_0.5_0": ("arcface", {}),
    "combined_insightface/arc_edge": ("arcface", {}),
    "combined_insightface/arc_exact": ("arcface", {}),
    "combined_insightface/cos_1_0_0.4": ("cosface", {}),
    "combined_insightface/cos_edge": ("cosface", {}),
    "uniface_softmax/default": ("cosface", {}),
    "adaface/configpy_m0.5_h0": ("adaface", {"margin": 0.5, "h": 0.0}),
    "adaface/edge": ("adaface", {}),
    "adaface/exact": ("adaface", {}),
    "magface/runsh_lg35": ("magface", {}),
    "magface/argparse_lg20": ("magface", {"regulariser": 20.0}),
    "magface/lg0": ("magface", {"regulariser": 0.0}),
    "magface/hard_margin": ("magface", {"easy_margin": False}),
    "magface/edge": ("magface", {}),
    "magface/exact": ("magface", {}),
    "curricularface/edge": ("curricularface", {}),
    "curricularface/exact": ("curricularface", {}),
    "elastic_arc/code_default_std0.0125": ("elasticface", {}),
    "elastic_arc/intended_sorted": ("elasticface", {"plus": True}),
    "elastic_arc/edge": ("elasticface", {}),
    "elastic_arc/exact": ("elasticface", {}),
    "elastic_cos/code_default_std0.0125": ("elasticface", {"kind": "cos", "margin": 0.35}),
    "elastic_cos/intended_sorted": ("elasticface", {"kind": "cos", "margin": 0.35, "plus": True}),
    "elastic_cos/edge": ("elasticface", {"kind": "cos", "margin": 0.35}),
    "elastic_cos/exact": ("elasticface", {"kind": "cos", "margin": 0.35}),
    "uniface_uce/default": ("uce", {}),
    "uniface_uce/edge": ("uce", {}),
    "uniface_uce/exact": ("uce", {}),
    "uniface_uce/l0.1": ("uce", {"negatives": 0.1}),
    "sphereface2/code_default": ("sphereface2", {}),
    "sphereface2/edge": ("sphereface2", {}),
    "sphereface2/exact": ("sphereface2", {}),
}


def golden(record, name):
    return torch.from_numpy(np.array(GOLDEN[f"{record}/{name}"]))


def head_of(record, name, options, kind):
    """The head with the record's centres and bias, and the inputs."""
    inputs = f"inputs/{np.array(GOLDEN[f'{record}/input'])}"
    centres = golden(inputs, "weight").to(kind)
    head = create_head(name, lookup_head(name).options(**options), *centres.shape).to(kind)
    with torch.no_grad():
        head.centres.copy_(centres)
        for key in ("bias", "bias_init"):
            if f"{record}/{key}" in GOLDEN:
                head.bias.copy_(golden(record, key))
    if name == "elasticface":
        head.margins = lambda rows: golden(record, "drawn")
    return head, golden(inputs, "emb").to(kind).requires_grad_(), golden(inputs, "labels").long()


def check(record, head, embedding, label, tolerance):
    """Loss and gradients, relative to the largest of each array, or to 1."""
    if "uniface_uce" in record:  # the authors bound the logits to the scale
        logits, column = head.logits(embedding, label)
        loss = head.terms(logits.clamp(-64, 64), column).mean()
    else:
        loss = head(embedding, label).loss
    loss.backward()
    found = {"loss": loss, "grad_emb": embedding.grad, "grad_weight": head.centres.grad}
    if f"{record}/grad_bias" in GOLDEN:
        found["grad_bias"] = head.bias.grad
    for name, value in found.items():
        wanted = expected(record, name)
        error = (value.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
        assert error < tolerance, (record, name, error.item())


def expected(record, name):
    """The golden array that a result must equal."""
    if name == "loss" and f"{record}/total" in GOLDEN:
        return golden(record, "total")
    gradient = golden(record, name).double()
    if name != "grad_weight" or "sphereface2" not in record:
        return gradient
    # Theirs is that of the normalised centres, without what normalising adds.
    centres = golden(f"inputs/{np.array(GOLDEN[f'{record}/input'])}", "weight")
    unit = torch.nn.functional.normalize(centres)
    return (gradient - unit * (gradient * unit).sum(1, keepdim=True)) / centres.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("record", CASES)
def test_in_double_precision(record):
    head, embedding, label = head_of(record, *CASES[record], torch.float64)
    check(record, head, embedding, label, 1e-9)


@pytest.mark.parametrize("record", [record for record in CASES if "edge" not in record and "exact" not in record])
def test_in_single_precision(record):
    head, embedding, label = head_of(record, *CASES[record], torch.float32)
    check(record, head, embedding, label, 1e-5)


@pytest.mark.parametrize("name", ["adaface", "curricularface"])
@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_what_moves_from_step_to_step(name, kind, tolerance):
    case = {"adaface": "adaface/readme_t0.01", "curricularface": "curricularface/default"}[name]
    state = {"adaface": {"mean": "batch_mean", "deviation": "batch_std"}, "curricularface": {"progress": "t"}}[name]
    head = None
    for step in STEPS:
        fresh, embedding, label = head_of(f"{case}/{step}", name, {}, kind)
        if head is not None:
            fresh.load_state_dict(head.state_dict() | {"centres": fresh.centres.detach()})
        head = fresh
        check(f"{case}/{step}", head, embedding, label, tolerance)
        for own, other in state.items():
            torch.testing.assert_close(
                head.get_buffer(own).double(), golden(f"{case}/{step}", other)[0], rtol=tolerance, atol=tolerance
            )
