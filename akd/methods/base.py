"""What a method is: named, unweighted terms of a step, and the registry of hosts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.models.output import Output
from akd.registry import Registry

hosts = Registry("method host", "akd.methods")

#: What a method may ask of a teacher, besides ``attention:<stage>``, ``maps:<stage>`` and ``maps_preact:<stage>``.
NEEDS = ("logits", "embedding")


@dataclass(frozen=True)
class Shapes:
    """What a method must know of the two networks to build its own parts.

    Attributes:
        num_classes: C.
        student, teacher: channel count of each stage map; empty without a teacher.
        student_embedding, teacher_embedding: D of each; 0 without a teacher.
    """

    num_classes: int
    student_embedding: int = 0
    teacher_embedding: int = 0
    student: tuple[int, ...] = ()
    teacher: tuple[int, ...] = ()


class Method(nn.Module):
    """Terms, not a trainer.

    ``forward(student, teacher, batch)`` gives named, unweighted scalar terms, each a mean over the batch it is given;
    their weights live in the configuration and :meth:`weights` names them. Parameters of a method are trained with
    the student, checkpointed, and never exported.

    Attributes:
        needs: what the teacher has to give; empty means no teacher at all.
        relational: terms compare samples with each other, so they must see the gathered global batch.
    """

    needs: frozenset[str] = frozenset()
    relational: bool = False

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} computes no terms")

    def weights(self) -> dict[str, float]:
        """Weight of each term in the loss."""
        raise NotImplementedError(f"{type(self).__name__} names no weights")

    def soft_weight(self) -> float:
        """Effective weight of soft targets, sum(weight * mass * temperature^2); 0 without any."""
        return 0.0


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How knowledge reaches the student.

    Attributes:
        host: the loss a teacher's knowledge goes through; a config object registered with its host.
    """

    host: Any = field(default=None)

    @property
    def host_name(self) -> str:
        return str(self.host.name)


def create_method(config: MethodConfig, shapes: Shapes, *, label_smoothing: float = 0.0, seed: int = 0) -> Method:
    """The method a configuration describes.

    Args:
        shapes: of student and teacher.
        label_smoothing: of the hard-label term.
        seed: initial weights of the method's own parameters.
    """
    from akd.seeds import derive

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("method", seed))
        return hosts.get(config.host_name)(config.host, shapes=shapes, label_smoothing=label_smoothing)
