"""ResNet-50 for small images (He et al. 2016, arXiv:1512.03385).

The ImageNet network with a 3x3 stem of stride 1 and no pooling after it, so that a 32x32 image ends at 4x4. State-dict
names follow the distillation literature's checkpoint.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks
from akd.models.stages import run_stages

_EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a narrow middle, plus shortcut; the caller applies the last ReLU."""

    def __init__(self, inputs: int, narrow: int, stride: int):
        super().__init__()
        width = _EXPANSION * narrow
        self.conv1 = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(narrow)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(narrow)
        self.conv3 = nn.Conv2d(narrow, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return self.bn3(self.conv3(y)) + self.shortcut(x)


class ResNet50(nn.Module):
    """ResNet-50. ``maps`` are stem and stages: five entries."""

    def __init__(self, num_classes: int, in_channels: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = self._stage(64, 64, 3, 1)
        self.layer2 = self._stage(256, 128, 4, 2)
        self.layer3 = self._stage(512, 256, 6, 2)
        self.layer4 = self._stage(1024, 512, 3, 2)
        self.linear = nn.Linear(2048, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(inputs: int, narrow: int, blocks: int, stride: int) -> nn.Sequential:
        rest = (Bottleneck(_EXPANSION * narrow, narrow, 1) for _ in range(blocks - 1))
        return nn.Sequential(Bottleneck(inputs, narrow, stride), *rest)

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        before, after = run_stages(self.bn1(self.conv1(x)), (self.layer1, self.layer2, self.layer3, self.layer4))
        embedding = after[-1].mean((2, 3))
        return Output(self.linear(embedding), embedding, tuple(after), tuple(before) if preact else None)


networks.register("ResNet50", paper="arXiv:1512.03385")(ResNet50)
