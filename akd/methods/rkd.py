"""RKD: relational knowledge distillation (Park, Kim, Lu and Cho 2019, arXiv:1904.05068).

    distance = mean_ij  huber(d_ij / mu,  same of the teacher),     d_ij = |x_i - x_j|, mu its mean over i != j
    angle    = mean_ijk huber(cos of the angle at i between j and k,  same of the teacher)

over the embeddings x of a batch (sections 3.2.1 and 3.2.2; huber(a, b) = (a - b)^2 / 2 where |a - b| <= 1, else
|a - b| - 1/2). As in the released code the means count all B^2 and B^3 combinations, those of an image with itself are
0: the published weights of 25 and 50 go with that. Equal embeddings have no direction: their angles count 0 and carry
no gradient, where the released code divides by a floor of 1e-12. Memory and time of the angles grow with B^3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import hosts
from akd.methods.feature import FeatureHost, needs_batch
from akd.methods.precision import wide
from akd.methods.target import embedding_target
from akd.models.output import Output
from akd.settings import setting

#: Squared distance below which two embeddings are one.
EQUAL = 1e-12


def rkd_loss(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Distance and angle terms of embeddings [B, D_s] and [B, D_t], B at least 2; 0 when they agree up to scale."""
    with wide(student, teacher) as (student, teacher):
        (d_s, angles_s), (d_t, angles_t) = relations(student), relations(teacher)
        return F.smooth_l1_loss(d_s, d_t), F.smooth_l1_loss(angles_s, angles_t)


def relations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of embeddings [B, D]: distances over their mean [B, B], cosines [B, B, B] of the angles at i between j and k."""
    between = x[None] - x[:, None]
    square = between.square().sum(2)
    apart = square > EQUAL
    lengths = torch.where(apart, square, 1.0).sqrt()
    distances = torch.where(apart, lengths, 0.0)
    mean = distances.sum() / (len(x) * (len(x) - 1))
    directions = torch.where(apart[..., None], between / lengths[..., None], 0.0)
    return distances / mean.clamp(min=EQUAL), directions @ directions.mT


@dataclass(frozen=True, kw_only=True)
class RKDConfig:
    """Settings of relational distillation."""

    name: str = setting("rkd", choices=["rkd"])
    weight: float = setting(25.0, low=0, help="weight of the distances; searched in 2.5 to 250, log")
    angle: float = setting(2.0, low=0, help="times that is the weight of the angles; searched in 0.2 to 20, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")


@hosts.register("rkd", config=RKDConfig, paper="arXiv:1904.05068", summary="match distances and angles in a batch")
class RKD(FeatureHost):
    """Hard labels plus relations of embeddings."""

    needs = frozenset({"embedding"})
    relational = True

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        needs_batch(len(student.embedding), 2, "rkd")
        distance, angle = rkd_loss(student.embedding, embedding_target(teacher))
        return {"distance": distance, "angle": angle}

    def weights(self) -> dict[str, float]:
        config: Any = self.config
        return {"ce": config.ce_weight, "distance": config.weight, "angle": config.weight * config.angle}
