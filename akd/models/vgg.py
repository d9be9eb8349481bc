"""VGG for small images (Simonyan and Zisserman 2014, arXiv:1409.1556), with batch normalisation and one linear layer.

Five blocks of 3x3 convolutions with 64, 128, 256, 512, 512 channels, halved in between; the last two blocks share one
resolution unless the images are 64 pixels large, so that a 32x32 image ends at 4x4. vgg8 has one convolution a block
and is the distillation literature's own. Convolutions keep their bias, and names follow that literature's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks

_WIDTHS = (64, 128, 256, 512, 512)
#: Convolutions in each block.
_COUNTS = {
    "vgg8": (1, 1, 1, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def _block(inputs: int, width: int, count: int) -> nn.Sequential:
    """conv-BN-ReLU ``count`` times without the last ReLU, so that the caller can tap both sides of it."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(inputs if i == 0 else width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class VGG(nn.Module):
    """VGG whose blocks have ``counts`` convolutions. ``maps`` are the five blocks' outputs before pooling."""

    def __init__(self, counts: Sequence[int], num_classes: int, in_channels: int = 3):
        super().__init__()
        inputs = in_channels
        for i, (width, count) in enumerate(zip(_WIDTHS, counts, strict=True)):
            self.add_module(f"block{i}", _block(inputs, width, count))
            inputs = width
        self.classifier = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, math.sqrt(2 / (9 * module.out_channels)))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, 0, 0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        large = min(x.shape[2:]) >= 64
        before: list[Tensor] = []
        after: list[Tensor] = []
        for i in range(len(_WIDTHS)):
            if i in (1, 2, 3) or (i == 4 and large):
                x = F.max_pool2d(x, 2)
            before.append(self.get_submodule(f"block{i}")(x))
            x = F.relu(before[-1])
            after.append(x)
        embedding = x.mean((2, 3))
        return Output(self.classifier(embedding), embedding, tuple(after), tuple(before) if preact else None)


for _name, _counts in _COUNTS.items():
    networks.register(_name, paper="arXiv:1409.1556")(partial(VGG, _counts))
