"""Warm start: the best configurations of earlier studies, as far as they fit a new space, are what it tries first.

They are taken over value by value. A number outside its range is brought to the nearest end (or step), a configuration
with a value that is no choice any more is left out: another value in its place would be another configuration. What
the new space searches beside it is drawn by the sampler. The list is kept in the new study's folder, so that neither a
resumption nor the end of the earlier study changes what is tried.
"""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from akd import checkpoint
from akd.errors import AkdError, ExperimentError, many, near, reason
from akd.folder import Run
from akd.mirror import Mirror
from akd.result import StudyResult
from akd.space import Parameter, Space
from akd.terminal import show_value

FILE = "warm_start.json"
#: Configurations of earlier studies that are tried if no number is given: a quarter of the trials, at most these.
MOST = 8
_KEY = "warm_start"


@dataclass(frozen=True)
class First:
    """A configuration that is tried first.

    Attributes:
        source: where it comes from, ``OLD trial 3``.
        values: searched key -> value; what is missing is drawn.
    """

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a study tries first.

    Attributes:
        first: in this order.
        lines: for the terminal, one a study.
        counts: study -> how many of ``first`` are its.
    """

    first: tuple[First, ...] = ()
    lines: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def words(self) -> str:
        """``4 of OLD, 2 of OLDER``; nothing without any."""
        return ", ".join(f"{count} of {name}" for name, count in self.counts.items())

    def tags(self) -> dict[str, str]:
        """What the study's run notes of it."""
        return {"warm_start": self.words()} if self.first else {}

    def keep(self, folder: Path) -> None:
        """Write it into the study's folder, before the study is there; none takes away what a killed start left."""
        if not self.first:
            (folder / FILE).unlink(missing_ok=True)
            return
        first = [{"source": f.source, "values": dict(f.values)} for f in self.first]
        checkpoint.write_json(folder / FILE, {"first": first, "lines": self.lines, "counts": self.counts})


def read(folder: Path) -> Plan:
    """What the study in ``folder`` tries first.

    Raises:
        AkdError: the list is damaged.
    """
    path = folder / FILE
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        first = tuple(First(str(f["source"]), dict(f["values"])) for f in kept["first"])
        return Plan(first, tuple(map(str, kept["lines"])), {str(k): int(n) for k, n in kept["counts"].items()})
    except FileNotFoundError:
        return Plan()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AkdError(f"{path} is damaged, the study cannot go on: {reason(error)}") from None


