"""Attention transfer against the formula written out in loops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.methods import Shapes, create_method
from akd.methods.at import at_loss
from tests.methods.slow import draw, make_batch, make_output, mean_square, pooled, unit


def slow_at(student: Tensor, teacher: Tensor) -> float:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total = 0.0
    for images in zip(student.tolist(), teacher.tolist(), strict=True):
        rows = []
        for image in images:
            grid = [
                [sum(c[i][j] ** 2 for c in image) / len(image) for j in range(len(image[0][0]))]
                for i in range(len(image[0]))
            ]
            rows.append(unit([v for row in pooled(grid, size) for v in row]))
        total += mean_square(*rows)
    return total / len(student)


@pytest.mark.parametrize(
    ("student", "teacher"), [((3, 4, 4), (3, 4, 4)), ((2, 5, 5), (6, 8, 9)), ((4, 7, 6), (2, 4, 9))], ids=str
)
def test_against_the_literal_sum(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    s, t = draw(3, *student, seed=1), draw(3, *teacher, seed=2)
    assert float(at_loss(s, t)) == pytest.approx(slow_at(s, t), rel=1e-9)
    kept = t.square().sum(1, keepdim=True).sqrt()  # what a cache keeps of a teacher
    assert float(at_loss(s, kept)) == pytest.approx(slow_at(s, t), rel=1e-9)


def test_golden() -> None:
    """Attention (1, 0) against (0.6, 0.8): ((0.4)^2 + (0.8)^2) / 2."""
    s, t = (torch.tensor(v, dtype=torch.float64).sqrt().view(1, 1, 1, 2) for v in ([5.0, 0.0], [3.0, 4.0]))
    assert float(at_loss(s, t)) == pytest.approx(0.4, rel=1e-12)


def test_goes_with_the_number_of_positions() -> None:
    """The same pattern on four times as many pixels a side is a sixteenth, whatever the pattern."""
    s, t = draw(3, 2, 8, 8, seed=1), draw(3, 4, 8, 8, seed=2)
    large = at_loss(*(x.repeat_interleave(4, 2).repeat_interleave(4, 3) for x in (s, t)))
    assert float(large) == pytest.approx(float(at_loss(s, t)) / 16, rel=1e-9)


def test_gradient() -> None:
    s, t = draw(2, 3, 4, 4, seed=1).requires_grad_(), draw(2, 2, 5, 5, seed=2)
    assert torch.autograd.gradcheck(lambda x: at_loss(x, t), (s,))


@pytest.mark.parametrize("size", [0.0, 1e-4, 3e4])
def test_finite_in_bfloat16(size: float) -> None:
    s = (size * draw(2, 3, 4, 4, seed=1)).bfloat16().requires_grad_()
    value = at_loss(s, draw(2, 3, 4, 4, seed=2).bfloat16())
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()


def test_sums_over_the_stages_it_names() -> None:
    config = resolve({"method": {"host": {"name": "at", "stages": [1, -1], "weight": 7}}}).method
    assert config.needs == {"attention:1", "attention:-1"}
    method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8)))
    student, teacher = make_output(4, (3, 4, 6), (8, 8, 4)), make_output(4, (2, 2, 5, 8), (8, 4, 4, 2), seed=9)
    got = method(student, teacher, make_batch(4))["at"]
    want = sum(slow_at(student.maps[k], teacher.maps[k]) for k in (1, -1))
    assert float(got) == pytest.approx(want, rel=1e-9)
    assert method.weights() == {"ce": 1.0, "at": 7.0}
