"""Further hosts beside the first: what each says of the teacher, without its hard labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from akd.data.batch import Batch
from akd.methods.base import Method
from akd.models.output import Output

T = TypeVar("T")

#: The hard-label term of every host; a sum of hosts has one.
HARD = "ce"


class WithExtra(Method):
    """A host and further hosts. Terms of the host called NAME are ``extra/NAME/...``; its ``ce`` is left out.

    Args:
        host: the first, whose hard-label term counts.
        extra: name -> host, in the order of the terms.
    """

    def __init__(self, host: Method, extra: Mapping[str, Method]):
        super().__init__()
        self.host, self.extra = host, nn.ModuleDict(extra)
        self._extra = dict(extra)
        everyone = [host, *extra.values()]
        self.needs = frozenset[str]().union(*(m.needs for m in everyone))
        self.relational = any(m.relational for m in everyone)
        self.warmup_epochs = host.warmup_epochs

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        terms = self.host(student, teacher, batch)
        for name, method in self._extra.items():
            terms |= _named(name, method(student, teacher, batch))
        return terms

    def weights(self) -> dict[str, float]:
        found = self.host.weights()
        for name, method in self._extra.items():
            found = found | _named(name, method.weights())
        return found

    def soft_weight(self) -> float:
        return self.host.soft_weight() + sum(method.soft_weight() for method in self._extra.values())

    def ramps(self, epoch: int) -> dict[str, float]:
        found = self.host.ramps(epoch)
        for name, method in self._extra.items():
            found = found | _named(name, method.ramps(epoch))
        return found

    def signed(self) -> frozenset[str]:
        others = (_named(name, dict.fromkeys(method.signed())) for name, method in self._extra.items())
        return self.host.signed().union(*others)

    def measures(self) -> dict[str, Tensor]:
        found = self.host.measures()
        for name, method in self._extra.items():
            found = found | _named(name, method.measures())
        return found

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [group for method in (self.host, *self._extra.values()) for group in method.groups()]


def _named(name: str, values: Mapping[str, T]) -> dict[str, T]:
    return {f"extra/{name}/{key}": value for key, value in values.items() if key != HARD}
