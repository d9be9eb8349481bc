from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from akd.metrics import Mean, evaluate
from akd.models import Output


class TestMean:
    def test_weighted(self) -> None:
        means = Mean()
        means.add("a", torch.tensor(1.0), 3)
        means.add("a", torch.tensor(5.0), 1)
        means.add("b", torch.tensor(2.0, requires_grad=True))
        assert means.read() == {"a": 2.0, "b": 2.0}
        assert means.read() == {"a": 2.0, "b": 2.0}

    def test_empty(self) -> None:
        assert Mean().read() == {}

    def test_sums_in_float64(self) -> None:
        means = Mean()
        for _ in range(1000):
            means.add("a", torch.tensor(0.1, dtype=torch.bfloat16))
        assert means.read()["a"] == pytest.approx(float(torch.tensor(0.1, dtype=torch.bfloat16)), rel=1e-12)

    def test_not_finite_stays_visible(self) -> None:
        means = Mean()
        means.add("a", torch.tensor(math.nan))
        means.add("a", torch.tensor(1.0))
        assert math.isnan(means.read()["a"])


class Table(nn.Module):
    """Gives the logits it is asked for, and dropout noise if somebody forgets eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm1d(3, affine=False)

    def forward(self, x: Tensor) -> Output:
        self.norm(x)
        return Output(x * self.scale + (100 if self.training else 0) * torch.rand_like(x), x)


class TestEvaluate:
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.5], [0.0, 0.0, 9.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([0, 1, 2, 2, 1])

    def test_against_the_formula_in_unequal_batches(self) -> None:
        want = 0.0
        for row, label in zip(self.logits.tolist(), self.labels.tolist(), strict=True):
            want += (math.log(sum(math.exp(z) for z in row)) - row[label]) / 5
        for cuts in ([5], [4, 1], [1, 2, 2]):
            batches = zip(self.logits.split(cuts), self.labels.split(cuts), strict=True)
            got = evaluate(Table(), batches)
            assert got == {"accuracy": pytest.approx(0.6, abs=1e-12), "loss": pytest.approx(want, rel=1e-12)}

    @pytest.mark.parametrize("training", [True, False])
    def test_leaves_mode_statistics_and_gradients_alone(self, training: bool) -> None:
        model = Table().train(training)
        evaluate(model, [(self.logits, self.labels)])
        assert model.training is training
        assert model.norm.training is training
        assert int(model.norm.num_batches_tracked) == 0
        assert model.scale.grad is None

    def test_no_batches(self) -> None:
        assert evaluate(Table(), []) == {}
