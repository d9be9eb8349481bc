"""Multi-level logit distillation (Jin, Wang and Lin 2023, CVPR, equations 2 to 7).

    L = ce_weight * CE(z_s, y) + sum_v sum_tau [ instance * tau^2 * mean_b KL(p_t || p_s)
        + batch * |P_t P_t^T - P_s P_s^T|^2 / B + classes * |P_t^T P_t - P_s^T P_s|^2 / C ]

P [B, C] are a view's probabilities at tau, squares are summed over all entries; sums go over the temperatures and over
the views v: both where a batch holds two, as published (standard and RandAugment), else the standard one alone. Each
view is compared with itself. ``weight`` stands before all three; published 0.9, hard labels 0.1.

What the released code does otherwise, mended here: its strong view's divergence at temperatures 2 and 6 uses the
*standard* view's logits; its strong view's batch and class terms are computed and thrown away; its masks (the half of
the samples, and of the classes, of low teacher confidence) multiply sums over the batch instead of samples and classes,
so that they only halve the loss (weight 0.45 here is its strength). The paper has no masks, and there are none here.
The strong view has no hard label here, as in every method of this package.

The levels are sums over the entries of products: of a teacher that is sure and a student that is not, with balanced
classes, the batch's is (B / C) (1 - 1 / C) and the classes' (B / C)^2 (1 - 1 / C). Published shares of 1 are for 100
classes and a batch of 64; with ten classes they are 10 and 100 times as heavy.

``standardise`` softens z-scores of the logits (arXiv:2403.01427), published with weight 9 (6 for VGG).
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


def levels(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Instance, batch and class level at one temperature, each summed over the views; without tau^2.

    Args:
        log_p, log_q: [V, B, C] log-probabilities of student and teacher.
    """
    wide = torch.promote_types(log_p.dtype, log_q.dtype)
    log_p, log_q = log_p.to(wide), log_q.to(wide)
    _, rows, classes = log_p.shape
    p, q = log_p.exp(), log_q.exp()
    instance = (q * (log_q - log_p)).sum() / rows
    with torch.autocast(log_p.device.type, enabled=False):  # products of probabilities need more than bfloat16
        batch = (q @ q.mT - p @ p.mT).square().sum() / rows
        of_classes = (q.mT @ q - p.mT @ p).square().sum() / classes
    return instance, batch, of_classes


def mlkd_losses(
    student_logits: Tensor, teacher_logits: Tensor, temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    """Instance level with its tau^2, batch level and class level, summed over temperatures and views.

    Args:
        student_logits, teacher_logits: [V, B, C], one view after the other.
        temperatures: each > 0.
    """
    pairs = [tuple(log_probabilities(z, tau) for z in (student_logits, teacher_logits)) for tau in temperatures]
    return _summed([levels(*pair) for pair in pairs], temperatures)


def _summed(
    found: list[tuple[Tensor, Tensor, Tensor]], temperatures: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    instance, batch, of_classes = (torch.stack(level) for level in zip(*found, strict=True))
    scaled = torch.stack([tau**2 * x for tau, x in zip(temperatures, instance, strict=True)])
    return scaled.sum(), batch.sum(), of_classes.sum()


@dataclass(frozen=True, kw_only=True)
class MLKDConfig:
    """Settings of multi-level distillation."""

    name: str = setting("mlkd", choices=["mlkd"])
    temperatures: tuple[float, ...] = setting((2.0, 3.0, 4.0, 5.0, 6.0), above=0, high=100, help="each is used")
    weight: float = setting(0.9, low=0, help="of the three levels together; searched in 0.1 to 10, log")
    instance: float = setting(1.0, low=0, help="share of the divergence, sample by sample; searched in 0.25 to 4, log")
    batch: float = setting(1.0, low=0, help="share of the samples' products; searched in 0.025 to 4, log")
    classes: float = setting(1.0, low=0, help="share of the classes' products; searched in 0.0025 to 4, log")
    ce_weight: float = setting(0.1, low=0, help="weight of the hard-label term; searched in 0.05 to 1")
    standardise: bool = setting(False, help="z-scores of the logits (LSKD); published with weight 9")


@hosts.register(
    "mlkd",
    config=MLKDConfig,
    paper="CVPR 2023, Jin et al.",
    summary="probabilities matched by sample, batch and class at several temperatures",
)
class MLKD(Method):
    """Hard labels plus three levels of agreement, at every temperature and in every view."""

    needs = frozenset({"logits"})
    relational = True

    def __init__(self, config: MLKDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        if not config.temperatures:
            raise ExperimentError("must be one number or more", key="method.host.temperatures", value=[])
        self.config, self.label_smoothing = config, label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("mlkd needs a teacher")
        config, found = self.config, []
        for tau in config.temperatures:
            log_q, mass = soft_target(teacher, tau, standardise=config.standardise)
            log_p = log_probabilities(student.logits, tau, standardise=config.standardise)
            found.append(levels(*(x.unflatten(0, (batch.views, -1)) for x in (log_p, log_q))))
        terms = {"ce": hard_target_loss(student.logits, batch, self.label_smoothing)}
        named = zip(("instance", "batch", "classes"), _summed(found, config.temperatures), strict=True)
        return terms | {name: mass * level for name, level in named}

    def weights(self) -> dict[str, float]:
        shares = {name: getattr(self.config, name) for name in ("instance", "batch", "classes")}
        return {"ce": self.config.ce_weight} | {name: self.config.weight * share for name, share in shares.items()}

    def soft_weight(self) -> float:
        """Of the instance level in one view."""
        return self.config.weight * self.config.instance * sum(tau**2 for tau in self.config.temperatures)
