"""TeacherSource: where a method's teacher outputs come from."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.models.output import Output


class TeacherSource(Protocol):
    """Gives the teacher's Output of a step, without gradient."""

    def __call__(self, images: Tensor, batch: Batch) -> Output:
        """Outputs for the images of this step, as the student sees them."""

    def probe(self, image: Tensor) -> Output:
        """Outputs for any image, for the shapes alone."""


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

    @torch.no_grad()
    def __call__(self, images: Tensor, batch: Batch) -> Output:
        images = images.to(self.dtype)  # the student may train in another precision
        return self.model(images, preact=True) if self.preact else self.model(images)

    @torch.no_grad()
    def probe(self, image: Tensor) -> Output:
        return self.model(image.to(self.dtype))
