"""The angles of Angular-KD against their formulas written out in loops, and what the formulas promise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from akd.methods import angular
from akd.methods.angular import (
    ambiguity,
    constraint_loss,
    cosines,
    diversity_loss,
    ensemble,
    ensemble_weights,
    inter_angle_loss,
    intra_angle_loss,
    released_feature_similarities,
    released_intra_angle_loss,
    released_logit_similarities,
)

# -- literal references: plain floats, one formula a line ------------------------------------------------------------

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Vector) -> Vector:
    return [x / math.sqrt(dot(a, a)) for x in a]


def cosine(a: Vector, b: Vector) -> float:
    return dot(unit(a), unit(b))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def slow_contrast(views: list[list[Vector]], anchor: list[Vector], margin: float, t: float, sim: Callable) -> float:
    b, n = len(views), len(views[0])
    total = 0.0
    for i in range(b):
        for k in range(n):
            row = [sim(views[i][k], anchor[j]) for j in range(b)]
            if row[i] >= 1 - margin:
                row[i] = 1.0
            total += math.log(sum(math.exp(s / t) for s in row)) - row[i] / t
    return total / (b * n)


def slow_diversity(
    views: list[list[Vector]], anchor: list[Vector], margin: float, own: Callable, pair: Callable
) -> float:
    b, n = len(views), len(views[0])
    total = 0.0
    for i in range(b):
        if all(own(views[i][k], anchor[i]) >= 1 - margin for k in range(n)):
            total += sum(softplus(pair(views[i][k], views[i][m])) for k in range(n) for m in range(n) if k != m)
    return total / (n * (n - 1) * b) if n > 1 else 0.0


def slow_intra(views: list[list[Vector]], anchor: list[Vector]) -> float:
    b, n = len(views), len(views[0])
    total = 0.0
    for i in range(b):
        floor = 1e-6 * dot(anchor[i], anchor[i])
        offsets = [[r - a for r, a in zip(anchor[i], view, strict=True)] for view in views[i]]
        offsets = [[x / math.sqrt(dot(d, d) + floor) for x in d] for d in offsets]
        total += sum(softplus(dot(offsets[k], offsets[m])) for k in range(n) for m in range(n) if k != m)
    return total / (n * (n - 1) * b) if n > 1 else 0.0


def draw(b: int, n: int, d: int, *, near: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Views [b, n, d] around anchors [b, d]; ``near`` 0 puts them on the anchor."""
    source = torch.Generator().manual_seed(seed)
    anchor = torch.randn(b, d, dtype=torch.float64, generator=source)
    return anchor[:, None] + near * torch.randn(b, n, d, dtype=torch.float64, generator=source), anchor


CASES = [(6, 1, 5), (6, 2, 5), (7, 5, 9), (4, 8, 12), (1, 3, 4)]


@pytest.mark.parametrize("shape", CASES, ids=str)
@pytest.mark.parametrize("near", [0.2, 0.6, 2.0])
@pytest.mark.parametrize("margin", [0.05, 0.2, 0.5])
class TestAgainstLoops:
    def test_constraint(self, shape: tuple[int, int, int], near: float, margin: float) -> None:
        views, anchor = draw(*shape, near=near)
        for t in (0.07, 0.5):
            want = slow_contrast(views.tolist(), anchor.tolist(), margin, t, cosine)
            assert float(constraint_loss(views, anchor, margin, t)) == pytest.approx(want, rel=1e-9, abs=1e-12)

    def test_diversity(self, shape: tuple[int, int, int], near: float, margin: float) -> None:
        views, anchor = draw(*shape, near=near)
        want = slow_diversity(views.tolist(), anchor.tolist(), margin, cosine, cosine)
        assert float(diversity_loss(views, anchor, margin)) == pytest.approx(want, rel=1e-9, abs=1e-15)

    def test_intra(self, shape: tuple[int, int, int], near: float, margin: float) -> None:
        views, anchor = draw(*shape, near=near)
        want = slow_intra(views.tolist(), anchor.tolist())
        assert float(intra_angle_loss(views, anchor)) == pytest.approx(want, rel=1e-9, abs=1e-15)

    def test_inter_is_the_sum(self, shape: tuple[int, int, int], near: float, margin: float) -> None:
        views, anchor = draw(*shape, near=near)
        want = constraint_loss(views, anchor, margin) + diversity_loss(views, anchor, margin)
        assert float(inter_angle_loss(views, anchor, margin)) == pytest.approx(float(want), rel=1e-12)


