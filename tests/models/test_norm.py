"""Batch normalisation of our own: torch's values and derivatives, in both layouts, with exact sums."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd.models import list_models, seeded_model
from akd.models.layout import to_train
from akd.models.norm import BatchNorm, exact

LAYOUTS = [torch.contiguous_format, torch.channels_last]


def pair(channels: int, dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[nn.Module, BatchNorm]:
    """torch's module in float64 and ours with the same values."""
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(channels, dtype=torch.float64, **settings)
    if theirs.affine:
        nn.init.uniform_(theirs.weight)
        nn.init.uniform_(theirs.bias)
    ours = exact(copy.deepcopy(theirs))
    assert isinstance(ours, BatchNorm)
    return theirs, ours.to(dtype)


def run(module: nn.Module, x: Tensor, towards: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Output, and gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), list(torch.autograd.grad((y - towards).square().sum(), [x, *module.parameters()]))


@pytest.mark.parametrize(
    "settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (4, 1, 3, 3), (6, 7, 1, 1), (1, 2, 2, 2)])
def test_values_and_derivatives_are_torchs(shape: tuple[int, ...], layout: Any, settings: dict[str, Any]) -> None:
    theirs, ours = pair(shape[1], **settings)
    for step in range(2):
        draw = torch.Generator().manual_seed(step)
        x = (3 * torch.randn(shape, dtype=torch.float64, generator=draw) + 100).contiguous(memory_format=layout)
        towards = torch.randn(shape, dtype=torch.float64, generator=draw)  # gradients need not lie as the input does
        (wanted, gradients), (found, mine) = run(theirs, x, towards), run(ours, x, towards)
        assert found.is_contiguous(memory_format=layout)
        for a, b in zip([found, *mine], [wanted, *gradients], strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
    kept = theirs.state_dict()
    assert ours.state_dict().keys() == kept.keys()
    assert all(torch.allclose(v, kept[k], rtol=1e-12) for k, v in ours.state_dict().items())
    assert torch.allclose(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradcheck(layout: Any) -> None:
    _, ours = pair(3, track_running_stats=False)
    x = torch.randn(4, 3, 2, 3, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert torch.autograd.gradcheck(ours, (x,))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_of_many_pixels_are_exact_to_rounding(layout: Any) -> None:
    """Channels last torch's own is off by 8e-5 in the gradient of the input."""
    theirs, ours = pair(16, torch.float32)
    draw = torch.Generator().manual_seed(1)
    x = (torch.randn(64, 16, 32, 32, generator=draw) + 3).contiguous(memory_format=layout)
    towards = torch.rand(64, 16, 32, 32, generator=draw)
    (wanted, gradients), (found, mine) = run(theirs, x.double(), towards.double()), run(ours, x, towards)
    for a, b in zip([found, *mine], [wanted, *gradients], strict=True):
        assert (a - b).abs().max() < 8e-6 * b.abs().max()
    for name in ("running_mean", "running_var"):
        assert torch.allclose(ours.get_buffer(name).double(), theirs.get_buffer(name), rtol=5e-7)


def test_bfloat16_comes_back_as_bfloat16_from_sums_in_float32() -> None:
    theirs, ours = pair(8, torch.float32)
    x = (torch.randn(16, 8, 16, 16) + 5).bfloat16()
    towards = torch.randn(16, 8, 16, 16).bfloat16()
    (wanted, gradients), (found, mine) = run(theirs, x.double(), towards.double()), run(ours, x, towards)
    assert (found.dtype, mine[0].dtype, mine[1].dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert torch.allclose(found.double(), wanted, rtol=1e-2, atol=1e-2)
    for a, b in zip(mine, gradients, strict=True):
        assert torch.allclose(a.double(), b, rtol=2e-2, atol=2e-2 * float(b.abs().max()))


def test_one_value_per_channel_is_refused_as_by_torch() -> None:
    _, ours = pair(3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(torch.ones(1, 3, 1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="two dimensions"):
        ours.eval()(torch.ones(3, dtype=torch.float64))


class Scaled(nn.BatchNorm2d):
    """A user's own kind."""


def test_only_torchs_own_are_replaced_and_keep_their_tensors() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(Scaled(2)), nn.Flatten(), nn.BatchNorm1d(8)
    )
    net[1].eval()
    before = {k: v.data_ptr() for k, v in net.state_dict().items()}
    found = exact(net)
    assert [type(m) for m in (found[1], found[2][0], found[4])] == [BatchNorm, Scaled, nn.BatchNorm1d]
    assert {k: v.data_ptr() for k, v in found.state_dict().items()} == before
    assert not found[1].training


@pytest.mark.parametrize("name", list_models())
def test_a_step_of_every_network_is_the_default_layouts(name: str) -> None:
    plain = seeded_model(name, 7, 0).double().train()
    net = to_train(copy.deepcopy(plain))
    assert not any(type(m) is nn.BatchNorm2d for m in net.modules())
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    for each in (plain, net):
        each(images).logits.square().sum().backward()
    for p, q in zip(plain.parameters(), net.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, rtol=1e-6, atol=1e-8 * float(p.grad.abs().max()) + 1e-10)
    for a, b in zip(plain.buffers(), net.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
