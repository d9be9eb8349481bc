"""All that a report tells of a study, gathered from its folder and Optuna's journal: no Ray, no MLflow, no network."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd import config as configuration
from akd import folder as run_folder
from akd import objectives, warm
from akd.architectures import KEY, of_study, title
from akd.config import Experiment
from akd.errors import AkdError, many, reason
from akd.folder import COMPLETE, FAILED, PRUNED, Run
from akd.front import members
from akd.journal import read_trials
from akd.objectives import COSTS, figures_of
from akd.provenance import sha256
from akd.result import CONTROL_WORDS, StudyResult, mean_interval
from akd.rungs import rungs
from akd.space import Parameter, parse
from akd.summary import costs, plus_minus, teacher_passes, verdict
from akd.terminal import percent, short_names, show_value

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

#: Fewer trials say nothing about importance; up to the second number the page warns.
IMPORTANCE_LEAST, IMPORTANCE_FEW = 10, 40
#: Of fewer points a correlation has no interval worth telling.
CORRELATION_LEAST = 5
#: What views are measured by, in the order it is shown.
VIEW_WORDS = {
    "views/diversity": "diversity of the answers (nats)",
    "views/angle_between": "angle between views (degrees)",
    "views/angle_to_teacher": "angle to the teacher (degrees)",
    "views/inside": "gate: share of views inside the margin",
}


@dataclass(frozen=True)
class Axis:
    """A searched parameter: ``kind`` is ``int``, ``float`` or ``choice``; ``choices`` are as they are shown."""

    key: str
    name: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str, ...] = ()

    def words(self) -> str:
        """``0.01 to 0.3, on a log scale``."""
        if self.kind == "choice":
            return ", ".join(self.choices)
        return f"{show_value(self.low)} to {show_value(self.high)}{', on a log scale' if self.log else ''}"


@dataclass(frozen=True)
class Trial:
    """A trial or a control: validation accuracy (0..1) at its last epoch, its curve, what its views measured last.

    ``costs`` are those of its ``student``: cost -> figure.
    """

    name: str
    number: int | None
    state: str
    reason: str | None
    parameters: dict[str, Any]
    accuracy: float | None
    epochs: int
    curve: list[tuple[int, float]]
    views: dict[str, float] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    student: str = ""


@dataclass(frozen=True)
class Student:
    """An architecture of the space: what it costs, how many trials had it, and why it was left out, if it was."""

    name: str
    costs: dict[str, float]
    trials: int
    left_out: str | None = None


@dataclass(frozen=True)
class Final:
    """Test accuracy (0..1) of the winner or a control over its seeds; 95 % interval of the mean, if there is one."""

    name: str
    words: str
    accuracy: dict[str, float]
    mean: float
    std: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Correlation:
    """Rank correlation of a measure (of views, or the accuracy at a rung) with the last accuracy of finished trials."""

    key: str
    words: str
    trials: int
    value: float | None
    low: float | None
    high: float | None

    def figure(self) -> str:
        """``+0.61 (95 % interval +0.20 to +0.84, 14 finished trials)``."""
        if self.value is None or self.low is None or self.high is None:
            few = self.trials < CORRELATION_LEAST
            return f"{many(self.trials, 'finished trial')}, {'too few' if few else 'all the same: nothing'} to tell"
        return f"{self.value:+.2f} (95 % interval {self.low:+.2f} to {self.high:+.2f}, {self.trials} finished trials)"

    def verdict(self) -> str:
        """What it says of views."""
        told = self.figure()
        if self.value is None or self.low is None or self.high is None:
            return told
        if self.low <= 0 <= self.high:
            return f"{told}: no clear relation to accuracy"
        return f"{told}: {'higher' if self.value > 0 else 'lower'} goes with more accurate students"


@dataclass(frozen=True)
class Facts:
    """A study in facts. Accuracies are 0..1, times seconds, gains percentage points.

    Attributes:
        state: of the study; an unfinished one has no finals and no gains.
        question, answer: in words.
        best: number of the best trial so far; ``None`` without any.
        importance: parameter -> share, the largest first; empty if trials are too few.
        importance_note: from what it was computed, or why not.
        fidelity: rungs before the last epoch, the first one first: how they ranked the trials that were finished.
        view_curves: measure -> (epoch, value) of the best trial; head epochs end at epoch 0.
        objectives: accuracy, and costs that should be low.
        bounds: cost -> the most that is allowed.
        students: all that the space names, those left out among them.
        front: numbers of the finished trials that no other one beats in all objectives, the most accurate first; empty
            with one objective.
        confirmation: the race that named the winner, see :func:`akd.confirm.summary`.
    """

    study: str
    state: str
    reason: str | None
    made: float
    started: float
    data: str
    teacher: str
    student: str
    method: str
    question: str
    answer: tuple[str, str]
    epochs: int
    rungs: list[int]
    sampler: str
    scheduler: str
    asked: int
    axes: list[Axis]
    trials: list[Trial]
    controls: list[Trial]
    best: int | None
    finals: list[Final]
    gains: list[dict[str, Any]]
    teacher_accuracy: float | None
    importance: dict[str, float]
    importance_note: str
    view_curves: dict[str, list[tuple[int, float]]]
    correlations: list[Correlation]
    fidelity: list[Correlation]
    cost: dict[str, float]
    reproduce: dict[str, str]
    objectives: list[str] = field(default_factory=lambda: ["accuracy"])
    bounds: dict[str, float] = field(default_factory=dict)
    students: list[Student] = field(default_factory=list)
    front: list[int] = field(default_factory=list)
    confirmation: dict[str, Any] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """State -> how many trials."""
        return {s: n for s in (COMPLETE, PRUNED, FAILED, "RUNNING") if (n := sum(t.state == s for t in self.trials))}


def gather(study: Path) -> Facts:
    """The facts of a study, finished or not.

    Raises:
        AkdError: its files cannot be read.
    """
    # Ray's and Optuna's import is all that is wanted of them here: the order of trials.
    from akd.searcher import ranking

    try:
        own, result = Run.read(study), StudyResult.read(study)
        experiment = configuration.load(study / "experiment.yaml", {}, strict=False)
        trials, controls = (_runs(study, part, experiment.student.name) for part in ("trials", "controls"))
        on_front = [member["number"] for member in members(study)]
        space, table, left_out = of_study(study, parse(experiment), experiment)
        ranked = ranking(study)
        told = read_trials(study / "optuna.log", study.name)
        assert own is not None
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise AkdError(f"the study in {study} cannot be read: {reason(error)}") from None
    axes = _axes(space.searched)
    stops = [] if experiment.search.scheduler == "none" else _rungs(experiment)
    search, best = experiment.search, ranked[0][0].number if ranked else None
    if result is not None:  # the search's order is not the last word: it was confirmed
        best = result.best_trial["number"]
    importance, note = _importance(told, [run.number for run, _, _ in ranked])
    return Facts(
        study=study.name,
        state=own.state,
        reason=own.reason,
        made=time.time(),
        started=own.started,
        data=experiment.data.name,
        teacher=experiment.teacher.name,
        student=title(experiment),
        method=experiment.method.title,
        question=_question(experiment, axes),
        answer=_answer(experiment, own, result, trials, best),
        epochs=experiment.train.epochs,
        rungs=stops,
        sampler=search.sampler,
        scheduler=search.scheduler,
        asked=search.trials,
        axes=axes,
        trials=trials,
        controls=controls,
        best=best,
        finals=_finals(result) if result else [],
        gains=[{"against": CONTROL_WORDS[n], **vars(g)} for n, g in result.gain.items()] if result else [],
        teacher_accuracy=own.results.get("teacher/val_accuracy"),
        importance=importance,
        importance_note=note,
        view_curves=_view_curves(study, best),
        correlations=_correlations(trials),
        fidelity=_fidelity(trials, [r for r in stops if r < experiment.train.epochs]),
        cost=_cost(study, result, trials, experiment.train.epochs),
        reproduce=_reproduce(study, own),
        objectives=list(search.objectives),
        bounds=search.constraints.given() if search.constraints else {},
        students=[
            Student(name, figures, sum(t.student == name for t in trials), left_out.get(name))
            for name, figures in table.items()
        ],
        front=on_front,
        confirmation=result.confirmation if result else {},
    )


def _runs(study: Path, part: str, student: str) -> list[Trial]:
    """Trials or controls; ``student`` is that of runs which do not say."""
    found = []
    for path in sorted(study.glob(f"{part}/*/run.json")):
        run, entries = Run.read(path.parent), run_folder.history(path.parent)
        if run is None:
            continue
        curve = [
            (int(e["epoch"]), e["val/accuracy"]) for e in entries if math.isfinite(e.get("val/accuracy", math.nan))
        ]
        last = entries[-1] if entries else {}
        views = {k: last[k] for k in VIEW_WORDS if math.isfinite(last.get(k, math.nan))}
        accuracy = curve[-1][1] if curve else None
        epochs = int(last.get("epoch", 0))
        costs = figures_of(run.results)
        own = run.parameters.get(KEY, student) if part == "trials" else _student(path.parent, student)
        found.append(
            Trial(
                run.name,
                run.number,
                run.state,
                run.reason,
                run.parameters,
                accuracy,
                epochs,
                curve,
                views,
                costs,
                str(own),
            )
        )
    return sorted(found, key=lambda t: (t.number is not None, t.number or 0))


def _student(folder: Path, default: str) -> str:
    """The student of a control: not the experiment's own where no trial may have that."""
    try:
        return configuration.load(folder / "experiment.yaml", {}, strict=False).student.name
    except AkdError:
        return default


