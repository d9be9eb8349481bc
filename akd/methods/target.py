"""Targets: the hard label of a (possibly mixed) batch, and the one way hosts get soft targets and embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.models.output import Output

#: Keeps the standardisation of a row of equal logits finite, and its gradient below 1 / FLOOR.
FLOOR = 1e-4


def standardised(logits: Tensor) -> Tensor:
    """Z-scores of each row: (z - mean z) / sqrt(var z + FLOOR^2) over the classes, the last axis.

    Sun et al. 2024, "Logit standardization in knowledge distillation", arXiv:2403.01427, section 4.2: the student then
    need not match the range and variance of its teacher's logits. The variance divides by the number of classes, as in
    the paper; the released code divides by one less, which is a temperature lower by sqrt((C - 1) / C).
    """
    centred = logits - logits.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + FLOOR**2).rsqrt()


def log_probabilities(logits: Tensor, temperature: float, *, standardise: bool = False) -> Tensor:
    """log softmax(z / temperature) of logits [..., C] in float32 or wider; of their z-scores if asked."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.log_softmax((standardised(wide) if standardise else wide) / temperature, dim=-1)


def soft_target(teacher: Output, temperature: float, *, standardise: bool = False) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the teacher, or of the ensemble of the teacher and its views.

    Probabilities (not logits) are averaged: q = sum_k w_k softmax(z_k / temperature) / sum_k w_k, with the teacher as
    member 0. Computed in log space and at least float32, so that bfloat16 logits give finite targets.

    Args:
        teacher: its ``view_logits`` [B, N, C] and ``view_weights`` [N + 1] make an ensemble when present.
        temperature: > 0.
        standardise: soften the z-scores of each member's logits, not the logits; see :func:`standardised`.

    Returns:
        log_q [B, C], normalised, and mass, a scalar: sum of the weights (1 without views).
        A host multiplies its soft term by mass, which is what an unnormalised ensemble does to the gradient.
    """
    log_p = log_probabilities(teacher.logits, temperature, standardise=standardise)
    if teacher.view_logits is None:
        return log_p, log_p.new_ones(())
    of_views = log_probabilities(teacher.view_logits, temperature, standardise=standardise)
    members = torch.cat([log_p[:, None], of_views], dim=1)
    if teacher.view_weights is None:
        weights = members.new_full((members.shape[1],), 1 / members.shape[1])
    else:
        weights = teacher.view_weights.to(members.dtype)
    mass = weights.sum()
    return torch.logsumexp(members + (weights / mass).log()[:, None], dim=1), mass


def embedding_target(teacher: Output) -> Tensor:
    """The teacher's embedding [B, D], or the weighted mean of its own and its views'.

    Weights are divided by their sum: hosts compare lengths, so an ensemble of larger mass must not be a longer vector.
    In float32 at least.
    """
    own = teacher.embedding.to(torch.promote_types(teacher.embedding.dtype, torch.float32))
    if teacher.view_embeddings is None:
        return own
    members = torch.cat([own[:, None], teacher.view_embeddings.to(own.dtype)], dim=1)
    if teacher.view_weights is None:
        return members.mean(1)
    weights = teacher.view_weights.to(own.dtype)
    return (members * (weights / weights.sum())[:, None]).sum(1)


def hard_target_loss(logits: Tensor, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the hard labels: lam * CE(target) + (1 - lam) * CE(target2), mean over standard rows.

    Rows of the strong view carry no hard label and do not count; without any standard row the term is 0.

    Args:
        logits: [B, C].
        label_smoothing: share of each label spread over all classes.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    first = F.cross_entropy(wide, batch.target, reduction="none", label_smoothing=label_smoothing)
    second = F.cross_entropy(wide, batch.target2, reduction="none", label_smoothing=label_smoothing)
    lam = batch.lam.to(wide.dtype)
    standard = (batch.view == 0).to(wide.dtype)
    return ((lam * first + (1 - lam) * second) * standard).sum() / standard.sum().clamp(min=1)
