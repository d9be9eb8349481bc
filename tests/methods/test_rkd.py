"""RKD against its formulas written out in loops, and embeddings that coincide."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.errors import ExperimentError
from akd.methods import Shapes, create_method
from akd.methods.rkd import rkd_loss
from akd.models import Output
from tests.methods.slow import Vector, dot, draw, make_batch, unit


def huber(a: float, b: float) -> float:
    d = abs(a - b)
    return d * d / 2 if d <= 1 else d - 0.5


def minus(a: Vector, b: Vector) -> Vector:
    return [x - y for x, y in zip(a, b, strict=True)]


def slow_rkd(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    n = len(student)
    distances, angles = [], []
    for rows in (student.tolist(), teacher.tolist()):
        d = [[math.dist(a, b) for b in rows] for a in rows]
        mean = sum(map(sum, d)) / (n * (n - 1))
        distances.append([[v / mean for v in row] for row in d])
        cos = {}
        for i in range(n):
            for j in range(n):
                for k in range(n):
                    same = i in (j, k) or rows[i] in (rows[j], rows[k])
                    a, b = minus(rows[j], rows[i]), minus(rows[k], rows[i])
                    cos[i, j, k] = 0.0 if same else dot(unit(a), unit(b))
        angles.append(cos)
    distance = sum(huber(distances[0][i][j], distances[1][i][j]) for i in range(n) for j in range(n)) / n**2
    return distance, sum(huber(value, angles[1][key]) for key, value in angles[0].items()) / n**3


@pytest.mark.parametrize("rows", [2, 3, 7])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_against_the_literal_sums(rows: int, scale: float) -> None:
    s, t = scale * draw(rows, 4, seed=1), draw(rows, 6, seed=2) ** 3  # uneven distances: some differ by more than 1
    got = [float(v) for v in rkd_loss(s, t)]
    assert got == pytest.approx(slow_rkd(s, t), rel=1e-9, abs=1e-15)


def test_golden() -> None:
    """A right-angled 3-4-5 triangle against an equilateral one; its distances have mean 4."""
    s = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3**0.5]], dtype=torch.float64)
    distance, angle = rkd_loss(s, t)
    assert float(distance) == pytest.approx(2 * (0.25**2 + 0.25**2) / 2 / 9, rel=1e-12)  # 3/4, 1, 5/4 against 1
    assert float(angle) == pytest.approx(2 * (0.5**2 + 0.1**2 + 0.3**2) / 2 / 27, rel=1e-12)  # 0, 3/5, 4/5 against 1/2


def test_gradient() -> None:
    s, t = draw(4, 3, seed=1).requires_grad_(), draw(4, 5, seed=2)
    assert torch.autograd.gradcheck(lambda x: rkd_loss(x, t), (s,))


def test_equal_embeddings_have_no_direction() -> None:
    """Two images of one embedding, as dead ReLUs give: finite, as the formula without them, and no large gradient."""
    s, t = draw(5, 4, seed=1), draw(5, 6, seed=2)
    s[3] = s[1]
    assert [float(v) for v in rkd_loss(s, t)] == pytest.approx(slow_rkd(s, t), rel=1e-9)
    s.requires_grad_()
    sum(rkd_loss(s, t)).backward()
    assert 0 < float(s.grad.abs().max()) < 10
    dead = torch.zeros(5, 4, requires_grad=True)
    sum(rkd_loss(dead, t.float())).backward()
    assert dead.grad.isfinite().all()


def test_is_computed_in_float32_under_autocast() -> None:
    s, t = draw(6, 4, seed=1).float(), draw(6, 6, seed=2).float()
    plain = [float(v) for v in rkd_loss(s, t)]
    with torch.autocast("cpu", torch.bfloat16):
        assert [float(v) for v in rkd_loss(s, t)] == pytest.approx(plain, rel=1e-6)


def test_terms_weights_and_ensemble() -> None:
    settings = {"name": "rkd", "weight": 3, "angle": 0.5}
    method = create_method(resolve({"method": {"host": settings}}).method, Shapes(3, 4, 6))
    assert method.weights() == {"ce": 1.0, "distance": 3.0, "angle": 1.5}
    student, teacher, views = draw(5, 4, seed=1), draw(5, 6, seed=2), draw(5, 2, 6, seed=3)
    seen = Output(teacher, teacher, view_embeddings=views, view_weights=torch.tensor([1.0, 0.5, 0.5]))
    terms = method(Output(draw(5, 3), student), seen, make_batch(5))
    want = slow_rkd(student, (teacher + 0.5 * views.sum(1)) / 2)
    assert [float(terms[k]) for k in ("distance", "angle")] == pytest.approx(want, rel=1e-9)


def test_one_image_is_refused() -> None:
    method = create_method(resolve({"method": "rkd"}).method, Shapes(3, 4, 4))
    one = Output(draw(1, 3), draw(1, 4))
    with pytest.raises(ExperimentError, match=r"train\.batch_size = 1: must be at least 2 for rkd"):
        method(one, one, make_batch(1))
