"""FitNets against the formula written out in loops: regressor, normalisation over the batch, alignment."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd.config import resolve
from akd.errors import ExperimentError
from akd.methods import Method, Shapes, create_method
from akd.methods.fitnet import fitnet_loss
from tests.methods.slow import draw, make_batch, make_output, pooled


def build(**settings: Any) -> Method:
    config = resolve({"method": {"host": {"name": "fitnet", **settings}}}).method
    method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8))).double()
    for regressor in method.regressors:  # a scale and shift that could be forgotten
        nn.init.uniform_(regressor[1].weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
        nn.init.normal_(regressor[1].bias, generator=torch.Generator().manual_seed(2))
    return method


def slow_fitnet(student: Tensor, teacher: Tensor, regressor: Any) -> float:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    s, t = ([[pooled(channel, size) for channel in image] for image in x.tolist()] for x in (student, teacher))
    weight = regressor[0].weight[:, :, 0, 0].tolist()
    scale, shift = regressor[1].weight.tolist(), regressor[1].bias.tolist()
    places = [(b, i, j) for b in range(len(s)) for i in range(size[0]) for j in range(size[1])]
    total = 0.0
    for c, row in enumerate(weight):
        y = {(b, i, j): sum(w * s[b][k][i][j] for k, w in enumerate(row)) for b, i, j in places}
        mean = sum(y.values()) / len(places)
        var = sum((v - mean) ** 2 for v in y.values()) / len(places)
        for b, i, j in places:
            found = max(0.0, scale[c] * (y[b, i, j] - mean) / math.sqrt(var + 1e-5) + shift[c])
            total += (found - t[b][c][i][j]) ** 2
    return total / (len(places) * len(weight))


@pytest.mark.parametrize(
    "sizes", [((4, 4, 2), (4, 4, 4, 2)), ((8, 8, 4), (4, 4, 2, 2)), ((4, 3, 2), (9, 8, 5, 3))], ids=str
)
def test_against_the_literal_sum(sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    method = build(stages=[-2, -1])
    student, teacher = make_output(3, (3, 4, 6), sizes[0]), make_output(3, (2, 2, 5, 8), sizes[1], seed=9)
    got = method(student, teacher, make_batch(3))["fitnet"]
    want = sum(
        slow_fitnet(student.maps[k], teacher.maps[k], r) for k, r in zip((-2, -1), method.regressors, strict=True)
    )
    assert float(got) == pytest.approx(want, rel=1e-9)


def test_golden() -> None:
    """A regressor that changes nothing: the mean square of 1, 2, 3, 4 against zeros."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(2, 1, 1, 2)
    assert float(fitnet_loss(x, torch.zeros_like(x), nn.Identity())) == 7.5


def test_gradient() -> None:
    method, teacher = build(), draw(2, 5, 3, 3, seed=2)
    student = draw(2, 4, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: fitnet_loss(s, teacher, method.regressors[0]), (student,))


def test_terms_weights_and_needs() -> None:
    method = build(weight=7, ce_weight=0.5)
    assert method.weights() == {"ce": 0.5, "fitnet": 7.0}
    assert method.needs == resolve({"method": "fitnet"}).method.needs == {"maps:-2"}


def test_a_batch_of_one() -> None:
    """Allowed where a map has several places to normalise over, refused in one line where it has not."""
    method, batch = build(), make_batch(1)
    student, teacher = make_output(1, (3, 4, 6), (4, 4, 2)), make_output(1, (2, 2, 5, 8), (4, 4, 4, 2))
    assert float(method(student, teacher, batch)["fitnet"]) == pytest.approx(
        slow_fitnet(student.maps[-2], teacher.maps[-2], method.regressors[0]), rel=1e-9
    )
    with pytest.raises(ExperimentError, match=r"train\.batch_size = 1: must be at least 2 for fitnet"):
        method(make_output(1, (3, 4, 6), (1, 1, 1)), teacher, batch)
