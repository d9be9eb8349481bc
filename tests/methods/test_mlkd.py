"""Multi-level distillation against its formula, written out slowly."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.data import Batch
from akd.errors import ExperimentError
from akd.methods import Shapes, create_method, hard_target_loss
from akd.methods.mlkd import MLKD, levels, mlkd_losses
from akd.models import Output

Rows = list[list[float]]


def softmax(row: list[float], temperature: float) -> list[float]:
    high = max(row)
    powers = [math.exp((z - high) / temperature) for z in row]
    return [p / sum(powers) for p in powers]


def slow_levels(p: Rows, q: Rows) -> tuple[float, float, float]:
    """Of one view at one temperature."""
    rows, classes = len(p), len(p[0])
    instance = sum(b * math.log(b / a) for x, y in zip(p, q, strict=True) for a, b in zip(x, y, strict=True)) / rows
    batch = of_classes = 0.0
    for i in range(rows):
        for j in range(rows):
            batch += (sum(a * b for a, b in zip(q[i], q[j], strict=True)) - sum(map(float.__mul__, p[i], p[j]))) ** 2
    for c in range(classes):
        for d in range(classes):
            of_classes += (sum(y[c] * y[d] for y in q) - sum(x[c] * x[d] for x in p)) ** 2
    return instance, batch / rows, of_classes / classes


def slow_mlkd(student: Tensor, teacher: Tensor, temperatures: tuple[float, ...]) -> list[float]:
    total = [0.0, 0.0, 0.0]
    for s_view, t_view in zip(student.tolist(), teacher.tolist(), strict=True):
        for tau in temperatures:
            found = slow_levels([softmax(z, tau) for z in s_view], [softmax(z, tau) for z in t_view])
            total = [a + factor * b for a, b, factor in zip(total, found, (tau**2, 1, 1), strict=True)]
    return total


def logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch(target: Tensor, views: int = 1) -> Batch:
    n = len(target) // views
    view = torch.arange(views).repeat_interleave(n)
    return Batch(
        torch.arange(n).repeat(views),
        target,
        target,
        torch.ones(len(target)),
        view,
        epoch=1,
        step=0,
        generator=torch.Generator(),
        views=views,
    )


def build(**host: object) -> MLKD:
    method = create_method(resolve({"method": {"host": {"name": "mlkd", **host}}}).method, Shapes(6))
    assert isinstance(method, MLKD)
    return method


class TestLoss:
    @pytest.mark.parametrize("shape", [(1, 5, 6), (2, 4, 6), (1, 1, 3), (2, 3, 11)], ids=str)
    @pytest.mark.parametrize("temperatures", [(4.0,), (2.0, 3.0, 4.0, 5.0, 6.0)], ids=str)
    def test_against_the_literal_sum(self, shape: tuple[int, ...], temperatures: tuple[float, ...]) -> None:
        student, teacher = logits(*shape, seed=1), logits(*shape, seed=2)
        got = [float(x) for x in mlkd_losses(student, teacher, temperatures)]
        assert got == pytest.approx(slow_mlkd(student, teacher, temperatures), rel=1e-9)

    def test_golden(self) -> None:
        """One sample, two classes: q (3/4, 1/4) against p (1/2, 1/2)."""
        q, p = (torch.tensor([[v]], dtype=torch.float64).log() for v in ([0.75, 0.25], [0.5, 0.5]))
        instance, of_batch, of_classes = levels(p, q)
        assert float(instance) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-12)
        assert float(of_batch) == pytest.approx((0.625 - 0.5) ** 2, rel=1e-12)
        entries = [0.5625 - 0.25, 0.1875 - 0.25, 0.1875 - 0.25, 0.0625 - 0.25]
        assert float(of_classes) == pytest.approx(sum(e * e for e in entries) / 2, rel=1e-12)

    @pytest.mark.parametrize(("rows", "classes"), [(6, 3), (20, 5), (60, 10)])
    def test_levels_go_with_batch_and_classes(self, rows: int, classes: int) -> None:
        """A sure teacher of balanced classes, a student that knows nothing: the scales that the docstring names."""
        log_q = (torch.eye(classes, dtype=torch.float64).repeat(rows // classes, 1)).clamp(min=1e-300).log()
        log_p = torch.full_like(log_q, -math.log(classes))
        _, batch, of_classes = levels(log_p[None], log_q[None])
        assert float(batch) == pytest.approx(rows / classes * (1 - 1 / classes), rel=1e-9)
        assert float(of_classes) == pytest.approx((rows / classes) ** 2 * (1 - 1 / classes), rel=1e-9)

    def test_gradient(self) -> None:
        student, teacher = logits(2, 3, 4, seed=1).requires_grad_(), logits(2, 3, 4, seed=2)
        assert torch.autograd.gradcheck(lambda s: mlkd_losses(s, teacher, (2.0, 4.0)), (student,))

    def test_bfloat16_and_autocast(self) -> None:
        student, teacher = (logits(1, 5, 6, seed=s).bfloat16() for s in (1, 2))
        want = slow_mlkd(student.double(), teacher.double(), (2.0, 4.0))
        with torch.autocast("cpu", torch.bfloat16):
            got = mlkd_losses(student, teacher, (2.0, 4.0))
        assert all(x.dtype == torch.float32 for x in got)
        assert [float(x) for x in got] == pytest.approx(want, rel=1e-4)


class TestMLKD:
    TARGET = torch.tensor([0, 5, 2, 3])

    def test_one_view(self) -> None:
        method = build(weight=2, instance=0.5, batch=3, classes=4, ce_weight=0.3, temperatures=[2, 4])
        assert method.relational
        assert method.weights() == {"ce": 0.3, "instance": 1.0, "batch": 6.0, "classes": 8.0}
        assert method.soft_weight() == 20
        student, teacher = logits(4, 6, seed=1), logits(4, 6, seed=2)
        terms = method(Output(student, student), Output(teacher, teacher), batch(self.TARGET))
        want = slow_mlkd(student[None], teacher[None], (2.0, 4.0))
        assert [float(terms[k]) for k in ("instance", "batch", "classes")] == pytest.approx(want, rel=1e-9)
        assert float(terms["ce"]) == float(hard_target_loss(student, batch(self.TARGET)))

    def test_both_views_are_compared_each_with_itself(self) -> None:
        """Rows are the first view of all images, then the second; hard labels belong to the first."""
        student, teacher = logits(8, 6, seed=1), logits(8, 6, seed=2)
        terms = build()(Output(student, student), Output(teacher, teacher), batch(self.TARGET.repeat(2), views=2))
        temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
        halves = [
            slow_mlkd(s[None], t[None], temperatures) for s, t in zip(student.split(4), teacher.split(4), strict=True)
        ]
        want = [a + b for a, b in zip(*halves, strict=True)]
        assert [float(terms[k]) for k in ("instance", "batch", "classes")] == pytest.approx(want, rel=1e-9)
        assert float(terms["ce"]) == pytest.approx(float(hard_target_loss(student[:4], batch(self.TARGET))))

    def test_of_an_ensemble(self) -> None:
        student, teacher, views = logits(4, 6, seed=1), logits(4, 6, seed=2), logits(4, 2, 6, seed=3)
        weights = torch.tensor([1.0, 0.5, 1.5], dtype=torch.float64)
        given = Output(teacher, teacher, view_logits=views, view_weights=weights)
        terms = build(temperatures=[4])(Output(student, student), given, batch(self.TARGET))
        q = []
        for i in range(4):
            members = [softmax(z, 4.0) for z in (teacher[i].tolist(), *views[i].tolist())]
            q.append([sum(w * m[c] for w, m in zip((1 / 3, 1 / 6, 1 / 2), members, strict=True)) for c in range(6)])
        found = slow_levels([softmax(z, 4.0) for z in student.tolist()], q)
        want = [3 * factor * x for factor, x in zip((16, 1, 1), found, strict=True)]
        assert [float(terms[k]) for k in ("instance", "batch", "classes")] == pytest.approx(want, rel=1e-9)

    def test_no_temperature_is_refused(self) -> None:
        with pytest.raises(ExperimentError, match=r"method.host.temperatures = \[\]: must be one number or more"):
            build(temperatures=[])
