"""What a method is: named, unweighted terms of a step, and the registries of hosts and of teacher views."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from akd.data.batch import Batch
from akd.data.policies import augments
from akd.models.output import Output
from akd.registry import Registry
from akd.settings import setting

hosts = Registry("method host", "akd.methods")
views = Registry("kind of teacher views", "akd.views")

#: What a method may ask of a teacher, besides ``attention:<stage>``, ``maps:<stage>`` and ``maps_preact:<stage>``.
#: A stage is a position in ``Output.maps``: 0 is the stem, -1 the last stage.
NEEDS = ("logits", "embedding")


@dataclass(frozen=True)
class Shapes:
    """What a method must know of the two networks to build its own parts.

    Attributes:
        num_classes: C.
        student, teacher: channel count of each stage map; empty without a teacher.
        student_embedding, teacher_embedding: D of each; 0 without a teacher.
        images: in the training *file*, n; ``Batch.index`` is below it.
    """

    num_classes: int
    student_embedding: int = 0
    teacher_embedding: int = 0
    student: tuple[int, ...] = ()
    teacher: tuple[int, ...] = ()
    images: int = 0


class Method(nn.Module):
    """Terms, not a trainer.

    ``forward(student, teacher, batch)`` gives named, unweighted scalar terms, each a mean over the batch it is given;
    their weights live in the configuration and :meth:`weights` names them. Parameters of a method are trained with
    the student, checkpointed, and never exported. Before a search every form of a method is built without weights, on
    torch's meta device, or with them if it reads values as it is built: settings that cannot work are refused there.

    Attributes:
        needs: what the teacher has to give; empty means no teacher at all.
        relational: terms compare samples with each other, so they must see the global batch. With several workers
            the loop then gathers outputs and batch before ``forward``, which gives the same terms on every worker;
            otherwise ``forward`` sees this worker's share. A method of several parts is relational if one of them is.
        warmup_epochs: head epochs before the student's first, see :meth:`warmup`.
    """

    needs: frozenset[str] = frozenset()
    relational: bool = False
    warmup_epochs: int = 0

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} computes no terms")

    @classmethod
    def needs_of(cls, config: Any) -> frozenset[str]:
        """``needs`` under a configuration, without building the method; overridden where settings decide."""
        return cls.needs

    def weights(self) -> dict[str, float]:
        """Weight of each term in the loss, in the order of the terms; those of head epochs alone are among them."""
        raise NotImplementedError(f"{type(self).__name__} names no weights")

    def soft_weight(self) -> float:
        """Effective weight of soft targets, sum(weight * mass * temperature^2); 0 without any."""
        return 0.0

    def ramps(self, epoch: int) -> dict[str, float]:
        """Factors that rise over the epochs and that :meth:`forward` has put into its terms, by term; > 0."""
        return {}

    def signed(self) -> frozenset[str]:
        """Terms that may fall below 0, so that their size does not say how much is left of them."""
        return frozenset()

    def warmup(self, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The terms of a head epoch, in which there is no student yet; some of those :meth:`weights` names."""
        raise NotImplementedError(f"{type(self).__name__} has no head epochs")

    def measures(self) -> dict[str, Tensor]:
        """Scalars of the last forward pass to watch, detached and on the device; the loop logs their epoch means."""
        return {}

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """The method's parameters, each list with the factor of its learning rate."""
        return [(list(self.parameters()), 1.0)]


