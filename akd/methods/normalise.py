"""Terms by their own size, so that one range of weights suits every method.

Every term but the hard labels' is divided by a running mean of its own magnitude: it starts at 1 and stays near 1, and
its weight says what it counts beside a cross-entropy, whatever the term's own scale. As a term falls its mean follows
within about 100 steps, so a small term pulls as hard as a large one: L / mean(L) has nearly the gradient of log L. A
weight of 0.1 to 10 (logarithmic) with hard labels at 1 is a range for any method.

A term that may fall below 0 (a log-likelihood, :meth:`Method.signed`) has no size of its own: where it crosses 0, its
mean would come near 0 and a few steps be as heavy as all before. It is divided by its size in the first batch for good:
it starts at 1 as the others do, and keeps the gradient it has by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.methods.base import Method
from akd.methods.extra import HARD
from akd.models.output import Output

#: Share of the running mean that a step leaves.
DECAY = 0.99


class Normalised(Method):
    """A method with its knowledge terms normalised: those of host and extras. Views' own terms stand outside.

    The mean starts with the first batch and takes in every training step; a term that has only been 0 waits for its
    first value. That of a signed term stays at its first value. What rises over the epochs (:meth:`Method.ramps`) is
    left out of the mean, or it would be divided away. Counts as relational whatever the terms are: means over shares
    of a batch would differ between workers.
    """

    means: Tensor
    kept: Tensor
    relational = True

    def __init__(self, method: Method):
        super().__init__()
        self.method = method
        self.needs, self.warmup_epochs = method.needs, method.warmup_epochs
        self.names = [name for name in method.weights() if name != HARD]
        self.register_buffer("means", torch.zeros(len(self.names)))
        signed = method.signed()
        self.register_buffer("kept", torch.tensor([name in signed for name in self.names]), persistent=False)
        self._measured: dict[str, Tensor] = {}

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        terms = self.method(student, teacher, batch)
        scales = self._scales(terms, self.method.ramps(batch.epoch))
        return {name: term / scales[name] if name in scales else term for name, term in terms.items()}

    @torch.no_grad()
    def _scales(self, terms: dict[str, Tensor], ramps: dict[str, float]) -> dict[str, Tensor]:
        """What each knowledge term is divided by in this step."""
        sizes = torch.stack([terms[name].detach().abs() / ramps.get(name, 1.0) for name in self.names])
        sizes = sizes.to(torch.promote_types(sizes.dtype, torch.float32))
        before = self.means.to(sizes.dtype)
        followed = torch.where(self.kept, before, before + (1 - DECAY) * (sizes - before))
        means = torch.where(before > 0, followed, sizes)
        if self.training:
            self.means.copy_(means)
        self._measured = {f"scale/{name}": mean for name, mean in zip(self.names, means.unbind(), strict=True)}
        scales = torch.where(means > 0, means, torch.ones_like(means)).unbind()
        return dict(zip(self.names, scales, strict=True))

    def weights(self) -> dict[str, float]:
        return self.method.weights()

    def soft_weight(self) -> float:
        """As without normalisation; what it is in effect, the measures ``scale/...`` say."""
        return self.method.soft_weight()

    def ramps(self, epoch: int) -> dict[str, float]:
        return self.method.ramps(epoch)

    def signed(self) -> frozenset[str]:
        return self.method.signed()

    def measures(self) -> dict[str, Tensor]:
        return self.method.measures() | self._measured

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return self.method.groups()
