"""ResNets for small images (He et al. 2016, "Deep residual learning for image recognition", section 4.2).

Depth 6n + 2: a 3x3 stem and three stages of n basic blocks with 16, 32, 64 channels; where the shape changes the
shortcut is a 1x1 convolution with batch normalisation, and weights are He-initialised, as in the teachers the
distillation literature shares. State-dict names follow those checkpoints. The ``x4`` members are its own: a stem of 32
channels and stages of 64, 128, 256.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks
from akd.models.stages import run_stages


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
    """ResNet of depth 6n + 2. ``maps`` are stem and stages: four entries.

    Args:
        depth: 6n + 2.
        num_classes: width of the logits.
        in_channels: of the images.
        widths: channels of the stem and of the three stages.
    """

    def __init__(
        self, depth: int, num_classes: int, in_channels: int = 3, widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    ):
        super().__init__()
        if (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2, not {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(widths[0], widths[1], blocks, 1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, 2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, 2)
        self.fc = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            BasicBlock(inputs, width, stride), *(BasicBlock(width, width, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        before, after = run_stages(self.bn1(self.conv1(x)), (self.layer1, self.layer2, self.layer3))
        embedding = after[-1].mean((2, 3))
        return Output(self.fc(embedding), embedding, tuple(after), tuple(before) if preact else None)


for _depth in (8, 14, 20, 32, 44, 56, 110):
    networks.register(f"resnet{_depth}", paper="arXiv:1512.03385")(partial(CifarResNet, _depth))
for _depth in (8, 32):
    _wide = partial(CifarResNet, _depth, widths=(32, 64, 128, 256))
    networks.register(f"resnet{_depth}x4", paper="arXiv:1910.10699")(_wide)
