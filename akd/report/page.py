"""The report as one HTML page: no script, no network, light and dark, readable on a phone, in print and aloud."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from html import escape

from akd import confirm
from akd.architectures import KEY
from akd.errors import many
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING
from akd.report import figures, fronts
from akd.report.charts import STYLE
from akd.report.facts import VIEW_WORDS, Facts, Trial
from akd.report.figures import Figure
from akd.terminal import percent, show_value

STATE_WORDS = {COMPLETE: "finished", PRUNED: "stopped early", FAILED: "failed", RUNNING: "not ended"}

_STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; color-scheme: light dark; }
body { margin: 0 auto; padding: 1.2rem 1rem 3rem; max-width: 70rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.2rem 0; } h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 0 0 0.5rem; } p { margin: 0.4rem 0; max-width: 46rem; }
.note, figcaption { color: var(--soft); font-size: 0.9rem; }
.answer { border-left: 4px solid var(--a); padding: 0.6rem 1rem; background: var(--card); margin: 1rem 0; }
.answer p { font-size: 1.1rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 23rem), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 0.9rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px;
  min-width: 0; }
figcaption { margin-top: 0.6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.3rem 0.8rem 0.3rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; } td.long { white-space: normal; min-width: 14rem; } .scroll { margin-top: 0.8rem; }
th[scope=row] { font-weight: inherit; } td.n, th.n { text-align: right; } tr.best td, tr.best th { font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(7rem, 20rem) 1fr; gap: 0.3rem 1rem; margin: 0; max-width: 60rem; }
dt { color: var(--soft); } dd { margin: 0; } code { font: 0.9em ui-monospace, monospace; }
details { margin: 0.9rem 0; } summary { cursor: pointer; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.5rem; } }
@media print { html { font-size: 12px; } body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 8pt; } figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; }
  .scroll { overflow: visible; } .grid { grid-template-columns: 1fr 1fr; } th[scope=col], td { white-space: normal; }
  details::details-content { content-visibility: visible; height: auto; } }
@page { margin: 14mm; }
"""

#: Tables of more trials than these are left to ``--format parquet``; a browser takes seconds to lay them out.
LISTED = 1000

Cell = tuple[str, bool]  # text, and whether it is a number


