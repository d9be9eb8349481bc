"""ShuffleNet V2 (Ma et al. 2018, arXiv:1807.11164) for small images, size 1x: stages of 116, 232, 464 channels.

The stem is a 1x1 convolution of stride 1, so that a 32x32 image ends at 4x4, where a 1x1 convolution widens it to
1,024 channels. State-dict names and torch's own initial weights as in the distillation literature's students.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks
from akd.models.stages import run_stages

_STEM, _LAST = 24, 1024


class SplitUnit(nn.Module):
    """One half of the channels passes, the other is convolved (1x1, 3x3 of each channel, 1x1); then both are mixed."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(half, half, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, 1, 1, groups=half, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """The output before its ReLU. The half that passes is not negative, so that one ReLU over both is the same."""
        kept, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)))
        y = self.bn3(self.conv3(self.bn2(self.conv2(y))))
        return F.channel_shuffle(torch.cat([kept, y], 1), 2)


class DownUnit(nn.Module):
    """Both halves are made from the whole input, at half the resolution; then they are mixed."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 2, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(inputs, half, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = nn.Conv2d(half, half, 3, 2, 1, groups=half, bias=False)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = nn.Conv2d(half, half, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, x: Tensor) -> Tensor:
        """The output before its ReLU."""
        left = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return F.channel_shuffle(torch.cat([left, self.bn5(self.conv5(right))], 1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNet V2 1x. ``maps`` are stem and stages, four entries; the last 1x1 convolution comes after them."""

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, _STEM, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_STEM)
        self.layer1 = self._stage(_STEM, 116, 3)
        self.layer2 = self._stage(116, 232, 7)
        self.layer3 = self._stage(232, 464, 3)
        self.conv2 = nn.Conv2d(464, _LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_LAST)
        self.linear = nn.Linear(_LAST, num_classes)

    @staticmethod
    def _stage(inputs: int, width: int, splits: int) -> nn.Sequential:
        return nn.Sequential(DownUnit(inputs, width), *(SplitUnit(width) for _ in range(splits)))

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        before, after = run_stages(self.bn1(self.conv1(x)), (self.layer1, self.layer2, self.layer3))
        embedding = F.relu(self.bn2(self.conv2(after[-1]))).mean((2, 3))
        return Output(self.linear(embedding), embedding, tuple(after), tuple(before) if preact else None)


networks.register("ShuffleV2", paper="arXiv:1807.11164")(ShuffleNetV2)
