"""Plain-float helpers of the literal references: lists of numbers, one formula a line."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from akd.data import Batch
from akd.models import Output

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Vector) -> Vector:
    length = math.sqrt(dot(a, a))
    return [x / length for x in a]


def mean_square(a: Vector, b: Vector) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / len(a)


def pooled(grid: list[Vector], size: tuple[int, int]) -> list[Vector]:
    """Adaptive average pooling, by its definition: cell i covers rows floor(i H / h) to ceil((i + 1) H / h)."""
    (height, width), (h, w) = (len(grid), len(grid[0])), size
    rows, columns = (
        [range(i * big // small, -(-(i + 1) * big // small)) for i in range(small)]
        for big, small in ((height, h), (width, w))
    )
    return [[sum(grid[i][j] for i in r for j in c) / (len(r) * len(c)) for c in columns] for r in rows]


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_batch(
    rows: int, classes: int = 3, *, index: Tensor | None = None, view: Tensor | None = None, **changes: int
) -> Batch:
    """Targets 0, 1, 2, 0, ...; a generator that starts afresh."""
    target = torch.arange(rows) % classes
    index = torch.arange(rows) if index is None else index
    view = torch.zeros(rows, dtype=torch.long) if view is None else view
    fields = {"epoch": 1, "step": 0} | changes
    return Batch(
        index,
        target,
        target,
        torch.ones(rows, dtype=torch.float64),
        view,
        generator=torch.Generator().manual_seed(5),
        **fields,
    )


def make_output(
    rows: int, channels: tuple[int, ...], sizes: tuple[int, ...], seed: int = 0, classes: int = 3
) -> Output:
    """Random maps [rows, c, n, n] before and after their ReLU, the last one's mean, and logits."""
    before = tuple(draw(rows, c, n, n, seed=seed + k) for k, (c, n) in enumerate(zip(channels, sizes, strict=True)))
    after = tuple(F.relu(b) for b in before)
    return Output(draw(rows, 3, seed=seed + 100), after[-1].mean((2, 3)), after, before)
