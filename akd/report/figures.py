"""The figures of a report: which facts of a study go into which chart, and the words under it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from akd.errors import many
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING
from akd.report import charts
from akd.report.charts import Curve, Mark, Scale
from akd.report.facts import VIEW_WORDS, Axis, Facts, Trial
from akd.terminal import show_value

#: More curves than these hide each other, and make the page heavy.
DRAWN = 200
#: The same of points.
POINTS = 1000
#: Where axes of accuracies (%) end at most: just above all there is.
_MOST = 100.4
_KINDS = {COMPLETE: "disc", PRUNED: "triangle", FAILED: "cross", RUNNING: "seed"}
_KEYS = [("disc", "finished"), ("triangle", "stopped early"), ("diamond", "winner")]


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and the words under it."""

    title: str
    svg: str
    caption: str


def results(facts: Facts) -> list[Figure]:
    """Winner and controls on the test images, and the gains."""
    if not facts.finals:
        return []
    seeds = len(facts.finals[0].accuracy)
    rows = [
        (f.words, [100 * a for a in f.accuracy.values()], 100 * f.mean, _percent(f.low), _percent(f.high))
        for f in facts.finals
    ]
    said = "; ".join(f"{words} {mean:.2f} %" for words, _, mean, _, _ in rows)
    sure = "The interval is that of the mean (Student's t)." if seeds > 1 else "One seed gives no interval."
    found = [
        Figure(
            "Test accuracy",
            charts.whiskers("tests", "Test accuracy of winner and controls", said, rows, "test accuracy (%)"),
            f"{many(seeds, 'final run')} each, trained on training and validation images with the same seeds. {sure}",
        )
    ]
    none: list[float] = []
    gains = [(f"over {g['against']}", none, g["mean"], g["low"], g["high"]) for g in facts.gains]
    said = "; ".join(f"{name} {mean:+.2f} points" for name, _, mean, _, _ in gains)
    found.append(
        Figure(
            "Gain of the winner",
            charts.whiskers("gains", "Gain of the winner over each control", said, gains, "points", zero=True),
            "Differences paired by seed. An interval that holds 0 is within noise; both hold at once with 95 %.",
        )
    )
    return found


def curves(facts: Facts) -> Figure | None:
    """Validation accuracy by epoch, with the rungs."""
    trials = _drawn([t for t in facts.trials if t.curve], facts.best)
    if not trials:
        return None
    trials = sorted(trials, key=lambda t: t.number == facts.best)  # the winner above the others
    drawn = [Curve(c.name, _in_percent(c.curve), style, tip=_tip(c)) for c, style in _styled(facts.controls)]
    for t in trials:
        style = "best" if t.number == facts.best else "finished" if t.state == COMPLETE else "stopped"
        end = "" if style == "finished" else _kind(t, facts.best)
        drawn.append(Curve(t.name, _in_percent(t.curve), style, end, _tip(t)))
    low = _floor(facts)
    cut = f" What is below {low:.0f} % is cut off." if low > min(v for c in drawn for _, v in c.points) else ""
    more = _share(trials, facts.trials)
    rungs = [r for r in facts.rungs if r < facts.epochs]
    keys = [("best", "winner"), ("finished", "finished"), ("triangle", "stopped early")]
    keys += [(style, c.name) for c, style in _styled(facts.controls)]
    keys += [("rung", f"rung{'s' * (len(rungs) > 1)}: epoch {', '.join(map(str, rungs))}")] if rungs else []
    among = " among trials of the same student" if len(facts.objectives) > 1 else ""
    words = f"Validation accuracy by epoch of {many(len(trials), 'trial')} and {many(len(facts.controls), 'control')}"
    return Figure(
        "Learning curves",
        charts.lines(
            "curves",
            "Learning curves",
            words,
            drawn,
            "epoch",
            "validation accuracy (%)",
            low=low,
            high=min(_MOST, max(v for c in drawn for _, v in c.points) + 1),
            rungs=rungs,
            keys=keys,
        ),
        f"At a rung, or once better ones have come there, the scheduler ({facts.scheduler}) stops what is "
        f"behind{among}.{_fidelity(facts)}{cut}{more}"
        if rungs
        else f"No trial is stopped early.{cut}{more}",
    )


def _fidelity(facts: Facts) -> str:
    if not facts.fidelity:
        return ""
    told = "; ".join(f"epoch {c.key.removeprefix('rung ')} {c.figure()}" for c in facts.fidelity)
    return (
        f" Rank correlation of rungs with the last epoch: {told}. Of stopped trials, who differ more, it is not known."
    )


