"""AMD against its formulas written out in loops, and where its angles end."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from akd.config import resolve
from akd.errors import ExperimentError
from akd.methods import Shapes, create_method
from akd.methods.amd import amd_loss, angular_parts
from tests.methods.slow import Vector, draw, make_batch, make_output, mean_square, pooled, unit

Grid = list[Vector]


def slow_angular(grid: Grid, margin: float, scale: float) -> list[Grid]:
    length = math.sqrt(sum(v * v for row in grid for v in row))
    parts: list[Grid] = [[], [], []]
    for row in grid:
        a = [v / (length + 1e-6) for v in row]
        p = [scale * math.cos(margin * math.acos(x)) for x in a]
        n = [scale * (1 - x) for x in a]
        high = [max(x, y) for x, y in zip(p, n, strict=True)]
        total = [h + math.log(math.exp(x - h) + math.exp(y - h)) for x, y, h in zip(p, n, high, strict=True)]
        for part, values in zip(parts, ([x - t for x, t in zip(p, total, strict=True)], p, n), strict=True):
            part.append(values)
    return parts


def slow_gap(student: list[Grid], teacher: list[Grid], rows: range, columns: range) -> float:
    found = 0.0
    for s, t in zip(student, teacher, strict=True):
        found += mean_square(*(unit([part[i][j] for i in rows for j in columns]) for part in (s, t)))
    return found / 3


def slow_amd(student: Tensor, teacher: Tensor, margin: float, scale: float, local: float) -> float:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    total = 0.0
    for b in range(len(student)):
        maps = []
        for features in (student[b].tolist(), teacher[b].tolist()):
            grid = [
                [sum(channel[i][j] ** 2 for channel in features) for j in range(len(features[0][0]))]
                for i in range(len(features[0]))
            ]
            maps.append(slow_angular(pooled(grid, size), margin, scale))
        h, w = size
        value = slow_gap(*maps, range(h), range(w))
        if local:
            halves = [[range(n // 2), range(n // 2, n)] if n > 1 else [range(1)] for n in size]
            quarters = [slow_gap(*maps, rows, columns) for rows in halves[0] for columns in halves[1]]
            value = (1 - local) * value + local * sum(quarters) / len(quarters)
        total += value
    return total / len(student)


class TestLoss:
    @pytest.mark.parametrize(("margin", "scale"), [(1.35, 64.0), (1.0, 8.0), (2.0, 20.0)])
    @pytest.mark.parametrize("local", [0.0, 0.2, 1.0])
    @pytest.mark.parametrize(
        ("student", "teacher"),
        [
            ((3, 4, 4), (3, 4, 4)),
            ((2, 5, 5), (6, 5, 5)),
            ((3, 4, 4), (5, 8, 8)),
            ((4, 7, 6), (2, 4, 9)),
            ((3, 1, 4), (2, 3, 5)),
        ],
        ids=str,
    )
    def test_against_the_literal_sum(
        self, margin: float, scale: float, local: float, student: tuple[int, ...], teacher: tuple[int, ...]
    ) -> None:
        s, t = draw(3, *student, seed=1), draw(3, *teacher, seed=2)
        got = float(amd_loss(s, t, margin, scale, local))
        assert got == pytest.approx(slow_amd(s, t, margin, scale, local), rel=1e-9)

    def test_golden(self) -> None:
        """Energies (3, 4) and (4, 3), margin 1, scale 1, where P is a itself: worked by hand."""
        s, t = (torch.tensor(v, dtype=torch.float64).sqrt().view(1, 1, 1, 2) for v in ([3.0, 4.0], [4.0, 3.0]))
        a = [3 / (5 + 1e-6), 4 / (5 + 1e-6)]
        g = [-math.log1p(math.exp(1 - 2 * x)) for x in a]
        p, n = a, [1 - x for x in a]
        want = sum((v[0] - v[1]) ** 2 / (v[0] ** 2 + v[1] ** 2) for v in (g, p, n)) / 3
        assert float(amd_loss(s, t, 1.0, 1.0)) == pytest.approx(want, rel=1e-12)
        assert want == pytest.approx((0.04697 + 0.04 + 0.2) / 3, abs=1e-5)

    def test_a_batch_is_the_mean_of_its_samples(self) -> None:
        s, t = draw(4, 3, 4, 4, seed=1), draw(4, 5, 4, 4, seed=2)
        each = [float(amd_loss(s[i : i + 1], t[i : i + 1], local_weight=0.2)) for i in range(4)]
        assert float(amd_loss(s, t, local_weight=0.2)) == pytest.approx(sum(each) / 4, rel=1e-12)

    def test_a_map_of_one_channel_gives_the_same_as_the_whole_map(self) -> None:
        """What a cache keeps of a teacher: sqrt(sum_c F_c^2)."""
        s, t = draw(3, 3, 4, 4, seed=1), draw(3, 5, 8, 8, seed=2)
        kept = t.square().sum(1, keepdim=True).sqrt()
        assert float(amd_loss(s, kept)) == pytest.approx(float(amd_loss(s, t)), rel=1e-12)

    @pytest.mark.parametrize("local", [0.0, 0.2])
    def test_gradient(self, local: float) -> None:
        s, t = draw(2, 3, 4, 4, seed=1).requires_grad_(), draw(2, 2, 5, 5, seed=2)
        assert torch.autograd.gradcheck(lambda x: amd_loss(x, t, 1.35, 8.0, local), (s,))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    @pytest.mark.parametrize("case", ["random", "dead", "one pixel", "1x1", "huge", "even"])
    def test_finite(self, dtype: torch.dtype, case: str) -> None:
        """Angles of 0 (one lit pixel, a map of one pixel) and of 90 degrees (a dead map) included."""
        s, t = draw(2, 3, 4, 4, seed=1), draw(2, 3, 4, 4, seed=2)
        if case == "dead":
            s = torch.zeros_like(s)
        elif case == "one pixel":
            s = torch.zeros_like(s)
            s[:, :, 1, 1] = 2
        elif case == "1x1":
            s, t = s[:, :, :1, :1], t[:, :, :1, :1]
        elif case == "huge":
            s, t = 3e4 * s.clamp(-2, 2), 1e-4 * t
        elif case == "even":
            s = torch.ones_like(s)
        s = s.to(dtype).requires_grad_()
        value = amd_loss(s, t.to(dtype))
        value.backward()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert s.grad.isfinite().all()
        if case == "random":
            assert float(s.grad.abs().max()) > 0

    def test_under_autocast_as_without(self) -> None:
        s, t = draw(2, 3, 4, 4, seed=1).float(), draw(2, 5, 4, 4, seed=2).float()
        plain = amd_loss(s, t)
        with torch.autocast("cpu", torch.bfloat16):
            assert float(amd_loss(s, t)) == pytest.approx(float(plain), rel=1e-6)


def margin_cosine(cosine: torch.Tensor, margin: float) -> torch.Tensor:
    return angular_parts(cosine[None, None], margin, 1.0)[0, 1, 0]


class TestParts:
    @pytest.mark.parametrize("margin", [1.0, 1.35, 2.0])
    def test_margin_cosine(self, margin: float) -> None:
        cosine = torch.cat([torch.linspace(0, 1, 1001, dtype=torch.float64), 1 - torch.logspace(-14, -2, 200).double()])
        want = [math.cos(margin * math.acos(c)) for c in cosine.tolist()]
        assert margin_cosine(cosine, margin).tolist() == pytest.approx(want, rel=1e-13, abs=1e-13)

    @pytest.mark.parametrize("margin", [1.0, 1.35, 2.0])
    def test_slope_at_one(self, margin: float) -> None:
        """d cos(m theta) / d cos(theta) = m sin(m theta) / sin(theta), m^2 at theta = 0."""
        cosine = torch.tensor([1.0, 1 - 1e-9, 0.9995, 0.998, 0.5], dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(margin_cosine(cosine, margin).sum(), cosine)
        angles = [math.acos(c) for c in cosine.tolist()]
        want = [margin * math.sin(margin * v) / math.sin(v) if v else margin**2 for v in angles]
        assert slope.tolist() == pytest.approx(want, rel=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("scale", [1.0, 64.0])
    def test_share_of_the_object(self, scale: float, dtype: torch.dtype) -> None:
        """G = log-sigmoid(P - N), to the last digits even where it is nearly 0, and far below where exp overflows."""
        cosine = torch.linspace(0, 1, 2001, dtype=dtype)[None, None]
        share, positive, negative = angular_parts(cosine, 1.35, scale)[0, :, 0].double()
        gaps = (positive - negative).tolist()
        want = [-math.log1p(math.exp(-g)) if g > -700 else g for g in gaps]
        # P and N are as exact as scale times the type's last digit, and G moves with them.
        exact = 8 * torch.finfo(dtype).eps
        assert share.tolist() == pytest.approx(want, rel=exact * (1 + 2 * scale), abs=1e-300)

    @pytest.mark.parametrize("scale", [1.0, 64.0])
    def test_gradient(self, scale: float) -> None:
        cosine = torch.tensor([0.0, 0.2, 0.5, 0.9, 0.9985, 0.9995], dtype=torch.float64, requires_grad=True)
        inside = cosine.detach().clamp(min=1e-3).requires_grad_()
        weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda c: (angular_parts(c[None, None], 1.35, scale)[0, :, 0] * weights).sum(0), (inside,), eps=1e-7
        )


class TestMethod:
    def test_sums_over_the_stages_it_names(self) -> None:
        settings = {"name": "amd", "stages": [1, -1], "margin": 1.5, "scale": 16, "local_weight": 0.3, "weight": 7}
        config = resolve({"method": {"host": settings}}).method
        assert config.needs == {"attention:1", "attention:-1"}
        method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8)))
        assert method.needs == config.needs
        student, teacher = make_output(4, (3, 4, 6), (8, 8, 4)), make_output(4, (2, 2, 5, 8), (8, 4, 4, 2), seed=9)
        terms = method(student, teacher, make_batch(4))
        want = sum(slow_amd(student.maps[k], teacher.maps[k], 1.5, 16.0, 0.3) for k in (1, -1))
        assert float(terms["amd"]) == pytest.approx(want, rel=1e-9)
        assert method.weights() == {"ce": 1.0, "amd": 7.0}
        assert method.soft_weight() == 0

    @pytest.mark.parametrize(
        ("stages", "problem"),
        [
            ([-5], "the teacher has maps 0 to 3, or -4 to -1, no stage -5"),
            ([3], "the student has maps 0 to 2"),
            ([2, -1], "names a stage of the student twice"),
            ([], "at least one stage"),
        ],
    )
    def test_stages_that_are_not_there_are_refused(self, stages: list[int], problem: str) -> None:
        config = resolve({"method": {"host": {"name": "amd", "stages": stages}}}).method
        student = (1,) * (3 if stages != [-5] else 6)
        with pytest.raises(ExperimentError, match=problem) as error:
            create_method(config, Shapes(3, 1, 1, student, (1,) * 4))
        assert error.value.key == "method.host.stages"

    def test_views_have_no_effect_on_maps_and_are_refused(self) -> None:
        with pytest.raises(ExperimentError, match="have no effect over amd, which learns from no logits or embeddings"):
            resolve({"method": {"host": "amd", "views": "angular_kd"}})
