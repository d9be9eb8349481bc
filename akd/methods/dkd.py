"""Decoupled knowledge distillation (Zhao, Cui, Song, Qiu and Liang 2022, arXiv:2203.08679, equations 6 and 7).

    L = ce_weight * CE(z_s, y) + weight * ramp * tau^2 * mean_b [ alpha * KL(b_t || b_s) + beta * KL(r_t || r_s) ]

b = (p_y, 1 - p_y) is the target class against all others, r the probabilities among the others, both at tau. Plain
distillation is alpha 1 and beta 1 - p_y of the teacher: it hardly looks at the other classes where the teacher is
sure. ramp rises linearly over the first ``ramp_epochs`` epochs. Defaults are those of the ResNet-32x4 pairs of
CIFAR-100; beta was 6 for wide residual networks and VGG, 2 for ResNet-56 and -110.

The released code takes log(p) without protection and hides the target class by subtracting 1000 from its logit; here
the target class is left out of the sums, and everything is in log space. ``standardise`` softens z-scores of the logits
(arXiv:2403.01427), published with temperature 2 or 3 and weight 9 to 18.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from akd.data.batch import Batch
from akd.errors import ExperimentError
from akd.methods.base import Method, Shapes, hosts
from akd.methods.target import hard_target_loss, log_probabilities, soft_target
from akd.models.output import Output
from akd.settings import setting


def target_class(log_q: Tensor, batch: Batch) -> Tensor:
    """[B] the class that is set apart from the others.

    The class of the larger share of a mixed label (``target`` at equal shares): the decoupling knows one target, and
    the second class keeps its place among the others. Rows of the strong view carry no hard label; the class the
    teacher, or the ensemble, ranks first in log_q [B, C] stands in for it.
    """
    label = torch.where(batch.lam >= 0.5, batch.target, batch.target2)
    return torch.where(batch.view == 0, label, log_q.argmax(-1))


def decoupled(log_p: Tensor, log_q: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """mean_b KL(b_t || b_s) and mean_b KL(r_t || r_s), without tau^2.

    Args:
        log_p, log_q: [B, C] log-probabilities of student and teacher; C >= 2.
        target: [B].
    """
    wide = torch.promote_types(log_p.dtype, log_q.dtype)
    log_p, log_q = log_p.to(wide), log_q.to(wide)
    places = torch.arange(log_p.shape[1] - 1, device=target.device)
    others = places + (places >= target[:, None])  # [B, C - 1], the classes but the target in their order
    binary_p, rest_p = _split(log_p, target, others)
    binary_q, rest_q = _split(log_q, target, others)
    return _divergence(binary_q, binary_p), _divergence(rest_q, rest_p)


def dkd_loss(
    student_logits: Tensor, teacher_logits: Tensor, target: Tensor, alpha: float, beta: float, temperature: float
) -> Tensor:
    """tau^2 * mean_b [alpha * KL(b_t || b_s) + beta * KL(r_t || r_s)] of [B, C] logits; 0 when they agree.

    Args:
        target: [B].
        alpha, beta: weights of the target class and of the other classes.
        temperature: tau.
    """
    log_p, log_q = (log_probabilities(z, temperature) for z in (student_logits, teacher_logits))
    of_target, of_others = decoupled(log_p, log_q, target)
    return temperature**2 * (alpha * of_target + beta * of_others)


def _split(log_p: Tensor, target: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """log (p_y, 1 - p_y) [B, 2] and log probabilities among the other classes [B, C - 1], of log p [B, C]."""
    rest = log_p.gather(1, others)
    all_others = torch.logsumexp(rest, 1, keepdim=True)
    return torch.cat([log_p.gather(1, target[:, None]), all_others], 1), rest - all_others


def _divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """mean_b KL(q || p)."""
    return (log_q.exp() * (log_q - log_p)).sum(1).mean()


@dataclass(frozen=True, kw_only=True)
class DKDConfig:
    """Settings of decoupled distillation."""

    name: str = setting("dkd", choices=["dkd"])
    temperature: float = setting(4.0, above=0, high=100, help="softens both distributions; searched in 1 to 8")
    weight: float = setting(1.0, low=0, help="of both soft terms together; 1 to 20, log, for standardised logits")
    alpha: float = setting(1.0, low=0, help="share of the target class (tau^2 inside it); searched in 0.25 to 4, log")
    beta: float = setting(8.0, low=0, help="share of the other classes (tau^2 inside it); searched in 0.5 to 16, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term; searched in 0.05 to 1")
    ramp_epochs: int = setting(20, low=0, help="epochs over which the soft terms rise to their weight; 0 to 40")
    standardise: bool = setting(
        False, help="z-scores of the logits (LSKD); then temperature 1 to 4; published 2 or 3, weight 9 to 18"
    )


@hosts.register(
    "dkd", config=DKDConfig, paper="arXiv:2203.08679", summary="target class and other classes matched apart"
)
class DKD(Method):
    """Hard labels plus the two halves of softened distillation, each with a weight of its own."""

    needs = frozenset({"logits"})

    def __init__(self, config: DKDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        if shapes.num_classes < 2:
            raise ExperimentError("needs two classes or more", key="method.host", value="dkd")
        self.config, self.label_smoothing = config, label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("dkd needs a teacher")
        tau, standardise = self.config.temperature, self.config.standardise
        log_q, mass = soft_target(teacher, tau, standardise=standardise)
        log_p = log_probabilities(student.logits, tau, standardise=standardise)
        of_target, of_others = decoupled(log_p, log_q, target_class(log_q, batch))
        factor = mass * (tau**2 * self._ramp(batch.epoch))
        ce = hard_target_loss(student.logits, batch, self.label_smoothing)
        return {"ce": ce, "target": factor * of_target, "others": factor * of_others}

    def weights(self) -> dict[str, float]:
        config = self.config
        return {"ce": config.ce_weight, "target": config.weight * config.alpha, "others": config.weight * config.beta}

    def soft_weight(self) -> float:
        return self.config.weight * (self.config.alpha + self.config.beta) * self.config.temperature**2

    def ramps(self, epoch: int) -> dict[str, float]:
        return dict.fromkeys(("target", "others"), self._ramp(epoch))

    def _ramp(self, epoch: int) -> float:
        return min(epoch / self.config.ramp_epochs, 1.0) if self.config.ramp_epochs else 1.0
