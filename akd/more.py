"""More trials for a study that has ended or was stopped, and what becomes of the final runs of its earlier winner.

Each of the two changes several files. What is to be done is written down first and struck out last, and every step may
be done twice: a kill at any moment leaves what the next resumption completes.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from akd import checkpoint, started
from akd import config as configuration
from akd.champion import seeded
from akd.config import Experiment
from akd.errors import AkdError, ExperimentError, many, reason
from akd.folder import COMPLETE, RUNNING, Run
from akd.logged import reopen
from akd.mirror import Mirror

_TRIALS, _FINALS = ".more.json", ".finals.json"


def check(number: Any) -> int:
    """How many trials are added.

    Raises:
        ExperimentError: that is no number of trials.
    """
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ExperimentError("must be a whole number of at least 1", key="add_trials", value=number)
    return number


# -- trials --------------------------------------------------------------------------------------------


def add(folder: Path, experiment: Experiment, number: int, mirror: Mirror) -> int:
    """Let a study go on with more trials than it had, or than it was to have if it has not ended.

    Returns:
        How many it is to have now.
    """
    with _alone(folder):
        run = Run.read(folder)
        assert run is not None
        # One that ended before its last trial, as a time budget has it, gets so many more than it has.
        had = len(list((folder / "trials").glob("*/run.json"))) if run.state == COMPLETE else experiment.search.trials
        before = run.tags.get("trials_added")
        note = f"{before + ', ' if before else ''}{number} after {had}"
        checkpoint.write_json(folder / _TRIALS, {"had": had, "trials": had + number, "note": note})
        _apply(folder, mirror)
    return had + number


def with_trials(experiment: Experiment, number: int) -> Experiment:
    """The experiment with so many trials in all."""
    return replace(experiment, search=replace(experiment.search, trials=number))


def catch_up(folder: Path, mirror: Mirror) -> None:
    """Complete an addition that was cut off."""
    if (folder / _TRIALS).is_file():
        with _alone(folder):
            _apply(folder, mirror)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ExperimentError("is being searched by another process", key="resume", value=folder.name) from None


def _apply(folder: Path, mirror: Mirror) -> None:
    asked = _note(folder / _TRIALS)
    for path in (folder / "experiment.yaml", started.note(folder)):
        if path.is_file():  # studies of before such notes have one of the two
            longer = with_trials(configuration.load(path, {}, strict=False), int(asked["trials"]))
            checkpoint.write_text(path, longer.to_yaml())
    earlier = folder / f"result-{asked['had']}.json"
    if (folder / "result.json").is_file():
        os.replace(folder / "result.json", earlier)
    reopen(folder, "result.json", "report.html", "experiment.yaml")
    run = Run.read(folder)
    assert run is not None
    run.state, run.ended, run.reason = RUNNING, None, None
    run.tags |= {"trials": str(asked["trials"]), "trials_added": str(asked["note"])}
    run.write(folder)
    if mirror.storage is not None:
        mirror.storage.remove_object(mirror.key(folder / "result.json"))
        mirror.up(folder, "experiment.yaml", started.note(folder).name, earlier.name, "run.json")
    (folder / _TRIALS).unlink()


# -- final runs ----------------------------------------------------------------------------------------


def make_way(
    study: Path, experiments: Mapping[str, Experiment], winner: str, mirror: Mirror, on_moved: Callable[[Path], None]
) -> list[str]:
    """Move final runs of another configuration than is wanted now from ``finals/`` to ``finals-1/``, ``finals-2/``, ...

    They stay on record: they cost time, and met the test images.

    Args:
        experiments: as of :func:`akd.champion.finals`.
        winner: what the moved runs are told to have given way to.
        on_moved: called with the folder of each moved run.

    Returns:
        The names of the moved runs that had ended.
    """
    if (study / _FINALS).is_file():  # begun by a session that was killed: its moves first
        _move(study, winner, mirror, on_moved)
    wanted = seeded(study, experiments)
    other = [f.name for f, (_, _, experiment) in wanted.items() if not _same(f, experiment)]
    ended = [name for name in other if (run := Run.read(study / "finals" / name)) and run.state == COMPLETE]
    if other:
        number = 1 + len(list(study.glob("finals-*")))
        checkpoint.write_json(study / _FINALS, {"to": f"finals-{number}", "names": other})
        _move(study, winner, mirror, on_moved)
    for folder in wanted:
        if not folder.exists():  # what the storage has under its name is a moved run's
            mirror.remove(folder)
    return ended


def _same(folder: Path, experiment: Experiment) -> bool:
    """True if a run's folder holds this experiment, as far as training goes, or is not there."""
    if Run.read(folder) is None:
        return True
    there = configuration.load(folder / "experiment.yaml", {}, strict=False)
    return all(getattr(there, part) == getattr(experiment, part) for part in ("data", "student", "method", "train"))


def _move(study: Path, winner: str, mirror: Mirror, on_moved: Callable[[Path], None]) -> None:
    asked = _note(study / _FINALS)
    place = study / str(asked["to"])
    place.mkdir(exist_ok=True)
    for name in map(str, asked["names"]):
        before, after = study / "finals" / name, place / name
        if not after.exists():
            run = Run.read(before)
            if run is None:
                continue
            run.tags |= {"superseded": f"by {winner}"}
            run.write(before)
            reopen(before)
            os.rename(before, after)
        if mirror.storage is not None:
            mirror.up_all(after)
            mirror.remove(before)
        on_moved(after)
    (study / _FINALS).unlink()


def _note(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(found, dict)
        return found
    except (ValueError, AssertionError) as error:
        raise AkdError(f"{path} is damaged, the study cannot go on: {reason(error)}") from None


def words(number: int, total: int) -> str:
    """What is said of an addition."""
    are = "is" if number == 1 else "are"
    return f"{many(number, 'trial')} {are} added: {total} in all"
