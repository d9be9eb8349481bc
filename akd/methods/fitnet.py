"""FitNets: the student's map, through a regressor, is to equal the teacher's (Romero et al. 2015, arXiv:1412.6550).

    L = sum over stages of mean (r(F_s) - F_t)^2        (section 2.2)

r is a 1x1 convolution to the teacher's channels with batch normalisation and ReLU, because teacher maps are read behind
theirs. Maps of different sizes are pooled to the smaller before it (the paper chooses a kernel size that fits). As in
the literature's runs there is one stage of training, with the hard labels beside the hint, and one hint: the map after
the second stage of three.

The term is a plain mean; the regressors' batch statistics are taken over all workers as the student's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, channels, needs_batch, needs_of_stages, same_size
from akd.methods.precision import wide
from akd.models.output import Output
from akd.settings import setting


def fitnet_loss(student_map: Tensor, teacher_map: Tensor, regressor: nn.Module) -> Tensor:
    """Mean squared difference of a teacher's map and the student's behind its regressor.

    Args:
        student_map, teacher_map: [B, C, H, W] of any channels and sizes; the larger is pooled to the smaller.
        regressor: to the teacher's channels.

    Raises:
        ExperimentError: one value for each channel, over which nothing can be normalised.
    """
    student_map, teacher_map = same_size(student_map, teacher_map)
    needs_batch(student_map[:, 0].numel(), 2, "fitnet on maps of one pixel", over=regressor)
    with wide(regressor(student_map), teacher_map) as (student, teacher):
        return F.mse_loss(student, teacher)


@dataclass(frozen=True, kw_only=True)
class FitNetConfig:
    """Settings of FitNets."""

    name: str = setting("fitnet", choices=["fitnet"])
    weight: float = setting(100.0, low=0, help="weight of the hints; searched in 10 to 1000, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    stages: tuple[int, ...] = setting((-2,), help="maps that are hints, 0 the stem, negative from the deep end")


@hosts.register("fitnet", config=FitNetConfig, paper="arXiv:1412.6550", summary="regress the teacher's maps")
class FitNet(FeatureHost):
    """Hard labels plus hints."""

    def __init__(self, config: FitNetConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        self.regressors = nn.ModuleList(
            nn.Sequential(nn.Conv2d(mine, theirs, 1, bias=False), nn.BatchNorm2d(theirs), nn.ReLU())
            for mine, theirs in channels(config.stages, shapes)
        )

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return needs_of_stages("maps", config.stages)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        pairs = zip(self.config.stages, self.regressors, strict=True)
        return {"fitnet": torch.stack([fitnet_loss(student.maps[k], teacher.maps[k], r) for k, r in pairs]).sum()}
