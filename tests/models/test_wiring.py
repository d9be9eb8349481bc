"""The papers' networks in plain functions, from the state dict alone: what a checkpoint's tensors mean.

Each is written from the architecture's description, not from this package's modules, and agrees to 1e-9 in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.models import seeded_model


def trained(name: str, size: int = 16) -> tuple[nn.Module, Tensor]:
    """A network with statistics and affine weights away from 0 and 1, so that a swapped or skipped normalisation
    shows, and images for it."""
    net = seeded_model(name, 5, 1)
    draw = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                value.copy_(torch.rand(len(value), generator=draw) + 0.5)
            module.running_mean -= 1
            module.bias.data -= 0.7
    x = torch.randn(2, 3, size, size, generator=draw, dtype=torch.float64)
    return net.double().eval(), x


class Layers:
    """Convolution, normalisation and classifier by their names in a state dict."""

    def __init__(self, net: nn.Module):
        self.w = net.state_dict()

    def conv(self, x: Tensor, at: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = self.w[f"{at}.weight"]
        return F.conv2d(x, weight, self.w.get(f"{at}.bias"), stride, weight.shape[-1] // 2, groups=groups)

    def norm(self, x: Tensor, at: str) -> Tensor:
        mean, var, scale, shift = (self.w[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt() * scale[:, None, None] + shift[
            :, None, None
        ]

    def linear(self, x: Tensor, at: str) -> Tensor:
        return x.mean((2, 3)) @ self.w[f"{at}.weight"].T + self.w[f"{at}.bias"]


def resnet8(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = F.relu(at.norm(at.conv(x, "conv1"), "bn1"))
    maps = [x]
    for stage, stride in ((1, 1), (2, 2), (3, 2)):
        b = f"layer{stage}.0"
        y = F.relu(at.norm(at.conv(x, f"{b}.conv1", stride), f"{b}.bn1"))
        y = at.norm(at.conv(y, f"{b}.conv2"), f"{b}.bn2")
        if f"{b}.downsample.0.weight" in at.w:
            x = at.norm(at.conv(x, f"{b}.downsample.0", stride), f"{b}.downsample.1")
        x = F.relu(x + y)
        maps.append(x)
    return at.linear(x, "fc"), maps


def wrn_16_2(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = at.conv(x, "conv1")
    maps = []
    for stage in (1, 2, 3):
        for block in (0, 1):
            b, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
            active = F.relu(at.norm(x, f"{b}.bn1"))
            if block == 0:
                maps.append(active)
            y = F.relu(at.norm(at.conv(active, f"{b}.conv1", stride), f"{b}.bn2"))
            x = at.conv(y, f"{b}.conv2") + (at.conv(active, f"{b}.convShortcut", stride) if block == 0 else x)
    maps.append(F.relu(at.norm(x, "bn1")))
    return at.linear(maps[-1], "fc"), maps


def vgg13(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    maps, size = [], x.shape[-1]
    for block in range(5):
        if block in (1, 2, 3) or (block == 4 and size == 64):
            x = F.max_pool2d(x, 2)
        for conv in (0, 3):
            x = F.relu(at.norm(at.conv(x, f"block{block}.{conv}"), f"block{block}.{conv + 1}"))
        maps.append(x)
    return at.linear(x, "classifier"), maps


def mobilenetv2(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = F.relu(at.norm(at.conv(x, "conv1.0", 2), "conv1.1"))
    maps = [x]
    blocks = [1, 2, 3, 4, 3, 3, 1]
    for stage, count in enumerate(blocks):
        for block in range(count):
            b, stride = f"blocks.{stage}.{block}.conv", 2 if block == 0 and stage in (2, 3, 5) else 1
            y = F.relu(at.norm(at.conv(x, f"{b}.0"), f"{b}.1"))
            y = F.relu(at.norm(at.conv(y, f"{b}.3", stride, y.shape[1]), f"{b}.4"))
            y = at.norm(at.conv(y, f"{b}.6"), f"{b}.7")
            x = x + y if stride == 1 and x.shape == y.shape else y
        if stage in (1, 2, 4, 6):
            maps.append(x)
    return at.linear(F.relu(at.norm(at.conv(x, "conv2.0"), "conv2.1")), "classifier.0"), maps


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Channel i of group g goes to place i * groups + g."""
    each = x.shape[1] // groups
    order = [g * each + i for i in range(each) for g in range(groups)]
    return x[:, order]


