"""The registry of networks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from akd.errors import ExperimentError, reason
from akd.registry import Registry
from akd.seeds import derive

networks = Registry("model", "akd.models")


def create_model(
    name: str, num_classes: int, *, image_size: tuple[int, int] = (32, 32), taps: Sequence[str] = (), **kw: Any
) -> nn.Module:
    """A network whose ``forward(x [B, channels, H, W], preact=False)`` gives an :class:`akd.models.Output`.

    Args:
        name: a registered name, ``module:factory``, ``torchvision:name`` or ``timm:name``.
        num_classes: width C of the logits.
        image_size: height and width; networks that are not registered are probed with such an image.
        taps: modules whose outputs are the maps of a network that is not registered; default found by themselves.
        **kw: ``in_channels`` (default 3) and what else the factory takes.

    Raises:
        ExperimentError: no such name, or the network does not fit classes or images.
    """
    factory = networks.get(name, key="model")
    if networks.registered(name):
        if taps:
            raise ExperimentError(
                "has its own maps; taps can be named for other networks only", key="model", value=name
            )
        return factory(num_classes=num_classes, **kw)
    from akd.models.adapter import adapt

    try:
        made = _made(factory, _accepted(factory, {"num_classes": num_classes, **kw}))
        if not isinstance(made, nn.Module):
            raise ExperimentError(f"gives a {type(made).__name__}, not a torch.nn.Module")
        return adapt(made, num_classes, kw.get("in_channels", 3), image_size, taps)
    except ExperimentError as error:
        raise ExperimentError(error.problem, key="model", value=name) from None


def _made(factory: Callable[..., Any], values: dict[str, Any]) -> Any:
    try:
        return factory(**values)
    except ExperimentError:
        raise
    except Exception as error:  # a user's factory may fail in any way
        raise ExperimentError(f"cannot be made: {type(error).__name__}: {reason(error)}") from error


def _accepted(factory: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """The arguments a user's factory has a name for: one may be made for its data alone."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # a builtin that does not tell
        return values
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return values
    return {k: v for k, v in values.items() if k in parameters}


def seeded_model(name: str, num_classes: int, seed: int, **kw: Any) -> nn.Module:
    """:func:`create_model` with initial weights that depend on ``seed`` alone; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("init", seed))
        return create_model(name, num_classes, **kw)


def list_models() -> list[str]:
    """All names :func:`create_model` knows, sorted."""
    return networks.names()


def parameter_count(model: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in model.parameters())


def check_images(model: str, height: int, width: int) -> None:
    """Refuse images outside the sizes the CIFAR networks are made for; other networks are probed instead.

    Raises:
        ExperimentError: smaller than 8x8 or larger than 64x64.
    """
    if networks.registered(model) and not (8 <= height <= 64 and 8 <= width <= 64):
        raise ExperimentError(f"takes images of 8x8 to 64x64, these have {height}x{width}", key="model", value=model)
