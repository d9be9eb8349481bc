"""Networks. ``create_model(name, num_classes)`` is the only door; every network gives an ``Output``."""

from akd.models import cifar_resnet as cifar_resnet  # registers itself
from akd.models import wrn as wrn  # registers itself
from akd.models.output import Output
from akd.models.registry import check_images, create_model, list_models, networks, parameter_count, seeded_model

__all__ = [
    "Output",
    "check_images",
    "create_model",
    "list_models",
    "networks",
    "parameter_count",
    "seeded_model",
]
