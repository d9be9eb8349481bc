"""Linear-probe transfer: the regression against another solver and against its own optimum, and the features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from akd.data import DataConfig, load
from akd.data.augment import normalise
from akd.errors import ExperimentError
from akd.evaluation import Network
from akd.models import seeded_model
from akd.probe import PENALTIES, check, features, fit, linear_probe, scores, transfer


def clusters(rows: int = 120, classes: int = 3, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(rows) % classes
    centres = torch.randn(classes, width, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return centres[y] + torch.randn(rows, width, dtype=torch.float64, generator=draw), y


def network(channels: int = 1, size: tuple[int, int] = (8, 8)) -> Network:
    net = seeded_model("resnet8", 10, 3, in_channels=channels).eval()
    return Network("resnet8", net, (0.4,) * channels, (0.3,) * channels, size, channels)


class TestFit:
    @pytest.mark.parametrize("penalty", [1.0, 0.01, 0.0001])
    def test_agrees_with_another_solver(self, penalty: float) -> None:
        x, y = clusters()
        mine = fit(x, y, 3, penalty)
        other = LogisticRegression(C=1 / (len(y) * penalty), tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy())
        assert torch.allclose(mine[:, :-1], torch.from_numpy(other.coef_), atol=1e-4)
        p = scores(mine, x).softmax(1)
        assert torch.allclose(p, torch.from_numpy(other.predict_proba(x.numpy())), atol=1e-5)

    def test_gradient_is_zero_at_the_end_wherever_it_began(self) -> None:
        x, y = clusters(seed=1)
        cold = fit(x, y, 3, 0.01)
        warm = fit(x, y, 3, 0.01, start=fit(x, y, 3, 1.0))
        assert torch.allclose(cold[:, :-1], warm[:, :-1], atol=1e-5)
        w = cold.clone().requires_grad_()
        (F.cross_entropy(scores(w, x), y) + 0.005 * w[:, :-1].square().sum()).backward()
        assert w.grad.abs().max().item() < 1e-6

    def test_same_bits_twice_and_no_global_draws(self) -> None:
        x, y = clusters()
        before = torch.get_rng_state()
        one, two = (linear_probe(x, y, x, y, 3) for _ in range(2))
        assert one == two
        assert torch.equal(torch.get_rng_state(), before)


class TestProbe:
    def test_separable_classes(self) -> None:
        x, y = clusters()
        assert linear_probe(10 * F.one_hot(y).double() + 0.1 * x[:, :3], y, F.one_hot(y).double(), y, 3)["top1"] == 1

    def test_chooses_the_penalty_on_the_held_out_part(self) -> None:
        """Many features of noise: little penalty fits the training part and nothing else."""
        x, y = clusters(200, 3, 5)
        noise = torch.randn(200, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        wide = torch.cat([x, noise], 1)
        test_x, test_y = clusters(300, seed=4)
        noise = torch.randn(300, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        found = linear_probe(wide, y, torch.cat([test_x, noise], 1), test_y, 3)
        assert found["penalty"] >= 0.1
        weak = linear_probe(wide, y, torch.cat([test_x, noise], 1), test_y, 3, penalties=(1e-6,))
        assert found["top1"] > weak["top1"]
        assert list(PENALTIES) == sorted(PENALTIES, reverse=True)

    def test_of_equals_the_stronger_penalty(self) -> None:
        y = torch.arange(60) % 2
        x = torch.stack([2.0 * y - 1, torch.zeros(60)], 1).double()  # and a unit that is always off
        found = linear_probe(x, y, x, y, 2)
        assert (found["top1"], found["val_top1"], found["penalty"]) == (1, 1, PENALTIES[0])


class TestFeatures:
    def test_are_the_embedding_of_images_as_the_network_takes_them(self) -> None:
        data = load(DataConfig(name="digits"))
        net = network(3, (5, 12))
        found = features(net, data, data.test_images, "cpu")
        images = data.test_images.float().expand(-1, 3, -1, -1)
        images = F.interpolate(images, (5, 12), mode="bilinear", antialias=True)
        mean, std = torch.full((3,), 0.4, dtype=torch.float64), torch.full((3,), 0.3, dtype=torch.float64)
        with torch.no_grad():
            want = net.net(normalise(images, mean, std)).embedding
        assert found.dtype == torch.float64
        assert torch.allclose(found.float(), want, atol=1e-5)

    def test_images_of_the_right_size_are_left_alone(self) -> None:
        data = load(DataConfig(name="digits"))
        net = network()
        mean, std = (torch.tensor(v, dtype=torch.float64) for v in (net.mean, net.std))
        with torch.no_grad():
            want = net.net(normalise(data.test_images, mean, std)).embedding
        assert torch.allclose(features(net, data, data.test_images, "cpu").float(), want, atol=1e-6)

    def test_digits_from_a_random_network(self) -> None:
        data = load(DataConfig(name="digits"))
        net = network()
        before = {k: v.clone() for k, v in net.net.state_dict().items()}
        found = transfer(net, data, "cpu")
        assert 0.6 < found["top1"] <= 1  # random features of 64 pixels: far above the tenth of guessing
        assert all(torch.equal(v, before[k]) for k, v in net.net.state_dict().items())

    def test_refused(self) -> None:
        data = load(DataConfig(name="digits"))
        colour = replace(data, name="colour", images=data.images.expand(-1, 3, -1, -1))
        with pytest.raises(ExperimentError, match="has 3 channels, resnet8 takes 1"):
            check(colour, network())
        check(colour, network(3))
        few = replace(data, images=data.images[:19], labels=data.labels[:19])
        with pytest.raises(ExperimentError, match="10 classes and 19 training images; needs 2 and 20"):
            check(few, network())