def shuffle_v1(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = F.relu(at.norm(at.conv(x, "conv1"), "bn1"))
    maps = [x]
    for stage, count in ((1, 4), (2, 8), (3, 4)):
        for block in range(count):
            b, stride = f"layer{stage}.{block}", 2 if block == 0 else 1
            groups = 1 if (stage, block) == (1, 0) else 3
            y = shuffle(F.relu(at.norm(at.conv(x, f"{b}.conv1", groups=groups), f"{b}.bn1")), groups)
            y = F.relu(at.norm(at.conv(y, f"{b}.conv2", stride, y.shape[1]), f"{b}.bn2"))
            y = at.norm(at.conv(y, f"{b}.conv3", groups=3), f"{b}.bn3")
            x = F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], 1) if block == 0 else x + y)
        maps.append(x)
    return at.linear(x, "linear"), maps


def shuffle_v2(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = F.relu(at.norm(at.conv(x, "conv1"), "bn1"))
    maps = [x]
    for stage, count in ((1, 3), (2, 7), (3, 3)):
        b = f"layer{stage}.0"
        left = at.norm(at.conv(x, f"{b}.conv1", 2, x.shape[1]), f"{b}.bn1")
        left = F.relu(at.norm(at.conv(left, f"{b}.conv2"), f"{b}.bn2"))
        right = F.relu(at.norm(at.conv(x, f"{b}.conv3"), f"{b}.bn3"))
        right = at.norm(at.conv(right, f"{b}.conv4", 2, right.shape[1]), f"{b}.bn4")
        right = F.relu(at.norm(at.conv(right, f"{b}.conv5"), f"{b}.bn5"))
        x = shuffle(torch.cat([left, right], 1), 2)
        for block in range(1, count + 1):
            b, half = f"layer{stage}.{block}", x.shape[1] // 2
            y = F.relu(at.norm(at.conv(x[:, half:], f"{b}.conv1"), f"{b}.bn1"))
            y = at.norm(at.conv(y, f"{b}.conv2", 1, half), f"{b}.bn2")
            y = F.relu(at.norm(at.conv(y, f"{b}.conv3"), f"{b}.bn3"))
            x = shuffle(torch.cat([x[:, :half], y], 1), 2)
        maps.append(x)
    return at.linear(F.relu(at.norm(at.conv(x, "conv2"), "bn2")), "linear"), maps


def resnet50(at: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = F.relu(at.norm(at.conv(x, "conv1"), "bn1"))
    maps = [x]
    for stage, count in ((1, 3), (2, 4), (3, 6), (4, 3)):
        for block in range(count):
            b, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.relu(at.norm(at.conv(x, f"{b}.conv1"), f"{b}.bn1"))
            y = F.relu(at.norm(at.conv(y, f"{b}.conv2", stride), f"{b}.bn2"))
            y = at.norm(at.conv(y, f"{b}.conv3"), f"{b}.bn3")
            if block == 0:
                x = at.norm(at.conv(x, f"{b}.shortcut.0", stride), f"{b}.shortcut.1")
            x = F.relu(x + y)
        maps.append(x)
    return at.linear(x, "linear"), maps


@pytest.mark.parametrize(
    ("name", "size", "formula"),
    [
        ("resnet8", 16, resnet8),
        ("resnet8x4", 16, resnet8),
        ("wrn_16_2", 16, wrn_16_2),
        ("vgg13", 32, vgg13),
        ("vgg13", 64, vgg13),
        ("MobileNetV2", 32, mobilenetv2),
        ("ShuffleV1", 32, shuffle_v1),
        ("ShuffleV2", 32, shuffle_v2),
        ("ResNet50", 16, resnet50),
    ],
)
def test_formula(name: str, size: int, formula: Callable[[Layers, Tensor], tuple[Tensor, list[Tensor]]]) -> None:
    net, x = trained(name, size)
    with torch.no_grad():
        out = net(x)
        logits, maps = formula(Layers(net), x)
    assert torch.allclose(out.logits, logits, rtol=1e-9, atol=1e-12)
    for one, two in zip(out.maps, maps, strict=True):
        assert torch.allclose(one, two, rtol=1e-9, atol=1e-9 * float(two.abs().max()))
    assert float(logits.std()) > 0
