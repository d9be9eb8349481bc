"""The memory banks of CRD: every image's embeddings as last seen, and the loss against negatives drawn from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.data.batch import Batch, rand

#: Labels in the bank of images not seen yet, and of images seen in the strong view alone, which has no hard label.
UNSEEN, UNKNOWN = -1, -2


def nce_loss(positive: Tensor, negative: Tensor, counted: Tensor, log_z: Tensor) -> Tensor:
    """-mean_i [log h(s+) + K * mean_k log(1 - h(s-))], h as in :mod:`akd.methods.crd`; mean over counted negatives.

    Args:
        positive: [B] scores s / t.
        negative: [B, K].
        counted: [B, K] bool; a row without any has no second part.
        log_z: scalar, log Z.
    """
    count = negative.shape[1]
    shift = log_z + math.log(count)
    share = counted.to(negative.dtype)
    share = share / share.sum(1, keepdim=True).clamp(min=1)
    others = (share * F.logsigmoid(shift - negative)).sum(1)
    return -(F.logsigmoid(positive - shift) + count * others).mean()


class MemoryBanks(nn.Module):
    """What student and teacher made of every image when it was last seen.

    Buffers are checkpointed and change in training alone. As CRD sees the global batch on every worker, and draws for
    it, they are the same on all of them.

    Args:
        images: n, of the training file.
        width: features.
        momentum: share of the old embedding that stays.
    """

    def __init__(self, images: int, width: int, momentum: float):
        super().__init__()
        if not images:
            raise ValueError("the memory bank of crd needs the number of training images, Shapes.images")
        self.momentum, bound = momentum, (3 / width) ** 0.5
        self.student: Tensor
        self.teacher: Tensor
        self.labels: Tensor
        self.order: Tensor
        self.count: Tensor
        self.log_z: Tensor
        for name in ("student", "teacher"):
            self.register_buffer(name, torch.empty(images, width).uniform_(-bound, bound))
        self.register_buffer("labels", torch.full((images,), UNSEEN))
        self.register_buffer("order", torch.zeros(images + 1, dtype=torch.long))  # seen first, second, ...; one spare
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("log_z", torch.zeros(2))

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch, negatives: int, temperature: float) -> Tensor:
        """The loss of a batch of embeddings [B, width]; in training the banks then take them up."""
        first = self.count == 0
        label = torch.where(batch.view == 0, batch.target, UNKNOWN)
        if self.training:
            self._enter(batch, label)
        drawn = self._draw(batch, negatives)
        other = self.labels[drawn]
        same = (other == label[:, None]) & (label != UNKNOWN)[:, None]
        counted = (other != UNSEEN) & ~same & (drawn != batch.index[:, None])
        total = student.new_zeros(())
        for side, (query, bank) in enumerate(((student, self.teacher), (teacher, self.student))):
            positive, negative = (s / temperature for s in scores(query, bank, batch.index, drawn))
            with torch.no_grad():
                found = torch.cat([positive, negative.masked_fill(~counted, -math.inf).flatten()])
                size = (counted.sum() + len(positive)).to(found.dtype)
                log_z = torch.where(first, found.logsumexp(0) - size.log(), self.log_z[side])
                if self.training:
                    self.log_z[side] = log_z
            total = total + nce_loss(positive, negative, counted, log_z)
        if self.training:
            self._update(student.detach(), teacher.detach(), batch)
        return total

    @torch.no_grad()
    def _enter(self, batch: Batch, label: Tensor) -> None:
        """Note which images have been seen, in their order, and their labels."""
        index, source = _once(batch)
        label, known, spare = label[source], self.labels[index], len(self.labels)
        unseen = known == UNSEEN
        new = unseen & (source == torch.arange(len(source), device=source.device))
        self.order[torch.where(new, self.count + new.cumsum(0) - 1, spare)] = index
        self.order[spare] = 0
        self.count += new.sum()
        self.labels[index] = torch.where((label == UNKNOWN) & ~unseen, known, label)

    def _draw(self, batch: Batch, negatives: int) -> Tensor:
        """[B, K] images among those seen: random, or in evaluation evenly spaced ones."""
        if self.training:
            place = (rand(batch, negatives) * self.count).long()
        else:
            place = (torch.arange(negatives, device=batch.index.device) * self.count // negatives)[None]
        # Rounding may reach the count itself.
        return self.order[place.minimum(self.count - 1).clamp(min=0)].expand(len(batch.index), -1)

    @torch.no_grad()
    def _update(self, student: Tensor, teacher: Tensor, batch: Batch) -> None:
        index, source = _once(batch)
        for bank, new in ((self.student, student), (self.teacher, teacher)):
            mixed = self.momentum * bank[index].to(new.dtype) + (1 - self.momentum) * new[source]
            bank[index] = F.normalize(mixed, dim=1).to(bank.dtype)


def _once(batch: Batch) -> tuple[Tensor, Tensor]:
    """Images of the first view, and for each the first row that shows it.

    A second view repeats the first's images. Augmentations that pick may show one image in several rows; what is
    written for it must not depend on which row comes last.
    """
    index = batch.index[: len(batch.index) // batch.views]
    return index, (index[:, None] == index).int().argmax(1)


def scores(query: Tensor, bank: Tensor, own: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Dot products of queries [B, width] with their own entries of a bank [n, width], [B], and with drawn ones, [B, K].

    Where the bank is not much longer than K, all products are cheaper than to fetch B * K entries one by one.
    """
    positive = (query * bank[own].to(query.dtype)).sum(1)
    if len(bank) <= 16 * drawn.shape[1]:
        # A copy: the bank changes before the backward pass, which needs it as it was.
        return positive, (query @ bank.to(query.dtype, copy=True).mT).gather(1, drawn)
    return positive, torch.einsum("bd,bkd->bk", query, bank[drawn].to(query.dtype))
