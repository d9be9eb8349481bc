"""Probabilistic knowledge transfer against the formula written out in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.methods import Shapes, create_method
from akd.methods.pkt import pkt_loss
from akd.models import Output
from tests.methods.slow import dot, draw, make_batch, unit


def slow_pkt(student: Tensor, teacher: Tensor) -> float:
    tables = []
    for x in (student, teacher):
        rows = [unit(row) for row in x.tolist()]
        near = [[(1 + dot(a, b)) / 2 for b in rows] for a in rows]
        tables.append([[v / sum(row) for v in row] for row in near])
    pairs = [(p, q) for s, t in zip(*tables, strict=True) for p, q in zip(s, t, strict=True)]
    return sum(q * math.log(q / p) for p, q in pairs) / len(pairs)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_against_the_literal_sum(rows: int) -> None:
    s, t = draw(rows, 4, seed=1), draw(rows, 6, seed=2)
    assert float(pkt_loss(s, t)) == pytest.approx(slow_pkt(s, t), rel=1e-9, abs=1e-15)
    assert (rows == 1) == (abs(float(pkt_loss(s, t))) < 1e-15)


def test_golden() -> None:
    """Two images at right angles, p = (2/3, 1/3), against two equal ones, q = (1/2, 1/2)."""
    s, t = torch.eye(2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    assert float(pkt_loss(s, t)) == pytest.approx((math.log(3 / 4) + math.log(3 / 2)) / 4, rel=1e-12)


def test_gradient() -> None:
    s, t = draw(4, 3, seed=1).requires_grad_(), draw(4, 5, seed=2)
    assert torch.autograd.gradcheck(lambda x: pkt_loss(x, t), (s,))


@pytest.mark.parametrize("case", ["opposite", "dead", "random"])
def test_finite(case: str) -> None:
    """Embeddings in opposite directions have similarity 0, whose logarithm must not be taken."""
    s = draw(4, 3, seed=1).float()
    if case == "opposite":
        s[1] = -s[0]
    elif case == "dead":
        s = torch.zeros_like(s)
    for dtype in (torch.float32, torch.bfloat16):
        x = s.to(dtype, copy=True).requires_grad_()
        value = pkt_loss(x, draw(4, 3, seed=2).to(dtype))
        value.backward()
        assert value.isfinite()
        assert x.grad.isfinite().all()


def test_terms_weights_and_ensemble() -> None:
    method = create_method(resolve({"method": {"host": {"name": "pkt", "weight": 7}}}).method, Shapes(3, 4, 6))
    assert method.weights() == {"ce": 1.0, "pkt": 7.0}
    assert method.needs == {"embedding"}
    student, teacher, views = draw(5, 4, seed=1), draw(5, 6, seed=2), draw(5, 2, 6, seed=3)
    seen = Output(teacher, teacher, view_embeddings=views, view_weights=torch.tensor([1.0, 0.5, 0.5]))
    got = method(Output(draw(5, 3), student), seen, make_batch(5))["pkt"]
    assert float(got) == pytest.approx(slow_pkt(student, (teacher + 0.5 * views.sum(1)) / 2), rel=1e-9)