def _axes(searched: Sequence[Parameter]) -> list[Axis]:
    names = short_names([p.key for p in searched])
    return [
        Axis(p.key, names[p.key], p.kind, p.low, p.high, p.log, tuple(show_value(c) for c in p.choices))
        for p in searched
    ]


def _question(experiment: Experiment, axes: Sequence[Axis]) -> str:
    named = "; ".join(f"{a.name} ({a.words()})" for a in axes)
    search, student = experiment.search, title(experiment)
    one = student == experiment.student.name
    low = [COSTS[name].words for name in search.objectives if name in COSTS]
    told = objectives.told(search.constraints.given()) if search.constraints else []
    return (
        f"Which settings of {experiment.method.title} make the best student{' of a' if one else ', one of'} {student}, "
        f"taught by a {experiment.teacher.name} on {experiment.data.name}? Searched: {named}."
        + (f" Wanted beside a high accuracy: few {' and few '.join(low)}." if low else "")
        + (f" Allowed at most: {', '.join(told)}." if told else "")
    )


def _answer(
    experiment: Experiment, own: Run, result: StudyResult | None, trials: Sequence[Trial], best: int | None
) -> tuple[str, str]:
    """Two sentences: what came out, and how far it can be trusted."""
    by_number = {t.number: t for t in trials}
    if best is None and own.state == FAILED:
        return f"The search has failed: {own.reason}.", "No trial of it came to an accuracy."
    if best is None:
        return "No trial has finished or been stopped yet.", "Nothing can be said so far."
    winner, titles = by_number[best], experiment.with_values(by_number[best].parameters).method.title
    names = short_names(list(winner.parameters))
    values = ", ".join(f"{names[k]} {show_value(v)}" for k, v in winner.parameters.items())
    if result is None:
        ended = sum(t.state in (COMPLETE, PRUNED, FAILED) for t in trials)
        how = "The search has failed" if own.state == FAILED else "The search has not ended"
        return (
            f"{how}: {ended} of {experiment.search.trials} trials have, and trial {best} is the best of them with "
            f"{percent(winner.accuracy)} % on the validation images ({titles}: {values}).",
            "Nothing is known of test images before the final runs, which compare the winner with the controls.",
        )
    test = result.champion["test"]
    on_front = f" {said}" if (said := result.front_words()) else ""
    return (
        f"Trial {best} of {len(trials)} won: {titles} with {values}, and its final runs reach "
        f"{plus_minus(test)} on the test images ({many(len(test['accuracy']), 'seed')}).{on_front}",
        verdict(result),
    )


