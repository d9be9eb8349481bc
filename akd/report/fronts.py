"""What a report tells of costs: the students, and the trials that no other one beats in every objective."""

from __future__ import annotations

from akd.errors import many
from akd.folder import COMPLETE, PRUNED
from akd.objectives import ACCURACY, COSTS
from akd.report import charts
from akd.report.charts import Mark, Scale
from akd.report.facts import Facts, Trial
from akd.report.figures import _MOST, POINTS, Figure, _below, _drawn, _floor, _kind, _share, _tip
from akd.terminal import percent

#: A range of costs as wide as this is drawn on a log scale.
_WIDE = 10.0


def costs_of(facts: Facts) -> list[str]:
    """Costs that are known of every student that was not left out."""
    tried = [s for s in facts.students if s.left_out is None]
    return [name for name in COSTS if tried and all(name in s.costs for s in tried)]


def members(facts: Facts) -> list[Trial]:
    """The trials on the front, the most accurate first."""
    by_number = {t.number: t for t in facts.trials}
    return [by_number[number] for number in facts.front]


def front_rows(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """The front: head and rows of the table. Costs that are no objective stand in it, too."""
    names = costs_of(facts)
    rows = [
        [
            f"{t.number}{', the winner' if facts.finals and t.number == facts.best else ''}",
            t.student,
            percent(t.accuracy),
            *[_figure(name, t.costs.get(name)) for name in names],
        ]
        for t in members(facts)
    ]
    return ["trial", "student", "accuracy (%)", *[_head(facts, name) for name in names]], rows


def student_rows(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """All students of the space: head and rows of the table."""
    names = [name for name in COSTS if any(name in s.costs for s in facts.students)]
    rows = []
    for s in facts.students:
        ended = [t for t in facts.trials if t.student == s.name and t.state == COMPLETE]
        best = max((t.accuracy or 0.0 for t in ended), default=None)
        why = "" if s.left_out is None else f"left out: it costs {s.left_out}"
        figures = [_figure(name, s.costs.get(name)) for name in names]
        rows.append([s.name, *figures, str(s.trials), percent(best), why])
    head = ["student", *[COSTS[name].words for name in names], "trials", "best validation accuracy (%)", ""]
    return head, rows


def figures(facts: Facts) -> list[Figure]:
    """Accuracy over each cost that is an objective; the front stands out by its shape."""
    trials = [t for t in facts.trials if t.accuracy is not None and t.state in (COMPLETE, PRUNED)]
    return [_figure_of(facts, name, trials) for name in facts.objectives if name != ACCURACY and facts.front]


def _figure_of(facts: Facts, name: str, every: list[Trial]) -> Figure:
    trials = [t for t in every if name in t.costs]
    front, numbers = members(facts), set(facts.front)
    others = _drawn([t for t in trials if t.number not in numbers], facts.best, POINTS)
    shown = [*others, *[t for t in trials if t.number in numbers]]
    marks = [
        Mark(t.costs[name], 100 * (t.accuracy or 0), _mark(t, facts), f"{_tip(t)}, {_figure(name, t.costs[name])}")
        for t in shown
    ]
    low, high = min(m.x for m in marks), max(m.x for m in marks)
    if low > 0 and high / low > _WIDE:
        pad = (high / low) ** 0.06
        scale = Scale(low / pad, high * pad, log=True)
    else:
        scale = Scale(*charts.around([low, high]))
    # With more objectives a member of the front may lie behind another one in this picture.
    steps = [(t.costs[name], 100 * (t.accuracy or 0)) for t in reversed(front)] if len(facts.objectives) == 2 else []
    keys = [("disc", "finished"), ("triangle", "stopped early")]
    keys += [("square", "on the front")] if len(front) > 1 else []
    keys += [("diamond", "winner, on the front")] + ([("s0", "best for this cost")] if steps else [])
    svg = charts.scatter(
        f"front-{name}".replace("_", "-"),
        f"Accuracy and {COSTS[name].words}",
        f"Validation accuracy of {many(len(trials), 'trial')} over {COSTS[name].words}; {many(len(front), 'trial')} "
        "on the front: "
        + "; ".join(f"trial {t.number}, {percent(t.accuracy)} %, {_figure(name, t.costs[name])}" for t in front[:20]),
        marks,
        scale,
        COSTS[name].words,
        "validation accuracy (%)",
        steps=steps,
        keys=keys,
        low=_floor(facts),
        most=_MOST,
    )
    words = (
        "Trials of one student stand above each other. What is on the front no other finished trial beats: none is as "
        f"good in every objective and better in one.{_below(facts, trials)}{_share(shown, trials)}"
    )
    return Figure(f"Accuracy and {COSTS[name].words}", svg, words)


def _mark(trial: Trial, facts: Facts) -> str:
    kind = _kind(trial, facts.best)
    return "square" if trial.number in facts.front and kind != "diamond" else kind


def _head(facts: Facts, name: str) -> str:
    return COSTS[name].words + ("" if name in facts.objectives else " (no objective)")


def _figure(name: str, value: float | None) -> str:
    """A cost in a table: counts in full, times with three digits."""
    if value is None:
        return ""
    return f"{value:.3g}" if COSTS[name].unit else f"{value:,.0f}"
