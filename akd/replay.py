"""A run of a study once more, beside it: the same epochs and the same weights, bit for bit, or what differs.

It is trained from its own ``experiment.yaml``, with the study's teacher, on as many workers and for as many epochs as
it had, into a folder that neither Optuna nor MLflow nor the study's report know.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from akd import checkpoint
from akd import config as configuration
from akd import folder as run_folder
from akd.config import Experiment
from akd.data import load as load_data
from akd.data import split as split_data
from akd.errors import ExperimentError, many, near
from akd.fit import metrics_equal
from akd.folder import COMPLETE, Run
from akd.job import Job, kept_keys, run_here
from akd.provenance import cpu, sha256, versions
from akd.sharing import cache_folder
from akd.teacher.keep import read_config, teacher_hash


@dataclass(frozen=True)
class Epoch:
    """One epoch, then and now.

    Attributes:
        number: of the epoch; ``heads`` tells those before the first one of the student.
        accuracy: on the validation images, then (0..1); ``None`` in a final run, which has none.
        differs: what is not the same: metric -> (then, now), ``None`` where one of the two lacks it.
    """

    number: int
    heads: bool
    accuracy: float | None
    differs: Mapping[str, tuple[float | None, float | None]]

    def words(self) -> str:
        """``equal``, or the first difference."""
        if not self.differs:
            return "equal"
        name, (then, now) = next(iter(self.differs.items()))
        more = f" and {len(self.differs) - 1} more" if len(self.differs) > 1 else ""
        return f"{name} {_number(then)} -> {_number(now)}{more}"


@dataclass(frozen=True)
class Replay:
    """What came of running a run again.

    Attributes:
        name: of the run, with its study.
        folder: where it lies; ``None`` if it was not kept.
        epochs: all of them, head epochs first.
        weights: SHA-256 of the student's file, then and now; ``None`` where there is no file to compare.
        weights_equal: every tensor is the same bits, whatever the file around them; ``None`` without a file of then.
        results: figures of the end, then and now, that are not the same.
        reasons: what differs from the circumstances of then, as far as it was recorded.
    """

    name: str
    folder: Path | None
    epochs: tuple[Epoch, ...]
    weights: tuple[str | None, str | None]
    weights_equal: bool | None
    results: Mapping[str, tuple[float | None, float | None]]
    reasons: tuple[str, ...]

    @property
    def matches(self) -> bool:
        """Everything that could be compared is the same."""
        return self.weights_equal is not False and not self.results and not any(e.differs for e in self.epochs)

    def sentence(self) -> str:
        """What came of it."""
        count = many(sum(not e.heads for e in self.epochs), "epoch")
        if self.matches:
            what = (
                f"{count} and the student's weights" if self.weights_equal else f"{count}; there are no weights of then"
            )
            return f"{self.name} came out the same again, bit for bit: {what}"
        first = next((e for e in self.epochs if e.differs), None)
        where = f"from {'head ' * first.heads}epoch {first.number} on" if first else "in its end alone"
        why = "; ".join(self.reasons) or (
            "nothing that was recorded of the machine, the versions or the files explains it"
        )
        return f"{self.name} did NOT come out the same, {where}: {why}"


def find_run(study: Path, name: str) -> Path:
    """The folder of a study's run.

    Args:
        name: a trial's number, ``control:kd``, ``champion:1`` (or ``kd:1``: a final run and its seed), or the folder
            as it lies in the study's, ``trials/00003``.

    Raises:
        ExperimentError: there is none.
    """
    part, colon, rest = name.partition(":")
    if name.isdecimal():
        place = f"trials/{int(name):05d}"
    elif colon:
        place = f"controls/{rest}" if part == "control" else f"finals/{part}-seed{rest}"
    else:
        place = name.strip("/")
    known = sorted(str(p.parent.relative_to(study)) for p in study.glob("*/*/run.json"))
    if place not in known:
        shown = [_typed(k) for k in known]
        hint = near(name, shown) or (f", there are {', '.join(shown[:8])}{', ...' * (len(shown) > 8)}" if shown else "")
        raise ExperimentError(f"there is no such run in {study}{hint}", key="trial", value=name)
    return study / place


def _typed(place: str) -> str:
    """``trials/00003`` as it is typed."""
    part, _, name = place.partition("/")
    if part == "trials" and name.isdecimal():
        return str(int(name))
    if part == "controls":
        return f"control:{name}"
    return name.replace("-seed", ":", 1) if part == "finals" else place


def replay(
    study: Path,
    name: str,
    *,
    keep: bool = False,
    on_start: Callable[[str, int], None] = lambda name, epochs: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Replay:
    """Run a run again.

    Args:
        study: its folder.
        name: see :func:`find_run`.
        keep: leave what is trained in ``STUDY/replays``; else it is removed.
        on_start: called with the run's name and the number of its epochs.
        on_epoch: called with each epoch, as soon as it is compared.

    Raises:
        ExperimentError: no such run, nothing to compare, its teacher or data are gone.
        RunError: it failed, with the reason.
    """
    there = find_run(study, name)
    run, own = Run.read(there), Run.read(study)
    assert run is not None
    assert own is not None
    experiment = configuration.load(there / "experiment.yaml", {}, strict=False)
    entries = run_folder.history(there)
    if not entries:
        problem = f"{run.name} has finished no epoch that could be compared"
        raise ExperimentError(problem, key="trial", value=name)
    teacher, reasons = _teacher(study, own, experiment)
    epochs, workers = int(entries[-1]["epoch"]), sorted({round(e.get("time/devices", 1)) for e in entries})
    if len(workers) > 1:
        reasons.append(f"its epochs ran on {' and '.join(map(str, workers))} workers, which is equal to rounding only")
    full = f"{run.name} of {study.name}"
    on_start(full, epochs)
    with _place(study, there, keep) as here:
        shutil.copyfile(there / "experiment.yaml", here / "experiment.yaml")
        job = Job(
            str(here),
            str(teacher) if teacher else None,
            final=run.kind == "final",
            # Outputs that were kept are rounded, and so part of the numbers.
            cache=str(cache_folder(experiment, study.parent)) if kept_keys(there) else None,
        )
        compare = _Comparison(there, here, on_epoch)
        results = _train(job, experiment, workers[-1], epochs, compare.news, study.parent)
        compare.news()
        found = Replay(
            full,
            here if keep else None,
            tuple(compare.epochs),
            *_weights(there, here, epochs),
            _differences({k: run.results.get(k) for k in results}, results) if run.state == COMPLETE else {},
            tuple(reasons + circumstances(own)),
        )
        shutil.rmtree(here / "checkpoints", ignore_errors=True)
        told = asdict(replace(found, folder=None)) | {"matches": found.matches}
        checkpoint.write_json(here / "replay.json", told | {"versions": versions(), "cpu": cpu()})
    return found


@contextlib.contextmanager
def _place(study: Path, there: Path, keep: bool) -> Iterator[Path]:
    """A fresh folder; it has no ``run.json``, by which the runs of a study are known."""
    if not keep:
        with tempfile.TemporaryDirectory(prefix="akd-replay-") as folder:
            yield Path(folder)
        return
    name = re.sub(r"\W+", "-", _typed(str(there.relative_to(study))))
    number = 1
    while (folder_ := study / "replays" / f"{name}-{number}").exists():
        number += 1
    folder_.mkdir(parents=True)
    yield folder_


def _teacher(study: Path, own: Run, experiment: Experiment) -> tuple[Path | None, list[str]]:
    """The folder of the study's teacher, and whether its files are still those it was trained on."""
    if not experiment.needs_teacher:
        return None, []
    now = teacher_hash(experiment, split_data(experiment.data, load_data(experiment.data)))
    then = own.tags.get("teacher_hash", now)
    folder = study.parent / "teachers" / then
    run = Run.read(folder)
    if run is None or run.state != COMPLETE:
        problem = f"its teacher is gone: there is no {folder}; without it nothing can be run again"
        raise ExperimentError(problem, key="teacher", value=experiment.teacher.name)
    changed = "the data files, or what akd makes of them and of the teacher's settings, have changed"
    return folder, [f"{changed} (teacher {then} then, {now} now)"] if now != then else []