def test_the_cases_open_and_close_the_gate() -> None:
    """Without both, the comparisons above would miss a branch."""
    found = [float(diversity_loss(*draw(7, 5, 9, near=near), margin)) for near in (0.2, 2.0) for margin in (0.05, 0.5)]
    assert min(found) == 0
    assert max(found) > 0.5


class TestGolden:
    """Small numbers worked by hand."""

    def test_two_views_at_right_angles(self) -> None:
        anchor = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
        views = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]]], dtype=torch.float64)
        # cos 45 degrees to the anchor, cos 0 to each other; one sample alone has nothing to be told apart from.
        assert float(constraint_loss(views, anchor, 0.1)) == 0
        assert float(diversity_loss(views, anchor, 0.25)) == 0  # 0.7071 < 0.75
        assert float(diversity_loss(views, anchor, 0.30)) == pytest.approx(math.log(2), rel=1e-12)
        # offsets (-2, 1, 0) and (1, 0.5, 0): cosine -0.6, a little less for the floor of 1e-6 * 2
        want = math.log1p(math.exp(-1.5 / math.sqrt((5 + 2e-6) * (1.25 + 2e-6))))
        assert float(intra_angle_loss(views, anchor)) == pytest.approx(want, rel=1e-12)

    def test_constraint_of_two_samples(self) -> None:
        anchor = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        views = torch.tensor([[[1.0, 0.0]], [[3.0, 4.0]]], dtype=torch.float64)
        inside = math.log1p(math.exp(-1 / 0.5))  # own 1, other 0
        outside = math.log1p(math.exp((0.6 - 0.8) / 0.5))  # own 0.8, other 0.6
        assert float(constraint_loss(views, anchor, 0.1, 0.5)) == pytest.approx((inside + outside) / 2, rel=1e-12)
        raised = math.log1p(math.exp((0.6 - 1.0) / 0.5))  # 0.8 counts as 1
        assert float(constraint_loss(views, anchor, 0.3, 0.5)) == pytest.approx((inside + raised) / 2, rel=1e-12)

    def test_the_best_five_offsets_form_a_simplex(self) -> None:
        """Cosine -1/4 for each pair, softplus 0.576."""
        simplex = torch.eye(5, dtype=torch.float64) - 0.2
        anchor = torch.full((1, 5), 1e-9, dtype=torch.float64)
        assert float(intra_angle_loss(simplex[None], anchor)) == pytest.approx(softplus(-0.25), rel=1e-6)

    def test_random_views_at_a_seed(self) -> None:
        views, anchor = draw(6, 5, 16, near=0.55, seed=3)
        got = [float(f(views, anchor, 0.2)) for f in (constraint_loss, diversity_loss)]
        assert [*got, float(intra_angle_loss(views, anchor))] == pytest.approx(GOLDEN, rel=1e-6)


#: By the literal loops above.
GOLDEN = [0.001537739364128754, 0.5917618169840573, 0.7163980247714969]


