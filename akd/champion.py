"""Final training: champion and controls, the same epochs and seeds, on training and validation images together.

Each final student meets the test images once, after its last epoch, and nothing is chosen from that number.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from akd import folder as run_folder
from akd.config import Experiment
from akd.data.dataset import TrainData
from akd.data.loader import held_out_batches
from akd.fit import EpochRecord
from akd.folder import COMPLETE, Run
from akd.metrics import evaluate
from akd.teacher import LiveTeacher
from akd.teacher.keep import load_student, load_teacher


def final_seeds(experiment: Experiment) -> list[int]:
    """Seeds of the final runs: none of them was used in the search."""
    return [experiment.search.seed + 1 + k for k in range(experiment.search.champion_seeds or 1)]


def at_length_of(winner: Experiment, controls: dict[str, Experiment]) -> dict[str, Experiment]:
    """Controls that train for as many passes as the winner: a longer schedule alone must not look like a gain."""
    factor = winner.train.epoch_factor
    return {name: replace(e, train=replace(e.train, epoch_factor=factor)) for name, e in controls.items()}


def run_final(
    folder: Path,
    name: str,
    experiment: Experiment,
    data: TrainData,
    teacher: Path | None,
    *,
    device: str,
    on_start: Callable[[Path], None],
    on_epoch: Callable[[EpochRecord], None],
) -> Run:
    """One final run in ``folder``: found finished, continued, or started.

    Returns:
        The run, with ``test/accuracy`` and ``test/loss`` in its results.
    """
    run = Run.read(folder)
    if run is not None and run.state == COMPLETE:
        return run
    if run is None:
        run = Run("final", name)
        run_folder.create(folder, experiment, run)
    on_start(folder)
    needs = experiment.method.needs
    source = LiveTeacher(load_teacher(teacher, device), needs) if needs and teacher else None
    result = run_folder.train(
        folder, experiment, data.with_validation_joined(), source, device=device, on_epoch=on_epoch
    )
    student = load_student(folder / "student", device)
    scores = evaluate(student, held_out_batches(data.dataset, device))
    facts = {"epoch": result.epochs_run, "test_accuracy": scores["accuracy"], "seed": experiment.train.seed}
    run_folder.export(folder / "student", student, experiment, data, facts)
    run.end(folder, COMPLETE, None, **{f"test/{k}": v for k, v in scores.items()})
    return run


def finals(
    study: Path,
    experiments: dict[str, Experiment],
    data: TrainData,
    teacher: Path | None,
    *,
    device: str,
    on_start: Callable[[Path], None],
    on_epoch: Callable[[str, EpochRecord], None],
    on_end: Callable[[Path], None],
) -> dict[str, dict[int, float]]:
    """All final runs of a study.

    Args:
        experiments: name (``champion``, ``none``, ``kd``) -> configuration.

    Returns:
        name -> seed -> test accuracy (0..1).
    """
    found: dict[str, dict[int, float]] = {}
    # Seed by seed, so that an interruption leaves complete comparisons.
    for seed in final_seeds(next(iter(experiments.values()))):
        for name, experiment in experiments.items():
            seeded = replace(experiment, train=replace(experiment.train, seed=seed, plan_seed=seed))
            folder = study / "finals" / f"{name}-seed{seed}"
            run = run_final(
                folder,
                f"{name} seed {seed}",
                seeded,
                data,
                teacher,
                device=device,
                on_start=on_start,
                on_epoch=partial(on_epoch, name),
            )
            on_end(folder)
            found.setdefault(name, {})[seed] = run.results["test/accuracy"]
    return found


def hand_over(study: Path, seed: int) -> Path:
    """Copy the champion of the first seed (not of the best: that would choose on test) to ``champion/``."""
    target = study / "champion"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(study / "finals" / f"champion-seed{seed}" / "student", target)
    return target