def _finals(result: StudyResult) -> list[Final]:
    every = {"champion": result.champion, **result.controls}
    found = []
    for name, scores in every.items():
        test = scores["test"]
        words = "winner" if name == "champion" else CONTROL_WORDS[name]
        low, high = mean_interval(list(test["accuracy"].values()))
        found.append(Final(name, words, test["accuracy"], test["mean"], test["std"], low, high))
    return found


def _importance(told: Sequence[FrozenTrial], ranked: Sequence[int | None]) -> tuple[dict[str, float], str]:
    """Optuna's PED-ANOVA of the order of trials, and a word about it.

    It asks in which parameters the best trials differ from all: only the order counts. Stopped trials are in it behind
    the finished ones, as in the choice of the winner; left out, what made them bad would be unseen.
    """
    n = len(ranked)
    if n < IMPORTANCE_LEAST:
        return {}, f"Left out: {many(n, 'trial')} say nothing about it, {IMPORTANCE_LEAST} are the least."
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    quantile = min(0.5, max(0.1, 5 / n))  # the method wants five trials among the best
    place, study = {number: k for k, number in enumerate(ranked)}, optuna.create_study(direction="minimize")
    for trial in told:
        if trial.number in place:
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=float(place[trial.number])
                )
            )
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    try:
        found = get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError) as error:  # as where every trial has the same values
        return {}, f"Left out: {reason(error)}."
    if not any(found.values()):
        return {}, "Left out: the best trials do not differ from the others in any parameter."
    note = f"PED-ANOVA: in what the best {math.ceil(quantile * n)} of {n} trials differ from all of them."
    if n < IMPORTANCE_FEW:
        note += f" A hint only: with fewer than {IMPORTANCE_FEW} trials another search may give another order."
    return dict(found), note


