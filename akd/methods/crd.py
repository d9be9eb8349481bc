"""CRD: contrastive representation distillation (Tian, Krishnan and Isola 2020, arXiv:1910.10699).

Both networks' embeddings go through a trained linear layer each and are given length 1: u of the student, v of the
teacher. The student is to tell its own image's teacher from that of others, and the teacher's layer likewise.

Memory bank, as published (section 3, noise-contrastive). Two banks hold u and v of every image as it was
last seen. With s the dot products of u_i with the teacher's bank (and of v_i with the student's), the positive s+ of
image i itself and K negatives s- of other classes,

    L = -mean_i [ log h(s+) + sum_k log(1 - h(s-_k)) ],    h(s) = e^(s / t) / (e^(s / t) + K Z),

summed over both sides. Z is the mean of e^(s / t) over the first batch and fixed from there on: in the paper's terms
h = P / (P + K / n) with P = e^(s / t) / (n Z), where n cancels. The banks take momentum * old + (1 - momentum) * new,
over its length, after each training step.

In the batch, without a bank: cross-entropy of u_i against all v_j / t of the batch towards v_i, and of v_i against
all u_j, summed; as cheap as a matrix of B^2.

Differences from the released code: log h in log space instead of an epsilon of 1e-7; nothing waits for the device;
negatives are drawn among the images seen so far, so that those of a validation split, which are in the file but never
trained on, are none; draws of the own class are left out and the sum over the others is scaled up to K of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.methods.bank import MemoryBanks
from akd.methods.base import Shapes, hosts
from akd.methods.feature import FeatureHost, unlike
from akd.methods.precision import wide
from akd.methods.target import embedding_target
from akd.models.output import Output
from akd.settings import setting


def in_batch_loss(student: Tensor, teacher: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE in both directions; 0 without negatives.

    Args:
        student, teacher: [B, K] of length 1.
        negatives: [B, B], true where j is a negative of i; symmetric, false on the diagonal.
        temperature: t.
    """
    apart = ~negatives & ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    scores = student @ teacher.mT / temperature
    own = torch.arange(len(student), device=student.device)
    return sum(
        (F.cross_entropy(s.masked_fill(apart, -math.inf), own) for s in (scores, scores.mT)), scores.new_zeros(())
    )


@dataclass(frozen=True, kw_only=True)
class CRDConfig:
    """Settings of CRD."""

    name: str = setting("crd", choices=["crd"])
    weight: float = setting(0.8, low=0, help="weight of the contrast; searched in 0.1 to 3, log")
    ce_weight: float = setting(1.0, low=0, help="weight of the hard-label term")
    form: str = setting(
        "bank", choices=["bank", "batch"], help="negatives from a memory bank of all images, or from the batch"
    )
    negatives: int = setting(
        16384, low=1, when=("form", "bank"), help="K of each image; searched in 1024 to 16384, log"
    )
    momentum: float = setting(0.5, low=0, below=1, when=("form", "bank"), help="how much of an old entry survives")
    temperature: float = setting(0.07, above=0, help="t of the contrast; searched in 0.03 to 0.2, log")
    width: int = setting(128, low=1, help="features both embeddings are mapped to")


@hosts.register("crd", config=CRDConfig, paper="arXiv:1910.10699", summary="contrast embeddings of student and teacher")
class CRD(FeatureHost):
    """Hard labels plus the contrast of embeddings."""

    needs = frozenset({"embedding"})
    relational = True

    def __init__(self, config: CRDConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__(config, shapes=shapes, label_smoothing=label_smoothing)
        self.student = nn.Linear(shapes.student_embedding, config.width)
        self.teacher = nn.Linear(shapes.teacher_embedding, config.width)
        self.banks = MemoryBanks(shapes.images, config.width, config.momentum) if config.form == "bank" else None

    def compare(self, student: Output, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        config: Any = self.config
        target = embedding_target(teacher)
        with wide(student.embedding, target) as (mine, theirs):
            u, v = _embed(self.student, mine), _embed(self.teacher, theirs)
            if self.banks is None:
                return {"crd": in_batch_loss(u, v, unlike(batch), config.temperature)}
            return {"crd": self.banks(u, v, batch, config.negatives, config.temperature)}


def _embed(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.normalize(F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype)), dim=1)
