"""The angles of Angular-KD (Yu et al. 2025, arXiv:2510.22480): losses between views and their teacher.

Views A [B, N, K] of one teacher are pushed apart in angle and held near their anchor R [B, K], the teacher's own
vector. K counts features (embeddings) or classes (probabilities). With hats for unit vectors and g the margin:

* constraint: S = <A^_bi, R^_b'>, the own similarity (b' = b) set to 1 where it is >= 1 - g; cross-entropy of S / t
  towards the own anchor, mean over B * N. Inside the margin nothing attracts any more; other anchors still repel.
* diversity: mean over i != j of softplus <A^_bi, A^_bj>, counted for samples whose views are all inside the margin,
  summed and divided by B. Which samples count carries no gradient.
* intra-angle: mean over i != j and b of softplus of the cosine between the offsets R_b - A_bi and R_b - A_bj.

The released code differs in its arithmetic (``released_*`` below); methods/README.md says how.
Everything is computed in float32 at least, also under autocast: near 1 a bfloat16 cosine has two digits.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.methods.precision import wide

#: Offsets shorter than this share of the anchor count as none: their direction is rounding.
SHORT = 1e-3


class Similarities(NamedTuple):
    """What constraint and diversity look at.

    Attributes:
        anchors: [B, N, B] of every view with every anchor of the batch.
        gate: [B, N] of each view with its own anchor, for the question whether it is inside the margin.
        pairs: [B, N, N] of the views of a sample with each other.
    """

    anchors: Tensor
    gate: Tensor
    pairs: Tensor


def inter_angle_loss(views: Tensor, anchor: Tensor, margin: float | Tensor, temperature: float = 0.07) -> Tensor:
    """Constraint plus diversity, each with weight 1; a scalar >= 0.

    Args:
        views: [B, N, D].
        anchor: [B, D].
        margin: g in 0..2; a view is inside if its cosine with its anchor is at least 1 - g.
        temperature: t of the contrast.
    """
    found = cosines(views, anchor)
    return constraint(found, margin, temperature) + diversity(found, margin)


def constraint_loss(views: Tensor, anchor: Tensor, margin: float | Tensor, temperature: float = 0.07) -> Tensor:
    """The first part of :func:`inter_angle_loss`: keeps every view [B, N, D] within the margin of its anchor [B, D]."""
    return constraint(cosines(views, anchor), margin, temperature)


def diversity_loss(views: Tensor, anchor: Tensor, margin: float | Tensor) -> Tensor:
    """The second part of :func:`inter_angle_loss`: spreads the views [B, N, D] of samples inside the margin."""
    return diversity(cosines(views, anchor), margin)


def intra_angle_loss(views: Tensor, anchor: Tensor) -> Tensor:
    """Spreads the offsets of the views [B, N, D] around their anchor [B, D]; 0 for one view.

    Offsets d are divided by sqrt(|d|^2 + (1e-3 |R|)^2), so that a view that lies on its anchor has no direction
    instead of a random one.
    """
    with wide(views, anchor) as (views, anchor):
        offsets = anchor[:, None] - views
        floor = (SHORT * anchor).square().sum(-1)[:, None, None]
        # The last bound is for an anchor of nothing but zeros, which pooled ReLU outputs can be.
        offsets = offsets * (offsets.square().sum(-1, keepdim=True) + floor).clamp(min=1e-24).rsqrt()
        return pair_mean(F.softplus(offsets @ offsets.mT)).mean()


def cosines(views: Tensor, anchor: Tensor) -> Similarities:
    """Cosines of views [B, N, D] and anchors [B, D]."""
    with wide(views, anchor) as (views, anchor):
        views, anchor = F.normalize(views, dim=-1), F.normalize(anchor, dim=-1)
        every = views @ anchor.mT
        return Similarities(every, _own(every), views @ views.mT)


def constraint(found: Similarities, margin: float | Tensor, temperature: float) -> Tensor:
    """:func:`constraint_loss` of similarities that are known."""
    b, n = found.gate.shape
    own = torch.eye(b, dtype=torch.bool, device=found.gate.device)[:, None]
    inside = _own(found.anchors).detach() >= 1 - margin
    logits = found.anchors.masked_fill(own & inside[..., None], 1.0) / temperature
    towards = torch.arange(b, device=logits.device)[:, None].expand(b, n)
    return F.cross_entropy(logits.flatten(0, 1), towards.flatten())


def diversity(found: Similarities, margin: float | Tensor) -> Tensor:
    """:func:`diversity_loss` of similarities that are known."""
    counted = (found.gate.detach() >= 1 - margin).all(1)
    return (pair_mean(F.softplus(found.pairs)) * counted).mean()


def pair_mean(pairs: Tensor) -> Tensor:
    """Mean over i != j of [..., N, N]; 0 for one view."""
    n = pairs.shape[-1]
    apart = ~torch.eye(n, dtype=torch.bool, device=pairs.device)
    return (pairs * apart).sum((-1, -2)) / max(1, n * (n - 1))


def ensemble_weights(count: int, view_weight: float, norm: int = 1) -> list[float]:
    """Weights [count + 1] of the teacher and its views: (1, w, ..., w) divided by its p-norm.

    With norm 1 they sum to 1. With norm 2, as released, to (1 + w N) / sqrt(1 + w^2 N): 2.44 for five views of 0.8,
    by which every soft-target loss grows.
    """
    weights = [1.0] + [view_weight] * count
    size = sum(w**norm for w in weights) ** (1 / norm)
    return [w / size for w in weights]


def ensemble(teacher: Tensor, views: Tensor, view_weight: float, norm: int = 1) -> Tensor:
    """The weighted sum of a teacher [B, K] and its views [B, N, K]: [B, K]; see :func:`ensemble_weights`."""
    first, *rest = ensemble_weights(views.shape[1], view_weight, norm)
    return first * teacher + (rest[0] * views.sum(1) if rest else 0)


def ambiguity(log_p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What an ensemble gains from members that differ (Ortega et al. 2022, arXiv:2110.13786, theorem on cross-entropy).

    With p_k the probability that member k gives to the right class, and -log curved by at least 1 / max_k p_k^2,

        -log sum_k w_k p_k  <=  sum_k w_k (-log p_k) - var_w(p_k) / (2 max_k p_k^2).

    Args:
        log_p: [..., K] log-probabilities of the right class.
        weights: [K], any positive sum.

    Returns:
        The three parts, each [...]: ensemble loss, mean member loss, diversity.
    """
    weights = weights / weights.sum()
    relative = (log_p - log_p.amax(-1, keepdim=True)).exp()  # p_k / max p: never underflows as a whole
    mean = (weights * relative).sum(-1, keepdim=True)
    spread = (weights * (relative - mean).square()).sum(-1) / 2
    return -torch.logsumexp(log_p + weights.log(), -1), -(weights * log_p).sum(-1), spread


