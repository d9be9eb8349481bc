"""Similarity preservation against the formula written out in loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.methods import Shapes, create_method
from akd.methods.sp import sp_loss
from tests.methods.slow import dot, draw, make_batch, make_output, unit


def slow_sp(student: Tensor, teacher: Tensor) -> float:
    grams = []
    for x in (student, teacher):
        rows = x.flatten(1).tolist()
        grams.append([unit([dot(a, b) for b in rows]) for a in rows])
    return sum((a - b) ** 2 for s, t in zip(*grams, strict=True) for a, b in zip(s, t, strict=True)) / len(student) ** 2


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_against_the_literal_sum(rows: int) -> None:
    """Channels and sizes need not agree; of one image nothing is to be learned."""
    s, t = draw(rows, 3, 4, 4, seed=1), draw(rows, 5, 2, 3, seed=2)
    assert float(sp_loss(s, t)) == pytest.approx(slow_sp(s, t), rel=1e-9, abs=1e-15)
    assert (rows == 1) == (float(sp_loss(s, t)) == 0)


def test_golden() -> None:
    """Two images at right angles against two equal ones: four differences, (1 - r)^2 and r^2 twice, r = 1/sqrt 2."""
    s, t = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    assert float(sp_loss(s, t)) == pytest.approx((2 - 2**0.5) / 2, rel=1e-12)


def test_gradient() -> None:
    s, t = draw(4, 2, 2, 2, seed=1).requires_grad_(), draw(4, 3, 3, 1, seed=2)
    assert torch.autograd.gradcheck(lambda x: sp_loss(x, t), (s,))


def test_is_computed_in_float32_under_autocast() -> None:
    s, t = draw(6, 3, 4, 4, seed=1).float(), draw(6, 5, 2, 2, seed=2).float()
    plain = float(sp_loss(s, t))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(sp_loss(s, t)) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_finite_in_bfloat16(size: float) -> None:
    s = (size * draw(3, 2, 4, 4, seed=1)).bfloat16().requires_grad_()
    value = sp_loss(s, draw(3, 2, 4, 4, seed=2).bfloat16())
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()


def test_sums_over_the_stages_it_names() -> None:
    config = resolve({"method": {"host": {"name": "sp", "stages": [-2, -1], "weight": 7}}}).method
    assert config.needs == {"maps:-2", "maps:-1"}
    method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8)))
    student, teacher = make_output(4, (3, 4, 6), (8, 8, 4)), make_output(4, (2, 2, 5, 8), (8, 4, 4, 2), seed=9)
    got = method(student, teacher, make_batch(4))["sp"]
    want = sum(slow_sp(student.maps[k], teacher.maps[k]) for k in (-2, -1))
    assert float(got) == pytest.approx(want, rel=1e-9)
    assert method.weights() == {"ce": 1.0, "sp": 7.0}
