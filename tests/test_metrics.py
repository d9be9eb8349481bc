from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from akd.metrics import BINS, Mean, Scores, agreement, calibration_counts, calibration_error, evaluate, top_hits
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


def draw(rows: int, classes: int, seed: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def probabilities(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(z - top) for z in row]
    return [p / sum(powers) for p in powers]


def literal_ece(logits: Tensor, labels: Tensor, bins: int) -> float:
    """Image by image into bins (m - 1) / M < confidence <= m / M."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = probabilities(row)
        confidence = max(p)
        for m in range(bins):
            if m / bins < confidence <= (m + 1) / bins:
                members[m].append((confidence, p.index(confidence) == label))
    assert sum(map(len, members)) == len(labels)
    error = 0.0
    for each in members:
        if each:
            right, sure = sum(hit for _, hit in each) / len(each), sum(c for c, _ in each) / len(each)
            error += len(each) / len(labels) * abs(right - sure)
    return error


class TestCalibration:
    @pytest.mark.parametrize("bins", [1, 7, 15])
    @pytest.mark.parametrize("scale", [0.1, 2.0, 50.0])
    def test_against_a_literal_reference_in_unequal_batches(self, bins: int, scale: float) -> None:
        logits, labels = draw(211, 12, 3, scale)
        parts = zip(logits.split([100, 111]), labels.split([100, 111]), strict=True)
        counts = torch.stack([calibration_counts(z, y, bins) for z, y in parts]).sum(0)
        assert calibration_error(counts).item() == pytest.approx(literal_ece(logits, labels, bins), abs=1e-9)

    def test_a_confidence_on_a_border_belongs_to_the_lower_bin(self) -> None:
        counts = calibration_counts(torch.tensor([[0.0, 0.0], [100.0, 0.0]]), torch.tensor([0, 0]), 4)
        assert counts[0].tolist() == [0, 1, 0, 1]
        assert BINS == 15

    def test_perfect_and_worst(self) -> None:
        sure = torch.eye(3) * 1000
        assert calibration_error(calibration_counts(sure, torch.arange(3))).item() == 0
        assert calibration_error(calibration_counts(sure, (torch.arange(3) + 1) % 3)).item() == 1

    def test_bfloat16_logits(self) -> None:
        logits, labels = draw(50, 5, 1)
        low = logits.bfloat16()
        assert calibration_error(calibration_counts(low, labels)).item() == pytest.approx(
            literal_ece(low.double(), labels, 15), abs=1e-9
        )


def test_agreement_against_literal_loops() -> None:
    (z, _), (t, _) = draw(40, 6, 1), draw(40, 6, 2)
    same, kl = 0, 0.0
    for mine, theirs in zip(z.tolist(), t.tolist(), strict=True):
        p, q = probabilities(mine), probabilities(theirs)
        same += p.index(max(p)) == q.index(max(q))
        kl += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    found = agreement(z, t)
    assert found[0].item() == same
    assert found[1].item() == pytest.approx(kl, rel=1e-9)


def test_top_hits_against_ranks() -> None:
    logits, labels = draw(60, 9, 5)
    want = [0] * 4
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        rank = sum(z > row[label] for z in row)
        for k in range(4):
            want[k] += rank <= k
    assert top_hits(logits, labels, 4).tolist() == want


class TestScores:
    def test_of_batches_are_those_of_the_whole(self) -> None:
        (z, y), (t, _), (noisy, _) = draw(77, 11, 1), draw(77, 11, 2), draw(77, 11, 3)
        found = []
        for cuts in ([77], [70, 7], [1, 38, 38]):
            scores = Scores(11)
            for a, b, c, d in zip(*(v.split(cuts) for v in (z, y, t, noisy)), strict=True):
                scores.add(a, b, c)
                scores.add_variant("noise_0.1", d, b)
            found.append(scores.read())
        assert found[0] == pytest.approx(found[1], abs=1e-12)
        assert found[0] == pytest.approx(found[2], abs=1e-12)
        assert list(found[0]) == [
            "images",
            "top1",
            "top5",
            "nll",
            "ece",
            "teacher_agreement",
            "teacher_kl",
            "noise_0.1_top1",
        ]
        assert found[0]["images"] == 77
        assert found[0]["top1"] == pytest.approx((z.argmax(1) == y).double().mean().item(), abs=1e-12)
        assert found[0]["noise_0.1_top1"] == pytest.approx((noisy.argmax(1) == y).double().mean().item(), abs=1e-12)
        nll = sum(-math.log(probabilities(row)[label]) for row, label in zip(z.tolist(), y.tolist(), strict=True)) / 77
        assert found[0]["nll"] == pytest.approx(nll, rel=1e-9)
        assert found[0]["ece"] == pytest.approx(literal_ece(z, y, 15), abs=1e-9)

    def test_few_classes_have_no_top_5(self) -> None:
        scores = Scores(9)
        scores.add(*draw(4, 9, 1))
        assert "top5" not in scores.read()
