"""Knowledge distillation (Hinton, Vinyals and Dean 2015, arXiv:1503.02531, section 2).

L = ce_weight * CE(z_s, y) + weight * tau^2 * mean_b KL(softmax(z_t / tau) || softmax(z_s / tau)).

tau^2 keeps the gradient's size when the temperature changes. Defaults are those of the CIFAR-100 literature
(0.1, 0.9, tau 4); the paper itself leaves them open.

``standardise`` softens z-scores of the logits in place of the logits (Sun et al. 2024, arXiv:2403.01427, equation 9);
the temperature is then in units of a row's standard deviation, and tau^2 is kept as in the released code. Published
with temperature 2 and weight 9 (3 and 9, 4 and 12 for some pairs), ce_weight 0.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Method, Shapes, hosts
from akd.methods.target import hard_target_loss, log_probabilities, soft_target
from akd.models.output import Output
from akd.settings import setting


def soft_cross_entropy_gap(
    student_logits: Tensor, log_q: Tensor, temperature: float, *, standardise: bool = False
) -> Tensor:
    """tau^2 * mean_b KL(q || softmax(z_s / tau)).

    Args:
        student_logits: [B, C].
        log_q: [B, C] log-probabilities of the target.
        temperature: tau.
        standardise: soften the z-scores of z_s.
    """
    wide = torch.promote_types(student_logits.dtype, log_q.dtype)
    log_p = log_probabilities(student_logits.to(wide), temperature, standardise=standardise)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """tau^2 * mean_b KL(teacher || student) of [B, C] logits at one temperature; 0 when they agree."""
    log_q, _ = soft_target(Output(teacher_logits, teacher_logits), temperature)
    return soft_cross_entropy_gap(student_logits, log_q, temperature)


@dataclass(frozen=True, kw_only=True)
class KDConfig:
    """Settings of plain knowledge distillation."""

    name: str = setting("kd", choices=["kd"])
    temperature: float = setting(4.0, above=0, high=100, help="softens both distributions; searched in 1 to 8")
    weight: float = setting(0.9, low=0, help="weight of the soft term (tau^2 is inside it); searched in 0.5 to 40, log")
    ce_weight: float = setting(0.1, low=0, help="weight of the hard-label term; searched in 0.05 to 1")
    standardise: bool = setting(
        False, help="z-scores of the logits (LSKD); then temperature 1 to 4 and weight 1 to 20, log; published 2 and 9"
    )


@hosts.register("kd", config=KDConfig, paper="arXiv:1503.02531", summary="match softened class probabilities")
class KD(Method):
    """Hard labels plus softened teacher probabilities."""

    needs = frozenset({"logits"})

    def __init__(self, config: KDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        self.config, self.label_smoothing = config, label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("kd needs a teacher")
        tau, standardise = self.config.temperature, self.config.standardise
        log_q, mass = soft_target(teacher, tau, standardise=standardise)
        return {
            "ce": hard_target_loss(student.logits, batch, self.label_smoothing),
            "kd": mass * soft_cross_entropy_gap(student.logits, log_q, tau, standardise=standardise),
        }

    def weights(self) -> dict[str, float]:
        return {"ce": self.config.ce_weight, "kd": self.config.weight}

    def soft_weight(self) -> float:
        return self.config.weight * self.config.temperature**2
