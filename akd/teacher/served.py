"""Which runs the kept outputs serve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akd.config import Experiment
from akd.data.policies import augments
from akd.teacher.cached import cacheable


def live_because(experiment: Experiment) -> str | None:
    """Why a run asks the network itself in every step, in words; ``None`` if what it asks for can be kept.

    Args:
        experiment: of the run; of its space only what is searched of the augmentation counts.
    """
    method = experiment.method
    if experiment.teacher.cache.use == "off":
        return "teacher.cache.use is off"
    if not cacheable(method.needs):
        return "it reads whole feature maps"
    augment = method.augment
    if augment is None:
        return None
    if getattr(augment, "criterion", "") == "student_entropy" and augment.keep < augment.pool:
        return "the student alone picks its images"
    policy: Any = augments.get(augment.name)
    for name in policy.pixels(augment):
        if _continuous(experiment.space.get(f"method.augment.{name}")):
            return f"method.augment.{name} may be any number of a range, so that no two trials share images"
    return None


def _continuous(spec: object) -> bool:
    return isinstance(spec, Mapping) and spec.get("type") == "float" and spec.get("step") is None