def history(facts: Facts) -> Figure | None:
    """Each trial's last validation accuracy in their order, with the best finished one so far."""
    trials = [t for t in facts.trials if t.accuracy is not None and t.number is not None]
    if not trials:
        return None
    shown = _drawn(trials, facts.best, POINTS)
    marks = [Mark(float(t.number or 0), 100 * (t.accuracy or 0), _kind(t, facts.best), _tip(t)) for t in shown]
    steps: list[tuple[float, float]] = []
    for t in trials:
        value = 100 * (t.accuracy or 0)
        if t.state == COMPLETE and (not steps or value > steps[-1][1]):
            steps.append((float(t.number or 0), value))
    if steps:
        steps.append((float(trials[-1].number or 0), steps[-1][1]))
    end = max(1, max(t.number or 0 for t in trials))
    keys = [*_KEYS, ("s0", "best so far")]
    svg = charts.scatter(
        "history",
        "Optimisation history",
        f"Validation accuracy of {many(len(trials), 'trial')} in their order",
        marks,
        Scale(-0.03 * end, 1.03 * end, whole=True),
        "trial",
        "validation accuracy (%)",
        steps=steps,
        keys=keys,
        low=_floor(facts),
        most=_MOST,
    )
    words = "At each trial's last epoch: one stopped early had fewer of them."
    return Figure("Optimisation history", svg, f"{words}{_below(facts, trials)}{_share(shown, trials)}")


def importance(facts: Facts) -> Figure | None:
    """Shares of the parameters."""
    if not facts.importance:
        return None
    names = {a.key: a.name for a in facts.axes}
    rows = [(names.get(key, key), share) for key, share in facts.importance.items()]
    words = "; ".join(f"{name} {100 * share:.0f} %" for name, share in rows)
    return Figure(
        "Importance of parameters",
        charts.bars("importance", "Importance of parameters", words, rows),
        facts.importance_note,
    )


def chosen(facts: Facts) -> list[Axis]:
    """The two parameters that are looked at closely: the most important, else the first of the space."""
    order = list(facts.importance)
    axes = sorted(facts.axes, key=lambda a: order.index(a.key) if a.key in order else len(order))
    return axes[:2]


def slices(facts: Facts) -> list[Figure]:
    """Accuracy over each of the two most important parameters, and over both."""
    trials = [t for t in facts.trials if t.accuracy is not None and t.state in (COMPLETE, PRUNED)]
    axes, found = chosen(facts), []
    for k, axis in enumerate(axes):
        having = [t for t in trials if axis.key in t.parameters]
        if len(having) < 2:
            continue
        shown = _drawn(having, facts.best, POINTS)
        marks = [
            Mark(_place(axis, t.parameters), 100 * (t.accuracy or 0), _kind(t, facts.best), _tip(t)) for t in shown
        ]
        svg = charts.scatter(
            f"slice{k}",
            f"Accuracy by {axis.name}",
            f"Validation accuracy of {many(len(having), 'trial')} over {axis.name}",
            marks,
            _scale(axis),
            axis.name,
            "validation accuracy (%)",
            keys=_KEYS,
            low=_floor(facts),
            most=_MOST,
        )
        words = f"{axis.key}; searched: {axis.words()}.{_below(facts, having)}{_share(shown, having)}"
        found.append(Figure(f"Accuracy by {axis.name}", svg, words))
    both = [t for t in trials if all(a.key in t.parameters for a in axes)]
    if len(axes) == 2 and len(both) > 2:
        shown = _drawn(both, facts.best, POINTS)
        points = [
            (across, up, 100 * (t.accuracy or 0), _tip(t), t.number == facts.best)
            for t in shown
            for across, up in [(_place(axes[0], t.parameters), _place(axes[1], t.parameters))]
        ]
        svg = charts.plane(
            "plane",
            f"{axes[0].name} and {axes[1].name}",
            f"Validation accuracy of {many(len(both), 'trial')} over both parameters",
            points,
            _scale(axes[0]),
            _scale(axes[1]),
            axes[0].name,
            axes[1].name,
        )
        words = "Each trial at its two values; the more accurate, the larger and the further along the scale below."
        words += _share(shown, both)
        found.append(Figure(f"{axes[0].name} and {axes[1].name} together", svg, words))
    return found


def parallel(facts: Facts) -> Figure | None:
    """All parameters of all trials."""
    every = [t for t in facts.trials if t.accuracy is not None and t.state in (COMPLETE, PRUNED)]
    trials = _drawn(every, facts.best)
    if len(trials) < 2 or not facts.axes:
        return None
    rows = []
    for t in trials:
        places = [_place(a, t.parameters) if a.key in t.parameters else None for a in facts.axes]
        rows.append((places, 100 * (t.accuracy or 0), _tip(t), t.number == facts.best))
    axes = [(a.name, _scale(a, room=False)) for a in facts.axes]
    svg = charts.parallel("parallel", "Parallel coordinates", "All parameters of each trial, one line each", axes, rows)
    words = f"One line a trial, from axis to axis down to its accuracy.{_share(trials, every)}"
    return Figure("Parallel coordinates", svg, words)


