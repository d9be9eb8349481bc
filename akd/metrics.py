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
    """Top-1 ``accuracy`` (0..1) and mean cross-entropy ``loss`` of a network in eval mode; nothing of no images.

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
    if not images_seen:
        return {}
    return {"accuracy": hits / images_seen, "loss": loss / images_seen}


#: Bins of the calibration error: the 15 of equal width that the literature reports.
BINS = 15


def top_hits(logits: Tensor, labels: Tensor, depth: int) -> Tensor:
    """How many labels [B] are among the 1, 2, .. ``depth`` largest logits [B, C]; int64 [depth]."""
    return (logits.topk(depth).indices == labels[:, None]).sum(0).cumsum(0)


def calibration_counts(logits: Tensor, labels: Tensor, bins: int = BINS) -> Tensor:
    """What of a batch the calibration error needs, float64 [3, bins]: images, sum of confidences, hits.

    An image is in bin m of M if its confidence, the largest of softmax(logits), is in ((m - 1) / M, m / M].
    """
    confidence, best = logits.double().softmax(1).max(1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    values = torch.stack([torch.ones_like(confidence), confidence, (best == labels).double()])
    return values @ F.one_hot(place, bins).double()


def calibration_error(counts: Tensor) -> Tensor:
    """ECE (Guo et al. 2017, arXiv:1706.04599, eq. 3): sum_m |B_m| / n |accuracy of B_m - mean confidence of B_m|.

    Args:
        counts: sum of :func:`calibration_counts` over batches.
    """
    images, confidence, hits = counts
    return (hits - confidence).abs().sum() / images.sum()


def agreement(logits: Tensor, teacher: Tensor) -> Tensor:
    """Of two networks' logits [B, C]: how often their first classes agree, and sum_b KL(teacher || other); float64."""
    log_p, log_q = logits.double().log_softmax(1), teacher.double().log_softmax(1)
    same = (logits.argmax(1) == teacher.argmax(1)).sum().double()
    return torch.stack([same, (log_q.exp() * (log_q - log_p)).sum()])


class Scores:
    """What a network is worth on labelled images; sums stay on the device until they are read, all at once.

    Args:
        classes: C; from ten on there is a top-5 accuracy.
    """

    def __init__(self, classes: int):
        self.depth = 5 if classes >= 10 else 1
        self._sums: dict[str, Tensor] = {}
        self._images = 0

    def add(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> None:
        """Logits [B, C] of a batch with its labels [B], and the teacher's logits if there is one."""
        self._images += len(labels)
        self._put("hits", top_hits(logits, labels, self.depth))
        self._put("nll", F.cross_entropy(logits.double(), labels, reduction="sum"))
        self._put("calibration", calibration_counts(logits, labels))
        if teacher is not None:
            self._put("agreement", agreement(logits, teacher))

    def add_variant(self, name: str, logits: Tensor, labels: Tensor) -> None:
        """Logits of the same images, changed in some way; only top-1 counts."""
        self._put(f"{name}_top1", top_hits(logits, labels, 1))

    def read(self) -> dict[str, float]:
        """``images``, ``top1`` and ``top5`` (0..1), ``nll``, ``ece``; ``teacher_agreement`` and ``teacher_kl``."""
        names, n = list(self._sums), self._images
        flat = torch.cat([self._sums[name].double().flatten() for name in names]).cpu()
        parts = dict(zip(names, flat.split([self._sums[name].numel() for name in names]), strict=True))
        hits = (parts.pop("hits") / n).tolist()
        found = {"images": float(n), "top1": hits[0]} | ({"top5": hits[4]} if self.depth == 5 else {})
        found |= {"nll": float(parts.pop("nll")) / n}
        found |= {"ece": float(calibration_error(parts.pop("calibration").view(3, BINS)))}
        if "agreement" in parts:
            same, kl = (parts.pop("agreement") / n).tolist()
            found |= {"teacher_agreement": same, "teacher_kl": kl}
        return found | {name: float(value) / n for name, value in parts.items()}

    def _put(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value
