"""VID: variational information distillation (Ahn et al. 2019, arXiv:1904.05835).

    L = sum over stages of mean [ (F_t - mu(F_s))^2 / (2 s_c^2) + log(s_c^2) / 2 ]        (section 2)

A Gaussian with mean mu(F_s), three 1x1 convolutions with ReLUs between, and one trained variance for each channel
s_c^2 = softplus(a_c) + 1e-5 is to make the teacher's map likely: a lower bound on the information the student's map has
of it. Variances start at 5. Maps of different sizes are pooled to the smaller.

L is a log-likelihood of densities: it crosses 0 once a variance is small enough, which says nothing of how much is left
to learn, and ends at log(1e-5) / 2 a stage at the lowest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, channels, needs_of_stages, same_size
from akd.methods.precision import wide
from akd.models.output import Output
from akd.settings import setting

#: Least variance, and that of the start.
LEAST, START = 1e-5, 5.0


def vid_loss(mean: Tensor, teacher_map: Tensor, variance: Tensor) -> Tensor:
    """Mean negative log-likelihood, without its constant, of a map [B, C, H, W] under Gaussians of variance [C]."""
    with wide(mean, teacher_map, variance) as (mean, teacher_map, variance):
        variance = variance[:, None, None]
        return ((mean - teacher_map).square() / variance + variance.log()).mean() / 2


class Likelihood(nn.Module):
    """What one map of the student says of the teacher's."""

    def __init__(self, student: int, teacher: int):
        super().__init__()
        layers: list[nn.Module] = []
        for width in (student, teacher, teacher):
            layers += [nn.Conv2d(width, teacher, 1, bias=False), nn.ReLU()]
        self.mean = nn.Sequential(*layers[:-1])
        self.raw = nn.Parameter(torch.full((teacher,), math.log(math.expm1(START - LEAST))))

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        student_map, teacher_map = same_size(student_map, teacher_map)
        with wide(self.raw) as (raw,):
            variance = F.softplus(raw) + LEAST
        return vid_loss(self.mean(student_map), teacher_map, variance)


@dataclass(frozen=True, kw_only=True)
class VIDConfig:
    """Settings of variational information distillation."""

    name: str = setting("vid", choices=["vid"])
    weight: float = setting(1.0, low=0, help="weight of the sum over stages; searched in 0.1 to 10, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    stages: tuple[int, ...] = setting((-3, -2, -1), help="maps compared, 0 the stem, negative from the deep end")


@hosts.register("vid", config=VIDConfig, paper="arXiv:1904.05835", summary="make the teacher's maps likely")
class VID(FeatureHost):
    """Hard labels plus the likelihood of the teacher's maps."""

    def __init__(self, config: VIDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        self.likelihoods = nn.ModuleList(Likelihood(*widths) for widths in channels(config.stages, shapes))

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return needs_of_stages("maps", config.stages)

    def signed(self) -> frozenset[str]:
        return frozenset({"vid"})

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        pairs = zip(self.config.stages, self.likelihoods, strict=True)
        return {"vid": torch.stack([given(student.maps[k], teacher.maps[k]) for k, given in pairs]).sum()}