def views(facts: Facts) -> list[Figure]:
    """Of methods with views: the best trial's angles and gate, and diversity against accuracy."""
    found = []
    angles = ["views/angle_between", "views/angle_to_teacher"]
    groups: list[tuple[str, list[str], str, float | None, float | None]] = [
        ("Angles", angles, "degrees", None, None),
        ("Gate", ["views/inside"], "share of views inside the margin", -0.03, 1.03),
    ]
    for title, keys, unit, low, high in groups:
        named = [
            Curve(VIEW_WORDS[k].partition(" (")[0].partition(":")[0], facts.view_curves[k], f"s{n}")
            for n, k in enumerate(keys)
            if k in facts.view_curves
        ]
        if named:
            words = f"{title} of the views of trial {facts.best} by epoch"
            epoch = "epoch (head epochs end at 0)"
            svg = charts.lines(title.lower(), title, words, named, epoch, unit, low=low, high=high)
            found.append(Figure(f"{title} in trial {facts.best}", svg, "Mean over the batches of each epoch."))
    finished = [t for t in facts.trials if t.state == COMPLETE and "views/diversity" in t.views]
    if len(finished) > 1:
        shown = _drawn(finished, facts.best, POINTS)
        marks = [
            Mark(t.views["views/diversity"], 100 * (t.accuracy or 0), _kind(t, facts.best), _tip(t)) for t in shown
        ]
        svg = charts.scatter(
            "diversity",
            "Diversity against accuracy",
            f"Validation accuracy of {many(len(finished), 'finished trial')} over the diversity of their views",
            marks,
            Scale(*charts.around(m.x for m in marks)),
            VIEW_WORDS["views/diversity"],
            "validation accuracy (%)",
            keys=[_KEYS[0], _KEYS[2]],
            most=_MOST,
        )
        verdict = next((c.verdict() for c in facts.correlations if c.key == "views/diversity"), "")
        words = f"Rank correlation {verdict}.{_share(shown, finished)}"
        found.append(Figure("Diversity against accuracy", svg, words))
    return found


# -- helpers -------------------------------------------------------------------------------------------


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _in_percent(curve: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    return [(float(e), 100 * v) for e, v in curve]


def _styled(controls: Sequence[Trial]) -> list[tuple[Trial, str]]:
    return [(c, f"s{k}") for k, c in enumerate((c for c in controls if c.curve), start=1)]


def _kind(trial: Trial, best: int | None) -> str:
    return "diamond" if trial.number == best and best is not None else _KINDS[trial.state]


def _tip(trial: Trial) -> str:
    words = {PRUNED: f", stopped after epoch {trial.epochs}", FAILED: ", failed", RUNNING: ", running"}
    accuracy = "" if trial.accuracy is None else f" {100 * trial.accuracy:.2f} %"
    values = ", ".join(f"{k.rpartition('.')[2]} {show_value(v)}" for k, v in trial.parameters.items())
    return f"{trial.name}:{accuracy}{words.get(trial.state, '')}{f' ({values})' if values else ''}"


def _floor(facts: Facts) -> float:
    """The accuracy (%) below which figures are cut: what has hardly learned would press all differences into one line.

    Four times the spread of three quarters of the finished runs is shown below them, and no less than five points.
    """
    runs = [t for t in [*facts.trials, *facts.controls] if t.curve]
    ends = sorted(100 * t.curve[-1][1] for t in runs if t.state == COMPLETE)
    if not ends:
        return 0.0
    low = ends[len(ends) // 4]
    return max(0.0, math.floor(low - max(4 * (ends[-1] - low), 5.0)))


def _below(facts: Facts, trials: Sequence[Trial]) -> str:
    """A word about the marks that stand at the lower end."""
    floor = _floor(facts)
    n = sum(100 * (t.accuracy or 0) < floor for t in trials)
    return f" Below {floor:.0f} %, at the lower edge: {many(n, 'trial')}." if n else ""


def _drawn(trials: Sequence[Trial], best: int | None, most: int = DRAWN) -> list[Trial]:
    """All trials, or of very many an even choice with the best."""
    if len(trials) <= most:
        return list(trials)
    ordered = sorted(trials, key=lambda t: -(t.accuracy or 0))
    kept = [ordered[k * len(ordered) // most] for k in range(most)]
    numbers = {t.number for t in kept}
    kept += [t for t in trials if t.number == best and t.number not in numbers]
    return sorted(kept, key=lambda t: t.number or 0)


def _share(shown: Sequence[Trial], trials: Sequence[Trial]) -> str:
    """A word about trials that are not drawn."""
    return "" if len(shown) == len(trials) else f" {len(shown):,} of {len(trials):,} trials are drawn."


def _place(axis: Axis, parameters: Mapping[str, Any]) -> float:
    value = parameters[axis.key]
    if axis.kind == "choice":
        shown = show_value(value)
        return float(axis.choices.index(shown)) if shown in axis.choices else 0.0
    return float(value)


def _scale(axis: Axis, room: bool = True) -> Scale:
    if axis.kind == "choice":
        return Scale(0, 1, names=axis.choices)
    if axis.log:
        pad = (axis.high / axis.low) ** 0.04 if room else 1.0
        return Scale(axis.low / pad, axis.high * pad, log=True)
    pad = 0.04 * (axis.high - axis.low) if room else 0.0
    return Scale(axis.low - pad, axis.high + pad, whole=axis.kind == "int")
