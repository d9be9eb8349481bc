"""Samplers and schedulers that would only seem to do their work: refused before anything starts, each in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_mistakes
from test_mistakes import LR, MOMENTUM, Row, flags, folder, text  # noqa: F401 - folder is a fixture

from akd import pairs
from akd.config import resolve
from akd.errors import ExperimentError
from akd.rungs import expected_epochs, expected_to_finish, stages
from akd.space import parse

STEPS = "{type: float, low: 0.01, high: 0.2, step: 0.01}"
NUMBER = "train.weight_decay: {type: float, low: 0.0, high: 0.01}"


def grid(*spec: str, says: list[str]) -> Row:
    return text(LR, spec[0], says) if len(spec) == 1 else text(MOMENTUM, spec[1], says)


def sampler(name: str, old: str, new: str, says: list[str], *more: str) -> Row:
    """A sampler named by a flag on a changed file."""
    row = text(old, new, says)
    return Row((*row.arguments, f"--sampler={name}", *more), row.words, row.setup, library=False)


ROWS = {
    "unknown sampler": flags("--sampler=tpee", says=["--sampler: search.sampler = 'tpee'", "did you mean 'tpe'"]),
    "unknown scheduler": flags("--scheduler=halving", says=["--scheduler", "one of asha, median, none"]),
    "grid, a range without a step": flags(
        "--sampler=grid", says=["s.yaml:6: space.train.lr = '0.01 to 0.2'", "needs a step here, or choices", "qmc"]
    ),
    "grid, a log range of whole numbers": sampler(
        "grid",
        LR,
        f"{STEPS}\n  train.batch_size: {{type: int, low: 8, high: 64, log: true}}",
        ["s.yaml:7: space.train.batch_size = '8 to 64'", "log has no effect", "give choices"],
    ),
    "grid, too many cells": sampler(
        "grid",
        LR,
        "{type: float, low: 0.01, high: 0.2, step: 0.00001}",
        ["--sampler: search.sampler = 'grid'", "more than 10,000 cells", "larger steps"],
    ),
    "cmaes, choices": flags(
        "--sampler=cmaes", "--trials=40", says=["--sampler", "numbers alone", "train.momentum has choices", "use tpe"]
    ),
    "cmaes, choices alone": sampler("cmaes", LR, "{choices: [0.1, 0.2]}", ["train.lr has choices; use tpe"]),
    "cmaes, few trials": sampler(
        "cmaes", MOMENTUM, NUMBER, ["search.trials = 4", "draws its first 6 trials", "middle of 2 ranges", "or qmc"]
    ),
    "cmaes, a condition": sampler(
        "cmaes",
        MOMENTUM,
        "train.batch_size: {type: int, low: 8, high: 16}\n"
        "  train.momentum: {type: float, low: 0.1, high: 0.9, when: {train.batch_size: [8]}}",
        ["--sampler: search.sampler = 'cmaes'", "has a condition (train.momentum) at random", "use tpe"],
    ),
    "gp, a condition": sampler(
        "gp",
        MOMENTUM,
        "train.schedule: {choices: [cosine, step]}\n"
        "  train.decay_epochs: {choices: [[1], [1, 2]], when: {train.schedule: [step]}}",
        ["search.sampler = 'gp'", "(train.decay_epochs) at random, whatever was found; use tpe"],
    ),
    "gp, few finish": flags(
        "--sampler=gp",
        "--trials=20",
        "--epochs=9",
        says=[
            "--sampler",
            "finished trials alone",
            "more than 5",
            "of 20 trials about 2 finish with asha",
            "use scheduler none",
        ],
    ),
    "gp, few trials": flags(
        "--sampler=gp", "--scheduler=none", says=["4 trials are at random; use more trials, or tpe"]
    ),
    "nsga2, below its population": flags(
        "--sampler=nsga2", "--trials=8", "--scheduler=none", says=["breeds", "more than 8", "8 trials are at random"]
    ),
    "nsga2, few finish": flags(
        "--sampler=nsga2",
        "--trials=60",
        "--epochs=9",
        says=["more than 8; of 60 trials about 7 finish with asha", "scheduler none, more trials, or tpe"],
    ),
    "median, few trials": flags(
        "--scheduler=median", "--trials=3", says=["search.scheduler = 'median'", "at least 3 before it", "use none"]
    ),
    "median, no rung": flags(
        "--scheduler=median", "--search.grace=2", says=["stops no trial: its first rung is the last of 2 epochs"]
    ),
    "grace without a scheduler": flags(
        "--scheduler=none", "--search.grace=1", says=["search.grace = 1", "has no effect", "asha or median"]
    ),
    "cost without a price": flags("--cost=3", says=["--cost: search.cost = 3.0", "needs the price", "--price X"]),
    "a cost of nothing": flags("--cost=0", "--price=1", says=["--cost: search.cost = 0", "a number > 0"]),
    "a negative price": flags("--price=-2", says=["--price: search.price = -2", "a number > 0"]),
    "device-hours as a time": flags("--device-hours=30m", says=["--device-hours", "'30m'", "a number > 0"]),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_one_line_and_nothing_else(row: Row, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    test_mistakes.test_one_line_and_nothing_else(row, folder, capfd)


FLAT = {
    "train.lr": {"type": "float", "low": 0.01, "high": 0.2},
    "train.weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
}
STEPPED = {
    "train.lr": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.1},
    "train.nesterov": {"choices": [True, False]},
}
CONDITIONAL = STEPPED | {
    "train.schedule": {"choices": ["cosine", "step"]},
    "train.decay_epochs": {"choices": [[1], [2]], "when": {"train.schedule": "step"}},
}


def refusal(space: dict[str, Any], **search: Any) -> str | None:
    e = resolve({"train": {"epochs": 9}, "search": {"scheduler": "none", **search}, "space": space})
    try:
        pairs.check(e, parse(e))
    except ExperimentError as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("sampler", "space"),
    [
        *[(s, x) for s in ("tpe", "random", "qmc") for x in (FLAT, STEPPED, CONDITIONAL)],
        *[("grid", x) for x in (STEPPED, CONDITIONAL)],
        *[(s, x) for s in ("gp", "nsga2") for x in (FLAT, STEPPED)],
        ("cmaes", FLAT),
    ],
)
def test_what_goes_together_is_let_through(sampler: str, space: dict[str, Any]) -> None:
    assert refusal(space, sampler=sampler, trials=20) is None
    assert refusal(space, sampler=sampler, trials=20, scheduler="median", grace=8) is None


def test_a_fixed_value_is_no_choice_and_no_condition() -> None:
    fixed = {"train.schedule": "step", "train.decay_epochs": {"value": [1], "when": {"train.schedule": "step"}}}
    for sampler in ("cmaes", "gp", "nsga2"):
        assert refusal(FLAT | fixed, sampler=sampler, trials=30) is None


def test_cmaes_at_the_border_of_its_first_generation() -> None:
    assert "first 6" in (refusal(FLAT, sampler="cmaes", trials=6) or "")
    assert refusal(FLAT, sampler="cmaes", trials=7) is None


def test_a_range_of_one_value_is_not_moved() -> None:
    one = {"train.lr": {"type": "float", "low": 0.1, "high": 0.1}}
    assert "none here has more than one value" in (refusal(one, sampler="cmaes") or "")
    assert refusal(one, sampler="grid") is None


def test_sizes_follow_the_trials() -> None:
    def of(trials: int, scheduler: str = "none", **more: Any) -> Any:
        return resolve({"train": {"epochs": 9}, "search": {"trials": trials, "scheduler": scheduler, **more}})

    assert [pairs.startup(of(n).search) for n in (4, 20, 40, 400)] == [4, 5, 10, 10]
    assert [pairs.population(of(n)) for n in (8, 40, 400)] == [8, 10, 50]
    assert pairs.population(of(400, "asha")) == 11  # a ninth of them finish
    assert [pairs.batch(d) for d in (1, 2, 5, 10)] == [4, 6, 8, 10]
    assert [stages(of(9, s).search, 9) for s in ("asha", "median", "none")] == [[1, 3, 9], [1, 3, 9], [9]]
    assert stages(of(9, "asha").search, 10) == [1, 3, 9, 10]
    assert expected_to_finish(of(36, "median").search, 9) == pytest.approx(9)
    assert expected_epochs(of(1).search, 9) == 9
    assert expected_epochs(of(1, "asha").search, 9) == pytest.approx(1 + 2 / 3 + 6 / 9)
    assert expected_epochs(of(1, "median").search, 9) == pytest.approx(1 + 2 / 2 + 6 / 4)


def test_the_size_of_a_grid_in_words() -> None:
    def words(trials: int, space: dict[str, Any] = CONDITIONAL, sampler: str = "grid") -> str | None:
        e = resolve({"search": {"sampler": sampler, "trials": trials}, "space": space})
        return pairs.grid_words(e, parse(e))

    assert words(40) == "the grid has 30 cells: the search ends after 30 of 40 trials"
    assert words(30) == "the grid has 30 cells, as many as trials are asked for"
    assert words(7) == "the grid has 30 cells: 7 of them are tried, in mixed order; --trials 30 tries all"
    assert words(7, sampler="tpe") is None
