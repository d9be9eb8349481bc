"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) for small images, at half width.

The distillation literature's form: a stem of stride 2 and two more halvings fewer than on ImageNet, so that a 32x32
image ends at 2x2; the final 1x1 convolution keeps its 1,280 channels. State-dict names follow its checkpoints.
"""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks

#: Of each stage: expansion, channels at full width, blocks, stride of the first.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
#: Stages whose end is a map: the last one of each resolution, the stem comes before them.
_TAPPED = (1, 2, 4, 6)
_LAST = 1280


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel, narrow again; no ReLU after the last, shortcut where it fits."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int):
        super().__init__()
        self.residual = stride == 1 and inputs == width
        wide = inputs * expansion
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of a width. ``maps`` are stem and four stage ends, as the literature taps them.

    The blocks end without a ReLU by design, so that a stage's map and its map before the ReLU are the same tensor.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, width: float = 0.5):
        super().__init__()
        widths = [int(32 * width), *(int(channels * width) for _, channels, _, _ in _STAGES)]
        self.conv1 = nn.Sequential(
            nn.Conv2d(in_channels, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.blocks = nn.ModuleList()
        for (inputs, channels), (expansion, _, count, stride) in zip(pairwise(widths), _STAGES, strict=True):
            first = InvertedResidual(inputs, channels, stride, expansion)
            rest = (InvertedResidual(channels, channels, 1, expansion) for _ in range(count - 1))
            self.blocks.append(nn.Sequential(first, *rest))
        last = max(_LAST, int(_LAST * width))
        self.conv2 = nn.Sequential(nn.Conv2d(widths[-1], last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        self.classifier = nn.Sequential(nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        stem = self.conv1[1](self.conv1[0](x))
        x = F.relu(stem)
        maps = [x]
        for i, stage in enumerate(self.blocks):
            x = stage(x)
            if i in _TAPPED:
                maps.append(x)
        embedding = self.conv2(x).mean((2, 3))
        before = (stem, *maps[1:]) if preact else None
        return Output(self.classifier(embedding), embedding, tuple(maps), before)


networks.register("MobileNetV2", paper="arXiv:1801.04381")(MobileNetV2)
