"""ReviewKD against its formulas written out in loops: convolutions, fusion, resizing and the pooled comparison."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd.config import resolve
from akd.errors import ExperimentError
from akd.methods import Method, Shapes, create_method
from akd.methods.reviewkd import context_loss
from akd.models import Output
from tests.methods.slow import draw, make_batch, make_output, pooled

Maps = list[list[list[list[float]]]]  # [B, C, H, W]


def build(**settings: Any) -> Method:
    config = resolve({"method": {"host": {"name": "reviewkd", **settings}}}).method
    method = create_method(config, Shapes(3, 6, 8, (3, 4, 6), (2, 2, 5, 8))).double()
    generator = torch.Generator().manual_seed(1)
    for module in method.modules():  # scales and shifts that could be forgotten
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return method


def slow_conv(x: Maps, weight: Tensor, bias: list[float] | None = None) -> Maps:
    """A convolution with an odd square kernel that keeps the size: zeros around."""
    kernels, reach, h, w = weight.tolist(), weight.shape[-1] // 2, len(x[0][0]), len(x[0][0][0])
    steps = range(-reach, reach + 1)

    def at(image: list[list[list[float]]], kernel: list[list[list[float]]], i: int, j: int) -> float:
        return sum(
            kernel[c][di + reach][dj + reach] * channel[i + di][j + dj]
            for c, channel in enumerate(image)
            for di in steps
            for dj in steps
            if 0 <= i + di < h and 0 <= j + dj < w
        )

    bias = bias or [0.0] * len(kernels)
    return [
        [[[at(image, k, i, j) + b for j in range(w)] for i in range(h)] for k, b in zip(kernels, bias, strict=True)]
        for image in x
    ]


def slow_norm(x: Maps, norm: Any) -> Maps:
    scale, shift, out = norm.weight.tolist(), norm.bias.tolist(), [[] for _ in x]
    for c in range(len(scale)):
        values = [v for image in x for row in image[c] for v in row]
        mean = sum(values) / len(values)
        size = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-5)
        for image, found in zip(x, out, strict=True):
            found.append([[scale[c] * (v - mean) / size + shift[c] for v in row] for row in image[c]])
    return out


def slow_nearest(x: Maps, h: int, w: int) -> Maps:
    def grid(m: list[list[float]]) -> list[list[float]]:
        return [[m[i * len(m) // h][j * len(m[0]) // w] for j in range(w)] for i in range(h)]

    return [[grid(m) for m in image] for image in x]


def slow_fusion(fusion: Any, x: Maps, deeper: Maps | None, h: int, w: int) -> tuple[Maps, Maps]:
    x = slow_norm(slow_conv(x, fusion.enter[0].weight), fusion.enter[1])
    if deeper is not None:
        deeper = slow_nearest(deeper, len(x[0][0]), len(x[0][0][0]))
        both = [a + b for a, b in zip(x, deeper, strict=True)]
        shares = slow_conv(both, fusion.attention.weight, fusion.attention.bias.tolist())
        for image, below, share in zip(x, deeper, shares, strict=True):
            for mine, other in zip(image, below, strict=True):
                for i in range(len(mine)):
                    for j in range(len(mine[0])):
                        a, b = (1 / (1 + math.exp(-s[i][j])) for s in share)
                        mine[i][j] = a * mine[i][j] + b * other[i][j]
    x = slow_nearest(x, h, w)
    return x, slow_norm(slow_conv(x, fusion.leave[0].weight), fusion.leave[1])


def slow_context(student: Maps, teacher: Maps) -> float:
    def gap(a: Maps, b: Maps) -> float:
        pairs = [
            (p, q)
            for i, j in zip(a, b, strict=True)
            for m, n in zip(i, j, strict=True)
            for r, s in zip(m, n, strict=True)
            for p, q in zip(r, s, strict=True)
        ]
        return sum((p - q) ** 2 for p, q in pairs) / len(pairs)

    total, weights, side = gap(student, teacher), 1.0, min(len(student[0][0]), len(student[0][0][0]))
    weight = 1.0
    for size in (4, 2, 1):
        if size < side:
            weight /= 2
            weights += weight
            small = ([[pooled(m, (size, size)) for m in image] for image in x] for x in (student, teacher))
            total += weight * gap(*small)
    return total / weights


def slow_review(
    method: Any, student: Output, teacher_maps: list[Tensor], embedding: Tensor, stages: list[int]
) -> float:
    mine = [student.embedding[..., None, None], *(student.maps[k] for k in stages)]
    fused, total = None, 0.0
    for fusion, x, t in zip(method.fusions, mine, [embedding[..., None, None], *teacher_maps], strict=True):
        fused, found = slow_fusion(fusion, x.tolist(), fused, *t.shape[2:])
        total += slow_context(found, t.tolist())
    return total


@pytest.mark.parametrize("preact", [True, False])
@pytest.mark.parametrize(
    "sizes", [((5, 5, 3), (5, 5, 5, 3)), ((6, 4, 2), (5, 3, 2, 1))], ids=["same sizes", "other sizes"]
)
def test_against_the_literal_sum(preact: bool, sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """Stages are named in any order and reviewed from the deep end."""
    method = build(preact=preact, stages=[-2, -1], ramp_epochs=0)
    student, teacher = make_output(3, (3, 4, 6), sizes[0]), make_output(3, (2, 2, 5, 8), sizes[1], seed=9)
    maps = teacher.maps_preact if preact else teacher.maps
    got = method(student, teacher, make_batch(3))["reviewkd"]
    want = slow_review(method, student, [maps[k] for k in (-1, -2)], teacher.embedding, [-1, -2])
    assert float(got) == pytest.approx(want, rel=1e-9)


class TestContext:
    @pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 5), (8, 8)], ids=str)
    def test_against_the_literal_sum(self, size: tuple[int, int]) -> None:
        s, t = draw(2, 3, *size, seed=1), draw(2, 3, *size, seed=2)
        assert float(context_loss(s, t)) == pytest.approx(slow_context(s.tolist(), t.tolist()), rel=1e-9)

    def test_golden(self) -> None:
        """A map of 2x2 ones but for a sign, against zeros: 1 as it is, (1/2)^2 pooled; (1 + 1/8) / 1.5."""
        s = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64).view(1, 1, 2, 2)
        assert float(context_loss(s, torch.zeros_like(s))) == pytest.approx(0.75, rel=1e-12)

    def test_gradient(self) -> None:
        s, t = draw(2, 2, 5, 5, seed=1).requires_grad_(), draw(2, 2, 5, 5, seed=2)
        assert torch.autograd.gradcheck(lambda x: context_loss(x, t), (s,))


def test_gradient_through_the_fusion() -> None:
    method, x, y = build(stages=[-1]), draw(2, 6, 2, 2, seed=1), draw(2, 6, 1, 1, seed=2)
    x, y, size = x.requires_grad_(), y.requires_grad_(), torch.Size((3, 3))
    assert torch.autograd.gradcheck(lambda a, b: method.fusions[1](a, b, size), (x, y))


def test_the_weight_grows_over_the_warm_up() -> None:
    method = build(ramp_epochs=4)
    student, teacher = make_output(3, (3, 4, 6), (8, 4, 2)), make_output(3, (2, 2, 5, 8), (8, 8, 4, 2))
    full = float(build(ramp_epochs=0)(student, teacher, make_batch(3))["reviewkd"])
    for epoch, share in ((1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        got = float(method(student, teacher, make_batch(3, epoch=epoch))["reviewkd"])
        assert got == pytest.approx(share * full, rel=1e-12)
        assert method.ramps(epoch) == {"reviewkd": share}


def test_maps_that_were_not_given_are_named() -> None:
    student, teacher = make_output(3, (3, 4, 6), (8, 4, 2)), make_output(3, (2, 2, 5, 8), (8, 8, 4, 2))
    with pytest.raises(ValueError, match="was not given the teacher's maps before their ReLU"):
        build()(student, teacher._replace(maps_preact=None), make_batch(3))


def test_needs_weights_and_ensemble() -> None:
    assert resolve({"method": "reviewkd"}).method.needs == {
        "maps_preact:-3",
        "maps_preact:-2",
        "maps_preact:-1",
        "embedding",
    }
    method = build(preact=False, stages=[1], weight=7)
    assert method.needs == {"maps:1", "embedding"}
    assert method.weights() == {"ce": 1.0, "reviewkd": 7.0}
    student, teacher = make_output(3, (3, 4, 6), (8, 4, 2)), make_output(3, (2, 2, 5, 8), (8, 8, 4, 2))
    views = draw(3, 2, 8, seed=5)
    seen = teacher._replace(view_embeddings=views, view_weights=torch.tensor([1.0, 0.5, 0.5]))
    mean = teacher._replace(embedding=(teacher.embedding + 0.5 * views.sum(1)) / 2)
    got, want = (float(method(student, t, make_batch(3))["reviewkd"]) for t in (seen, mean))
    assert got == pytest.approx(want, rel=1e-12)


def test_one_image_is_refused() -> None:
    """The embedding is a map of one pixel: nothing to normalise over."""
    student, teacher = make_output(1, (3, 4, 6), (8, 4, 2)), make_output(1, (2, 2, 5, 8), (8, 8, 4, 2))
    with pytest.raises(ExperimentError, match=r"train\.batch_size = 1: must be at least 2 for reviewkd"):
        build()(student, teacher, make_batch(1))
