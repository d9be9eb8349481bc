"""A study's facts as a file: a page, Markdown, JSON or a table for data frames."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from akd import checkpoint, confirm
from akd.objectives import COSTS
from akd.report import fronts, page, plots
from akd.report.facts import Facts, gather


def write(study: Path, out: Path | None = None, form: str = "html") -> Path:
    """Make a study's report, finished or not, and give the file.

    Args:
        study: its folder.
        out: default ``report.<form>`` in that folder; of ``png``, which is a folder of pictures, ``plots``.

    Raises:
        AkdError: the study cannot be read.
        OSError: the file cannot be written.
    """
    facts, path = gather(study), out or study / ("plots" if form == "png" else f"report.{form}")
    if form == "png":
        plots.write(facts, path)
    elif form == "parquet":
        _parquet(facts, path)
    else:
        makers: dict[str, Callable[[Facts], str]] = {"html": page.build, "md": markdown, "json": as_json}
        checkpoint.write_text(path, makers[form](facts))
    return path


def as_json(facts: Facts) -> str:
    """All facts."""
    return json.dumps(_plain(asdict(facts)), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _plain(value: Any) -> Any:
    """Only what JSON has: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(facts: Facts) -> str:
    """The page's words and tables."""
    parts = [
        f"# {_cell(facts.study)}",
        _cell(page.subtitle(facts)),
        "## Question",
        _cell(facts.question),
        "## Answer",
        "\n\n".join(map(_cell, facts.answer)),
    ]
    if facts.finals:
        parts += ["## Winner and controls", _table(*page.final_rows(facts))]
    if facts.confirmation:
        parts += ["## Confirmation", _cell(page.confirmation_words(facts)), _table(*confirm.rows(facts.confirmation))]
    if facts.front:
        parts += ["## Front", _table(*fronts.front_rows(facts))]
    if len(facts.students) > 1 or facts.bounds:
        parts += ["## Students", _table(*fronts.student_rows(facts))]
    parts.append("## Importance of parameters")
    if facts.importance:
        rows = [[key, f"{100 * share:.0f} %"] for key, share in facts.importance.items()]
        parts.append(_table(["parameter", "share"], rows))
    parts.append(_cell(facts.importance_note))
    if facts.correlations:
        parts += ["## Views", "Rank correlation with validation accuracy, of finished trials' last epochs:"]
        parts.append(_table(["measure", "correlation"], [[c.words, c.verdict()] for c in facts.correlations]))
    parts += ["## Cost", _table(["", ""], page.cost_rows(facts))]
    parts += ["## How to reproduce it", _table(["", ""], list(facts.reproduce.items()))]
    parts += ["## All trials", _table(*page.trial_rows(facts))]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text that Markdown takes as it is."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#" else " " if c == "\n" else c for c in text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(_cell, cells))} |"

    return "\n".join([line(head), f"|{'---|' * len(head)}", *[line(row) for row in rows]])


def _parquet(facts: Facts, path: Path) -> None:
    """A row for each trial and control; a column for each searched key, with the curve as a list."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    runs = [*facts.trials, *facts.controls]
    columns: dict[str, Any] = {
        "name": pa.array([t.name for t in runs]),
        "number": pa.array([t.number for t in runs], pa.int64()),
        "state": pa.array([t.state for t in runs]),
        "reason": pa.array([t.reason for t in runs], pa.string()),
        "val_accuracy": pa.array([t.accuracy for t in runs], pa.float64()),
        "epochs": pa.array([t.epochs for t in runs], pa.int64()),
        "curve_epochs": pa.array([[e for e, _ in t.curve] for t in runs], pa.list_(pa.int64())),
        "curve_accuracy": pa.array([[a for _, a in t.curve] for t in runs], pa.list_(pa.float64())),
    }
    for axis in facts.axes:
        columns[axis.key] = _column([t.parameters.get(axis.key) for t in runs])
    for key in sorted({k for t in runs for k in t.views}):
        columns[key] = pa.array([t.views.get(key) for t in runs], pa.float64())
    for name in sorted({k for t in runs for k in t.costs}):
        columns[COSTS[name].metric] = pa.array([t.costs.get(name) for t in runs], pa.float64())
    if facts.front:
        columns["on_front"] = pa.array([t.number in facts.front for t in runs], pa.bool_())
    side = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(pa.table(columns), side)
    os.replace(side, path)


def _column(values: Sequence[Any]) -> Any:
    """Values of one kind as they are; lists and mixed kinds as JSON text."""
    import pyarrow as pa

    there = [v for v in values if v is not None]
    if all(type(v) is bool for v in there):
        return pa.array(values, pa.bool_())
    if all(type(v) is int for v in there):
        return pa.array(values, pa.int64())
    if all(type(v) in (int, float) for v in there):
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if all(type(v) is str for v in there):
        return pa.array(values, pa.string())
    return pa.array([None if v is None else json.dumps(v) for v in values], pa.string())