class TestGradient:
    @pytest.mark.parametrize("count", [1, 2, 4])
    def test_gradcheck(self, count: int) -> None:
        views, anchor = (t.requires_grad_() for t in draw(3, count, 4, near=0.5, seed=5))
        assert torch.autograd.gradcheck(lambda v, r: inter_angle_loss(v, r, 0.3, 0.5), (views, anchor))
        assert torch.autograd.gradcheck(intra_angle_loss, (views, anchor))
        weights = (lambda v, r: ensemble(r, v, 0.8), lambda v, r: ensemble(r, v, 0.8, norm=2))
        assert all(torch.autograd.gradcheck(f, (views, anchor)) for f in weights)

    def test_inside_the_margin_the_own_anchor_no_longer_attracts(self) -> None:
        """What is left is repulsion by the other anchors: the gradient of log sum exp over them, own held at 1."""
        views, anchor = draw(4, 3, 6, near=0.05, seed=2)
        views.requires_grad_()
        (got,) = torch.autograd.grad(constraint_loss(views, anchor, 0.5), views)
        every = cosines(views, anchor).anchors
        others = every.masked_fill(torch.eye(4, dtype=torch.bool)[:, None], 1.0) / 0.07
        (want,) = torch.autograd.grad((torch.logsumexp(others, -1) - 1 / 0.07).mean(), views)
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-15)
        assert float(got.abs().sum()) > 0

    def test_outside_it_attracts(self) -> None:
        views, anchor = draw(4, 1, 6, near=2.0, seed=2)
        views.requires_grad_()
        (gradient,) = torch.autograd.grad(constraint_loss(views, anchor, 1e-6), views)
        closer = views.detach() - 1e-3 * gradient
        assert constraint_loss(closer, anchor, 1e-6) < constraint_loss(views, anchor, 1e-6)

    def test_the_gate_carries_none(self) -> None:
        """Samples that do not count get no gradient; those that do get only the pairs'."""
        views, anchor = draw(6, 3, 5, near=0.5, seed=1)
        views.requires_grad_()
        margin = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        counted = (cosines(views, anchor).gate >= 0.8).all(1)
        assert 0 < int(counted.sum()) < 6
        value = diversity_loss(views, anchor, margin)
        assert value.requires_grad
        gradient, of_margin = torch.autograd.grad(value, (views, margin), allow_unused=True)
        assert of_margin is None
        assert (gradient.abs().sum((1, 2)) > 0).tolist() == counted.tolist()
        pairs = torch.nn.functional.softplus(cosines(views, anchor).pairs[counted])
        apart = (pairs.sum() - pairs.diagonal(dim1=1, dim2=2).sum()) / (6 * 6)
        (want,) = torch.autograd.grad(apart, views)
        assert torch.allclose(gradient, want, rtol=1e-9, atol=1e-15)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_stays_finite_where_there_is_no_direction(self, dtype: torch.dtype) -> None:
        cases = {
            "views on the anchor": (torch.ones(2, 3, 4), torch.ones(2, 4)),
            "nothing at all": (torch.zeros(2, 3, 4), torch.zeros(2, 4)),
            "no anchor": (torch.ones(2, 3, 4), torch.zeros(2, 4)),
            "no view": (torch.zeros(2, 3, 4), torch.ones(2, 4)),
            "huge": (torch.full((2, 3, 4), 1e15), torch.full((2, 4), -1e15)),
        }
        for name, (views, anchor) in cases.items():
            views = views.to(dtype).requires_grad_()
            value = inter_angle_loss(views, anchor.to(dtype), 0.2) + intra_angle_loss(views, anchor.to(dtype))
            (gradient,) = torch.autograd.grad(value, views)
            assert value.isfinite(), name
            assert gradient.isfinite().all(), name

    def test_offsets_shorter_than_a_thousandth_count_little(self) -> None:
        """Without the floor two views a rounding error away from the anchor would have a cosine like any other."""
        views, anchor = draw(4, 2, 8, near=1e-6, seed=4)
        assert float(intra_angle_loss(views, anchor)) == pytest.approx(math.log(2), rel=1e-4)


