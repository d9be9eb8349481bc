"""What every registered network must give. Golden values are this package's own and hold to 1e-5."""

from __future__ import annotations

import copy
import hashlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.errors import ExperimentError
from akd.models import check_images, create_model, list_models, parameter_count, seeded_model

NAMES = list_models()


def images(n: int, channels: int, height: int, width: int | None = None) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, height, width or height, generator=draw)


@pytest.mark.parametrize("name", NAMES)
class TestNetwork:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [8, 16, 32, 64])
    def test_output(self, name: str, size: int, channels: int) -> None:
        net = seeded_model(name, 7, 0, in_channels=channels).eval()
        with torch.no_grad():
            out = net(images(2, channels, size), preact=True)
        assert out.logits.shape == (2, 7)
        assert len(out.maps) == len(out.maps_preact) == 4
        assert [m.shape[2:] for m in out.maps] == [(size // k, size // k) for k in (1, 1, 2, 4)]
        assert out.embedding.shape == (2, out.maps[-1].shape[1])
        assert torch.equal(out.embedding, out.maps[-1].mean((2, 3)))
        assert torch.equal(out.logits, net.fc(out.embedding))
        for before, after in zip(out.maps_preact, out.maps, strict=True):
            assert torch.equal(F.relu(before), after)
            assert float(before.min()) < 0  # it is taken before the ReLU, not after
        assert all(t.isfinite().all() for t in (out.logits, *out.maps))
        assert out.view_logits is out.view_embeddings is out.view_weights is None

    def test_images_need_not_be_square(self, name: str) -> None:
        out = seeded_model(name, 3, 0, in_channels=1).eval()(images(1, 1, 8, 16))
        assert out.maps[-1].shape[2:] == (2, 4)

    @pytest.mark.parametrize("training", [True, False])
    def test_asking_for_preact_changes_nothing(self, name: str, training: bool) -> None:
        plain = seeded_model(name, 5, 0).train(training)
        asked = copy.deepcopy(plain)
        x = images(4, 3, 16)
        a, b = plain(x), asked(x, preact=True)
        assert a.maps_preact is None
        assert torch.equal(a.logits, b.logits)
        assert all(torch.equal(m, n) for m, n in zip(a.maps, b.maps, strict=True))
        for (key, one), two in zip(plain.state_dict().items(), asked.state_dict().values(), strict=True):
            assert torch.equal(one, two), key
        a.logits.sum().backward()
        b.logits.sum().backward()
        for (key, p), q in zip(plain.named_parameters(), asked.parameters(), strict=True):
            assert torch.equal(p.grad, q.grad), key

    def test_gradient_reaches_every_parameter_from_the_logits(self, name: str) -> None:
        net = seeded_model(name, 5, 0)
        net(images(4, 3, 16)).logits.square().sum().backward()
        assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in net.parameters())

    def test_seeded_weights(self, name: str) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = seeded_model(name, 5, 3).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        two, other = seeded_model(name, 5, 3).state_dict(), seeded_model(name, 5, 4).state_dict()
        assert all(torch.equal(one[k], two[k]) for k in one)
        assert not torch.equal(one["conv1.weight"], other["conv1.weight"])
        assert not torch.equal(one["fc.weight"], other["fc.weight"])

    def test_golden_logits(self, name: str) -> None:
        net = seeded_model(name, 5, 0, in_channels=1).eval()
        x = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
        assert net(x).logits[0].tolist() == pytest.approx(LOGITS[name], abs=1e-5)

    def test_golden_parameter_count(self, name: str) -> None:
        assert parameter_count(create_model(name, 100)) == COUNTS[name]

    def test_activations_keep_their_size_at_the_start(self, name: str) -> None:
        """He initialisation: the deepest map neither vanishes nor explodes."""
        net = seeded_model(name, 10, 0).train()
        out = net(images(16, 3, 32))
        assert 0.05 < out.maps[-1].std().item() < 5

    def test_state_dict_names(self, name: str) -> None:
        """Names of the distillation literature's checkpoints (RepDistiller), whole list by hash, some by eye."""
        keys = list(create_model(name, 100).state_dict())
        assert set(FAMILY[name[:3]]) <= set(keys)
        assert hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16] == KEYS[name]