def build(facts: Facts) -> str:
    """The whole page."""
    title = f"{facts.study}: {facts.data}, {facts.teacher} to {facts.student}"
    parts = [
        f'<p class="note">akd report, {_day(facts.made)}</p><h1>{escape(facts.study)}</h1>',
        f'<p class="note">{escape(subtitle(facts))}</p>',
        f"<h2>Question</h2><p>{escape(facts.question)}</p>",
        f'<h2>Answer</h2><div class="answer">{"".join(f"<p>{escape(s)}</p>" for s in facts.answer)}</div>',
        *_result(facts),
        *_confirmation(facts),
        *_front(facts),
        *_search(facts),
        *_parameters(facts),
        *_views(facts),
        "<h2>Cost</h2>" + _pairs(cost_rows(facts)),
        "<h2>How to reproduce it</h2>",
        "<p>With <code>experiment.yaml</code> of the study's folder (it is an artifact of the study's MLflow run, "
        "too), which holds every setting and seed:</p>",
        _pairs(facts.reproduce.items(), code=True),
        "<h2>All trials</h2>" + _all_trials(facts),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _day(at: float) -> str:
    return time.strftime("%d %B %Y, %H:%M", time.localtime(at))


def subtitle(facts: Facts) -> str:
    """What was searched, with what, and how far it has come."""
    counts = ", ".join(f"{n} {STATE_WORDS[s]}" for s, n in facts.counts().items())
    teacher = "" if facts.teacher_accuracy is None else f" (validation {percent(facts.teacher_accuracy)} %)"
    return (
        f"{facts.data}; teacher {facts.teacher}{teacher}, student {facts.student}; {facts.method}; "
        f"{many(len(facts.trials), 'trial')} of at most {many(facts.epochs, 'epoch')}: {counts or 'none yet'}; sampler "
        f"{facts.sampler}, scheduler {facts.scheduler}; started {_day(facts.started)}."
    )


def cost_rows(facts: Facts) -> list[tuple[str, str]]:
    """What the study took."""
    c = facts.cost
    hours, asked = c["device_hours"], c["teacher_images"] + c["teacher_images_saved"]
    rows = [("device-hours of training", f"{hours:.2f}" if hours >= 1 else f"{hours:.3f} ({60 * hours:.1f} minutes)")]
    if c["wall_clock_s"]:
        rows.append(("time passed", f"{c['wall_clock_s'] / 60:.1f} minutes"))
    if asked:
        share = f" ({100 * c['teacher_images_saved'] / asked:.0f} % saved by keeping its outputs)"
        rows.append(("images the teacher was run on", f"{c['teacher_images']:,.0f} instead of {asked:,.0f}{share}"))
    saved = f", which saved {100 * c['epochs_saved_share']:.0f} % of all trials' epochs"
    rows.append(("trials stopped early", f"{100 * c['pruned_share']:.0f} %{saved if c['pruned_share'] else ''}"))
    return rows


def final_rows(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """Winner and controls: head and rows of the table."""
    gains = {g["against"]: g for g in facts.gains}
    rows = []
    for f in facts.finals:
        gain, spread = gains.get(f.words), "" if f.std is None else f" ± {100 * f.std:.2f}"
        interval = "" if f.low is None or f.high is None else f"{100 * f.low:.2f} to {100 * f.high:.2f}"
        of_gain = "" if gain is None or gain["low"] is None else f"{gain['low']:+.2f} to {gain['high']:+.2f}"
        seeds = ", ".join(f"{s}: {100 * a:.2f}" for s, a in f.accuracy.items())
        told = "" if gain is None else f"{gain['mean']:+.2f}"
        rows.append([f.words, f"{100 * f.mean:.2f}{spread}", interval, seeds, told, of_gain])
    head = ["", "test accuracy (%)", "95 % interval", "by seed (%)", "winner's gain (points)", "95 % interval"]
    return head, rows


def _result(facts: Facts) -> list[str]:
    if not facts.finals:
        return []
    head, rows = final_rows(facts)
    table = _table(head, [[(cell, k in (1, 2, 4, 5)) for k, cell in enumerate(row)] for row in rows], best=0)
    return ["<h2>Winner and controls</h2>", _grid(figures.results(facts)), table]


def _front(facts: Facts) -> list[str]:
    """The trials that stand on the front, and what the students of the space cost."""
    found: list[str] = []
    if facts.front:
        head, rows = fronts.front_rows(facts)
        place = facts.front.index(facts.best) if facts.best in facts.front else None
        told = (
            "<p>The finished trials that no other one beats in every objective. The student handed over is the "
            "winner's, for its accuracy; another may be the better bargain.</p>"
        )
        table = _table(head, [[(cell, k > 1) for k, cell in enumerate(row)] for row in rows], best=place)
        found = ["<h2>Front</h2>", told, _grid(fronts.figures(facts)), table]
    if len(facts.students) > 1 or facts.bounds:
        head, rows = fronts.student_rows(facts)
        last = len(head) - 1
        table = _table(head, [[(cell, 0 < k < last) for k, cell in enumerate(row)] for row in rows])
        found += ["<h2>Students</h2>", table]
    return found


def confirmation_words(facts: Facts) -> str:
    """What was run again, and what came out."""
    told = facts.confirmation
    asked = f"{many(len(told['trials']), 'trial')} of the highest validation accuracy ran again from other seeds"
    why = "the score a trial is chosen for is partly luck, and does not count here"
    return f"{asked}, on the same images: {why}. {'; '.join(line.strip() for line in confirm.lines(told))}."


def _confirmation(facts: Facts) -> list[str]:
    if not facts.confirmation:
        return []
    head, rows = confirm.rows(facts.confirmation)
    best = 0 if facts.confirmation["winner"] is not None else None
    table = _table(head, [[(cell, k in (1, 2, 4)) for k, cell in enumerate(row)] for row in rows], best=best)
    return ["<h2>Confirmation</h2>", f"<p>{escape(confirmation_words(facts))}</p>", table]


def _search(facts: Facts) -> list[str]:
    found = [f for f in (figures.curves(facts), figures.history(facts)) if f]
    return ["<h2>The search</h2>", _grid(found)] if found else []


def _parameters(facts: Facts) -> list[str]:
    important = figures.importance(facts)
    found = [f for f in (important, *figures.slices(facts), figures.parallel(facts)) if f]
    words = "" if important else f'<p class="note">Importance of parameters. {escape(facts.importance_note)}</p>'
    return ["<h2>Parameters</h2>", words, _grid(found)] if found or words else []


def _views(facts: Facts) -> list[str]:
    found = figures.views(facts)
    if not found:
        return []
    told = "<p>Rank correlation with validation accuracy, of what finished trials measured in their last epoch:</p>"
    measures = [k for k in VIEW_WORDS if any(k in t.views for t in facts.trials)]
    each = [
        [(t.name, False), (percent(t.accuracy), True), *[(_number(t.views.get(k)), True) for k in measures]]
        for t in _best_first(facts)[:LISTED]
        if t.views
    ]
    own = _table(["trial", "accuracy (%)", *[VIEW_WORDS[k] for k in measures]], each)
    claim = (
        "<p>The method's claim is that views which differ teach better. Trials differ in all they search, so a "
        "relation here is a hint and no proof.</p>"
    )
    curves = {k: dict(facts.view_curves[k]) for k in VIEW_WORDS if k in facts.view_curves}
    epochs = sorted({e for curve in curves.values() for e in curve})
    by_epoch = [[(str(e), True), *[(_number(c.get(e)), True) for c in curves.values()]] for e in epochs]
    course = _table(["epoch", *[VIEW_WORDS[k] for k in curves]], by_epoch)
    return [
        "<h2>Views</h2>",
        claim,
        _grid(found),
        told + _pairs((c.words, c.verdict()) for c in facts.correlations),
        _folded("the views of each trial at its last epoch", own),
        _folded(f"the views of trial {facts.best} by epoch", course),
    ]


def trial_rows(facts: Facts) -> tuple[list[str], list[list[str]]]:
    """All trials: head and rows of the table, the best first."""
    rungs = [r for r in facts.rungs if r < facts.epochs]
    rows = [_trial_row(t, facts, rungs) for t in [*_best_first(facts), *facts.controls]]
    return [name for name, _ in rows[0]] if rows else [], [[cell for _, cell in row] for row in rows]


def _best_first(facts: Facts) -> list[Trial]:
    """All trials, failed ones last."""
    return sorted(
        facts.trials, key=lambda t: (t.state == FAILED, t.number != facts.best, -t.epochs, -(t.accuracy or 0))
    )


def _trial_row(trial: Trial, facts: Facts, rungs: Sequence[int]) -> list[tuple[str, str]]:
    """Heads of columns with a trial's cells."""
    by_epoch = dict(trial.curve)
    state = STATE_WORDS[trial.state] + (f": {trial.reason}" if trial.reason else "")
    state += ", the winner" if facts.finals and trial.number == facts.best and trial.number is not None else ""
    return [
        ("trial", trial.name if trial.number is None else str(trial.number)),
        ("accuracy (%)", percent(trial.accuracy)),
        ("state", state),
        ("epochs", str(trial.epochs)),
        *[(f"at epoch {r}", percent(by_epoch.get(r))) for r in rungs],
        *[(a.name, _value(trial, a.key)) for a in facts.axes],
    ]


def _value(trial: Trial, key: str) -> str:
    """A searched value; a control has none, but a student it has."""
    if key in trial.parameters:
        return show_value(trial.parameters[key])
    return trial.student if key == KEY and trial.number is None else ""


def _all_trials(facts: Facts) -> str:
    head, rows = trial_rows(facts)
    n = len(facts.trials)
    if n > LISTED:
        rows = rows[:LISTED] + rows[n:]
    cells = [[(cell, k not in (0, 2)) for k, cell in enumerate(row)] for row in rows]
    table = _table(head, cells, best=0 if facts.best is not None else None)
    words = "<p>What the figures above were drawn from: validation accuracy at the last epoch and at each rung.</p>"
    if n > LISTED:
        every = escape(f"akd report {facts.study} --format parquet")
        words += f"<p>The best {LISTED:,} of {n:,} trials; <code>{every}</code> has all.</p>"
    return words + (_folded(many(min(n, LISTED), "trial"), table) if len(rows) > 40 else table)


# -- pieces --------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _grid(found: Iterable[Figure]) -> str:
    return (
        '<div class="grid">'
        + "".join(
            f"<figure><h3>{escape(f.title)}</h3>{f.svg}<figcaption>{escape(f.caption)}</figcaption></figure>"
            for f in found
        )
        + "</div>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Cell]], best: int | None = None) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    body, numbers = [], [False] * len(head)
    for k, row in enumerate(rows):
        numbers = [n for _, n in row]
        kinds = [" class=n" if n else " class=long" if len(text) > 40 else "" for text, n in row[1:]]
        cells = [f"<td{kind}>{escape(text)}</td>" for kind, (text, _) in zip(kinds, row[1:], strict=True)]
        first = f'<th scope="row">{escape(row[0][0])}</th>'
        body.append(f"<tr{' class=best' * (k == best)}>{first}{''.join(cells)}</tr>")
    top = "".join(f'<th scope="col"{" class=n" * n}>{escape(h)}</th>' for h, n in zip(head, numbers, strict=True))
    inside = f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{inside}</div>'


def _folded(words: str, inside: str) -> str:
    return f"<details><summary>Table: {escape(words)}</summary>{inside}</details>"


def _pairs(rows: Iterable[tuple[str, str]], code: bool = False) -> str:
    tag = ("<code>", "</code>") if code else ("", "")
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{tag[0]}{escape(v)}{tag[1]}</dd>' for k, v in rows)}</dl>"
