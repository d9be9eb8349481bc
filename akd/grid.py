"""The cells of a grid over a search space: every configuration that its steps and choices allow. No Optuna, no Ray."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from akd.seeds import derive
from akd.space import Space

#: A grid of more is no grid to walk: its first trials are a draw at random, and it takes long to list.
MOST_CELLS = 10_000

Cell = dict[str, Any]


def cells(space: Space) -> Iterator[Cell]:
    """Every configuration once, as Optuna is told it; a parameter whose condition fails is in none of its cells."""
    yield from _below(space, 0, {})


def _below(space: Space, place: int, values: dict[str, Any]) -> Iterator[Cell]:
    if place == len(space.parameters):
        yield space.told(values)
        return
    p = space.parameters[place]
    if not p.exists(values):
        yield from _below(space, place + 1, values)
        return
    for value in p.choices if p.kind in ("choice", "fixed") else p.all_values():
        yield from _below(space, place + 1, {**values, p.key: value})


def count(space: Space, most: int = MOST_CELLS) -> int:
    """How many cells there are; ``most + 1`` if there are more than ``most``."""
    found = 0
    for found, _ in enumerate(cells(space), 1):
        if found > most:
            break
    return found


def next_cell(space: Space, seed: int, tried: Iterable[Mapping[str, Any]]) -> Cell | None:
    """The first cell, in the order of ``seed``, that is not among those tried; ``None`` when all are.

    A mixed order: the first trials of a grid that is larger than the search are spread over it, not in a corner.

    Args:
        tried: the values of the trials there are, as Optuna holds them. Those of another origin that lie on the grid
            count as well.
    """
    done = {_key(values) for values in tried}
    order = list(cells(space))
    random.Random(derive("grid", seed)).shuffle(order)
    return next((cell for cell in order if _key(cell) not in done), None)


def _key(values: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset((k, float(f"{v:.9g}") if isinstance(v, float) else v) for k, v in values.items())
