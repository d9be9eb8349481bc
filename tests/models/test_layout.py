"""Channels last: same values and names, and networks that refuse it stay as they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd.models import list_models, seeded_model
from akd.models.adapter import adapt
from akd.models.layout import channels_last


class Viewed(nn.Module):
    """Ends as many scripts do: pooled to 2x2 and reshaped by ``view``, which channels-last maps refuse."""

    def __init__(self, training_only: bool = False):
        super().__init__()
        self.conv, self.fc, self.training_only = nn.Conv2d(3, 6, 3), nn.Linear(24, 5), training_only

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x), 2)
        return self.fc(x.view(len(x), -1) if self.training or not self.training_only else x.flatten(1))


def layouts(net: nn.Module) -> list[bool]:
    return [p.is_contiguous(memory_format=torch.channels_last) for p in net.parameters() if p.ndim == 4]


@pytest.mark.parametrize("name", list_models())
def test_networks_give_the_same_in_either_layout(name: str) -> None:
    plain = seeded_model(name, 7, 0).double().train()
    net = channels_last(copy.deepcopy(plain), torch.zeros(1, 3, 16, 16).double())
    assert all(layouts(net))
    assert net.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()
    one, two = plain(images, preact=True), net(images, preact=True)
    for a, b in zip([*one.maps, *one.maps_preact], [*two.maps, *two.maps_preact], strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)
    assert torch.allclose(one.logits, two.logits, rtol=1e-9, atol=1e-11)
    for output in (one, two):
        output.logits.square().sum().backward()
    for p, q in zip(plain.parameters(), net.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-7, atol=1e-9)
        assert q.grad.stride() == q.stride()  # the fused optimizer reads both in the order they lie in memory


@pytest.mark.parametrize("training_only", [False, True])
def test_a_network_that_refuses_is_left_as_it_was(training_only: bool) -> None:
    net = adapt(Viewed(training_only), 5, 3, (8, 8))
    before = copy.deepcopy(net.state_dict())
    assert channels_last(net, torch.zeros(1, 3, 8, 8)) is net
    assert layouts(net) == [False]
    net.train()(torch.randn(4, 3, 8, 8)).logits.sum().backward()
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_trying_a_network_leaves_no_trace() -> None:
    net = adapt(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.Flatten(), nn.Linear(216, 5)),
        5,
        3,
        (8, 8),
    )
    net.eval().requires_grad_(False)
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    channels_last(net, torch.ones(1, 3, 8, 8))
    assert all(layouts(net))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
