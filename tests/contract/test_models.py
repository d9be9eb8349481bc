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


def trained_statistics(net: nn.Module) -> nn.Module:
    """In eval mode with statistics and affine weights away from 0 and 1, as after training."""
    draw = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                value.copy_(torch.rand(len(value), generator=draw) + 0.5)
            module.running_mean -= 1
            module.bias.data -= 0.7
    return net.eval()


def strides(name: str, size: int) -> tuple[int, ...]:
    """How many times smaller each map is than the image."""
    if name.startswith("vgg"):
        return (1, 2, 4, 8, 16 if size == 64 else 8)
    return {"MobileNetV2": (2, 2, 4, 8, 16), "ShuffleV1": (1, 2, 4, 8), "ShuffleV2": (1, 2, 4, 8)}.get(
        name, (1, 1, 2, 4, 8) if name == "ResNet50" else (1, 1, 2, 4)
    )


def classifier(net: nn.Module) -> nn.Linear:
    return [m for m in net.modules() if isinstance(m, nn.Linear)][-1]


@pytest.mark.parametrize("name", NAMES)
class TestNetwork:
    @pytest.mark.parametrize(("size", "channels"), [(8, 1), (16, 3), (32, 3), (64, 1)])
    def test_output(self, name: str, size: int, channels: int) -> None:
        net = trained_statistics(seeded_model(name, 7, 0, in_channels=channels))
        with torch.no_grad():
            out = net(images(1, channels, size), preact=True)
        assert out.logits.shape == (1, 7)
        assert len(out.maps) == len(out.maps_preact)
        assert [m.shape[2:] for m in out.maps] == [(max(1, size // k),) * 2 for k in strides(name, size)]
        assert tuple(m.shape[1] for m in out.maps) == CHANNELS[name]
        assert torch.equal(out.logits, classifier(net)(out.embedding))
        if name not in ("MobileNetV2", "ShuffleV2"):  # these two convolve once more after the last map
            assert torch.equal(out.embedding, out.maps[-1].mean((2, 3)))
        for before, after in zip(out.maps_preact[: 1 if name == "MobileNetV2" else None], out.maps, strict=False):
            assert torch.equal(F.relu(before), after)
            assert float(before.min()) < 0  # it is taken before the ReLU, not after
        assert all(t.isfinite().all() for t in (out.logits, *out.maps))
        assert out.view_logits is out.view_embeddings is out.view_weights is None

    def test_images_need_not_be_square(self, name: str) -> None:
        out = seeded_model(name, 3, 0, in_channels=1).eval()(images(1, 1, 16, 32))
        deepest = strides(name, 16)[-1]
        assert out.maps[-1].shape[2:] == (16 // deepest, 32 // deepest)

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
        # The normalisation takes out what a convolution's bias adds: its gradient is rounding alone.
        shifts = {id(m.bias) for m in net.modules() if isinstance(m, nn.Conv2d)}
        assert all(p.grad is not None for p in net.parameters())
        assert all(float(p.grad.abs().sum()) > 0 for p in net.parameters() if id(p) not in shifts)

    def test_seeded_weights(self, name: str) -> None:
        torch.manual_seed(1)
        before = torch.get_rng_state()
        one = seeded_model(name, 5, 3).state_dict()
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        two, other = seeded_model(name, 5, 3).state_dict(), seeded_model(name, 5, 4).state_dict()
        assert all(torch.equal(one[k], two[k]) for k in one)
        drawn = [k for k, value in one.items() if value.ndim > 1]
        assert len(drawn) > 5
        assert not any(torch.equal(one[k], other[k]) for k in drawn)

    def test_golden_logits(self, name: str) -> None:
        net = seeded_model(name, 5, 0, in_channels=1).eval().double()
        x = torch.linspace(-1, 1, 2 * 64, dtype=torch.float64).view(2, 1, 8, 8)
        assert net(x).logits[0].tolist() == pytest.approx(LOGITS[name], rel=1e-5, abs=0)

    def test_golden_parameter_count(self, name: str) -> None:
        assert parameter_count(create_model(name, 100)) == COUNTS[name]

    def test_activations_keep_their_size_at_the_start(self, name: str) -> None:
        """He initialisation: the deepest map neither vanishes nor explodes."""
        net = seeded_model(name, 10, 0).train()
        with torch.no_grad():
            out = net(images(8, 3, 32))
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
    "vgg": [
        *("block0.0.weight", "block0.0.bias", "block0.1.running_var", "block1.0.weight", "block4.1.weight"),
        *("classifier.weight", "classifier.bias"),
    ],
    "Mob": [
        *(
            "conv1.0.weight",
            "conv1.1.running_mean",
            "blocks.0.0.conv.0.weight",
            "blocks.6.0.conv.7.num_batches_tracked",
        ),
        *("blocks.3.3.conv.3.weight", "conv2.0.weight", "conv2.1.bias", "classifier.0.weight", "classifier.0.bias"),
    ],
    "Shu": ["conv1.weight", "bn1.bias", "layer1.0.bn3.running_var", "layer2.7.conv3.weight", "linear.weight"],
    "Res": [
        *("conv1.weight", "bn1.bias", "layer1.0.shortcut.0.weight", "layer1.0.shortcut.1.bias"),
        *("layer4.2.conv3.weight", "layer4.0.shortcut.1.running_mean", "linear.weight", "linear.bias"),
    ],
}
KEYS = {
    "MobileNetV2": "0d96727f34f5ed42",
    "ResNet50": "8fcd44aaa73b7095",
    "ShuffleV1": "00548d47888a69df",
    "ShuffleV2": "d49bc83fde3c83d1",
    "resnet110": "aeba6e33283fb472",
    "resnet14": "91b3eccd11cc4456",
    "resnet20": "8b63b6f92921e186",
    "resnet32": "307981a729f5b634",
    "resnet32x4": "9d9d6697a5b9ab5f",
    "resnet44": "09ad8b7d3c4c898c",
    "resnet56": "fa1effc02561143a",
    "resnet8": "b90db0829d4f2017",
    "resnet8x4": "ac6a0b237e2a52a6",
    "vgg11": "0aedf0f2f81ab0d9",
    "vgg13": "9a32cdc33cc15fde",
    "vgg16": "2a47b52049064d03",
    "vgg19": "6eae55ef1041a5bc",
    "vgg8": "165ccf4281e3ed23",
    "wrn_16_1": "833fc4075dcd560a",
    "wrn_16_2": "b363520407cb2d45",
    "wrn_40_1": "9376505eaadaaf51",
    "wrn_40_2": "5411682dbe83b6e3",
}
# With 3 input channels and 100 classes, as published for the distillation literature's networks where it does so.
COUNTS = {
    "MobileNetV2": 812_836,
    "ResNet50": 23_705_252,
    "ShuffleV1": 949_258,
    "ShuffleV2": 1_355_528,
    "resnet110": 1_736_564,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet32x4": 7_433_860,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet8": 83_892,
    "resnet8x4": 1_233_540,
    "vgg11": 9_277_284,
    "vgg13": 9_462_180,
    "vgg16": 14_774_436,
    "vgg19": 20_086_692,
    "vgg8": 3_965_028,
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
}
LOGITS = {
    "MobileNetV2": [-3.6521883e-11, -7.6019669e-11, 7.1858437e-11, 4.4716225e-11, 2.9190523e-11],
    "ResNet50": [-1.347419, -0.3142097, -0.87614692, -0.42322669, -1.0119563],
    "ShuffleV1": [-0.02168255, -0.000154442, -0.005136834, 0.013175347, 0.032270988],
    "ShuffleV2": [-0.025819922, 0.029383287, -0.00041989174, 0.028657789, -0.0086713277],
    "resnet110": [46350.238, -447.69806, -23309.92, -3447.2755, -53703.395],
    "resnet14": [-0.004769779, 0.107971, 0.13016731, -0.13325847, 0.07994366],
    "resnet20": [-0.067162609, 0.053078012, -0.57916377, 0.4100529, 0.19856819],
    "resnet32": [1.1306721, -0.8015224, -1.2488915, 0.55347903, -0.26409148],
    "resnet32x4": [-0.086799434, -0.2346737, -1.4424831, -1.7665426, -1.0798553],
    "resnet44": [-7.4590345, 10.791373, 5.3584346, 0.24772631, 12.832711],
    "resnet56": [22.26132, 51.585284, -32.122023, 1.6499868, -5.8112453],
    "resnet8": [-0.067709683, -0.049244974, -0.070969699, -0.066444898, -0.14334235],
    "resnet8x4": [-0.10336697, 0.011852255, 0.0089774814, -0.033811702, 0.028351283],
    "vgg11": [-8.7568401e-05, -4.678371e-05, 8.9914121e-05, -5.9402237e-05, 0.00012979276],
    "vgg13": [-3.4290349e-05, -1.7473183e-05, -3.758269e-05, -2.1269867e-05, -5.5709031e-05],
    "vgg16": [-2.9158228e-06, 6.2544269e-06, 1.903831e-06, 4.1165737e-06, 1.9282008e-06],
    "vgg19": [-1.7948667e-08, -3.1332365e-07, -2.423025e-07, 3.2929986e-07, -4.2915568e-07],
    "vgg8": [0.00041304116, 0.0004616999, 0.0011030991, 0.00089710481, 0.00031734622],
    "wrn_16_1": [-0.037941583, 0.11482836, 0.021535856, -0.033800513, 0.14234745],
    "wrn_16_2": [-0.12395388, -0.026760008, -0.023588726, -0.090181384, 0.051144584],
    "wrn_40_1": [-2.4859462, 0.026455088, -1.8881176, -1.7896134, -0.80851074],
    "wrn_40_2": [-1.1671563, -0.26300049, -0.17560735, -1.1851726, -0.061087015],
}
# Channels of each map.
CHANNELS = (
    {f"resnet{d}": (16, 16, 32, 64) for d in (8, 14, 20, 32, 44, 56, 110)}
    | {f"resnet{d}x4": (32, 64, 128, 256) for d in (8, 32)}
    | {f"wrn_{d}_{k}": (16, 16 * k, 32 * k, 64 * k) for d in (16, 40) for k in (1, 2)}
    | {f"vgg{d}": (64, 128, 256, 512, 512) for d in (8, 11, 13, 16, 19)}
    | {
        "MobileNetV2": (16, 12, 16, 48, 160),
        "ShuffleV1": (24, 240, 480, 960),
        "ShuffleV2": (24, 116, 232, 464),
        "ResNet50": (64, 256, 512, 1024, 2048),
    }
)


def by_hand(name: str, classes: int = 100) -> int:
    """Parameters from the papers' tables: 3x3 convolutions, batch norms, shortcuts, classifier."""
    if name.startswith("resnet"):
        depth, _, wide = name[6:].partition("x")
        blocks, (before, *widths) = (int(depth) - 2) // 6, (32, 64, 128, 256) if wide else (16, 16, 32, 64)
        total = 3 * 9 * before + 2 * before
        for width in widths:
            for i in range(blocks):
                inputs = before if i == 0 else width
                total += 9 * inputs * width + 9 * width * width + 4 * width
                total += (inputs * width + 2 * width) * (inputs != width)
            before = width
        return total + before * classes + classes
    if name.startswith("vgg"):
        table = {"8": 11111, "11": 11222, "13": 22222, "16": 22333, "19": 22444}
        total, before = 0, 3
        for width, count in zip((64, 128, 256, 512, 512), str(table[name[3:]]), strict=True):
            for _ in range(int(count)):
                total, before = total + 9 * before * width + 3 * width, width
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


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith(("resnet", "wrn", "vgg"))])
def test_counts_by_hand(name: str) -> None:
    assert by_hand(name) == COUNTS[name]


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
