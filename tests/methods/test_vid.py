"""Variational information distillation against the formula written out in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd.config import resolve
from akd.methods import Shapes, create_method
from akd.methods.vid import Likelihood, vid_loss
from tests.methods.slow import draw, make_batch, make_output, pooled


def build(**settings: Any) -> Any:
    config = resolve({"method": {"host": {"name": "vid", **settings}}}).method
    method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8))).double()
    for part in method.likelihoods:  # variances of channels that differ
        nn.init.normal_(part.raw, generator=torch.Generator().manual_seed(1))
    return method


def slow_vid(student: Tensor, teacher: Tensor, part: Any) -> float:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    s, t = ([[pooled(channel, size) for channel in image] for image in x.tolist()] for x in (student, teacher))
    weights = [part.mean[k].weight[:, :, 0, 0].tolist() for k in (0, 2, 4)]
    total, count = 0.0, 0
    for mine, theirs in zip(s, t, strict=True):
        for i in range(size[0]):
            for j in range(size[1]):
                x = [channel[i][j] for channel in mine]
                for k, weight in enumerate(weights):
                    x = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]
                    x = [max(0.0, v) for v in x] if k < 2 else x
                for c, (mean, raw) in enumerate(zip(x, part.raw.tolist(), strict=True)):
                    variance = math.log1p(math.exp(raw)) + 1e-5
                    total += (theirs[c][i][j] - mean) ** 2 / (2 * variance) + math.log(variance) / 2
                    count += 1
    return total / count


@pytest.mark.parametrize("sizes", [((4, 4, 2), (4, 4, 4, 2)), ((4, 3, 2), (9, 8, 5, 3))], ids=str)
def test_against_the_literal_sum(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    method = build(stages=[-2, -1])
    for rows in (1, 3):
        student, teacher = make_output(rows, (3, 4, 6), sizes[0]), make_output(rows, (2, 2, 5, 8), sizes[1], seed=9)
        got = method(student, teacher, make_batch(rows))["vid"]
        pairs = zip((-2, -1), method.likelihoods, strict=True)
        want = sum(slow_vid(student.maps[k], teacher.maps[k], part) for k, part in pairs)
        assert float(got) == pytest.approx(want, rel=1e-9)


def test_golden() -> None:
    """Off by 1 in each of two channels of variance 1 and 4: (1 + log 1) / 2 and (1/4 + log 4) / 2, their mean."""
    mean, variance = torch.zeros(1, 2, 1, 1, dtype=torch.float64), torch.tensor([1.0, 4.0], dtype=torch.float64)
    got = vid_loss(mean, torch.ones_like(mean), variance)
    assert float(got) == pytest.approx((1 + 0.25 + math.log(4)) / 4, rel=1e-12)


def test_variances_start_at_five() -> None:
    part = Likelihood(3, 2).double()
    x, zero = torch.zeros(1, 3, 1, 1, dtype=torch.float64), torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    assert float(part(x, zero)) == pytest.approx(math.log(5) / 2, rel=1e-6)


def test_gradient() -> None:
    teacher, mean, variance = draw(2, 3, 2, 2, seed=2), draw(2, 3, 2, 2, seed=1), 0.5 + draw(3, seed=3).square()
    inputs = (mean.requires_grad_(), variance.requires_grad_())
    assert torch.autograd.gradcheck(lambda m, v: vid_loss(m, teacher, v), inputs)


def test_normalised_it_is_divided_by_its_first_value_on_either_side_of_0() -> None:
    """Variances that shrink take the term through 0; what it is divided by stays."""
    config = resolve({"method": {"host": {"name": "vid", "stages": [-1]}, "normalise": True}}).method
    method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8))).double()
    (part,) = method.method.likelihoods
    student, teacher = make_output(4, (3, 4, 6), (4, 4, 2)), make_output(4, (2, 2, 5, 8), (4, 4, 4, 2), seed=9)
    teacher = teacher._replace(maps=tuple(1e-3 * m for m in teacher.maps))  # as if nothing were left to explain
    nn.init.zeros_(part.mean[-1].weight)
    found: list[float] = []
    for raw in (2.0, 0.5, 0.0, -3.0, -8.0):
        nn.init.constant_(part.raw, raw)
        term = method(student, teacher, make_batch(4))["vid"]
        found.append(float(term))
        (slope,) = torch.autograd.grad(term, part.raw)
        (own,) = torch.autograd.grad(method.method(student, teacher, make_batch(4))["vid"], part.raw)
        assert torch.allclose(slope, own / method.measures()["scale/vid"], rtol=1e-9)
    assert found[0] == pytest.approx(1)
    assert found[-1] < -1
    assert float(method.means) == pytest.approx(float(method.measures()["scale/vid"]))


def test_terms_weights_and_needs() -> None:
    method = build(stages=[1], weight=7)
    assert method.needs == {"maps:1"}
    assert method.weights() == {"ce": 1.0, "vid": 7.0}
