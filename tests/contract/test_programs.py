"""Every network that can be a student can be taken away: as a torch.export program and as ONNX, for any batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from akd import programs
from akd.handed import Handed
from akd.models import list_models, seeded_model

OTHERS = ["torchvision:resnet18", "torchvision:mobilenet_v2", "timm:resnet10t", "tests.foreign.wide_stem:network"]
#: One of each family for every day; all of them take minutes.
FEW = ["wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "torchvision:resnet18"]


def handed(name: str, size: int = 32) -> Handed:
    """A network of three channels, with statistics as after training, as it would be handed over."""
    net = seeded_model(name, 100, 0, in_channels=3, image_size=(size, size))
    draw = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.2 * torch.randn(len(module.running_mean), generator=draw))
            module.running_var.copy_(torch.rand(len(module.running_var), generator=draw) + 0.5)
    return Handed(net, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]).eval().requires_grad_(False)


def check(name: str, folder: Path, forms: list[str], size: int = 32) -> None:
    net = handed(name, size)
    images = torch.rand(102, 3, size, size, generator=torch.Generator().manual_seed(0))
    program = programs.trace(net, images[:1])
    for form in forms:
        words, save, opened = programs.PROGRAMS[form]
        save(program, folder / programs.FILES[form])
        run = opened(folder / programs.FILES[form])
        for row in programs.parity(words, run, net, images, (1, 64, 37)):
            assert row.good, row
            assert row.agreeing == row.batch, row


@pytest.mark.parametrize("name", FEW)
def test_as_a_torch_program(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, ["torch"])


@pytest.mark.long
@pytest.mark.parametrize("name", [*list_models(), *OTHERS])
def test_as_both_programs(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, ["torch", "onnx"])


@pytest.mark.long
@pytest.mark.parametrize("name", ["resnet20", "vgg16", "ShuffleV2"])
def test_larger_images(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, ["torch", "onnx"], size=64)
