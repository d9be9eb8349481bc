"""The registry of networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from akd.errors import ExperimentError
from akd.registry import Registry
from akd.seeds import derive

networks = Registry("model", "akd.models")


def create_model(name: str, num_classes: int, **kw: Any) -> nn.Module:
    """A network whose ``forward(x [B, channels, H, W], preact=False)`` gives an :class:`akd.models.Output`.

    Args:
        name: a registered name or ``module:factory``.
        num_classes: width C of the logits.
        **kw: ``in_channels`` (default 3) and what else the factory takes.

    Raises:
        ExperimentError: no such name.
    """
    return networks.get(name, key="model")(num_classes=num_classes, **kw)


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
    """Refuse images outside the sizes the CIFAR networks are made for.

    Raises:
        ExperimentError: smaller than 8x8 or larger than 64x64.
    """
    if not (8 <= height <= 64 and 8 <= width <= 64):
        raise ExperimentError(f"takes images of 8x8 to 64x64, these have {height}x{width}", key="model", value=model)