def _view_curves(study: Path, best: int | None) -> dict[str, list[tuple[int, float]]]:
    if best is None:
        return {}
    folder = study / "trials" / f"{best:05d}"
    heads, entries = run_folder.head_history(folder), run_folder.history(folder)
    points = [(int(e["head_epoch"]) - len(heads), e) for e in heads] + [(int(e["epoch"]), e) for e in entries]
    found = {k: [(at, e[k]) for at, e in points if math.isfinite(e.get(k, math.nan))] for k in VIEW_WORDS}
    return {k: curve for k, curve in found.items() if curve}


def _correlations(trials: Sequence[Trial]) -> list[Correlation]:
    finished = [t for t in trials if t.state == COMPLETE and t.accuracy is not None]
    found = []
    for key, words in VIEW_WORDS.items():
        pairs = [(t.views[key], t.accuracy) for t in finished if key in t.views and t.accuracy is not None]
        if pairs:
            found.append(Correlation(key, words, len(pairs), *_spearman(pairs)))
    return found


def _rungs(experiment: Experiment) -> list[int]:
    return rungs(experiment.train.epochs, experiment.search.grace, experiment.search.eta)


def _fidelity(trials: Sequence[Trial], stops: Sequence[int]) -> list[Correlation]:
    """How the accuracies at rungs rank those who were finished: among all trials, who differ more, it is not known."""
    finished = [(dict(t.curve), t.accuracy) for t in trials if t.state == COMPLETE and t.accuracy is not None]
    found = []
    for stop in stops:
        pairs = [(curve[stop], last) for curve, last in finished if stop in curve]
        if pairs:
            found.append(Correlation(f"rung {stop}", f"accuracy at epoch {stop}", len(pairs), *_spearman(pairs)))
    return found


def _spearman(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None, float | None]:
    """Rank correlation and its 95 % interval by Fisher's transformation with Bonett and Wright's variance (2000)."""
    from scipy.stats import spearmanr

    n = len(pairs)
    if n < CORRELATION_LEAST or any(len({p[side] for p in pairs}) < 2 for side in (0, 1)):
        return None, None, None
    r = float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)
    within = max(-0.999999, min(0.999999, r))
    half = 1.959964 * math.sqrt((1 + within**2 / 2) / (n - 3))
    return r, math.tanh(math.atanh(within) - half), math.tanh(math.atanh(within) + half)


def _cost(study: Path, result: StudyResult | None, trials: Sequence[Trial], epochs: int) -> dict[str, float]:
    if result is not None:
        hours, passes, wall = result.device_hours, result.teacher_passes, result.wall_clock_s
    else:
        seconds, asked, made = costs(study, None)
        hours, passes, wall = seconds / 3600, teacher_passes(study, asked, made), 0.0
    ended = [t for t in trials if t.state in (COMPLETE, PRUNED)]
    whole = epochs * len(ended)
    return {
        "device_hours": hours,
        "wall_clock_s": wall,
        "teacher_images": float(passes["made"]),
        "teacher_images_saved": float(passes["saved"]),
        "pruned_share": sum(t.state == PRUNED for t in ended) / len(ended) if ended else 0.0,
        "epochs_saved_share": 1 - sum(t.epochs for t in ended) / whole if whole else 0.0,
    }


def _reproduce(study: Path, own: Run) -> dict[str, str]:
    """Command, versions and hashes; what was not recorded is left out."""
    first = warm.read(study)
    again = f" --warm-start {warm.FILE}" if first.first else ""
    found: Mapping[str, str | None] = {
        "command": f"akd search experiment.yaml --name {study.name}-again{again}",
        "tried first": first.words(),
        "trials added": own.tags.get("trials_added"),
        "versions": own.tags.get("versions"),
        "CPU": own.tags.get("cpu"),
        "teacher (hash of all its weights depend on)": own.tags.get("teacher_hash"),
        "experiment.yaml (SHA-256)": sha256(study / "experiment.yaml"),
        "champion/student.safetensors (SHA-256)": sha256(study / "champion" / "student.safetensors"),
    }
    return {key: value for key, value in found.items() if value}