class _Enough(Exception):  # noqa: N818 - an event, not a fault
    """As many epochs as there were."""


def _train(
    job: Job, experiment: Experiment, workers: int, epochs: int, news: Callable[[], None], output: Path
) -> dict[str, float]:
    """Carry out a job for some epochs, as its run was; gives the figures of its end, if it came to it."""
    results: dict[str, float] = {}
    threads = torch.get_num_threads()

    def on_epoch(job: Job, epoch: int, metrics: dict[str, float]) -> None:
        news()
        if epoch >= epochs and epochs < experiment.train.epochs:
            raise _Enough

    callbacks: dict[str, Any] = {"on_epoch": on_epoch, "on_end": lambda job, found: results.update(found)}
    try:
        if workers == 1:
            run_here([job], **callbacks)
        else:
            _on_workers(job, experiment, workers, output, callbacks)
    except _Enough:
        pass
    finally:
        torch.set_num_threads(threads)
    return results


def _on_workers(job: Job, experiment: Experiment, workers: int, output: Path, callbacks: Mapping[str, Any]) -> None:
    from akd import cluster
    from akd.config import SearchConfig
    from akd.mirror import Mirror
    from akd.session import Session

    asked = SearchConfig(final_workers=workers)
    try:
        cluster.check(asked, None, [experiment.train.batch_size])
    except ExperimentError as error:
        problem = f"the run had {workers} workers: {error.problem}"
        raise ExperimentError(problem, key="workers", value=workers) from None
    with Session(asked, None, Mirror(None, output)) as session:
        session.carry([job], session.team(experiment.train.batch_size), **callbacks)


