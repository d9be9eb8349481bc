"""Final training: champion and controls, the same epochs and seeds, on training and validation images together.

Each final student meets the test images once, after its last epoch, and nothing is chosen from that number.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from akd import folder as run_folder
from akd.config import Experiment
from akd.folder import COMPLETE, Run
from akd.job import Job


def final_seeds(experiment: Experiment) -> list[int]:
    """Seeds of the final runs: none of them was used in the search."""
    return [experiment.search.seed + 1 + k for k in range(experiment.search.champion_seeds or 1)]


def at_length_of(winner: Experiment, controls: Mapping[str, Experiment]) -> dict[str, Experiment]:
    """Controls of the winner's student that train for as many passes: neither a longer schedule nor a larger network
    alone must look like a gain."""
    student, factor = winner.student, winner.train.epoch_factor
    return {
        name: replace(e, student=student, train=replace(e.train, epoch_factor=factor)) for name, e in controls.items()
    }


def seeded(study: Path, experiments: Mapping[str, Experiment]) -> dict[Path, tuple[str, int, Experiment]]:
    """The final runs of a study: folder -> name of the configuration, seed, and the experiment with it.

    Seed by seed, so that an interruption leaves complete comparisons.
    """
    return {
        study / "finals" / f"{name}-seed{seed}": (
            name,
            seed,
            replace(experiment, train=replace(experiment.train, seed=seed, plan_seed=seed)),
        )
        for seed in final_seeds(next(iter(experiments.values())))
        for name, experiment in experiments.items()
    }


def finals(
    study: Path,
    experiments: Mapping[str, Experiment],
    teacher: Path | None,
    cache: Path | None,
    carry: Callable[..., None],
    *,
    on_start: Callable[[Path], None],
    on_epoch: Callable[[str, Path], None],
    on_end: Callable[[Path], None],
) -> dict[str, dict[int, float]]:
    """All final runs of a study: those found finished, the others continued or started.

    Args:
        experiments: name (``champion``, ``none``, ``kd``) -> configuration.
        cache: folder of teachers' outputs, if the runs of a seed share them: champion and plain KD see the same images.
        carry: runs jobs, see :func:`akd.job.run_here`; all of them share one group of workers.
        on_epoch: called with the configuration's name and the run's folder.

    Returns:
        name -> seed -> test accuracy (0..1).
    """
    runs = seeded(study, experiments)

    def begin(job: Job) -> None:
        folder = Path(job.folder)
        name, seed, experiment = runs[folder]
        if Run.read(folder) is None:
            run_folder.create(folder, experiment, Run("final", f"{name} seed {seed}"))
        on_start(folder)

    def end(job: Job, results: dict[str, float]) -> None:
        folder = Path(job.folder)
        run = Run.read(folder)
        assert run is not None
        run.end(folder, COMPLETE, None, **results)
        on_end(folder)

    keep = tuple(sorted(experiments["champion"].method.needs))
    common = {"teacher": str(teacher) if teacher else None, "cache": str(cache) if cache else None, "keep": keep}
    jobs = [Job(str(f), final=True, **common) for f in runs if not _done(f)]  # type: ignore[arg-type]
    if jobs:
        carry(
            jobs,
            on_begin=begin,
            on_epoch=lambda job, *_: on_epoch(runs[Path(job.folder)][0], Path(job.folder)),
            on_end=end,
        )
    found: dict[str, dict[int, float]] = {}
    for folder, (name, seed, _) in runs.items():
        run = Run.read(folder)
        assert run is not None
        found.setdefault(name, {})[seed] = run.results["test/accuracy"]
    return found


def _done(folder: Path) -> bool:
    run = Run.read(folder)
    return run is not None and run.state == COMPLETE


def hand_over(study: Path, seed: int) -> Path:
    """Copy the champion of the first seed (not of the best: that would choose on test) to ``champion/``."""
    target = study / "champion"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(study / "finals" / f"champion-seed{seed}" / "student", target)
    return target