class TestProperties:
    @settings(max_examples=40, deadline=None)
    @given(
        b=st.integers(1, 5),
        n=st.integers(1, 8),
        d=st.integers(2, 9),
        seed=st.integers(0, 10**6),
        near=st.floats(0.01, 5),
        margin=st.floats(0.01, 1.0),
    )
    def test_scale_order_and_rotation(self, b: int, n: int, d: int, seed: int, near: float, margin: float) -> None:
        views, anchor = draw(b, n, d, near=near, seed=seed)
        if float((cosines(views, anchor).gate - (1 - margin)).abs().min()) < 1e-6:
            return  # on the edge of the margin rounding decides
        inter, intra = float(inter_angle_loss(views, anchor, margin)), float(intra_angle_loss(views, anchor))
        turn = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        for change in (lambda t: 3 * t, lambda t: t @ turn):
            assert float(inter_angle_loss(change(views), change(anchor), margin)) == pytest.approx(inter, rel=1e-8)
            assert float(intra_angle_loss(change(views), change(anchor))) == pytest.approx(intra, rel=1e-8)
        assert float(inter_angle_loss(views[:, order], anchor, margin)) == pytest.approx(inter, rel=1e-9)
        assert float(intra_angle_loss(views[:, order], anchor)) == pytest.approx(intra, rel=1e-9)
        # lengths of single views do not matter for angles to the teacher, only for offsets
        lengths = 1 + torch.rand(b, n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert float(inter_angle_loss(lengths * views, anchor, margin)) == pytest.approx(inter, rel=1e-8)
        low, high = (softplus(x) if n > 1 else 0.0 for x in (-1.0, 1.0))
        assert low - 1e-9 <= intra <= high + 1e-9

    def test_one_view_has_nothing_to_spread(self) -> None:
        views, anchor = draw(4, 1, 6, near=0.1)
        assert float(diversity_loss(views, anchor, 0.5)) == float(intra_angle_loss(views, anchor)) == 0
        assert float(inter_angle_loss(views, anchor, 0.5)) == float(constraint_loss(views, anchor, 0.5)) > 0

    def test_wide_in_bfloat16_and_under_autocast(self) -> None:
        views, anchor = (t.bfloat16() for t in draw(5, 4, 32, near=0.3))
        for f in (lambda v, r: inter_angle_loss(v, r, 0.2), intra_angle_loss):
            plain = f(views, anchor)
            assert plain.dtype == torch.float32
            assert float(plain) == pytest.approx(float(f(views.double(), anchor.double())), rel=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                assert float(f(views.float(), anchor.float())) == float(plain)


class TestEnsemble:
    @pytest.mark.parametrize("norm", [1, 2])
    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_against_loops(self, count: int, norm: int) -> None:
        views, teacher = draw(3, count, 4, seed=8)
        size = sum(w**norm for w in [1.0] + [0.8] * count) ** (1 / norm)
        got = ensemble(teacher, views, 0.8, norm)
        for b in range(3):
            for k in range(4):
                want = float(teacher[b, k]) + sum(0.8 * float(views[b, i, k]) for i in range(count))
                assert float(got[b, k]) == pytest.approx(want / size, rel=1e-12)

    def test_published_sums_of_weights(self) -> None:
        """(0.8 N + 1) / sqrt(0.64 N + 1): what norm 2 multiplies every soft-target loss by."""
        got = [sum(ensemble_weights(n, 0.8, norm=2)) for n in range(1, 8)]
        assert got == pytest.approx([1.41, 1.72, 1.99, 2.23, 2.44, 2.64, 2.82], abs=0.006)
        assert ensemble_weights(5, 0.8, norm=2)[:2] == pytest.approx([0.488, 0.390], abs=5e-4)
        assert [sum(ensemble_weights(n, 0.3)) for n in range(5)] == pytest.approx([1.0] * 5)

    def test_view_weight_zero_is_the_teacher_alone(self) -> None:
        views, teacher = draw(3, 4, 5)
        assert torch.equal(ensemble(teacher, views, 0.0), teacher)


class TestAmbiguity:
    @settings(max_examples=80, deadline=None)
    @given(k=st.integers(1, 8), seed=st.integers(0, 10**6), scale=st.floats(0.01, 60), weight=st.floats(0.05, 3))
    def test_bounds_the_ensemble(self, k: int, seed: int, scale: float, weight: float) -> None:
        z = scale * torch.randn(5, k, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        log_p = z.log_softmax(-1)[..., 0]
        weights = torch.tensor(ensemble_weights(k - 1, weight, norm=2), dtype=torch.float64)
        loss, members, spread = ambiguity(log_p, weights)
        assert (spread >= 0).all()
        assert (loss <= members - spread + 1e-9 * (1 + members)).all()

    def test_equal_members_have_none(self) -> None:
        loss, members, spread = ambiguity(torch.full((2, 3), -1.5), torch.ones(3))
        assert loss.tolist() == members.tolist() == pytest.approx([1.5, 1.5])
        assert spread.tolist() == [0, 0]

    def test_golden(self) -> None:
        """Two members, 1/2 and 1/4: -log 3/8, half of log 2 + log 4, variance 1/64 over 2 * 1/4."""
        loss, members, spread = ambiguity(torch.tensor([0.5, 0.25]).log(), torch.ones(2))
        assert float(loss) == pytest.approx(-math.log(3 / 8), rel=1e-6)
        assert float(members) == pytest.approx(1.5 * math.log(2), rel=1e-6)
        assert float(spread) == pytest.approx((1 / 64) / (2 / 4), rel=1e-6)


class TestReleased:
    """The released arithmetic, literally."""

    def test_features(self) -> None:
        views, anchor = draw(5, 4, 12, near=1.5, seed=6)
        found = released_feature_similarities(views, anchor)
        rows, r = views.tolist(), anchor.tolist()
        sizes = [[math.sqrt(sum(view[d] ** 2 for view in sample)) for d in range(12)] for sample in rows]
        across = [
            [[x / s for x, s in zip(view, size, strict=True)] for view in sample]
            for sample, size in zip(rows, sizes, strict=True)
        ]
        for margin in (-1.0, 0.2):
            want = slow_diversity(across, [unit(a) for a in r], margin, dot, dot)
            assert float(angular.diversity(found, margin)) == pytest.approx(want, rel=1e-9)
            want = slow_contrast(rows, r, margin, 0.07, cosine)
            assert float(angular.constraint(found, margin, 0.07)) == pytest.approx(want, rel=1e-9)

    def test_features_open_the_gate_for_any_views(self) -> None:
        """The slip that a cosine mends: at 256 features views unlike their teacher still pass."""
        source = torch.Generator().manual_seed(0)
        anchor, views = (torch.rand(*shape, generator=source) for shape in ((8, 256), (8, 5, 256)))
        views[:, 0] = 1 - anchor
        assert float(cosines(views, anchor).gate.amin()) < 0.8
        found = released_feature_similarities(views, anchor)
        assert float(found.gate.amin()) > 1
        assert 20 < float(angular.diversity(found, 0.2)) < 256 / 5

    def test_logits(self) -> None:
        views, anchor = (t.softmax(-1) for t in draw(5, 4, 7, near=0.3, seed=6))
        views, anchor = views**3, anchor**3  # not normalised: nothing may depend on it
        found = released_logit_similarities(views, anchor)
        for margin in (0.2, 0.999):
            want = slow_diversity(views.tolist(), anchor.tolist(), margin, dot, dot)
            assert float(angular.diversity(found, margin)) == pytest.approx(want, rel=1e-9, abs=1e-15)
            want = slow_contrast(views.tolist(), anchor.tolist(), margin, 0.07, dot)
            assert float(angular.constraint(found, margin, 0.07)) == pytest.approx(want, rel=1e-9)

    def test_soft_probabilities_are_never_inside(self) -> None:
        """At temperature 4 a top logit 15 above the rest of 100 classes: p . p is 0.300^2 + 99 * 0.00707^2 = 0.095."""
        z = torch.zeros(2, 100)
        z[:, 0] = 15.0
        p = (z / 4).softmax(-1)
        found = released_logit_similarities(p[:, None].expand(-1, 3, -1), p)
        assert float(found.gate.amax()) == pytest.approx(0.0952, abs=1e-4)
        assert float(angular.diversity(found, 0.2)) == 0
        assert float(diversity_loss(p[:, None].expand(-1, 3, -1), p, 0.2)) > 1

    def test_intra_averages_before_the_softplus(self) -> None:
        views, anchor = draw(5, 3, 6, seed=6)
        offsets = [
            [unit([r - a for r, a in zip(anchor[b].tolist(), view, strict=True)]) for view in views[b].tolist()]
            for b in range(5)
        ]
        want = 0.0
        for i in range(3):
            for j in range(3):
                if i != j:
                    want += softplus(sum(dot(offsets[b][i], offsets[b][j]) for b in range(5)) / 5) / 6
        assert float(released_intra_angle_loss(views, anchor)) == pytest.approx(want, rel=1e-9)
