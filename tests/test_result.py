"""Gains and their intervals, against scipy's own paired test."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from akd.result import Gain, StudyResult, paired_gain, scores
from akd.summary import verdict

accuracies = st.floats(0.01, 0.99)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=10))
def test_interval_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    champion = {seed: a for seed, (a, _) in enumerate(pairs)}
    # The other order of seeds: pairs go by seed, not by place.
    control = {seed: b for seed, (_, b) in reversed(list(enumerate(pairs)))}
    gain = paired_gain(champion, control)
    differences = [100 * (a - b) for a, b in pairs]
    assert gain.mean == pytest.approx(statistics.fmean(differences))
    if max(differences) - min(differences) < 1e-9:  # pairs that tie are no sign of certainty
        assert gain.low is None
        return
    assert gain.low is not None
    assert gain.high is not None
    if max(differences) - min(differences) > 1e-6:
        wanted = stats.ttest_rel([100 * a for a, _ in pairs], [100 * b for _, b in pairs]).confidence_interval(0.95)
        assert (gain.low, gain.high) == pytest.approx((wanted.low, wanted.high), rel=1e-6, abs=1e-6)
    else:
        assert (gain.low, gain.high) == pytest.approx((gain.mean, gain.mean), abs=1e-3)


def test_by_hand() -> None:
    gain = paired_gain({1: 0.80, 2: 0.82, 3: 0.84}, {1: 0.79, 2: 0.80, 3: 0.81})
    assert gain.mean == pytest.approx(2.0)
    # Differences 1, 2, 3: standard deviation 1, t with two degrees of freedom 4.3027.
    assert (gain.low, gain.high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-5)


def test_one_seed_has_no_interval() -> None:
    assert paired_gain({7: 0.9}, {7: 0.8}) == Gain(pytest.approx(10.0), None, None)  # type: ignore[arg-type]


def test_scores() -> None:
    many = scores({1: 0.5, 2: 0.7})
    assert many.accuracy == {"1": 0.5, "2": 0.7}
    assert many.mean == pytest.approx(0.6)
    assert many.std == pytest.approx(statistics.stdev([0.5, 0.7]))
    one = scores({4: 0.5})
    assert (one.accuracy, one.mean, one.std) == ({"4": 0.5}, 0.5, None)


def result() -> StudyResult:
    test = {"accuracy": {"1": 0.9, "2": 0.91}, "mean": 0.905, "std": 0.007}
    return StudyResult(
        study="s",
        folder="runs/s",
        data="digits",
        teacher="wrn_16_2",
        student="resnet8",
        teacher_accuracy=None,
        controls={"none": {"validation_accuracy": 0.8, "test": test}},
        best_trial={"number": 3, "parameters": {"train.lr": 0.123456, "train.nesterov": True}}
        | {"validation_accuracy": 0.95, "epochs_run": 4},
        champion={"test": test, "student": "runs/s/champion"},
        gain={"none": Gain(1.234, None, None), "kd": Gain(-0.5, -1.0, 0.0)},
        effective_soft_target_weight=14.4,
        trials={"COMPLETE": 4},
        mlflow={},
        wall_clock_s=1.0,
        device_hours=0.1,
        teacher_passes={"made": 1, "saved": 0},
    )


def test_note_says_winner_and_gains() -> None:
    note = result().note()
    for words in (
        "trial 3",
        "`train.lr` 0.1235",
        "`train.nesterov` True",
        "validation 95.00 %",
        "90.50 % over 2 seeds",
    ):
        assert words in note
    assert "+1.23 points against student alone, -0.50 points against plain KD (-1.00 to +0.00, within noise)." in note


BEYOND, BELOW, OPEN, ONE = Gain(1.0, 0.5, 1.5), Gain(-1.0, -1.5, -0.5), Gain(0.2, -0.1, 0.5), Gain(-7.8, None, None)


@pytest.mark.parametrize(
    ("none", "kd", "seeds", "words"),
    [
        (BEYOND, BEYOND, 2, "beats student alone and plain KD beyond noise."),
        (BEYOND, OPEN, 2, "beats student alone beyond noise, and is not shown to beat plain KD: more seeds, "),
        (OPEN, OPEN, 2, "is not shown to beat student alone or plain KD: more seeds, epochs or trials would tell."),
        (BELOW, BEYOND, 2, "beats plain KD beyond noise, and is beaten by student alone beyond noise."),
        (BELOW, BELOW, 2, "is beaten by student alone and plain KD beyond noise."),
        (ONE, ONE, 1, "is not shown to beat student alone or plain KD: one seed gives no interval."),
    ],
)
def test_verdict(none: Gain, kd: Gain, seeds: int, words: str) -> None:
    test = {"accuracy": {str(i): 0.9 for i in range(seeds)}, "mean": 0.9, "std": None}
    found = replace(result(), gain={"none": none, "kd": kd}, champion={"test": test, "student": ""})
    assert verdict(found).startswith(f"The winner {words}")


def test_file_holds_every_field(tmp_path: Path) -> None:
    result().write(tmp_path)
    kept = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert kept["gain"] == {
        "none": {"mean": 1.234, "low": None, "high": None},
        "kd": {"mean": -0.5, "low": -1.0, "high": 0.0},
    }
    assert StudyResult(**kept | {"gain": {n: Gain(**g) for n, g in kept["gain"].items()}}) == result()


def test_words_of_a_front() -> None:
    one, two = {"number": 4, "values": {}}, {"number": 7, "values": {}}

    def words(*front: dict[str, Any], winner: int = 4) -> str:
        made: Any = SimpleNamespace(front=list(front), best_trial={"number": winner})
        return StudyResult.front_words(made)

    assert words() == ""
    assert words(one) == "It stands alone on the front: it beats every other finished trial."
    assert words(one, two) == "It is the most accurate of 2 trials on the front."
    assert words(one, two, winner=7) == "The front has 2 trials, the most accurate of them is trial 4."