# -- comparing -----------------------------------------------------------------------------------------


class _Comparison:
    """Epochs of two folders, compared as they come."""

    def __init__(self, there: Path, here: Path, on_epoch: Callable[[Epoch], None]):
        self.there, self.here, self.on_epoch = there, here, on_epoch
        self.epochs: list[Epoch] = []

    def news(self) -> None:
        """Compare what has come since the last call."""
        for heads, read in ((True, run_folder.head_history), (False, run_folder.history)):
            key = "head_epoch" if heads else "epoch"
            then = {int(e[key]): e for e in read(self.there)}
            known = {e.number for e in self.epochs if e.heads == heads}
            for entry in read(self.here):
                number = int(entry[key])
                if number in known or (not heads and number > max(then)):
                    continue
                before = then.get(number, {})
                epoch = Epoch(number, heads, before.get("val/accuracy"), _metrics_that_differ(before, entry))
                self.epochs.append(epoch)
                self.on_epoch(epoch)


def _metrics_that_differ(
    then: Mapping[str, float], now: Mapping[str, float]
) -> dict[str, tuple[float | None, float | None]]:
    mine, theirs = ({k: v for k, v in e.items() if k != "at"} for e in (now, then))
    if metrics_equal(mine, theirs):
        return {}
    return _differences(*({k: v for k, v in e.items() if not k.startswith("time/")} for e in (theirs, mine)))


def _differences(
    then: Mapping[str, float | None], now: Mapping[str, float | None]
) -> dict[str, tuple[float | None, float | None]]:
    keys = [*then, *(k for k in now if k not in then)]
    return {k: (then.get(k), now.get(k)) for k in keys if then.get(k) != now.get(k)}


def _weights(there: Path, here: Path, epochs: int) -> tuple[tuple[str | None, str | None], bool | None]:
    """SHA-256 of both students, and whether all their tensors are the same bits."""
    name = Path("student") / "student.safetensors"
    hashes = sha256(there / name), sha256(here / name)
    with contextlib.suppress(ExperimentError):
        # One that was killed after an epoch's student and before the line of it has the student of an epoch more.
        if read_config(there / "student").get("epoch") != epochs:
            return hashes, None
        if hashes[0] == hashes[1]:
            return hashes, True
        a, b = load_file(there / name), load_file(here / name)
        return hashes, a.keys() == b.keys() and all(_same_bits(a[k], b[k]) for k in a)
    return (None, hashes[1]), None


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.numpy().tobytes() == b.numpy().tobytes()


def circumstances(own: Run) -> list[str]:
    """In what this process differs from those of a study, as far as it was recorded."""
    found = []
    then, now = (dict(_versions(text)) for text in (own.tags.get("versions", ""), versions()))
    found += [
        f"{name} was {version}, is {now.get(name, 'not there')}"
        for name, version in then.items()
        if now.get(name) != version
    ]
    if (processor := own.tags.get("cpu", cpu())) != cpu():
        found.append(f"the CPU was {processor}, is {cpu()}")
    if torch.cuda.is_available():
        found.append("a GPU adds up in no fixed order")
    return found


def _versions(text: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, text.split(", ")):
        name, _, version = part.rpartition(" ")
        yield name, version


def _number(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.9g}"


__all__: Sequence[str] = ["Epoch", "Replay", "circumstances", "find_run", "replay"]
