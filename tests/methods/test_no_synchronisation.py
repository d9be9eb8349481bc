"""A step never asks the device for a value: on the meta device, whose tensors have none, it would fail."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.data import Batch
from akd.methods import Shapes, create_method
from akd.models import Output

B, C, N = 6, 5, 3

METHODS: list[Any] = [
    "kd",
    "dkd",
    "dist",
    "mlkd",
    "skd",
    {"host": {"name": "dkd", "standardise": True}},
    {"host": "kd", "extra": ["dkd", "dist", "mlkd", "skd"], "normalise": True},
]


def empty(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("members", [0, N])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_runs_without_values(method: Any, members: int, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *args, **kw: nullcontext())  # the meta device has none
    built = create_method(resolve({"method": method}).method, Shapes(C)).to("meta")
    target = torch.empty(B, dtype=torch.long, device="meta")
    batch = Batch(target, target, target, empty(B), target, 1, 0, torch.Generator(), views=views)
    student = Output(empty(B, C).requires_grad_(), empty(B, 4))
    teacher = Output(empty(B, C), empty(B, 4))
    if members:
        teacher = teacher._replace(view_logits=empty(B, members, C), view_weights=empty(members + 1))
    terms = built(student, teacher, batch)
    torch.stack([built.weights()[name] * term for name, term in terms.items()]).sum().backward()
    assert student.logits.grad.shape == (B, C)


def test_the_device_has_no_values() -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        empty(3).sum().item()
