"""The student alone: hard labels only. The first control of every study, and how teachers are trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from akd.data.batch import Batch
from akd.methods.base import Method, Shapes, hosts
from akd.methods.target import hard_target_loss
from akd.models.output import Output
from akd.settings import setting


@dataclass(frozen=True, kw_only=True)
class NoneConfig:
    """Nothing to set."""

    name: str = setting("none", choices=["none"])


@hosts.register("none", config=NoneConfig, paper="", summary="hard labels only, no teacher")
class StudentAlone(Method):
    """Cross-entropy with the labels."""

    def __init__(self, config: NoneConfig, *, shapes: Shapes, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": hard_target_loss(student.logits, batch, self.label_smoothing)}

    def weights(self) -> dict[str, float]:
        return {"ce": 1.0}
