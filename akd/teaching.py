"""The teacher of a study or a single run: found, given, or trained on everything there is; shown and recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from akd.config import Experiment
from akd.data import TrainData
from akd.job import Job
from akd.session import Here, Session
from akd.summary import shown_path
from akd.teacher.keep import Teacher, obtain, teacher_hash
from akd.terminal import Display, percent


def provide(
    session: Session | Here,
    experiment: Experiment,
    data: TrainData,
    output: Path,
    display: Display,
    changed: Callable[..., None] = lambda folder, delay=0.0: None,
) -> Teacher:
    """The experiment's teacher.

    Args:
        output: folder of all studies, which holds the teachers too.
        changed: told that the teacher's run has news, with the seconds they may wait.
    """
    teacher, train = experiment.teacher, experiment.teacher.train
    team, mirror = session.team(train.batch_size), session.mirror
    there = output / "teachers" / teacher_hash(experiment, data)
    mirror.adopt(there)
    with contextlib.ExitStack() as stack:

        def fit(folder: Path) -> None:
            shared = f" on {team.size} workers" if team.size > 1 else ""
            advance = stack.enter_context(display.bar(f"teacher {teacher.name}{shared}", train.epochs))
            changed(folder)

            def on_epoch(job: Job, epoch: int, metrics: dict[str, float]) -> None:
                advance(epoch, f"validation {percent(metrics['val/accuracy'])} %")
                changed(folder, 2)

            session.carry([Job(str(folder))], team, on_epoch=on_epoch)

        found = obtain(experiment, data, output / "teachers", fit, threads=max(1, int(team.cpus)))
    if not mirror.ended(there):  # trained here, now or before there was a storage; or its weights were given
        mirror.up_all(there)
    if found.found:
        given = teacher.weights is not None
        display.say(
            f"teacher {teacher.name}: {'given' if given else 'found'}, "
            f"validation {percent(found.accuracy)} %{', images it may have seen' if given else ''}"
            f" ({shown_path(found.folder)})"
        )
    changed(found.folder)
    return found
