"""Plain distillation and soft targets against their formulas, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from akd.config import resolve
from akd.data import Batch
from akd.methods import Shapes, create_method, hard_target_loss, soft_target
from akd.methods.kd import KD, kd_loss
from akd.models import Output


def softmax(row: list[float], temperature: float) -> list[float]:
    high = max(row)
    powers = [math.exp((z - high) / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def slow_kd(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(s_row, temperature), softmax(t_row, temperature)
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True) if b > 0)
    return temperature**2 * total / len(student)


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(target: Tensor, **changes: Tensor) -> Batch:
    n = len(target)
    fields = {"target2": target, "lam": torch.ones(n), "view": torch.zeros(n, dtype=torch.long)} | changes
    return Batch(torch.arange(n), target, **fields, epoch=1, step=0, generator=torch.Generator())


class TestLoss:
    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
    def test_against_the_literal_sum(self, temperature: float) -> None:
        student, teacher = logits(9, 6, seed=1), logits(9, 6, seed=2)
        got = float(kd_loss(student, teacher, temperature))
        assert got == pytest.approx(slow_kd(student, teacher, temperature), rel=1e-9)

    def test_golden(self) -> None:
        """Two classes at temperature 2, worked by hand: q = (3/4, 1/4) against p = (1/2, 1/2)."""
        teacher = torch.tensor([[2 * math.log(3.0), 0.0]], dtype=torch.float64)
        want = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
        assert float(kd_loss(torch.zeros_like(teacher), teacher, 2.0)) == pytest.approx(want, rel=1e-12)
        assert want == pytest.approx(0.523248143764548, rel=1e-12)

    def test_gradient(self) -> None:
        student, teacher = logits(4, 5, seed=1).requires_grad_(), logits(4, 5, seed=2)
        assert torch.autograd.gradcheck(lambda s: kd_loss(s, teacher, 3.0), (student,))
        (gradient,) = torch.autograd.grad(kd_loss(student, teacher, 3.0), student)
        want = 3.0 * ((student / 3).softmax(1) - (teacher / 3).softmax(1)) / 4  # tau * (p - q) / B
        assert torch.allclose(gradient, want, rtol=1e-10, atol=1e-12)

    @settings(max_examples=60, deadline=None)
    @given(
        rows=st.integers(1, 6),
        classes=st.integers(2, 12),
        seed=st.integers(0, 10**6),
        temperature=st.floats(0.3, 50),
        scale=st.floats(0.01, 30),
    )
    def test_properties(self, rows: int, classes: int, seed: int, temperature: float, scale: float) -> None:
        student, teacher = (logits(rows, classes, seed=s, scale=scale) for s in (seed, seed + 1))
        value = float(kd_loss(student, teacher, temperature))
        tiny = 1e-12 * temperature**2
        assert value >= -tiny
        assert value == pytest.approx(slow_kd(student, teacher, temperature), rel=1e-7, abs=1e3 * tiny)
        assert abs(float(kd_loss(teacher, teacher, temperature))) <= tiny
        # softmax does not see a constant added to a row, so neither does the loss
        assert float(kd_loss(student + 5, teacher - 7, temperature)) == pytest.approx(value, rel=1e-7, abs=1e3 * tiny)
        # logits and temperature scaled together leave the divergence, so the loss grows with tau^2
        assert float(kd_loss(2 * student, 2 * teacher, 2 * temperature)) == pytest.approx(4 * value, rel=1e-9, abs=tiny)

    def test_high_temperature_tends_to_matching_centred_logits(self) -> None:
        """Hinton et al. 2015, section 2.1: for large tau the loss is |z_s - z_t|^2 / (2 C), rows centred."""
        student, teacher = (z - z.mean(1, keepdim=True) for z in (logits(5, 8, seed=1), logits(5, 8, seed=2)))
        want = float((student - teacher).square().sum(1).mean() / (2 * 8))
        assert float(kd_loss(student, teacher, 1e4)) == pytest.approx(want, rel=1e-3)

    def test_is_computed_in_the_wider_precision(self) -> None:
        student, teacher = logits(4, 5, seed=1), logits(4, 5, seed=2)
        assert kd_loss(student, teacher.float(), 2.0).dtype == torch.float64
        assert kd_loss(student.bfloat16(), teacher.bfloat16(), 2.0).dtype == torch.float32


class TestSoftTarget:
    def test_teacher_alone(self) -> None:
        teacher = logits(4, 5)
        log_q, mass = soft_target(Output(teacher, teacher), 3.0)
        assert float(mass) == 1.0
        for row, want in zip(log_q.exp().tolist(), teacher.tolist(), strict=True):
            assert row == pytest.approx(softmax(want, 3.0), rel=1e-12)

    @pytest.mark.parametrize("weights", [[0.4, 0.3, 0.2, 0.1], [1.0, 0.8, 0.1, 0.1], [0.0, 0.5, 0.5, 0.0], None])
    def test_ensemble_against_literal_loops(self, weights: list[float] | None) -> None:
        teacher, views = logits(5, 6, seed=1), logits(5, 3, 6, seed=2)
        given_weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
        log_q, mass = soft_target(Output(teacher, teacher, view_logits=views, view_weights=given_weights), 4.0)
        w = weights or [0.25] * 4
        assert float(mass) == pytest.approx(sum(w), rel=1e-12)
        for b in range(5):
            members = [softmax(teacher[b].tolist(), 4.0), *(softmax(views[b, n].tolist(), 4.0) for n in range(3))]
            for c in range(6):
                want = sum(w[k] * members[k][c] for k in range(4)) / sum(w)
                assert float(log_q[b, c].exp()) == pytest.approx(want, rel=1e-9)

    def test_probabilities_are_averaged_and_not_logits(self) -> None:
        teacher, view = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[[0.0, 4.0, 0.0]]])
        log_q, _ = soft_target(Output(teacher, teacher, view_logits=view), 1.0)
        of_logits = ((teacher + view[:, 0]) / 2).softmax(1)
        assert float((log_q.exp() - of_logits).abs().max()) > 0.03

    def test_gradient_reaches_the_views(self) -> None:
        """Heads of a teacher are trained; whether through the ensemble is their own setting, so it must be possible."""
        teacher, views = logits(2, 3, seed=1), logits(2, 2, 3, seed=2).requires_grad_()
        soft_target(Output(teacher, teacher, view_logits=views), 2.0)[0][:, 0].sum().backward()
        assert float(views.grad.abs().min()) > 0

    @settings(max_examples=40, deadline=None)
    @given(seed=st.integers(0, 10**6), temperature=st.floats(0.05, 50), scale=st.floats(0.1, 100), n=st.integers(0, 4))
    def test_is_normalised(self, seed: int, temperature: float, scale: float, n: int) -> None:
        teacher = logits(3, 7, seed=seed, scale=scale)
        views = logits(3, n, 7, seed=seed + 1, scale=scale) if n else None
        log_q, _ = soft_target(Output(teacher, teacher, view_logits=views), temperature)
        assert log_q.isfinite().all()
        assert torch.allclose(log_q.exp().sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-9)

    def test_extreme_bfloat16_logits(self) -> None:
        teacher = torch.tensor([[80.0, -80.0, 0.0]], dtype=torch.bfloat16)
        log_q, mass = soft_target(Output(teacher, teacher, view_logits=-teacher[:, None]), 1.0)
        assert log_q.dtype == mass.dtype == torch.float32
        assert log_q.exp()[0].tolist() == pytest.approx([0.5, 0.5, 0.0], abs=1e-6)
        assert log_q.isfinite().all()


class TestHardTarget:
    @pytest.mark.parametrize("smoothing", [0.0, 0.2])
    def test_against_literal_loops(self, smoothing: float) -> None:
        z, target, target2 = logits(6, 4), torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 1, 0, 2, 3, 3])
        lam, view = torch.tensor([1.0, 0.0, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64), torch.tensor([0, 0, 1, 0, 0, 1])
        want, count = 0.0, 0
        for i in range(6):
            if view[i]:
                continue
            p, count = softmax(z[i].tolist(), 1.0), count + 1
            label = [smoothing / 4] * 4
            label[int(target[i])] += (1 - smoothing) * float(lam[i])
            label[int(target2[i])] += (1 - smoothing) * (1 - float(lam[i]))
            want -= sum(a * math.log(b) for a, b in zip(label, p, strict=True))
        got = hard_target_loss(z, batch(target, target2=target2, lam=lam, view=view), smoothing)
        assert float(got) == pytest.approx(want / count, rel=1e-12)


class TestKD:
    def test_terms_and_mass(self) -> None:
        config = resolve({"method": {"host": {"name": "kd", "temperature": 3, "weight": 2, "ce_weight": 0.5}}}).method
        method = create_method(config, Shapes(6))
        assert isinstance(method, KD)
        assert method.weights() == {"ce": 0.5, "kd": 2.0}
        assert method.soft_weight() == 2.0 * 9.0
        assert method.needs == {"logits"}
        student, teacher, target = logits(5, 6, seed=1), logits(5, 6, seed=2), torch.tensor([0, 1, 2, 3, 4])
        plain = method(Output(student, student), Output(teacher, teacher), batch(target))
        assert float(plain["kd"]) == pytest.approx(slow_kd(student, teacher, 3.0), rel=1e-9)
        assert float(plain["ce"]) == float(hard_target_loss(student, batch(target)))
        same = teacher[:, None].expand(-1, 2, -1)
        weights = torch.tensor([1.0, 0.5, 0.5])
        double = method(
            Output(student, student), Output(teacher, teacher, view_logits=same, view_weights=weights), batch(target)
        )
        assert float(double["kd"]) == pytest.approx(2 * float(plain["kd"]), rel=1e-9)


class TestStandardised:
    """Logit standardisation: z-scores in the place of logits, the teacher's, the views' and the student's."""

    @staticmethod
    def scores(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        spread = math.sqrt(sum((z - mean) ** 2 for z in row) / len(row) + 1e-8)
        return [(z - mean) / spread for z in row]

    def slow(self, student: Tensor, members: Tensor, shares: list[float], temperature: float) -> float:
        """Of members [B, K, C] with shares that sum to 1."""
        total = 0.0
        for row, rows in zip(student.tolist(), members.tolist(), strict=True):
            p = softmax(self.scores(row), temperature)
            each = [softmax(self.scores(r), temperature) for r in rows]
            q = [sum(w * e[c] for w, e in zip(shares, each, strict=True)) for c in range(len(p))]
            total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))
        return temperature**2 * total / len(student)

    def kd(self, **settings: float) -> KD:
        config = resolve({"method": {"host": {"name": "kd", "standardise": True, **settings}}}).method
        method = create_method(config, Shapes(6))
        assert isinstance(method, KD)
        return method

    @pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
    def test_against_the_literal_sum(self, temperature: float) -> None:
        student, teacher = logits(5, 6, seed=1), logits(5, 6, seed=2)
        target = torch.tensor([0, 1, 2, 3, 4])
        terms = self.kd(temperature=temperature)(Output(student, student), Output(teacher, teacher), batch(target))
        assert float(terms["kd"]) == pytest.approx(self.slow(student, teacher[:, None], [1.0], temperature), rel=1e-9)
        assert float(terms["ce"]) == float(hard_target_loss(student, batch(target)))  # hard labels see plain logits

    def test_each_member_of_an_ensemble_is_standardised(self) -> None:
        student, teacher = logits(5, 6, seed=1), logits(5, 6, seed=2)
        views = logits(5, 2, 6, seed=3, scale=20.0)
        given = Output(teacher, teacher, view_logits=views, view_weights=torch.tensor([1.0, 0.5, 0.5]))
        terms = self.kd(temperature=2)(Output(student, student), given, batch(torch.tensor([0, 1, 2, 3, 4])))
        members = torch.cat([teacher[:, None], views], 1)
        assert float(terms["kd"]) == pytest.approx(2 * self.slow(student, members, [0.5, 0.25, 0.25], 2.0), rel=1e-9)

    def test_range_and_shift_of_the_logits_do_not_count(self) -> None:
        student, teacher = logits(4, 6, seed=1), logits(4, 6, seed=2)
        moved = 7 * teacher + torch.arange(4)[:, None]
        one, two = (soft_target(Output(z, z), 2.0, standardise=True)[0] for z in (teacher, moved))
        assert torch.allclose(one, two, rtol=1e-6)
        target = batch(torch.tensor([0, 1, 2, 3]))
        terms = self.kd(temperature=2)(Output(0.1 * teacher - 3, student), Output(teacher, teacher), target)
        assert abs(float(terms["kd"])) < 1e-6

    def test_equal_logits_have_a_finite_gradient(self) -> None:
        student = torch.zeros(3, 6, requires_grad=True)
        teacher = logits(3, 6, seed=2).float()
        self.kd()(Output(student, student), Output(teacher, teacher), batch(torch.tensor([0, 1, 2])))["kd"].backward()
        assert student.grad.isfinite().all()
        assert float(student.grad.abs().sum()) > 0

    def test_gradient(self) -> None:
        student, teacher = logits(3, 5, seed=1).requires_grad_(), logits(3, 5, seed=2)
        method, target = self.kd(temperature=2), batch(torch.tensor([0, 1, 2]))
        assert torch.autograd.gradcheck(lambda s: method(Output(s, s), Output(teacher, teacher), target)["kd"], student)
