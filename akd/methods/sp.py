"""SP: similarity-preserving distillation (Tung and Mori 2019, arXiv:1907.09682).

    L = |G_s - G_t|_F^2 / B^2,      G = rows of Q Q^T, each over its length        (section 3)

Q [B, C H W] holds the flattened maps of a batch. Images that excite the teacher alike are to excite the student alike,
whatever channels and sizes the two have, so nothing has to be aligned. Summed over stages; published: the last one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, channels, needs_of_stages
from akd.methods.precision import wide
from akd.models.output import Output
from akd.settings import setting


def sp_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of the similarities within a batch; 0 when they agree, or for one image.

    Args:
        student_map, teacher_map: [B, ...] of any shapes behind the batch.
    """
    with wide(student_map, teacher_map) as (student, teacher):
        return F.mse_loss(_similarities(student.flatten(1)), _similarities(teacher.flatten(1)))


def _similarities(rows: Tensor) -> Tensor:
    return F.normalize(rows @ rows.mT, dim=1)


@dataclass(frozen=True, kw_only=True)
class SPConfig:
    """Settings of similarity preservation."""

    name: str = setting("sp", choices=["sp"])
    weight: float = setting(3000.0, low=0, help="weight of the sum over stages; searched in 300 to 30000, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    stages: tuple[int, ...] = setting((-1,), help="maps compared, 0 the stem, negative from the deep end")


@hosts.register("sp", config=SPConfig, paper="arXiv:1907.09682", summary="match which images excite a map alike")
class SP(FeatureHost):
    """Hard labels plus similarities within the batch."""

    relational = True

    def __init__(self, config: SPConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        channels(config.stages, shapes)  # refuses stages that are not there

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return needs_of_stages("maps", config.stages)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        losses = [sp_loss(student.maps[k], teacher.maps[k]) for k in self.config.stages]
        return {"sp": torch.stack(losses).sum()}
