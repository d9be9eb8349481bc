"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv:1605.07146) for small images.

Depth 6n + 4, widths 16, 16k, 32k, 64k, pre-activation blocks. State-dict names follow the checkpoints the
distillation literature shares.
"""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from akd.models.output import Output
from akd.models.registry import networks


class WideBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus shortcut; where widths change the shortcut starts from the activated input."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if inputs != width else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output, and its batch-normalised input before and after the ReLU: the tap of the stage before."""
        normed = self.bn1(x)
        active = F.relu(normed)
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active)), normed, active


class Stage(nn.Module):
    """Blocks of one width."""

    def __init__(self, inputs: int, width: int, blocks: int, stride: int):
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(inputs, width, stride), *(WideBlock(width, width, 1) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The stage's output and the normalised input of its first block, before and after the ReLU."""
        x, normed, active = self.layer[0](x)
        for block in self.layer[1:]:
            x, _, _ = block(x)
        return x, normed, active


class WideResNet(nn.Module):
    """WRN-depth-widen. ``maps`` are stem and stages, each after the normalisation and ReLU that follow it."""

    def __init__(self, depth: int, widen: int, num_classes: int, in_channels: int = 3):
        super().__init__()
        if (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4, not {depth}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(16, 16 * widen, blocks, 1)
        self.block2 = Stage(16 * widen, 32 * widen, blocks, 2)
        self.block3 = Stage(32 * widen, 64 * widen, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, preact: bool = False) -> Output:
        x = self.conv1(x)
        before, after = [], []
        for stage in (self.block1, self.block2, self.block3):
            x, normed, active = stage(x)
            before.append(normed)
            after.append(active)  # the block's own: a second ReLU would cost every step of a method that reads maps
        before.append(self.bn1(x))
        after.append(F.relu(before[-1]))
        embedding = after[-1].mean((2, 3))
        return Output(self.fc(embedding), embedding, tuple(after), tuple(before) if preact else None)


for _depth, _widen in ((16, 1), (16, 2), (40, 1), (40, 2)):
    networks.register(f"wrn_{_depth}_{_widen}", paper="arXiv:1605.07146")(partial(WideResNet, _depth, _widen))
