"""Distillation by correlation against its formula, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from akd.config import resolve
from akd.data import Batch
from akd.errors import ExperimentError
from akd.methods import Shapes, create_method, hard_target_loss
from akd.methods.dist import DIST, dist_loss, pearson
from akd.models import Output


def softmax(row: list[float], temperature: float) -> list[float]:
    high = max(row)
    powers = [math.exp((z - high) / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def slow_pearson(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    covariance = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    spread_a, spread_b = sum((x - mean_a) ** 2 for x in a), sum((y - mean_b) ** 2 for y in b)
    return covariance / math.sqrt(spread_a * spread_b)


def slow_halves(p: list[list[float]], q: list[list[float]]) -> tuple[float, float]:
    rows = [slow_pearson(a, b) for a, b in zip(p, q, strict=True)]
    columns = [slow_pearson([a[c] for a in p], [b[c] for b in q]) for c in range(len(p[0]))]
    return 1 - sum(rows) / len(rows), 1 - sum(columns) / len(columns)


def slow_dist(student: Tensor, teacher: Tensor, beta: float, gamma: float, temperature: float) -> float:
    of_classes, of_samples = slow_halves(*([softmax(z, temperature) for z in t.tolist()] for t in (student, teacher)))
    return beta * of_classes + gamma * of_samples


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(target: Tensor) -> Batch:
    n = len(target)
    zeros = torch.zeros(n, dtype=torch.long)
    return Batch(torch.arange(n), target, target, torch.ones(n), zeros, epoch=1, step=0, generator=torch.Generator())


class TestLoss:
    @pytest.mark.parametrize("shape", [(5, 6), (2, 6), (9, 2), (7, 20)], ids=str)
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize(("beta", "gamma"), [(1.0, 1.0), (2.0, 0.0), (0.0, 3.0)])
    def test_against_the_literal_sum(
        self, shape: tuple[int, int], temperature: float, beta: float, gamma: float
    ) -> None:
        student, teacher = logits(*shape, seed=1, scale=2.0), logits(*shape, seed=2, scale=2.0)
        want = slow_dist(student, teacher, beta, gamma, temperature)
        got = float(dist_loss(student, teacher, beta, gamma, temperature))
        assert got == pytest.approx(want, rel=1e-9, abs=1e-12)

    def test_golden(self) -> None:
        """Two samples of three classes: over two samples a correlation is 1 or -1."""
        teacher = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64).log()
        student = torch.tensor([[0.5, 0.35, 0.15], [0.4, 0.2, 0.4]], dtype=torch.float64).log()
        rows = [slow_pearson([0.5, 0.35, 0.15], [0.6, 0.3, 0.1]), slow_pearson([0.4, 0.2, 0.4], [0.1, 0.2, 0.7])]
        assert float(dist_loss(student, teacher, 1.0, 0.0, 1.0)) == pytest.approx(1 - sum(rows) / 2, rel=1e-12)
        # all three columns move the way the teacher's do; below, one of them moves the other way
        assert float(dist_loss(student, teacher, 0.0, 1.0, 1.0)) == pytest.approx(0.0, abs=1e-12)
        turned = torch.tensor([[0.5, 0.2, 0.3], [0.4, 0.35, 0.25]], dtype=torch.float64).log()
        assert float(dist_loss(turned, teacher, 0.0, 1.0, 1.0)) == pytest.approx(1 + 1 / 3, rel=1e-9)

    def test_gradient(self) -> None:
        student, teacher = logits(4, 5, seed=1, scale=1.0).requires_grad_(), logits(4, 5, seed=2)
        assert torch.autograd.gradcheck(lambda s: dist_loss(s, teacher, 0.7, 3.0, 2.0), (student,))

    @settings(max_examples=50, deadline=None)
    @given(rows=st.integers(2, 6), classes=st.integers(2, 9), seed=st.integers(0, 10**6), temperature=st.floats(0.5, 9))
    def test_properties(self, rows: int, classes: int, seed: int, temperature: float) -> None:
        student, teacher = (logits(rows, classes, seed=s) for s in (seed, seed + 1))
        value = float(dist_loss(student, teacher, 1.0, 1.0, temperature))
        assert -1e-9 <= value <= 4 + 1e-9
        assert abs(float(dist_loss(teacher, teacher, 1.0, 1.0, 1.0))) < 1e-6
        # the larger logits' softmax differs, but what a correlation compares has no scale: p and a p + b agree
        p = teacher.softmax(1)
        mixed = (0.3 * p + 0.7 / classes).log()
        assert abs(float(dist_loss(mixed, teacher, 1.0, 1.0, 1.0))) < 1e-6

    def test_one_sample_is_refused(self) -> None:
        with pytest.raises(ExperimentError, match=r"train.batch_size = 1: dist correlates the samples of a batch"):
            dist_loss(logits(1, 5), logits(1, 5), 1.0, 1.0, 1.0)

    def test_constant_probabilities_have_finite_gradients(self) -> None:
        """A student that knows nothing, a teacher that is sure of one class for all: nothing to correlate."""
        student = torch.zeros(4, 5, requires_grad=True)
        teacher = torch.tensor([[500.0, 0.0, 0.0, 0.0, 0.0]]).expand(4, 5)
        value = dist_loss(student, teacher, 1.0, 1.0, 1.0)
        value.backward()
        assert value.item() == pytest.approx(2.0)
        assert student.grad.isfinite().all()
        assert float(pearson(torch.ones(3), torch.arange(3.0), 0)) == 0

    def test_bfloat16(self) -> None:
        student, teacher = (logits(5, 6, seed=s).bfloat16() for s in (1, 2))
        got = dist_loss(student, teacher, 1.0, 1.0, 1.0)
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(slow_dist(student.double(), teacher.double(), 1.0, 1.0, 1.0), rel=1e-5)


class TestDIST:
    def test_terms_weights_and_mass(self) -> None:
        host = {"name": "dist", "temperature": 2, "weight": 3, "beta": 0.5, "gamma": 2, "ce_weight": 0.4}
        method = create_method(resolve({"method": {"host": host}}).method, Shapes(6))
        assert isinstance(method, DIST)
        assert method.relational
        assert method.weights() == {"ce": 0.4, "classes": 1.5, "samples": 6.0}
        assert method.soft_weight() == 7.5
        student, teacher, views = logits(5, 6, seed=1), logits(5, 6, seed=2), logits(5, 2, 6, seed=3)
        target, weights = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)
        given = Output(teacher, teacher, view_logits=views, view_weights=weights)
        terms = method(Output(student, student), given, batch(target))
        p, q = [softmax(z, 2.0) for z in student.tolist()], []
        for i in range(5):
            members = [softmax(z, 2.0) for z in (teacher[i].tolist(), *views[i].tolist())]
            q.append([sum(w * m[c] for w, m in zip((1 / 3, 1 / 6, 1 / 2), members, strict=True)) for c in range(6)])
        want = [3 * half for half in slow_halves(p, q)]
        assert [float(terms["classes"]), float(terms["samples"])] == pytest.approx(want, rel=1e-9)
        assert float(terms["ce"]) == float(hard_target_loss(student, batch(target)))
