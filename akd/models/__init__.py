"""Networks. ``create_model(name, num_classes)`` is the only door; every network gives an ``Output``."""

from akd.models import cifar_resnet as cifar_resnet  # this and the next ones register themselves
from akd.models import foreign as foreign
from akd.models import mobilenetv2 as mobilenetv2
from akd.models import resnet50 as resnet50
from akd.models import shufflenet_v1 as shufflenet_v1
from akd.models import shufflenet_v2 as shufflenet_v2
from akd.models import vgg as vgg
from akd.models import wrn as wrn
from akd.models.output import Output
from akd.models.registry import check_images, create_model, list_models, networks, parameter_count, seeded_model
from akd.models.weights import load_weights, read_weights

__all__ = [
    "Output",
    "check_images",
    "create_model",
    "list_models",
    "load_weights",
    "networks",
    "parameter_count",
    "read_weights",
    "seeded_model",
]
