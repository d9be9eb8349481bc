"""Networks of others: taps found or named, what they cannot do said in one line."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.errors import ExperimentError
from akd.models import Output, create_model, seeded_model
from akd.models.adapter import Adapter, adapt
from tests.foreign.wide_stem import WideStem

STEM = "tests.foreign.wide_stem:network"


def images(n: int = 2, size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))


def shapes(net: nn.Module) -> list[tuple[str, bool, bool]]:
    return [(t.module, t.before, t.relu) for t in net.maps]


class TestFound:
    def test_a_network_of_functions(self) -> None:
        """The last ReLU of each stage and the pooling are functions: inputs of the next modules tell."""
        net = seeded_model(STEM, 100, 0).eval()
        plain, x = net.net, images()
        with torch.no_grad():
            out = net(x)
            maps = [F.relu(plain.bn1(plain.conv1(x)))]
            for layer in (plain.layer1, plain.layer2, plain.layer3):
                maps.append(F.relu(layer(maps[-1])))
        assert torch.equal(out.logits, plain(x))
        assert [m.shape[1:] for m in out.maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
        assert all(torch.equal(a, b) for a, b in zip(out.maps, maps[1:], strict=True))
        assert torch.equal(out.embedding, F.avg_pool2d(maps[-1], 4).flatten(1))
        assert shapes(net) == [("layer2", True, False), ("layer3", True, False), ("layer3", False, True)]

    def test_torchvision_resnet(self) -> None:
        net = create_model("torchvision:resnet18", 10, image_size=(64, 64)).eval()
        x = images(1, 64)
        with torch.no_grad():
            out = net(x)
            y = net.net.relu(net.net.bn1(net.net.conv1(x)))
            maps = [y.clone(), net.net.layer1(net.net.maxpool(y))]
            for layer in (net.net.layer2, net.net.layer3, net.net.layer4):
                maps.append(layer(maps[-1]))
        assert all(torch.equal(a, b) for a, b in zip(out.maps, maps, strict=True))
        assert torch.allclose(out.embedding, maps[-1].mean((2, 3)), atol=1e-6)
        assert torch.equal(out.logits, net.net.fc(out.embedding))

    @pytest.mark.parametrize(
        ("name", "size", "channels", "embedding"),
        [
            ("torchvision:mobilenet_v3_small", 64, [16, 16, 24, 48, 576], 1024),  # squeeze and excitation between
            ("torchvision:squeezenet1_1", 64, [64, 128, 256, 512], 512),  # no linear layer: the last map's mean
            ("torchvision:densenet121", 32, [64, 256, 512, 1024, 1024], 1024),
        ],
    )
    def test_other_torchvision_networks(self, name: str, size: int, channels: list[int], embedding: int) -> None:
        out = create_model(name, 10, image_size=(size, size)).eval()(images(1, size))
        assert out.logits.shape == (1, 10)
        areas = [m.shape[2] * m.shape[3] for m in out.maps]
        assert areas == sorted(areas, reverse=True)
        assert out.embedding.shape == (1, embedding)
        assert [m.shape[1] for m in out.maps] == channels

    def test_a_sequence_of_layers(self) -> None:
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)]
        net = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
        out = adapt(net, 3, 1, (8, 8))(images(2, 8, 1))
        assert [m.shape[1:] for m in out.maps] == [(4, 8, 8), (6, 4, 4)]
        assert all(m.min().item() == 0 for m in out.maps)
        assert torch.allclose(out.embedding, out.maps[-1].mean((2, 3)))

    def test_one_module_called_in_every_stage(self) -> None:
        """The nth call is read, not the last."""

        class Shared(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
                self.relu, self.fc = nn.ReLU(), nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.relu(self.b(self.relu(self.a(x)))).mean((2, 3)))

        out = adapt(Shared(), 5, 3, (8, 8), ())(images(2, 8))
        assert [m.shape[2] for m in out.maps] == [4, 2]
        assert all(m.min().item() >= 0 for m in out.maps)

    def test_a_transformer_has_an_embedding(self) -> None:
        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.patch, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.norm(self.patch(x).flatten(2).mT).mean(1))

        out = adapt(Tokens(), 5, 3, (8, 8))(images(2, 8))
        assert out.embedding.shape == (2, 8)
        assert [m.shape[1:] for m in out.maps] == [(8, 2, 2)]

    def test_timm(self) -> None:
        pytest.importorskip("timm")
        net = create_model("timm:resnet18", 10, in_channels=1, image_size=(64, 64)).eval()
        out = net(images(1, 64, 1))
        assert [m.shape[1] for m in out.maps] == [64, 64, 128, 256, 512]
        assert torch.allclose(out.embedding, out.maps[-1].mean((2, 3)), atol=1e-6)


class TestAdapter:
    def test_names_and_weights_are_the_networks_own(self) -> None:
        net = seeded_model(STEM, 10, 0)
        plain = WideStem(num_classes=10)
        assert list(net.state_dict()) == list(plain.state_dict())
        plain.load_state_dict(net.state_dict())
        net.load_state_dict(plain.state_dict())
        with pytest.raises(RuntimeError, match="Missing key"):
            net.load_state_dict({})
        assert len(list(net.parameters())) == len(list(plain.parameters()))

    def test_a_copy_reads_its_own_maps(self) -> None:
        net = seeded_model(STEM, 10, 0).eval()
        twin = copy.deepcopy(net)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_()
        assert twin(images()).maps[0].abs().sum().item() == 0
        assert net(images()).maps[0].abs().sum().item() > 0
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())

    def test_gradient_flows_through_the_maps(self) -> None:
        net = seeded_model("torchvision:resnet18", 10, 0, image_size=(64, 64)).train()
        out = net(images(2, 64))
        (out.maps[1].square().mean() + out.embedding.square().mean() + out.logits.square().mean()).backward()
        assert all(p.grad is not None for p in net.parameters())

    def test_probing_leaves_no_trace(self) -> None:
        net = WideStem(num_classes=10).train()
        before = copy.deepcopy(net.state_dict())
        state = torch.get_rng_state()
        adapt(net, 10, 3, (32, 32))
        assert net.training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())

    def test_a_network_that_gives_an_output_stays_as_it_is(self) -> None:
        net = create_model("akd.models.cifar_resnet:CifarResNet", 10, depth=8)
        assert not isinstance(net, Adapter)
        assert isinstance(net(images()), Output)

    @pytest.mark.parametrize("wrap", [lambda z: (z, {}), lambda z: {"logits": z}, lambda z: Output(z, z)])
    def test_ways_to_return_logits(self, wrap: Any) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

            def forward(self, x: Tensor) -> Any:
                return wrap(self.fc(self.conv(x).mean((2, 3))))

        assert adapt(Net(), 5, 3, (8, 8))(images(2, 8)).logits.shape == (2, 5)


class TestNamed:
    def test_outputs_of_modules(self) -> None:
        net = create_model(STEM, 10, taps=["layer1", "layer3.0"]).eval()
        x = images()
        with torch.no_grad():
            out, stem = net(x), F.relu(net.net.bn1(net.net.conv1(x)))
            assert torch.equal(out.maps[0], net.net.layer1(stem))
        assert out.maps[1].shape[1:] == (64, 8, 8)

    @pytest.mark.parametrize(
        ("name", "tap", "message"),
        [
            (STEM, "layer4", "has no module 'layer4' to tap, did you mean 'layer"),
            (STEM, "linear", "has a module 'linear', but it gives no feature map"),
            ("resnet8", "layer1", "has its own maps; taps can be named for other networks only"),
        ],
    )
    def test_mistakes(self, name: str, tap: str, message: str) -> None:
        with pytest.raises(ExperimentError, match=message):
            create_model(name, 10, taps=[tap])


@pytest.mark.parametrize(
    ("name", "kw", "message"),
    [
        ("torchvision:resnet19", {}, "torchvision has no model 'resnet19', did you mean 'resnet1"),
        ("torchvision:resnet18", {"in_channels": 1}, "takes images of 3 channels, these have 1"),
        ("tests.foreign.wide_stem:network", {"in_channels": 1}, "does not take images of 1x32x32: Given groups=1"),
        ("tests.foreign.wide_stem:network", {"image_size": (8, 8)}, "does not take images of 3x8x8: "),
        ("tests.foreign.wide_stem:F", {}, "is not something to call"),
        ("tests.foreign.wide_stem:nothing", {}, "cannot be imported: module .* has no attribute 'nothing'"),
        ("nowhere_at_all:x", {}, "cannot be imported: No module named 'nowhere_at_all'"),
        ("builtins:dict", {}, "gives a dict, not a torch.nn.Module"),
        ("torch.nn:Identity", {}, "gives a Tensor of shape .* where logits"),
    ],
)
def test_mistakes_in_one_line(name: str, kw: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message) as caught:
        create_model(name, 10, **kw)
    assert "\n" not in str(caught.value)


def test_other_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    import tests.foreign.wide_stem as module

    monkeypatch.setattr(module, "network", lambda: WideStem(num_classes=7))
    with pytest.raises(ExperimentError, match="gives 7 classes, the data has 10"):
        create_model(STEM, 10)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ExperimentError, match=r"needs the library timm: pip install 'akd\[timm\]'"):
        create_model("timm:resnet18", 10)
