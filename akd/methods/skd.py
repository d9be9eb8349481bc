"""Streamlined distillation (SKD, CVPR 2026): plain distillation beside one relation between the samples of a batch.

    L = ce_weight * CE(z_s, y) + weight * tau^2 * mean_b KL(p_t || p_s) + relation * mean_i sqrt(D_i S^-1 D_i^T)

D = (U_s U_s^T - U_t U_t^T) / C with U [B, C] the logits of unit length, and S = cov(rows of D) + ridge * I: the
Mahalanobis length of each sample's change of similarities. The three weights are 0.5, ridge 0.1.

Logits are centred before they get unit length, so that an ensemble, which has probabilities and no logits, goes the
same way: log q is the centred logits / tau up to a constant. Released code leaves them uncentred, multiplies both terms
by means of confidence masks that only halve them, and has an unbounded gradient where student and teacher agree; here
the root is that of x + 1e-6 (lengths are about 0.1).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.errors import ExperimentError
from akd.methods.base import Method, Shapes, hosts
from akd.methods.kd import soft_cross_entropy_gap
from akd.methods.target import hard_target_loss, soft_target
from akd.models.output import Output
from akd.settings import setting

_ROOT = 1e-6


def relation_loss(student_logits: Tensor, teacher_logits: Tensor, ridge: float) -> Tensor:
    """mean_i sqrt(D_i S^-1 D_i^T + 1e-6) - 1e-3, so that it is 0 when the two agree.

    Args:
        student_logits, teacher_logits: [B, C], up to a constant per row and a factor; B >= 2.
        ridge: added to the diagonal of the covariance, > 0.

    Raises:
        ExperimentError: a batch of one sample, which has no covariance.
    """
    rows, classes = student_logits.shape
    if rows < 2:
        problem = "skd takes a covariance over the samples of a batch, so it needs two or more"
        raise ExperimentError(problem, key="train.batch_size", value=rows)
    wide = torch.promote_types(torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32)
    with torch.autocast(student_logits.device.type, enabled=False):
        grams = []
        for logits in (student_logits.to(wide), teacher_logits.to(wide)):
            unit = F.normalize(logits - logits.mean(1, keepdim=True), dim=1, eps=1e-6)
            grams.append(unit @ unit.mT / classes)
        change = grams[0] - grams[1]
        centred = change - change.mean(0)
        spread = centred.mT @ centred / (rows - 1) + ridge * torch.eye(rows, dtype=wide, device=change.device)
        # S = L L^T, so D_i S^-1 D_i^T is the squared length of L^-1 D_i: no inverse. S is never singular, and its
        # check would wait for the device.
        factor = torch.linalg.cholesky_ex(spread).L
        lengths = torch.linalg.solve_triangular(factor, change.mT, upper=False).square().sum(0)
    return (lengths + _ROOT).sqrt().mean() - _ROOT**0.5


@dataclass(frozen=True, kw_only=True)
class SKDConfig:
    """Settings of streamlined distillation."""

    name: str = setting("skd", choices=["skd"])
    temperature: float = setting(4.0, above=0, high=100, help="softens both distributions; searched in 1 to 8")
    weight: float = setting(0.5, low=0, help="of the soft term (tau^2 is inside it); searched in 0.25 to 20, log")
    relation: float = setting(0.5, low=0, help="of the samples' relation; searched in 0.1 to 10, log")
    ridge: float = setting(0.1, above=0, help="on the covariance's diagonal; searched in 1e-4 to 1, log")
    ce_weight: float = setting(0.5, low=0, help="weight of the hard-label term; searched in 0.05 to 1")


@hosts.register(
    "skd", config=SKDConfig, paper="SKD, CVPR 2026", summary="kd plus the Mahalanobis length of changed similarities"
)
class SKD(Method):
    """Hard labels, softened probabilities, and how similar the samples of a batch are."""

    needs = frozenset({"logits"})
    relational = True

    def __init__(self, config: SKDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        self.config, self.label_smoothing = config, label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("skd needs a teacher")
        log_q, mass = soft_target(teacher, self.config.temperature)
        return {
            "ce": hard_target_loss(student.logits, batch, self.label_smoothing),
            "kd": mass * soft_cross_entropy_gap(student.logits, log_q, self.config.temperature),
            "relation": mass * relation_loss(student.logits, log_q, self.config.ridge),
        }

    def weights(self) -> dict[str, float]:
        return {"ce": self.config.ce_weight, "kd": self.config.weight, "relation": self.config.relation}

    def soft_weight(self) -> float:
        return self.config.weight * self.config.temperature**2