def plan(asked: Sequence[str | Path], space: Space, trials: int, mirror: Mirror) -> Plan:
    """The configurations a new study tries first; writes nothing.

    Args:
        asked: studies, each a name in the output folder, the path of a study or of a study's ``warm_start.json``; with
            ``:N`` after it, its N best.
        space: of the new study.
        trials: of the new study.
        mirror: gives the output folder, and the storage where a study may be that is not in it.

    Raises:
        ExperimentError: a study that is not there, has no trial to rank, or of which nothing fits; a number out of
            range.
    """
    wanted = [_split(str(each), trials) for each in asked]
    if sum(number or 0 for _, number in wanted) > trials:
        problem = f"asks for more configurations than there are trials (search.trials = {trials})"
        raise ExperimentError(problem, key=_KEY, value=" ".join(map(str, asked)))
    default = max(1, max(1, min(MOST, trials // 4)) // max(1, len(wanted)))
    first: list[First] = []
    lines: list[str] = []
    counts: dict[str, int] = {}
    for name, number in wanted:
        shown, best = _best(name, mirror, number, default)
        found, line = _fitting(shown, best, space, first)
        found = found[: trials - len(first)]
        first += found
        counts[shown] = counts.get(shown, 0) + len(found)
        lines.append(line)
    return Plan(tuple(first), tuple(lines), counts)


def _split(text: str, trials: int) -> tuple[str, int | None]:
    """``OLD:5``: the study and how many of its configurations."""
    name, colon, number = text.rpartition(":")
    if not text.strip() or (colon and not name):
        raise ExperimentError("must name a study", key=_KEY, value=text)
    if not colon or Path(text).exists():
        return text, None
    if not number.isdecimal() or not 1 <= int(number) <= trials:
        problem = f"after the ':' must stand how many configurations, from 1 to {trials} (search.trials)"
        raise ExperimentError(problem, key=_KEY, value=text)
    return name, int(number)


# -- earlier studies -----------------------------------------------------------------------------------


def _best(name: str, mirror: Mirror, number: int | None, default: int) -> tuple[str, list[First]]:
    """A study's name and its best configurations, its winner first; a list that was kept as a whole."""
    if (kept := Path(name)).name == FILE and kept.is_file():
        return f"{kept.absolute().parent.name}/{FILE}", list(read(kept.parent).first)[:number]
    with _found(name, mirror) as folder:
        try:
            found = _ranked(folder)
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ExperimentError(f"{folder} cannot be read: {reason(error)}", key=_KEY, value=name) from None
    if not found:
        raise ExperimentError("has no trial that finished or was stopped", key=_KEY, value=name)
    return folder.name, found[: default if number is None else number]


def _ranked(folder: Path) -> list[First]:
    from akd.searcher import ranking  # brings Ray and Optuna, seconds that only this asks for

    runs = [run for run, _, _ in ranking(folder)]
    result = StudyResult.read(folder)
    if result is not None:  # what the study named, whatever it looked at beside the ranking
        runs.sort(key=lambda run: run.number != result.best_trial["number"])
    return [First(f"{folder.name} trial {run.number}", run.parameters) for run in runs]


@contextlib.contextmanager
def _found(name: str, mirror: Mirror) -> Iterator[Path]:
    """The folder of a study; a copy, for as long as the block lasts, of one that is in the storage alone."""
    known = {p.parent.name: p.parent for p in mirror.output.glob("*/run.json")}
    folder = known.get(name) or (Path(name).absolute() if (Path(name) / "run.json").is_file() else None)
    with tempfile.TemporaryDirectory(prefix="akd-warm-") as copy:
        if folder is None and mirror.storage is not None and Path(name).name == name:
            small = ("run.json", "history.jsonl", "result.json")
            if mirror.storage.fetch(name, Path(copy) / name, lambda key: key.endswith(small)):
                folder = Path(copy) / name
        if folder is None:
            hint = near(name, known) or (f", there are {', '.join(sorted(known))}" if known else "")
            also = f", nor in {mirror.shown}" if mirror.shown else ""
            problem = f"there is no study of this name in {mirror.output}{also}{hint}"
            raise ExperimentError(problem, key=_KEY, value=name)
        try:
            run = Run.read(folder)
        except (ValueError, TypeError):
            raise ExperimentError(f"{folder / 'run.json'} is damaged", key=_KEY, value=name) from None
        if run is None or run.kind != "study":
            kind = run.kind if run else "unfinished"
            raise ExperimentError(f"is a {kind} run: only studies have configurations", key=_KEY, value=name)
        yield folder


# -- fitting -------------------------------------------------------------------------------------------


@dataclass
class _Fitted:
    """A configuration in another space: what is taken over, and what became of the rest."""

    values: dict[str, Any] = field(default_factory=dict)
    clipped: list[str] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    refused: str | None = None


def fit(values: Mapping[str, Any], space: Space) -> _Fitted:
    """A configuration as another space has it."""
    found = _Fitted(dropped=sorted(values.keys() - {p.key for p in space.parameters}))
    known: dict[str, Any] = {}
    absent: set[str] = set()
    for p in space.parameters:
        if any(key in absent or (key in known and known[key] not in allowed) for key, allowed in p.when):
            absent.add(p.key)
        elif p.kind == "fixed":
            known[p.key] = p.choices[0]
        elif p.key not in values:
            found.drawn.append(p.key)
        elif p.kind == "choice":
            if not _is_choice(p, values[p.key]):
                found.refused = found.refused or f"{p.key} = {show_value(values[p.key])} is no choice"
                continue
            known[p.key] = found.values[p.key] = values[p.key]
        elif (near_by := _into(p, values[p.key])) is None:
            found.drawn.append(p.key)
        else:
            known[p.key] = found.values[p.key] = near_by
            if not math.isclose(near_by, values[p.key], rel_tol=1e-9):
                found.clipped.append(p.key)
    if not found.values:
        found.refused = found.refused or "no searched key is in both"
    return found


def _is_choice(p: Parameter, value: Any) -> bool:
    """True if a choice has the value; 1 and true are two."""
    return any(c == value and isinstance(c, bool) == isinstance(value, bool) for c in p.choices)


def _into(p: Parameter, value: Any) -> Any:
    """The nearest value of a range of numbers; ``None`` for what is no number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    inside = min(max(value, p.low), p.high)
    if p.kind == "float" and not p.step:
        return float(inside)
    step = p.step or 1
    steps = min(round((inside - p.low) / step), int((p.high - p.low) / step + 1e-9))
    return round(p.low + steps * step) if p.kind == "int" else p.low + steps * step


def _fitting(name: str, best: Sequence[First], space: Space, before: Sequence[First]) -> tuple[list[First], str]:
    """Those of a study's configurations that fit, and what is said of it."""
    seen = [dict(f.values) for f in before]
    found: list[First] = []
    clipped, drawn, dropped, refused, twice = Counter[str](), Counter[str](), set[str](), Counter[str](), 0
    for each in best:
        fitted = fit(each.values, space)
        if fitted.refused:
            refused[fitted.refused] += 1
            continue
        if fitted.values in seen:
            twice += 1
            continue
        seen.append(fitted.values)
        found.append(First(each.source, fitted.values))
        clipped.update(fitted.clipped)
        drawn.update(fitted.drawn)
        dropped.update(fitted.dropped)
    why = [f"{problem} in {count}" for problem, count in refused.most_common(3)]
    if not found:
        told = "; ".join(why) or "each is tried already"
        number = many(len(best), "best configuration")
        raise ExperimentError(f"none of its {number} fits the space: {told}", key=_KEY, value=name)
    parts = [f"{len(found)} of {many(len(best), 'configuration')} of {name} fit, tried first"]
    parts += [f"{key} clipped in {count}" for key, count in clipped.items()]
    parts += [f"{key} drawn in {count}" for key, count in drawn.items()]
    parts += [f"{', '.join(sorted(dropped))} left out"] if dropped else []
    parts += [f"{twice} the same as another"] if twice else []
    return found, "; ".join(parts + why)
