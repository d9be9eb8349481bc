"""Distillation by correlation (Huang, You, Wang, Qian and Xu 2022, "Knowledge distillation from a stronger teacher",
arXiv:2205.10536, equations 7 to 10).

    L = ce_weight * CE(z_s, y) + weight * [ beta * (1 - mean_b rho(p_s[b], p_t[b]))
                                            + gamma * (1 - mean_c rho(p_s[:, c], p_t[:, c])) ]

rho is Pearson's correlation, p = softmax(z / tau): the student has to rank as its teacher does, the classes of a sample
(beta) and the samples of a class (gamma), and need not match the probabilities themselves. The second compares samples
with each other, so batches hold two or more. The paper has no factor tau^2 and a correlation needs none; released code
multiplies by it, so its beta 2 at tau 4 is 32 here. Defaults are those of the released loss: 1, 1, tau 1.
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

#: Vectors shorter than this, all but constant probabilities, count less the shorter they are: gradients stay finite.
FLOOR = 1e-8


def pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of a and b along ``dim``, which is reduced; 0 where one of them is constant."""
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    scale = [x.square().sum(dim).clamp(min=FLOOR**2).rsqrt() for x in (a, b)]
    return (a * b).sum(dim) * scale[0] * scale[1]


def relations(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """1 - mean_b rho over the classes, and 1 - mean_c rho over the batch.

    Args:
        log_p, log_q: [B, C] log-probabilities of student and teacher.

    Raises:
        ExperimentError: a batch of one sample, which has no correlation over the batch.
    """
    if len(log_p) < 2:
        problem = "dist correlates the samples of a batch, so it needs two or more"
        raise ExperimentError(problem, key="train.batch_size", value=len(log_p))
    wide = torch.promote_types(log_p.dtype, log_q.dtype)
    p, q = log_p.to(wide).exp(), log_q.to(wide).exp()
    return 1 - pearson(p, q, 1).mean(), 1 - pearson(p, q, 0).mean()


def dist_loss(student_logits: Tensor, teacher_logits: Tensor, beta: float, gamma: float, temperature: float) -> Tensor:
    """beta * (1 - correlation over classes) + gamma * (1 - correlation over samples) of [B, C] logits, B >= 2.

    Args:
        beta, gamma: weights; a temperature multiplies neither.
        temperature: tau.
    """
    log_p, log_q = (log_probabilities(z, temperature) for z in (student_logits, teacher_logits))
    of_classes, of_samples = relations(log_p, log_q)
    return beta * of_classes + gamma * of_samples


@dataclass(frozen=True, kw_only=True)
class DISTConfig:
    """Settings of distillation by correlation."""

    name: str = setting("dist", choices=["dist"])
    temperature: float = setting(1.0, above=0, high=100, help="softens both distributions; searched in 1 to 8")
    weight: float = setting(1.0, low=0, help="of both correlations together; 0.1 to 10, log")
    beta: float = setting(1.0, low=0, help="share of the classes of a sample; searched in 0.5 to 8, log")
    gamma: float = setting(1.0, low=0, help="share of the samples of a class; searched in 0.5 to 8, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term; searched in 0.05 to 1")


@hosts.register(
    "dist", config=DISTConfig, paper="arXiv:2205.10536", summary="correlation of class probabilities, not their values"
)
class DIST(Method):
    """Hard labels plus correlations of probabilities, within samples and within classes."""

    needs = frozenset({"logits"})
    relational = True

    def __init__(self, config: DISTConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        self.config, self.label_smoothing = config, label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("dist needs a teacher")
        log_q, mass = soft_target(teacher, self.config.temperature)
        of_classes, of_samples = relations(log_probabilities(student.logits, self.config.temperature), log_q)
        ce = hard_target_loss(student.logits, batch, self.label_smoothing)
        return {"ce": ce, "classes": mass * of_classes, "samples": mass * of_samples}

    def weights(self) -> dict[str, float]:
        config = self.config
        return {"ce": config.ce_weight, "classes": config.weight * config.beta, "samples": config.weight * config.gamma}

    def soft_weight(self) -> float:
        """weight * (beta + gamma): there is no tau^2, and a correlation's pull is not a divergence's."""
        return self.config.weight * (self.config.beta + self.config.gamma)
