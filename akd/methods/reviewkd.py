"""ReviewKD: each of the teacher's stages is learned from the student's stage fused with all deeper ones.

Chen, Liu, Zhao and Jia 2021, "Distilling knowledge via knowledge review", arXiv:2104.09044,
section 3.

From the deep end, starting with the pooled embedding as a map of one pixel, each level x of the student meets the
fused map y of the level below it (attention-based fusion):

    x' = BN(conv1x1 x);   a, b = sigmoid(conv1x1 [x', y]), one channel each;   y' = a x' + b y;   z = BN(conv3x3 y')

y is brought to x's size and y' to the teacher's by nearest neighbours; the deepest level has nothing to fuse. z is
compared with the teacher's map before its ReLU (hierarchical context loss): mean squared differences of the
maps as they are and pooled to 4x4, 2x2 and 1x1 as far as these are smaller, with weights 1, 1/2, 1/4 and 1/8 over
their sum; summed over levels. x is the student's map after its ReLU. The term grows linearly over ``ramp_epochs``.

The published weight differs from pair to pair: 5 for ResNet-32x4 to 8x4, up to 30 for MobileNetV2. The term is a
plain mean; the fusion's batch statistics are taken over all workers as the student's are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, channels, needs_batch, needs_of_stages
from akd.methods.precision import wide
from akd.methods.target import embedding_target
from akd.models.output import Output
from akd.settings import setting

#: Most channels in which levels are fused.
WIDEST = 512


def context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Weighted mean over pooling levels of the mean squared difference of two maps [B, C, H, W]."""
    with wide(student, teacher) as (student, teacher):
        gap = student - teacher  # pooling is linear
        sizes = [size for size in (4, 2, 1) if size < min(gap.shape[2:])]
        levels = [gap.square().mean()] + [F.adaptive_avg_pool2d(gap, size).square().mean() for size in sizes]
        weights = [0.5**k for k in range(len(levels))]
        return torch.stack([w * level for w, level in zip(weights, levels, strict=True)]).sum() / sum(weights)


class Fusion(nn.Module):
    """One level of the review: a student's map fused with the deeper levels', and what it says of the teacher's.

    Args:
        inputs, middle, outputs: channels of the student's map, in which levels are fused, of the teacher's map.
        fuses: there are deeper levels.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, fuses: bool):
        super().__init__()
        first = nn.Conv2d(inputs, middle, 1, bias=False)
        last = nn.Conv2d(middle, outputs, 3, padding=1, bias=False)
        for convolution in (first, last):
            nn.init.kaiming_uniform_(convolution.weight, a=1)
        self.enter = nn.Sequential(first, nn.BatchNorm2d(middle))
        self.leave = nn.Sequential(last, nn.BatchNorm2d(outputs))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None

    def forward(self, x: Tensor, deeper: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """The fused map [B, middle, *size] for the next level, and what it says of the teacher's."""
        x = self.enter(x)
        if self.attention is not None and deeper is not None:
            deeper = _resized(deeper, x.shape[2:])
            share = torch.sigmoid(self.attention(torch.cat([x, deeper], 1)))
            x = share[:, :1] * x + share[:, 1:] * deeper
        x = _resized(x, size)
        return x, self.leave(x)


def _resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, tuple(size), mode="nearest")


@dataclass(frozen=True, kw_only=True)
class ReviewKDConfig:
    """Settings of knowledge review."""

    name: str = setting("reviewkd", choices=["reviewkd"])
    weight: float = setting(5.0, low=0, help="weight of the sum over levels; searched in 0.5 to 30, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    ramp_epochs: int = setting(20, low=0, help="epochs over which the weight grows linearly; searched in 0 to 40")
    preact: bool = setting(
        True, help="teacher maps before their ReLU; false for a teacher that gives only those after it"
    )
    stages: tuple[int, ...] = setting((-3, -2, -1), help="maps besides the embedding; 0 the stem, negative from deep")


@hosts.register(
    "reviewkd", config=ReviewKDConfig, paper="arXiv:2104.09044", summary="match maps, shallow ones fused with deeper"
)
class ReviewKD(FeatureHost):
    """Hard labels plus the review of several levels."""

    def __init__(self, config: ReviewKDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        widths = dict(zip(config.stages, channels(config.stages, shapes), strict=True))
        self.stages = sorted(config.stages, key=lambda stage: -(stage % len(shapes.student)))  # deep to shallow
        middle = min(WIDEST, shapes.student_embedding)
        levels = [(shapes.student_embedding, shapes.teacher_embedding), *(widths[stage] for stage in self.stages)]
        self.fusions = nn.ModuleList(
            Fusion(mine, middle, theirs, fuses=depth > 0) for depth, (mine, theirs) in enumerate(levels)
        )

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return needs_of_stages("maps_preact" if config.preact else "maps", config.stages) | {"embedding"}

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        needs_batch(len(student.embedding), 2, "reviewkd", over=self.fusions)
        maps = teacher.maps_preact if self.config.preact else teacher.maps
        if maps is None:
            raise ValueError("reviewkd was not given the teacher's maps before their ReLU")
        mine = [student.embedding[..., None, None], *(student.maps[k] for k in self.stages)]
        theirs = [embedding_target(teacher)[..., None, None], *(maps[k] for k in self.stages)]
        fused: Tensor | None = None
        losses = []
        for fusion, x, target in zip(self.fusions, mine, theirs, strict=True):
            fused, found = fusion(x, fused, target.shape[2:])
            losses.append(context_loss(found, target))
        return {"reviewkd": self.ramps(batch.epoch)["reviewkd"] * torch.stack(losses).sum()}

    def ramps(self, epoch: int) -> dict[str, float]:
        """What the term is multiplied by in an epoch."""
        return {"reviewkd": min(1.0, epoch / max(1, self.config.ramp_epochs))}