# -- the released arithmetic ---------------------------------------------------------------------------------------


def released_feature_similarities(views: Tensor, anchor: Tensor) -> Similarities:
    """Features as released: contrast by cosines; gate and pairs with views normalised over the *view* axis.

    A channel's values over the N views then have length 1, so gate and pairs are sums over D channels of the size
    sqrt(D / N) and D / N: the gate is open for any views, and softplus is linear.
    """
    with wide(views, anchor) as (views, anchor):
        unit = F.normalize(anchor, dim=-1)
        every = F.normalize(views, dim=-1) @ unit.mT
        across = F.normalize(views, dim=1)
        return Similarities(every, (across * unit[:, None]).sum(-1), across @ across.mT)


def released_logit_similarities(views: Tensor, anchor: Tensor) -> Similarities:
    """Probabilities as released: dot products without normalisation, so that soft ones are never inside the margin."""
    with wide(views, anchor) as (views, anchor):
        every = views @ anchor.mT
        return Similarities(every, _own(every), views @ views.mT)


def released_intra_angle_loss(views: Tensor, anchor: Tensor) -> Tensor:
    """Intra-angle as released: cosines of offsets are averaged over the batch before the softplus."""
    with wide(views, anchor) as (views, anchor):
        offsets = F.normalize(anchor[:, None] - views, dim=-1)
        return pair_mean(F.softplus((offsets @ offsets.mT).mean(0)))


# -- shared --------------------------------------------------------------------------------------------------------


def _own(anchors: Tensor) -> Tensor:
    """[B, N] similarity with the own anchor, of [B, N, B]."""
    return anchors.diagonal(dim1=0, dim2=2).mT
