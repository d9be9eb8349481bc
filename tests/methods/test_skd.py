"""Streamlined distillation against its formula, written out with a plain inverse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.data import Batch
from akd.errors import ExperimentError
from akd.methods import Shapes, create_method, soft_target
from akd.methods.kd import kd_loss
from akd.methods.skd import SKD, relation_loss
from akd.models import Output


def slow_gram(rows: list[list[float]]) -> list[list[float]]:
    units = []
    for row in rows:
        centred = [z - sum(row) / len(row) for z in row]
        length = math.sqrt(sum(z * z for z in centred))
        units.append([z / length for z in centred])
    return [[sum(a * b for a, b in zip(u, v, strict=True)) / len(u) for v in units] for u in units]


def slow_relation(student: Tensor, teacher: Tensor, ridge: float) -> float:
    n = len(student)
    of_student, of_teacher = slow_gram(student.tolist()), slow_gram(teacher.tolist())
    change = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(of_student, of_teacher, strict=True)]
    means = [sum(row[j] for row in change) / n for j in range(n)]
    spread = [
        [
            sum((row[j] - means[j]) * (row[k] - means[k]) for row in change) / (n - 1) + ridge * (j == k)
            for k in range(n)
        ]
        for j in range(n)
    ]
    inverse = torch.linalg.inv(torch.tensor(spread, dtype=torch.float64)).tolist()
    lengths = [sum(row[j] * inverse[j][k] * row[k] for j in range(n) for k in range(n)) for row in change]
    return sum(math.sqrt(x + 1e-6) for x in lengths) / n - 1e-3


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TestRelation:
    @pytest.mark.parametrize("shape", [(2, 3), (5, 6), (9, 4)], ids=str)
    @pytest.mark.parametrize("ridge", [1e-3, 0.1, 1.0])
    def test_against_loops(self, shape: tuple[int, int], ridge: float) -> None:
        student, teacher = logits(*shape, seed=1), logits(*shape, seed=2)
        want = slow_relation(student, teacher, ridge)
        assert float(relation_loss(student, teacher, ridge)) == pytest.approx(want, rel=1e-9)

    def test_golden(self) -> None:
        """Two samples alike for the student and opposite for the teacher: D = ((0, 1), (1, 0)), rows two classes."""
        student = torch.tensor([[1.0, -1.0], [2.0, -2.0]], dtype=torch.float64)
        teacher = torch.tensor([[1.0, -1.0], [-3.0, 3.0]], dtype=torch.float64)
        # cov of (0, 1) and (1, 0) is ((1/2, -1/2), (-1/2, 1/2)); with ridge 1/2: S = ((1, -1/2), (-1/2, 1))
        want = math.sqrt(1 / 0.75 + 1e-6) - 1e-3  # S^-1 has 4/3 on its diagonal
        assert float(relation_loss(student, teacher, 0.5)) == pytest.approx(want, rel=1e-12)

    def test_gradient(self) -> None:
        student, teacher = logits(4, 5, seed=1).requires_grad_(), logits(4, 5, seed=2)
        assert torch.autograd.gradcheck(lambda s: relation_loss(s, teacher, 0.1), (student,))

    def test_agreement_is_0_with_a_finite_gradient(self) -> None:
        student = logits(4, 5, seed=1).float().requires_grad_()
        value = relation_loss(student, 2 * student.detach() + 1, 0.1)
        value.backward()
        assert abs(value.item()) < 1e-5
        assert student.grad.isfinite().all()
        flat = torch.zeros(4, 5, requires_grad=True)
        relation_loss(flat, logits(4, 5).float(), 0.1).backward()
        assert flat.grad.isfinite().all()

    def test_one_sample_is_refused(self) -> None:
        with pytest.raises(ExperimentError, match="two or more"):
            relation_loss(logits(1, 5), logits(1, 5), 0.1)

    def test_bfloat16_and_autocast(self) -> None:
        student, teacher = (logits(5, 6, seed=s).bfloat16() for s in (1, 2))
        with torch.autocast("cpu", torch.bfloat16):
            got = relation_loss(student, teacher, 0.1)
        assert got.dtype == torch.float32
        assert float(got) == pytest.approx(slow_relation(student.double(), teacher.double(), 0.1), rel=1e-4)


class TestSKD:
    def test_terms_and_weights(self) -> None:
        host = {"name": "skd", "temperature": 2, "weight": 3, "relation": 0.7, "ridge": 0.2, "ce_weight": 0.4}
        method = create_method(resolve({"method": {"host": host}}).method, Shapes(6))
        assert isinstance(method, SKD)
        assert method.relational
        assert method.weights() == {"ce": 0.4, "kd": 3.0, "relation": 0.7}
        assert method.soft_weight() == 12
        student, teacher, target = logits(5, 6, seed=1), logits(5, 6, seed=2), torch.tensor([0, 1, 2, 3, 4])
        zeros = torch.zeros(5, dtype=torch.long)
        given = Batch(torch.arange(5), target, target, torch.ones(5), zeros, 1, 0, torch.Generator())
        terms = method(Output(student, student), Output(teacher, teacher), given)
        assert float(terms["kd"]) == pytest.approx(float(kd_loss(student, teacher, 2.0)), rel=1e-12)
        assert float(terms["relation"]) == pytest.approx(slow_relation(student, teacher, 0.2), rel=1e-9)
        views = logits(5, 2, 6, seed=3)
        weights = torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)
        ensemble = Output(teacher, teacher, view_logits=views, view_weights=weights)
        log_q, _ = soft_target(ensemble, 2.0)
        want = 3 * slow_relation(student, log_q, 0.2)
        assert float(method(Output(student, student), ensemble, given)["relation"]) == pytest.approx(want, rel=1e-9)
