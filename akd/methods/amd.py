"""AMD: attention maps whose attended and unattended parts are held apart by an angular margin.

Jeon, Choi, Shukla and Turaga 2023, "Leveraging angular distributions for improved knowledge distillation",
Neurocomputing 518, arXiv:2302.14130.

A map's energy A = sum_c F_c^2 over its length, a = A / |A| in [0, 1]^hw, is read as the cosine of an angle to the
object. With scale s and margin m,

    P = s cos(m arccos a)  (object),    N = s (1 - a)  (background),    G = log(e^P / (e^P + e^N)),

each of them over its length, L = mean of the three mean squared differences between student and teacher. The local form
takes the same lengths and differences in the four quarters of the map, with a that of the whole map.

No weight of the term is published; 1000 is that of attention transfer, which has this term's scale, 1 / (h w).

Mended: G is log-sigmoid(P - N), which does not overflow; cos(m arccos a) keeps its finite slope m^2 at a = 1; the local
form, which as released fails before its first step. Maps of different sizes, which it does not take, are pooled:
energies, not features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from akd.data.batch import Batch
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, channels, energy, needs_of_stages, same_size
from akd.models.output import Output
from akd.settings import setting

#: Added to a map's length, as released, so that a dead map has no direction.
EPSILON = 1e-6
#: Least length a map is divided by when maps are compared.
SHORTEST = 1e-12


class _Parts(torch.autograd.Function):
    """G, P and N of a, with their derivative in closed form: a tenth of the step otherwise goes into small operations.

    dP/da = s m sin(m angle) / sin(angle), which is s m^2 at a = 1, where arccos itself has no slope.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, margin: float, scale: float) -> Tensor:
        angle = a.clamp(max=1).acos()
        positive, negative = scale * (margin * angle).cos(), scale * (1 - a)
        gap = positive - negative
        ctx.save_for_backward(a, angle, gap)
        ctx.margin, ctx.scale = margin, scale
        # log(1 + x) to full precision of a small x, without log1p, which takes five times as long (Kahan).
        # Below the smallest normal number arithmetic takes tens of times as long, and P - N often is as low as that.
        x = gap.abs().neg().clamp(min=math.log(torch.finfo(gap.dtype).tiny) + 1).exp()
        one_more = 1 + x
        log1p = torch.where(one_more > 1, one_more.log() * (x / (one_more - 1)), x)
        return torch.stack([gap.clamp(max=0) - log1p, positive, negative], dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor, None, None]:
        a, angle, gap = ctx.saved_tensors
        sine = ((1 - a).clamp(min=0) * (1 + a)).sqrt()
        slope = torch.where(sine > 0, ctx.margin * (ctx.margin * angle).sin() / sine, ctx.margin**2)
        both = grads[:, 0] * (-gap).clamp(max=40).sigmoid()  # 1 from there on
        return ctx.scale * ((both + grads[:, 1]) * slope + both - grads[:, 2]), None, None


def angular_parts(a: Tensor, margin: float, scale: float) -> Tensor:
    """G, P and N, [B, 3, h, w], of cosines [B, h, w] in [0, 1]."""
    parts: Tensor = _Parts.apply(a, margin, scale)
    return parts


def angular_maps(feature_energy: Tensor, margin: float, scale: float) -> Tensor:
    """G, P and N, [B, 3, h, w], of an energy [B, h, w]."""
    length = torch.linalg.vector_norm(feature_energy.flatten(1), dim=1)[:, None, None]
    return angular_parts(feature_energy / (length + EPSILON), margin, scale)


class _Gap(torch.autograd.Function):
    """Mean squared difference of [B, 3, n] maps, each over its length, with its derivative in closed form."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        lengths = [torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp(min=SHORTEST) for x in (student, teacher)]
        units = [x / length for x, length in zip((student, teacher), lengths, strict=True)]
        difference = units[0] - units[1]
        ctx.save_for_backward(*lengths, *units, difference)
        return difference.square().mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        *rest, difference = ctx.saved_tensors
        found: list[Tensor | None] = [None, None]
        for side, sign in ((0, 2.0), (1, -2.0)):
            if ctx.needs_input_grad[side]:
                length, unit = rest[side], rest[2 + side]
                # Of a unit vector only what is across it changes.
                across = difference - unit * (unit * difference).sum(2, keepdim=True)
                found[side] = across * (sign / difference.numel() * grad / length)
        return found[0], found[1]


def _gap(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of maps [B, 3, h, w], each over its length."""
    gap: Tensor = _Gap.apply(student.flatten(2), teacher.flatten(2))
    return gap


def _halves(side: int) -> list[slice]:
    return [slice(side // 2), slice(side // 2, side)] if side > 1 else [slice(side)]


def amd_loss(
    student_map: Tensor, teacher_map: Tensor, margin: float = 1.35, scale: float = 64.0, local_weight: float = 0.0
) -> Tensor:
    """(1 - local_weight) * global + local_weight * local form; 0 when the attention maps agree.

    Args:
        student_map, teacher_map: [B, C, H, W] of any channels and sizes, or one-channel attention sqrt(sum_c F_c^2);
            the larger is pooled to the smaller.
        margin: m, 1 without any; monotone up to 2.
        scale: s.
        local_weight: share of the four quarters; 0.2 as released. A side of one pixel is not halved.
    """
    student, teacher = (angular_maps(x, margin, scale) for x in same_size(energy(student_map), energy(teacher_map)))
    if not local_weight:
        return _gap(student, teacher)
    rows, columns = (_halves(side) for side in student.shape[2:])
    quarters = [_gap(student[:, :, r, c], teacher[:, :, r, c]) for r in rows for c in columns]
    return (1 - local_weight) * _gap(student, teacher) + local_weight * torch.stack(quarters).mean()


@dataclass(frozen=True, kw_only=True)
class AMDConfig:
    """Settings of AMD."""

    name: str = setting("amd", choices=["amd"])
    weight: float = setting(1000.0, low=0, help="weight of the sum over stages; searched in 1 to 10000, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    margin: float = setting(1.35, low=1, high=2, help="multiplies the angle of the attended part; searched in 1 to 2")
    scale: float = setting(64.0, above=0, help="of both parts; searched in 8 to 64, log")
    local_weight: float = setting(
        0.0, low=0, high=1, help="share of the four quarters of each map; released: 0.2, searched in 0 to 0.5"
    )
    stages: tuple[int, ...] = setting((-3, -2, -1), help="maps compared, 0 the stem, negative from the deep end")


@hosts.register(
    "amd", config=AMDConfig, paper="arXiv:2302.14130", summary="match attention maps, object and background set apart"
)
class AMD(FeatureHost):
    """Hard labels plus angular attention maps of several stages."""

    def __init__(self, config: AMDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        channels(config.stages, shapes)  # refuses stages that are not there

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        return needs_of_stages("attention", config.stages)

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        c = self.config
        losses = [amd_loss(student.maps[k], teacher.maps[k], c.margin, c.scale, c.local_weight) for k in c.stages]
        return {"amd": torch.stack(losses).sum()}
