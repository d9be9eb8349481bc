"""ResNets for small images (He et al. 2016, "Deep residual learning for image recognition", section 4.2).

Depth 6n + 2: a 3x3 stem and three stages of n basic blocks with 16, 32, 64 channels; where the shape changes the
shortcut is a 1x1 convolution with batch normalisation, and weights are He-initialised, as in the teachers the
distillation literature shares. State-dict names follow those checkpoints.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut; the caller applies the last ReLU, so that it can tap both sides of it."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return y + (x if self.downsample is None else self.downsample(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2. ``maps`` are stem and stages: four entries."""

    def __init__(self, depth: int, num_classes: int, in_channels: int = 3):
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, width, stride), *(BasicBlock(width, width, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        before = [self.bn1(self.conv1(x))]
        after = [F.relu(before[0])]
        for stage in (self.layer1, self.layer2, self.layer3):
            y = after[-1]
            for block in stage:
                pre = block(y)
                y = F.relu(pre)
            before.append(pre)
            after.append(y)
        embedding = after[-1].mean((2, 3))
        return Output(self.fc(embedding), embedding, tuple(after), tuple(before) if preact else None)


@networks.register("resnet8", paper="arXiv:1512.03385")
def resnet8(num_classes: int, **kw: Any) -> CifarResNet:
    """ResNet-8."""
    return CifarResNet(8, num_classes, **kw)


@networks.register("resnet20", paper="arXiv:1512.03385")
def resnet20(num_classes: int, **kw: Any) -> CifarResNet:
    """ResNet-20."""
    return CifarResNet(20, num_classes, **kw)
