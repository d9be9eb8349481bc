"""Targets: the hard label of a (possibly mixed) batch, and the one way hosts get soft targets."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.models.output import Output


def soft_target(teacher: Output, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the teacher, or of the ensemble of the teacher and its views.

    Probabilities (not logits) are averaged: q = sum_k w_k softmax(z_k / temperature) / sum_k w_k, with the teacher as
    member 0. Computed in log space and at least float32, so that bfloat16 logits give finite targets.

    Args:
        teacher: its ``view_logits`` [B, N, C] and ``view_weights`` [N + 1] make an ensemble when present.
        temperature: > 0.

    Returns:
        log_q [B, C], normalised, and mass, a scalar: sum of the weights (1 without views).
        A host multiplies its soft term by mass, which is what an unnormalised ensemble does to the gradient.
    """
    log_p = _log_softmax(teacher.logits, temperature)
    if teacher.view_logits is None:
        return log_p, log_p.new_ones(())
    members = torch.cat([log_p[:, None], _log_softmax(teacher.view_logits, temperature)], dim=1)
    if teacher.view_weights is None:
        weights = members.new_full((members.shape[1],), 1 / members.shape[1])
    else:
        weights = teacher.view_weights.to(members.dtype)
    mass = weights.sum()
    return torch.logsumexp(members + (weights / mass).log()[:, None], dim=1), mass


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.log_softmax(wide / temperature, dim=-1)


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


def views_hard_target_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Mean over views of :func:`hard_target_loss`, of logits [B, N, C]."""
    n = logits.shape[1]
    each = {k: getattr(batch, k).repeat_interleave(n) for k in ("target", "target2", "lam", "view")}
    return hard_target_loss(logits.flatten(0, 1), batch._replace(**each))
