"""What hosts that learn from feature maps or embeddings share: stages, alignment, hard labels beside their terms.

A stage is a position in ``Output.maps``, 0 the stem. Negative ones count from the deep end, as in Python: they pair a
teacher of five maps with a student of four, and ``[-3, -2, -1]`` is "all but the stem" of networks with three stages.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.errors import ExperimentError
from akd.methods.base import Method, Shapes
from akd.methods.precision import wide
from akd.methods.target import hard_target_loss
from akd.models.output import Output


class FeatureHost(Method):
    """Hard labels plus the terms of :meth:`compare`; subclasses give these and say what they need.

    Their config has ``name`` and ``ce_weight``, and ``weight`` for a single term of that name.
    """

    def __init__(self, config: Any, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        self.config, self.label_smoothing = config, label_smoothing
        self.needs = self.needs_of(config)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms besides the hard labels', in the order of their weights."""
        raise NotImplementedError(f"{type(self).__name__} compares nothing")

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError(f"{self.config.name} needs a teacher")
        hard = hard_target_loss(student.logits, batch, self.label_smoothing)
        return {"ce": hard} | self.compare(student, teacher, batch)

    def weights(self) -> dict[str, float]:
        return {"ce": self.config.ce_weight, self.config.name: self.config.weight}


def needs_of_stages(kind: str, stages: tuple[int, ...]) -> frozenset[str]:
    """``maps:-1`` and the like, of each stage."""
    return frozenset(f"{kind}:{stage}" for stage in stages)


def channels(stages: tuple[int, ...], shapes: Shapes) -> list[tuple[int, int]]:
    """Channels of the student's and of the teacher's map at each stage.

    Raises:
        ExperimentError: no stages, a stage that one of the networks does not have, one that is named twice.
    """
    key, value = "method.host.stages", list(stages)
    if not stages:
        raise ExperimentError("needs at least one stage, for example [-1]", key=key, value=value)
    for who, widths in (("student", shapes.student), ("teacher", shapes.teacher)):
        count = len(widths)
        for stage in stages:
            if not -count <= stage < count:
                has = f"maps 0 to {count - 1}, or {-count} to -1" if count else "no maps"
                raise ExperimentError(f"the {who} has {has}, no stage {stage}", key=key, value=value)
        if len({stage % count for stage in stages}) < len(stages):
            raise ExperimentError(f"names a stage of the {who} twice", key=key, value=value)
    return [(shapes.student[stage], shapes.teacher[stage]) for stage in stages]


class _Energy(torch.autograd.Function):
    """sum_c F_c^2 whose backward pass goes over the map once: the derivative of a square goes over it three times."""

    @staticmethod
    def forward(ctx: Any, feature_map: Tensor) -> Tensor:
        ctx.save_for_backward(feature_map)
        if feature_map.is_contiguous(memory_format=torch.channels_last):  # a length is then one pass, without squares
            return torch.linalg.vector_norm(feature_map, dim=1).square()
        return (feature_map * feature_map).sum(1)  # faster than a square

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (feature_map,) = ctx.saved_tensors
        return feature_map * (2 * grads[0]).unsqueeze(1)


def energy(feature_map: Tensor) -> Tensor:
    """sum_c F_c^2 of a map [B, C, H, W]: [B, H, W], in float32 or wider.

    A one-channel map sqrt(sum_c F_c^2), which is what a teacher's ``attention:<stage>`` holds, has the same energy.
    """
    with wide(feature_map) as (feature_map,):
        found: Tensor = _Energy.apply(feature_map)
        return found


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both [..., H, W] at the smaller height and width of the two, by adaptive average pooling."""
    size = (min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1]))
    a, b = (x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def needs_batch(count: int, least: int, method: str, over: nn.Module | None = None) -> None:
    """Refuse batches in which a method has nothing to compare, or nothing to normalise over.

    Args:
        over: a method's part whose batch normalisation is the reason. Where it is taken over several workers, one
            worker's share may be smaller.

    Raises:
        ExperimentError: fewer than ``least`` images.
    """
    if over is not None and not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in over.modules()):
        return
    if count < least:
        problem = f"must be at least {least} for {method}, which looks at the images of a batch together"
        raise ExperimentError(problem, key="train.batch_size", value=count)


def distinct_images(batch: Batch) -> Tensor:
    """[B, B], true where two rows are of different images; rows of two views of one image are not."""
    return batch.index[:, None] != batch.index


def unlike(batch: Batch) -> Tensor:
    """[B, B], true where two rows may be each other's negative: different images, and not known to be of one class.

    A row of the strong view has no hard label, so its class is not known.
    """
    known = batch.view == 0
    alike = (batch.target[:, None] == batch.target) & known[:, None] & known
    return distinct_images(batch) & ~alike


def unit_rows(x: Tensor) -> Tensor:
    """[B, ...] as rows [B, K] of length 1, in float32 or wider."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1), dim=1)
