"""What a study found: the winner, the controls, the gain and how sure it is."""

from __future__ import annotations

import contextlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from akd import checkpoint
from akd.errors import many

#: What controls are called.
CONTROL_WORDS = {"none": "student alone", "kd": "plain KD"}


@dataclass(frozen=True)
class Gain:
    """Champion minus control, paired by seed, in percentage points.

    Attributes:
        mean: mean difference.
        low, high: 95 % interval (Student's t over the pairs); ``None`` with one seed or equal pairs. Of several gains
            that are told together, all intervals hold at once with 95 % (Bonferroni).
    """

    mean: float
    low: float | None
    high: float | None

    def interval(self) -> str:
        """`` (-1.90 to +1.63, within noise)``; nothing where there is none."""
        if self.low is None or self.high is None:
            return ""
        return f" ({self.low:+.2f} to {self.high:+.2f}, {'within' if self.low <= 0 <= self.high else 'beyond'} noise)"


@dataclass(frozen=True)
class Scores:
    """Test accuracy (0..1) of one final configuration over its seeds."""

    accuracy: dict[str, float]
    mean: float
    std: float | None


def scores(accuracy: dict[int, float]) -> Scores:
    """Mean and sample standard deviation over seeds (``None`` for one seed)."""
    values = list(accuracy.values())
    std = statistics.stdev(values) if len(values) > 1 else None
    return Scores({str(seed): a for seed, a in accuracy.items()}, statistics.fmean(values), std)


def mean_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of the mean (Student's t); none for one value or equal ones, which show no spread."""
    from scipy.stats import t

    n = len(values)
    if n < 2 or max(values) - min(values) < 1e-12:
        return None, None
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    mean = statistics.fmean(values)
    return mean - half, mean + half


def paired_gain(champion: Mapping[int, float], control: Mapping[int, float], comparisons: int = 1) -> Gain:
    """Champion's gain over a control from runs with the same seeds.

    Args:
        comparisons: how many gains are told together: with each, one more could seem beyond noise by luck.
    """
    from scipy.stats import t

    differences = [100 * (champion[seed] - control[seed]) for seed in champion]
    mean = statistics.fmean(differences)
    n = len(differences)
    # Equal differences (two seeds that tie) are no sign of certainty.
    if n < 2 or max(differences) - min(differences) < 1e-9:
        return Gain(mean, None, None)
    half = float(t.ppf(1 - 0.025 / comparisons, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Gain(mean, mean - half, mean + half)


@dataclass(frozen=True)
class StudyResult:
    """``result.json``.

    Attributes:
        study: its name.
        folder: where its files lie.
        data, teacher, student: names.
        teacher_accuracy: validation accuracy (0..1); ``None`` without a teacher.
        controls: name -> validation accuracy in the search and test scores of the final runs.
        best_trial: number, id (Optuna's and the tracker's), parameters, validation accuracy, epochs run.
        champion: test scores and where the student lies.
        gain: control name -> gain of the champion in percentage points.
        effective_soft_target_weight: of the winner, sum(weight * mass * temperature^2); ``None`` with normalised terms,
            where it changes with every step.
        trials: how many ended in which state.
        mlflow: address, experiment, run ids.
        wall_clock_s, device_hours: time passed in all sessions that ended in order; time of devices in training.
        teacher_passes: images the teacher was run on (``made``, every view counted), further ones whose outputs were
            found in the cache (``saved``), ``bytes`` there, and under how many ``keys``.
        start_cost_s: median and largest pause between two trials of one worker process.
        budget: spent of what was set (``device_hours``, ``cost``, ``seconds``), see :func:`akd.budget.account`.
        front: of a search with several objectives, the finished trials that no other one beats in all of them, the
            most accurate first: number, student, values (objective -> value).
        costs: student -> cost -> figure, of all that could be trained.
        left_out: student -> the constraint it breaks; none of these was trained.
        confirmation: the race that named the winner, see :func:`akd.confirm.summary`; empty where there was none.
        warm_start: earlier study -> how many of its configurations were tried first.
        earlier: each time the study had ended before it got more trials: ``trials`` then, number of the ``best_trial``,
            mean ``test`` accuracy of its final runs.
    """

    study: str
    folder: str
    data: str
    teacher: str
    student: str
    teacher_accuracy: float | None
    controls: dict[str, dict[str, Any]]
    best_trial: dict[str, Any]
    champion: dict[str, Any]
    gain: dict[str, Gain]
    effective_soft_target_weight: float | None
    trials: dict[str, int]
    mlflow: dict[str, Any]
    wall_clock_s: float
    device_hours: float
    teacher_passes: dict[str, int]
    start_cost_s: dict[str, float] = field(default_factory=dict)
    budget: dict[str, dict[str, float]] = field(default_factory=dict)
    front: list[dict[str, Any]] = field(default_factory=list)
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    confirmation: dict[str, Any] = field(default_factory=dict)
    warm_start: dict[str, int] = field(default_factory=dict)
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def front_words(self) -> str:
        """A sentence on the winner among the trials that no other one beats; nothing with one objective."""
        if not self.front:
            return ""
        if self.front[0]["number"] != self.best_trial["number"]:  # chosen by more than one training
            front = many(len(self.front), "trial")
            return f"The front has {front}, the most accurate of them is trial {self.front[0]['number']}."
        if len(self.front) == 1:
            return "It stands alone on the front: it beats every other finished trial."
        return f"It is the most accurate of {len(self.front)} trials on the front."

    def note(self) -> str:
        """The outcome in three lines of Markdown, for the tracker."""
        test, best = self.champion["test"], self.best_trial
        gains = ", ".join(
            f"{gain.mean:+.2f} points against {CONTROL_WORDS[name]}{gain.interval()}"
            for name, gain in self.gain.items()
        )
        seeds = len(test["accuracy"])
        values = ", ".join(
            f"`{k}` {v:.4g}" if isinstance(v, float) else f"`{k}` {v}" for k, v in best["parameters"].items()
        )
        also = f" {said}" if (said := self.front_words()) else ""
        return (
            f"Winner: trial {best['number']} ({values}), "
            f"validation {100 * best['validation_accuracy']:.2f} %.{also}\n\n"
            f"Test accuracy {100 * test['mean']:.2f} % over {seeds} seed{'s' * (seeds != 1)}: {gains}. "
            "The student is an artifact of the run `champion seed ...` and a version of a registered model: the tag "
            "`akd.registered` names it and says whether it has the alias `champion`."
        )

    @classmethod
    def read(cls, folder: Path) -> StudyResult | None:
        """The result kept in a study's folder; ``None`` if there is none."""
        try:
            kept = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return cls(**{**kept, "gain": {name: Gain(**gain) for name, gain in kept["gain"].items()}})

    def write(self, folder: Path) -> None:
        """Keep it as ``result.json``."""
        checkpoint.write_json(folder / "result.json", asdict(self))


def earlier_results(folder: Path) -> list[dict[str, Any]]:
    """What a study found each time it had ended and then got more trials, see :class:`StudyResult`."""
    found = []
    for path in folder.glob("result-*.json"):
        with contextlib.suppress(ValueError, TypeError, KeyError):  # one that is damaged tells nothing
            kept = json.loads(path.read_text(encoding="utf-8"))
            best, test = kept["best_trial"]["number"], kept["champion"]["test"]["mean"]
            found.append({"trials": int(path.stem.partition("-")[2]), "best_trial": best, "test": test})
    return sorted(found, key=lambda f: f["trials"])