class TeacherViews(nn.Module):
    """Several views of one frozen teacher, in place of it: every host learns from the ensemble.

    ``forward(teacher, batch)`` gives the teacher's Output with its view fields filled, which hosts read through
    :func:`akd.methods.soft_target`, and the views' own terms, named and unweighted like a method's.

    Attributes:
        needs, relational, warmup_epochs: as of a :class:`Method`.
        config: the object registered with these views.
        lr_factor: of the views' parameters.
    """

    config: Any
    needs: frozenset[str] = frozenset({"logits", "embedding"})
    relational: bool = False
    warmup_epochs: int = 0
    lr_factor: float = 1.0

    def forward(self, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        raise NotImplementedError(f"{type(self).__name__} makes no views")

    def beside(self, student: Output, teacher: Output, batch: Batch) -> tuple[Output, dict[str, Tensor]]:
        """As ``forward``, for views that also ask something of the student: their terms may read its output."""
        return self(teacher, batch)

    def warmup(self, teacher: Output, batch: Batch) -> dict[str, Tensor]:
        """The views' terms of a head epoch, see :meth:`Method.warmup`; by default those of ``forward``."""
        return self(teacher, batch)[1]

    def weights(self) -> dict[str, float]:
        """Weight of each own term in the loss, those of the head epochs included."""
        raise NotImplementedError(f"{type(self).__name__} names no weights")

    def measures(self) -> dict[str, Tensor]:
        """As of a :class:`Method`."""
        return {}

    def groups(self) -> list[tuple[list[nn.Parameter], float]]:
        """As of a :class:`Method`."""
        return [(list(self.parameters()), self.lr_factor)]

    @staticmethod
    def mass(config: Any) -> float:
        """By how much these views multiply a soft-target loss: the sum of the ensemble's weights."""
        raise NotImplementedError


def needs_of(registry: Registry, config: Any) -> frozenset[str]:
    """What the member of ``registry`` that ``config`` names asks of the teacher."""
    part = registry.get(str(config.name))
    ask = getattr(part, "needs_of", None)
    return ask(config) if ask else getattr(part, "needs", frozenset())


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """How knowledge reaches the student.

    Attributes:
        host: the loss a teacher's knowledge goes through; a config object registered with its host.
        views: what stands in the teacher's place; a config object registered with its views, or ``None``.
        extra: further hosts, name -> config object; their terms but the hard labels' are added to the host's.
        normalise: see :mod:`akd.methods.normalise`.
        augment: which images both networks see; a config object of :mod:`akd.data.policies`, ``None`` for the standard
            view alone.
    """

    host: Any = field(default=None)
    views: Any = field(default=None)
    extra: Mapping[str, Any] = field(default_factory=dict)
    normalise: bool = setting(False, help="divide each knowledge term by its running size; weights 0.1 to 10, log")
    augment: Any = field(default=None)

    @property
    def host_name(self) -> str:
        return str(self.host.name)

    @property
    def views_name(self) -> str | None:
        return None if self.views is None else str(self.views.name)

    @property
    def augment_name(self) -> str | None:
        return None if self.augment is None else str(self.augment.name)

    @property
    def warmup_epochs(self) -> int:
        """Head epochs before the student's first."""
        return int(getattr(self.views, "head_warmup_epochs", 0))

    def without_warmup(self) -> MethodConfig:
        """The same method with no head epochs."""
        if not self.warmup_epochs:
            return self
        return replace(self, views=replace(self.views, head_warmup_epochs=0))

    @property
    def name(self) -> str:
        """What the method is called in one word: its views if it has any, else its host."""
        return self.views_name or self.host_name

    @property
    def title(self) -> str:
        """The method in words: ``kd``, ``angular_kd over kd``; see :func:`title`."""
        return title(self.host_name, self.views_name, self.extra, normalise=self.normalise, augment=self.augment_name)

    @property
    def relational(self) -> bool:
        """True if a part of the method compares the images of a batch with each other; see :class:`Method`."""
        parts = [hosts.get(str(config.name)) for config in (self.host, *self.extra.values())]
        parts += [views.get(self.views_name)] if self.views_name else []
        return self.normalise or any(getattr(part, "relational", False) for part in parts)

    @property
    def needs(self) -> frozenset[str]:
        """What the teacher has to give; empty without a teacher."""
        parts = [needs_of(hosts, config) for config in (self.host, *self.extra.values())]
        parts += [needs_of(views, self.views)] if self.views_name else []
        parts += [needs_of(augments, self.augment)] if self.augment_name else []
        return frozenset[str]().union(*parts)


def title(
    host: str, views: str | None, extra: Iterable[str] = (), *, normalise: bool = False, augment: str | None = None
) -> str:
    """A method in words: ``angular_kd over dkd + amd, normalised with cutmix``."""
    words = " + ".join([f"{views} over {host}" if views else host, *extra])
    words = f"{words}, normalised" if normalise else words
    return f"{words} with {augment}" if augment else words
