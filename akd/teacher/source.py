"""TeacherSource: where a method's teacher outputs come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.data.loader import Pass
from akd.models.output import Output


class TeacherSource(Protocol):
    """Gives the teacher's Output of a step, without gradient.

    Attributes:
        asked: images whose outputs were asked for so far, every view counted.
        made: images the network was run on for that.
    """

    asked: int
    made: int

    def __call__(self, images: Tensor, batch: Batch) -> Output:
        """Outputs for the images of this step, as the student sees them; also for candidates that are scored."""

    def probe(self, image: Tensor) -> Output:
        """Outputs for any images, of no step: for the shapes."""

    def before(self, view: Pass, amp: bool) -> None:
        """Called before the first step of each pass; ``amp``: the networks run in bfloat16."""


class Renormalised(nn.Module):
    """A network that was trained with another normalisation, for images normalised as the student sees them.

    The student's batch is shared: one multiplication and one addition lead from its normalisation to the network's.

    Args:
        net: gives an Output.
        mean, std: [C] of the network's own training.
        data_mean, data_std: [C] of the images it will be given.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        net: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        data_mean: Sequence[float],
        data_std: Sequence[float],
    ):
        super().__init__()
        self.net = net
        m, s, dm, ds = (
            torch.tensor(v, dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std, data_mean, data_std)
        )
        dtype = next((p.dtype for p in net.parameters()), torch.float32)
        self.register_buffer("scale", (ds / s).to(dtype))
        self.register_buffer("shift", ((dm - m) / s).to(dtype))

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        x = torch.addcmul(self.shift, x, self.scale)
        return self.net(x, preact=True) if preact else self.net(x)


class LiveTeacher:
    """The teacher itself, run on every batch: frozen, in eval mode, outside optimizer and checkpoints.

    Args:
        model: gives an Output; a copy of its parameters is not taken, its ``requires_grad`` flags are cleared.
        needs: what the method asks for, see ``Method.needs``.
    """

    def __init__(self, model: nn.Module, needs: frozenset[str] = frozenset({"logits"})):
        self.model = model.eval().requires_grad_(False)
        self.preact = any(n.startswith("maps_preact") for n in needs)
        self.dtype = next((p.dtype for p in model.parameters()), None)
        self.asked = self.made = 0

    def before(self, view: Pass, amp: bool) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: Batch) -> Output:
        self.asked += len(images)
        self.made += len(images)
        images = images.to(self.dtype)  # the student may train in another precision
        return self.model(images, preact=True) if self.preact else self.model(images)

    @torch.no_grad()
    def probe(self, image: Tensor) -> Output:
        return self.model(image.to(self.dtype))
