"""Decoupled distillation against its formula, written out slowly."""

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
from akd.methods import Shapes, create_method, hard_target_loss, soft_target
from akd.methods.dkd import DKD, decoupled, dkd_loss, target_class
from akd.methods.kd import kd_loss
from akd.models import Output


def softmax(row: list[float], temperature: float) -> list[float]:
    high = max(row)
    powers = [math.exp((z - high) / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def slow_halves(p: list[float], q: list[float], y: int) -> tuple[float, float]:
    """KL of (target, rest) and KL among the rest, of probabilities p of the student and q of the teacher."""
    rest_p, rest_q = (sum(v for c, v in enumerate(x) if c != y) for x in (p, q))
    of_target = q[y] * math.log(q[y] / p[y]) + rest_q * math.log(rest_q / rest_p)
    of_others = sum(
        b / rest_q * math.log((b / rest_q) / (a / rest_p)) for c, (a, b) in enumerate(zip(p, q, strict=True)) if c != y
    )
    return of_target, of_others


def slow_dkd(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, temperature: float) -> float:
    total = 0.0
    for s_row, t_row, y in zip(student.tolist(), teacher.tolist(), target.tolist(), strict=True):
        one, two = slow_halves(softmax(s_row, temperature), softmax(t_row, temperature), y)
        total += alpha * one + beta * two
    return temperature**2 * total / len(student)


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(target: Tensor, epoch: int = 1, **changes: Tensor) -> Batch:
    n = len(target)
    fields = {"target2": target, "lam": torch.ones(n), "view": torch.zeros(n, dtype=torch.long)} | changes
    return Batch(torch.arange(n), target, **fields, epoch=epoch, step=0, generator=torch.Generator())


def build(classes: int = 6, **host: float) -> DKD:
    method = create_method(resolve({"method": {"host": {"name": "dkd", **host}}}).method, Shapes(classes))
    assert isinstance(method, DKD)
    return method


TARGET = torch.tensor([0, 5, 2, 3, 1])


class TestLoss:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
    @pytest.mark.parametrize(("alpha", "beta"), [(1.0, 8.0), (0.3, 0.0), (0.0, 2.0)])
    def test_against_the_literal_sum(self, temperature: float, alpha: float, beta: float) -> None:
        student, teacher = logits(5, 6, seed=1), logits(5, 6, seed=2)
        want = slow_dkd(student, teacher, TARGET, alpha, beta, temperature)
        assert float(dkd_loss(student, teacher, TARGET, alpha, beta, temperature)) == pytest.approx(want, rel=1e-9)

    @pytest.mark.parametrize("shape", [(1, 6), (1, 2), (4, 2), (3, 40)], ids=str)
    def test_shapes(self, shape: tuple[int, int]) -> None:
        """One sample, two classes (nothing among the others), many classes."""
        student, teacher = logits(*shape, seed=1), logits(*shape, seed=2)
        target = torch.arange(shape[0]) % shape[1]
        want = slow_dkd(student, teacher, target, 1.0, 8.0, 4.0)
        assert float(dkd_loss(student, teacher, target, 1.0, 8.0, 4.0)) == pytest.approx(want, rel=1e-9)

    def test_golden(self) -> None:
        """Three classes at temperature 1: teacher (1/2, 3/8, 1/8) against student (1/4, 3/8, 3/8), target 0."""
        teacher = torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64).log()
        student = torch.tensor([[0.25, 0.375, 0.375]], dtype=torch.float64).log()
        of_target = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
        of_others = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        got = dkd_loss(student, teacher, torch.tensor([0]), 1.0, 8.0, 1.0)
        assert float(got) == pytest.approx(of_target + 8 * of_others, rel=1e-12)
        assert float(got) == pytest.approx(1.1903, abs=1e-4)

    def test_gradient(self) -> None:
        student, teacher = logits(4, 5, seed=1).requires_grad_(), logits(4, 5, seed=2)
        target = torch.tensor([0, 4, 2, 2])
        assert torch.autograd.gradcheck(lambda s: dkd_loss(s, teacher, target, 0.7, 3.0, 2.0), (student,))

    @settings(max_examples=50, deadline=None)
    @given(
        rows=st.integers(1, 6), classes=st.integers(2, 12), seed=st.integers(0, 10**6), temperature=st.floats(0.3, 30)
    )
    def test_the_halves_make_up_plain_distillation(
        self, rows: int, classes: int, seed: int, temperature: float
    ) -> None:
        """Equation 6: KD = target half + (1 - q_y) * other half, sample by sample."""
        target = torch.arange(rows) % classes
        whole = halves = 0.0
        for i in range(rows):
            student, teacher = (logits(1, classes, seed=seed + 2 * i + k) for k in (0, 1))
            log_p, log_q = ((z / temperature).log_softmax(1) for z in (student, teacher))
            of_target, of_others = decoupled(log_p, log_q, target[i : i + 1])
            rest = 1 - float(log_q[0, target[i]].exp())
            assert float(of_target) >= -1e-12
            assert float(of_others) >= -1e-12
            halves += temperature**2 * float(of_target + rest * of_others)
            whole += float(kd_loss(student, teacher, temperature))
        assert halves == pytest.approx(whole, rel=1e-6, abs=1e-9 * temperature**2)

    def test_a_sure_teacher_and_a_sure_student(self) -> None:
        """Where 1 - p_y is below the smallest float32 both halves stay finite, and so do their gradients."""
        student = torch.tensor([[-200.0, 0.0, 30.0], [300.0, 0.0, 1.0]], requires_grad=True)
        teacher = torch.tensor([[400.0, 0.0, 10.0], [300.0, 1.0, 0.0]])
        value = dkd_loss(student, teacher, torch.tensor([0, 0]), 1.0, 8.0, 1.0)
        value.backward()
        assert value.isfinite()
        assert student.grad.isfinite().all()
        want = slow_halves([math.exp(-229), math.exp(-30), 1.0], [1.0, math.exp(-300), math.exp(-390)], 0)
        assert want[0] == pytest.approx(229)

    def test_bfloat16(self) -> None:
        student, teacher = (logits(5, 6, seed=s).bfloat16() for s in (1, 2))
        got = dkd_loss(student, teacher, TARGET, 1.0, 8.0, 4.0)
        assert got.dtype == torch.float32
        want = slow_dkd(student.double(), teacher.double(), TARGET, 1.0, 8.0, 4.0)
        assert float(got) == pytest.approx(want, rel=1e-5)


class TestTargetClass:
    def test_larger_share_and_teachers_choice(self) -> None:
        log_q = torch.eye(4, dtype=torch.float64)[[3, 3, 3, 2]]
        given = batch(
            torch.tensor([0, 0, 0, 0]),
            target2=torch.tensor([1, 1, 1, 1]),
            lam=torch.tensor([0.7, 0.3, 0.5, 1.0]),
            view=torch.tensor([0, 0, 0, 1]),
        )
        assert target_class(log_q, given).tolist() == [0, 1, 0, 2]


class TestDKD:
    def test_terms_weights_and_mass(self) -> None:
        method = build(temperature=3, weight=2, alpha=0.5, beta=4, ce_weight=0.3, ramp_epochs=0)
        assert method.weights() == {"ce": 0.3, "target": 1.0, "others": 8.0}
        assert method.soft_weight() == 2 * 4.5 * 9
        assert method.needs == {"logits"}
        student, teacher = logits(5, 6, seed=1), logits(5, 6, seed=2)
        terms = method(Output(student, student), Output(teacher, teacher), batch(TARGET))
        assert float(terms["ce"]) == float(hard_target_loss(student, batch(TARGET)))
        assert float(terms["target"]) == pytest.approx(slow_dkd(student, teacher, TARGET, 1, 0, 3.0), rel=1e-9)
        assert float(terms["others"]) == pytest.approx(slow_dkd(student, teacher, TARGET, 0, 1, 3.0), rel=1e-9)

    def test_of_an_ensemble(self) -> None:
        """The halves of the ensemble's mean probabilities, times its mass."""
        student, teacher, views = logits(5, 6, seed=1), logits(5, 6, seed=2), logits(5, 2, 6, seed=3)
        weights = torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)
        given = Output(teacher, teacher, view_logits=views, view_weights=weights)
        terms = build(ramp_epochs=0)(Output(student, student), given, batch(TARGET))
        want = [0.0, 0.0]
        for i, y in enumerate(TARGET.tolist()):
            members = [softmax(z, 4.0) for z in (teacher[i].tolist(), *views[i].tolist())]
            q = [sum(w * m[c] for w, m in zip((1 / 3, 1 / 6, 1 / 2), members, strict=True)) for c in range(6)]
            for k, half in enumerate(slow_halves(softmax(student[i].tolist(), 4.0), q, y)):
                want[k] += 3 * 16 * half / 5
        assert [float(terms["target"]), float(terms["others"])] == pytest.approx(want, rel=1e-9)

    def test_rises_over_the_first_epochs(self) -> None:
        method = build(ramp_epochs=20)
        outputs = [Output(z, z) for z in (logits(5, 6, seed=1), logits(5, 6, seed=2))]
        found = {e: method(*outputs, batch(TARGET, epoch=e)) for e in (1, 5, 20, 60)}
        for name in ("target", "others"):
            whole = float(found[60][name])
            got = [float(found[e][name]) / whole for e in (1, 5, 20)]
            assert got == pytest.approx([0.05, 0.25, 1.0], rel=1e-12)
            assert [method.ramps(e)[name] for e in (1, 5, 20, 60)] == [0.05, 0.25, 1.0, 1.0]
        assert float(found[1]["ce"]) == float(found[60]["ce"])

    def test_standardised(self) -> None:
        """Logits that differ by range and shift alone are equal."""
        teacher = logits(5, 6, seed=2)
        method = build(standardise=True, temperature=2, ramp_epochs=0)
        terms = method(Output(5 * teacher + 1, teacher), Output(teacher, teacher), batch(TARGET))
        assert abs(float(terms["target"])) + abs(float(terms["others"])) < 1e-7
        log_q, _ = soft_target(Output(teacher, teacher), 2.0, standardise=True)
        other = logits(5, 6, seed=1)
        got = method(Output(other, other), Output(teacher, teacher), batch(TARGET))
        log_p, _ = soft_target(Output(other, other), 2.0, standardise=True)
        want = dkd_loss(2 * log_p, 2 * log_q, TARGET, 1.0, 0.0, 2.0)
        assert float(got["target"]) == pytest.approx(float(want), rel=1e-9)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(ExperimentError, match="two classes"):
            build(classes=1)