FAMILY = {
    "res": [
        *("conv1.weight", "bn1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "layer1.0.bn1.bias"),
        *("layer1.0.conv2.weight", "layer1.0.bn2.num_batches_tracked", "layer2.0.downsample.0.weight"),
        *("layer2.0.downsample.1.weight", "layer3.0.downsample.1.running_var", "fc.weight", "fc.bias"),
    ],
    "wrn": [
        *("conv1.weight", "block1.layer.0.bn1.weight", "block1.layer.0.conv1.weight", "block1.layer.0.bn2.bias"),
        *("block1.layer.1.conv2.weight", "block2.layer.0.convShortcut.weight", "block3.layer.0.convShortcut.weight"),
        *("bn1.weight", "bn1.running_mean", "fc.weight", "fc.bias"),
    ],
}
KEYS = {
    "resnet20": "8b63b6f92921e186",
    "resnet8": "b90db0829d4f2017",
    "wrn_16_1": "833fc4075dcd560a",
    "wrn_16_2": "b363520407cb2d45",
}
# With 3 input channels and 100 classes; 278,324 and 703,284 are also RepDistiller's published counts.
COUNTS = {"resnet8": 83_892, "resnet20": 278_324, "wrn_16_1": 180_916, "wrn_16_2": 703_284}
LOGITS = {
    "resnet8": [-0.0677097, -0.0492450, -0.0709697, -0.0664449, -0.1433423],
    "resnet20": [-0.0671626, 0.0530780, -0.5791638, 0.4100530, 0.1985683],
    "wrn_16_1": [-0.0379416, 0.1148284, 0.0215358, -0.0338005, 0.1423475],
    "wrn_16_2": [-0.1239539, -0.0267600, -0.0235887, -0.0901814, 0.0511446],
}


def by_hand(name: str, classes: int = 100) -> int:
    """Parameters from the papers' tables: 3x3 convolutions, batch norms, shortcuts, classifier."""
    if name.startswith("resnet"):
        blocks, widths = (int(name[6:]) - 2) // 6, (16, 32, 64)
        total, before = 3 * 9 * 16 + 2 * 16, 16
        for width in widths:
            for i in range(blocks):
                inputs = before if i == 0 else width
                total += 9 * inputs * width + 9 * width * width + 4 * width
                total += (inputs * width + 2 * width) * (inputs != width)
            before = width
        return total + before * classes + classes
    depth, widen = map(int, name.split("_")[1:])
    total, before = 3 * 9 * 16, 16
    for width in (16 * widen, 32 * widen, 64 * widen):
        for i in range((depth - 4) // 6):
            inputs = before if i == 0 else width
            total += 2 * inputs + 9 * inputs * width + 2 * width + 9 * width * width
            total += inputs * width * (inputs != width)
        before = width
    return total + 2 * before + before * classes + classes


@pytest.mark.parametrize("name", NAMES)
def test_counts_by_hand(name: str) -> None:
    assert by_hand(name) == COUNTS[name]


class TestWiring:
    """The papers' blocks in plain functions, from the state dict alone."""

    def test_resnet8(self) -> None:
        net = trained_statistics(seeded_model("resnet8", 5, 1))
        w, x = net.state_dict(), images(2, 3, 16).double()

        def norm(y: Tensor, at: str) -> Tensor:
            return F.batch_norm(y, *(w[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")))

        x0 = x
        x = F.relu(norm(F.conv2d(x, w["conv1.weight"], padding=1), "bn1"))
        for stage, stride in ((1, 1), (2, 2), (3, 2)):
            at = f"layer{stage}.0"
            y = F.relu(norm(F.conv2d(x, w[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1"))
            y = norm(F.conv2d(y, w[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if stage > 1:
                x = norm(F.conv2d(x, w[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = F.relu(x + y)
        want = F.linear(x.mean((2, 3)), w["fc.weight"], w["fc.bias"])
        assert torch.allclose(net(x0).logits, want, rtol=1e-9, atol=1e-12)

    def test_wrn_16_2(self) -> None:
        net = trained_statistics(seeded_model("wrn_16_2", 5, 1))
        w, x0 = net.state_dict(), images(2, 3, 16).double()

        def norm(y: Tensor, at: str) -> Tensor:
            return F.relu(F.batch_norm(y, *(w[f"{at}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))))

        x = F.conv2d(x0, w["conv1.weight"], padding=1)
        taps = []
        for stage in (1, 2, 3):
            for block in (0, 1):
                at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
                active = norm(x, f"{at}.bn1")
                if block == 0:
                    taps.append(active)
                y = norm(F.conv2d(active, w[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn2")
                y = F.conv2d(y, w[f"{at}.conv2.weight"], padding=1)
                x = y + (F.conv2d(active, w[f"{at}.convShortcut.weight"], stride=stride) if block == 0 else x)
        taps.append(norm(x, "bn1"))
        out = net(x0)
        want = F.linear(taps[-1].mean((2, 3)), w["fc.weight"], w["fc.bias"])
        assert torch.allclose(out.logits, want, rtol=1e-9, atol=1e-12)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(out.maps, taps, strict=True))


def trained_statistics(net: nn.Module) -> nn.Module:
    """Statistics and affine weights away from 0 and 1, so that a swapped or skipped normalisation shows."""
    draw = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                value.copy_(torch.rand(len(value), generator=draw) + 0.5)
    return net.double().eval()


class TestDoor:
    def test_unknown_name(self) -> None:
        with pytest.raises(ExperimentError, match="model = 'resnet9': there is no such model, did you mean 'resnet8'"):
            create_model("resnet9", 10)

    def test_names_are_sorted(self) -> None:
        assert sorted(NAMES) == NAMES
        assert set(COUNTS) <= set(NAMES)

    @pytest.mark.parametrize("size", [(8, 8), (64, 64), (8, 64)])
    def test_sizes_that_fit(self, size: tuple[int, int]) -> None:
        check_images("resnet8", *size)

    @pytest.mark.parametrize("size", [(7, 8), (8, 7), (65, 64), (64, 65), (224, 224)])
    def test_sizes_that_do_not(self, size: tuple[int, int]) -> None:
        with pytest.raises(ExperimentError, match=rf"takes images of 8x8 to 64x64, these have {size[0]}x{size[1]}"):
            check_images("resnet8", *size)

    def test_depths_that_do_not_exist(self) -> None:
        from akd.models.cifar_resnet import CifarResNet
        from akd.models.wrn import WideResNet

        with pytest.raises(ValueError, match=r"6n \+ 2"):
            CifarResNet(9, 10)
        with pytest.raises(ValueError, match=r"6n \+ 4"):
            WideResNet(17, 1, 10)
