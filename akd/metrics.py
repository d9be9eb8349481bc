"""Measures of a network. Counts stay on the device and are read once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch
from akd.world import ALONE, World


class Mean:
    """Weighted running means of named scalars, on the device until read."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, value: Tensor, count: float = 1.0) -> None:
        """Add a scalar that stands for ``count`` samples."""
        value = value.detach().double() * count
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def read(self, world: World = ALONE) -> dict[str, float]:
        """The means over all workers, who have the same names; one transfer from the device for all of them."""
        if not self._sums:
            return {}
        names = list(self._sums)
        sums = torch.stack([self._sums[n] for n in names])
        counts = torch.tensor([self._counts[n] for n in names], dtype=torch.float64)
        if world.size > 1:
            sums, counts = world.sum(torch.stack([sums, counts.to(sums.device)]))
        return {n: v / c for n, v, c in zip(names, sums.tolist(), counts.tolist(), strict=True)}


def step_accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Share of hits among a step's rows that carry a hard label; a mixed row is a hit by the shares of its classes."""
    found = logits.detach().argmax(1)
    lam = batch.lam.double()
    hits = lam * (found == batch.target) + (1 - lam) * (found == batch.target2)
    labelled = (batch.view == 0).double()
    return (hits * labelled).sum() / labelled.sum().clamp(min=1)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], world: World = ALONE) -> dict[str, float]:
    """Top-1 ``accuracy`` (0..1) and mean cross-entropy ``loss`` of a network in eval mode.

    Args:
        model: gives an :class:`akd.models.Output`; its training flag is left as it was.
        batches: (images [B, C, H, W], labels [B]); with several workers each has its own, one may have none.
        world: the workers whose batches make up the whole.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # hits, loss, images
    for images, labels in batches:
        logits = model(images).logits
        totals[0] += (logits.argmax(1) == labels).sum()
        totals[1] += F.cross_entropy(logits.double(), labels, reduction="sum")
        totals[2] += len(labels)
    model.train(training)
    hits, loss, images_seen = world.sum(totals).tolist()
    return {"accuracy": hits / images_seen, "loss": loss / images_seen}
