"""Networks of other libraries by name: ``torchvision:resnet18``, ``timm:convnext_atto``. Without their weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from akd.errors import ExperimentError, near
from akd.models.registry import networks


@networks.family("torchvision")
def torchvision_network(name: str) -> Any:
    """A factory of ``torchvision.models``."""
    from torchvision import models

    if name not in models.list_models():
        raise ExperimentError(f"torchvision has no model {name!r}{near(name, models.list_models())}")

    def factory(num_classes: int, in_channels: int = 3) -> nn.Module:
        if in_channels != 3:
            raise ExperimentError(f"takes images of 3 channels, these have {in_channels}")
        return models.get_model(name, weights=None, num_classes=num_classes)

    return factory


@networks.family("timm")
def timm_network(name: str) -> Any:
    """A factory of timm, which is an extra."""
    try:
        import timm
    except ImportError:
        raise ExperimentError("needs the library timm: pip install 'akd[timm]'") from None
    if not timm.is_model(name):
        raise ExperimentError(f"timm has no model {name!r}{near(name, timm.list_models())}")

    def factory(num_classes: int, in_channels: int = 3) -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)

    return factory
