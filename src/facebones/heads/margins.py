"""Margins: pure functions from cosines (B, C) and the column (B,) of each true class to logits (B, C).

Every margin has the signature `margin(cosine_BC, column_B, norm_B, state) -> logits_BC`: `norm_B` are the norms of the
embeddings, `state` the buffers of the head by name (moving averages). The margins of this module use neither. A margin
never writes to its input. Column -1 means that the class of the image is not on this shard: its row gets no margin.

Sources: ArcFace, arXiv 1801.07698, equation 4 (the combined form); CosFace, arXiv 1801.09414; inter-class filtering:
Partial FC, arXiv 2203.15565, section 3.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Gradient = Literal["straight_through", "exact"]


def smallest_sine(kind: torch.dtype) -> float:
    """The exact slope of arccos at an angle of 0 is infinite; the sine is clamped to at least this."""
    return 1e-8 if kind == torch.float64 else 1e-4


def combined_margin(
    cosine_BC: Tensor,
    column_B: Tensor,
    norm_B: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    scale: float = 64.0,
    m1: float = 1.0,
    m2: float = 0.0,
    m3: float = 0.0,
    interclass_filter: float = 0.0,
    gradient: Gradient = "straight_through",
) -> Tensor:
    """Logits with the cosine of the true class, cos(theta), replaced by cos(m1 theta + m2) - m3.

    Args:
        cosine_BC: cosines between embeddings and class centres.
        column_B: column of each row's true class, or -1.
        norm_B: not used.
        state: not used.
        scale: factor on all logits.
        m1: factor on the angle (SphereFace).
        m2: added to the angle, in radians (ArcFace).
        m3: subtracted from the cosine (CosFace).
        interclass_filter: above 0, cosines of other classes above this count as label noise: set to 0, no gradient.
            They stay in the softmax, with a logit of 0.
        gradient: "straight_through" applies the margin without differentiating it, so that d logit / d cosine is
            `scale` everywhere, as the field's implementations do; "exact" is the true derivative, bounded near
            angles of 0 and pi.

    Returns:
        Logits (B, C), differentiable with respect to `cosine_BC`.

    >>> combined_margin(torch.tensor([[0.5, 0.2]]), torch.tensor([0]), scale=10.0, m3=0.25)
    tensor([[2.5000, 2.0000]])
    """
    has_class = (column_B >= 0)[:, None]  # (B, 1)
    column = column_B.clamp(min=0)[:, None]
    target = cosine_BC.gather(1, column)
    with torch.no_grad():
        theta = target.clamp(-1, 1).arccos()
        angle = m1 * theta + m2
        margined = angle.cos() - m3
        slope = torch.ones_like(target)
        if gradient == "exact":
            slope = m1 * angle.sin() / theta.sin().clamp(min=smallest_sine(theta.dtype))
    # Value `margined`, derivative `slope`: the difference is 0 and carries the gradient.
    target_margined = torch.where(has_class, margined + slope * (target - target.detach()), target)
    others = cosine_BC
    if interclass_filter > 0:
        others = torch.where(cosine_BC.detach() > interclass_filter, 0.0, cosine_BC)
        target_margined = torch.where(has_class, target_margined, others.gather(1, column))
    return (scale * others).scatter_(1, column, scale * target_margined)  # in place: one (B, C) copy less


def arcface(
    cosine_BC: Tensor,
    column_B: Tensor,
    norm_B: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    scale: float = 64.0,
    margin: float = 0.5,
    gradient: Gradient = "straight_through",
) -> Tensor:
    """ArcFace: the true class's logit is scale cos(theta + margin); shapes as in `combined_margin`."""
    return combined_margin(cosine_BC, column_B, scale=scale, m2=margin, gradient=gradient)


def cosface(
    cosine_BC: Tensor,
    column_B: Tensor,
    norm_B: Tensor | None = None,
    state: Mapping[str, Tensor] | None = None,
    *,
    scale: float = 64.0,
    margin: float = 0.4,
) -> Tensor:
    """CosFace: the true class's logit is scale (cos(theta) - margin); its straight-through gradient is exact."""
    return combined_margin(cosine_BC, column_B, scale=scale, m3=margin)
