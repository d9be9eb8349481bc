"""ShuffleNet (Zhang et al. 2018, arXiv:1707.01083) for small images: three groups, stages of 240, 480, 960 channels.

The stem is a 1x1 convolution of stride 1, so that a 32x32 image ends at 4x4. State-dict names and torch's own initial
weights as in the distillation literature's students.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks
from akd.models.stages import run_stages

_GROUPS = 3
_STEM = 24


class ShuffleUnit(nn.Module):
    """Grouped 1x1, channel shuffle, 3x3 of each channel, grouped 1x1; the caller applies the last ReLU.

    Args:
        inputs: channels that come in.
        width: channels the convolutions give; with stride 2 the pooled input is appended to them.
        stride: 1 adds the input, 2 appends it.
    """

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.stride = stride
        # The stem's channels are too few to be grouped.
        self.groups = 1 if inputs == _STEM else _GROUPS
        narrow = width // 4
        self.conv1 = nn.Conv2d(inputs, narrow, 1, groups=self.groups, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, 1, groups=narrow, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, groups=_GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.channel_shuffle(F.relu(self.bn1(self.conv1(x))), self.groups)
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y + x if self.stride == 1 else torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1)


class ShuffleNetV1(nn.Module):
    """ShuffleNet with three groups. ``maps`` are stem and stages: four entries."""

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = self._stage(_STEM, 240, 4)
        self.layer2 = self._stage(240, 480, 8)
        self.layer3 = self._stage(480, 960, 4)
        self.linear = nn.Linear(960, num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, units: int) -> nn.Sequential:
        rest = (ShuffleUnit(width, width, 1) for _ in range(units - 1))
        return nn.Sequential(ShuffleUnit(inputs, width - inputs, 2), *rest)

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        before, after = run_stages(self.bn1(self.conv1(x)), (self.layer1, self.layer2, self.layer3))
        embedding = after[-1].mean((2, 3))
        return Output(self.linear(embedding), embedding, tuple(after), tuple(before) if preact else None)


networks.register("ShuffleV1", paper="arXiv:1707.01083")(ShuffleNetV1)
