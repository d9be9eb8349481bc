"""From a configuration to a method: a host, alone or with others, and views in its teacher's place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from akd.data.batch import Batch
from akd.errors import ExperimentError
from akd.methods.base import Method, MethodConfig, Shapes, TeacherViews, hosts, views
from akd.methods.extra import WithExtra
from akd.methods.normalise import Normalised
from akd.models.output import Output
from akd.seeds import derive


class WithViews(Method):
    """A host that sees its teacher through views. Names of the views' terms start with ``views/``."""

    def __init__(self, host: Method, teacher_views: TeacherViews):
        super().__init__()
        self.host, self.views = host, teacher_views
        self.needs = host.needs | teacher_views.needs
        self.relational = host.relational or teacher_views.relational
        self.warmup_epochs = teacher_views.warmup_epochs
        self._soft_weight: Tensor | None = None

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        if teacher is None:
            raise ValueError("views need a teacher")
        seen, terms = self.views.beside(student, teacher, batch)
        if seen.view_logits is not None and seen.view_weights is not None:
            self._soft_weight = seen.view_weights.sum() * self.host.soft_weight()
        return self.host(student, seen, batch) | {f"views/{name}": term for name, term in terms.items()}

    def weights(self) -> dict[str, float]:
        return self.host.weights() | {f"views/{name}": weight for name, weight in self.views.weights().items()}

    def soft_weight(self) -> float:
        return self.host.soft_weight() * self.views.mass(self.views.config)

    def ramps(self, epoch: int) -> dict[str, float]:
        return self.host.ramps(epoch)

    def signed(self) -> frozenset[str]:
        return self.host.signed()

    def warmup(self, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        return {f"views/{name}": term for name, term in self.views.warmup(teacher, batch).items()}

    def measures(self) -> dict[str, Tensor]:
        found = self.host.measures() | {f"views/{name}": value for name, value in self.views.measures().items()}
        return found if self._soft_weight is None else found | {"views/soft_weight": self._soft_weight}

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        return [*self.host.groups(), *self.views.groups()]


def create_method(config: MethodConfig, shapes: Shapes, *, label_smoothing: float = 0.0, seed: int = 0) -> Method:
    """The method a configuration describes.

    Args:
        shapes: of student and teacher.
        label_smoothing: of the hard-label term.
        seed: initial weights of the method's own parameters.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("method", seed))
        host: Method = hosts.get(config.host_name)(config.host, shapes=shapes, label_smoothing=label_smoothing)
        if config.extra:
            host = WithExtra(host, {name: _extra(name, c, shapes, seed) for name, c in config.extra.items()})
        if config.normalise:
            host = Normalised(host)
        if config.views_name is None:
            return host
        torch.manual_seed(derive("views", seed))  # whatever the host has drawn
        return WithViews(host, views.get(config.views_name)(config.views, shapes=shapes))


def _extra(name: str, config: Any, shapes: Shapes, seed: int) -> Method:
    torch.manual_seed(derive(f"extra/{name}", seed))  # whatever the host has drawn
    try:
        built: Method = hosts.get(name)(config, shapes=shapes, label_smoothing=0.0)
    except ExperimentError as error:  # a host knows its settings as the first one's
        key, value = (error.key or "").replace("method.host.", f"method.extra.{name}."), error.value
        raise ExperimentError(error.problem, key=key or None, value=value, where=error.where) from None
    return built


def soft_weight(config: MethodConfig, num_classes: int) -> float:
    """Effective weight of soft targets of a method that need not be built; see :meth:`Method.soft_weight`."""
    found = 0.0
    for host in (config.host, *config.extra.values()):
        # A host without soft targets may need the widths of both networks to be built.
        if getattr(hosts.get(str(host.name)), "soft_weight", None) is not Method.soft_weight:
            found += create_method(MethodConfig(host=host), Shapes(num_classes)).soft_weight()
    return found * (views.get(config.views_name).mass(config.views) if config.views_name else 1.0)  # type: ignore[attr-defined]
