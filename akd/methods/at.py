"""AT: attention transfer (Zagoruyko and Komodakis 2017, arXiv:1612.03928, section 3.1, activation-based).

    L = sum over stages of mean_i (Q_s / |Q_s| - Q_t / |Q_t|)_i^2,      Q = sum_c F_c^2

Q is a map's energy, flattened. The paper sums the differences' length; its released code, and with it the published
weight of 1000, takes the mean of their squares over images and places. The squares sum to at most 2, however many there
are, so the mean goes as 1 / (H W): a weight for 32x32 images is 16 times too heavy for 8x8 ones. Maps of unlike
sizes are pooled to the smaller, energies and not features, so that a cached attention map serves as well as the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, channels, energy, needs_of_stages, same_size, unit_rows
from akd.models.output import Output
from akd.settings import setting


def at_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of attention maps, each of length 1; 0 when they agree.

    Args:
        student_map, teacher_map: [B, C, H, W] of any channels and sizes, or one-channel attention sqrt(sum_c F_c^2);
            the larger is pooled to the smaller.
    """
    student, teacher = map(unit_rows, same_size(energy(student_map), energy(teacher_map)))
    return F.mse_loss(student, teacher.to(student.dtype))


@dataclass(frozen=True, kw_only=True)
class ATConfig:
    """Settings of attention transfer."""

    name: str = setting("at", choices=["at"])
    weight: float = setting(1000.0, low=0, help="weight of the sum over stages; searched in 1 to 10000, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    stages: tuple[int, ...] = setting((-3, -2, -1), help="maps compared, 0 the stem, negative from the deep end")


@hosts.register("at", config=ATConfig, paper="arXiv:1612.03928", summary="match where maps are active")
class AT(FeatureHost):
    """Hard labels plus attention maps of several stages."""

    def __init__(self, config: ATConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        channels(config.stages, shapes)  # refuses stages that are not there

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return needs_of_stages("attention", config.stages)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        losses = [at_loss(student.maps[k], teacher.maps[k]) for k in self.config.stages]
        return {"at": torch.stack(losses).sum()}
