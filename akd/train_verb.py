"""``akd train`` on the command line: its arguments; one student, or going on with one."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from akd import arguments
from akd.errors import ExperimentError
from akd.flags import FLAGS, RUN_FLAGS, resumed

DESCRIPTION = (
    "Train one student as an experiment says, on all devices; its space is not searched. With --from-run the "
    "experiment is that of a run in MLflow, and the student starts from that run's weights; keys and flags beside it "
    "override the experiment's. The weights are kept in the new run's folder, so that it can go on after a kill."
)

_OF_FINAL = (
    "it starts from the student of a final run, which was trained on the validation images, too: its validation "
    "accuracy will be higher than it is on images it has not seen"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    arguments.add_experiment(parser, "experiment", RUN_FLAGS)
    parser.add_argument("--workers", metavar="N", help="that share the run (Ray Train); default all devices")
    parser.add_argument("--seed", metavar="N", help="of initialisation and augmentation")
    parser.add_argument("--name", help="of the run; default from data, method and time")
    arguments.add_places(parser)
    parser.add_argument(
        "--from-run",
        metavar="ID",
        help="experiment and first weights of a run in MLflow (trial, final, ...), by its id",
    )
    parser.add_argument("--resume", metavar="NAME", help="go on with a run that was interrupted")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """The verb."""
    from akd import single

    if args.resume is not None:
        given = [f for f in RUN_FLAGS if getattr(args, FLAGS[f][0]) is not None]
        beside = ("seed", "name", "workers", "from_run")
        given += [f"--{n.replace('_', '-')}" for n in beside if getattr(args, n) is not None] + words
        if args.space or given:
            raise resumed("run", args.space or given[0])
        places = {name: getattr(args, name) for name in ("output", "tracking_uri", "ray_address", "storage")}
        single.go_on(args.resume, **places)
        return
    if args.from_run is not None:
        _from_run(args, words)
        return
    arguments.something(args, RUN_FLAGS, words)
    single.distil(arguments.experiment(args, words), workers=arguments.workers(args), **arguments.places(args))


def _from_run(args: argparse.Namespace, words: list[str]) -> None:
    """A run that starts where another one in MLflow ended."""
    from akd import logged_run, single
    from akd.config import load
    from akd.starting import Start

    if args.space:
        problem = "brings an experiment of its own: leave the file out, or give keys of it"
        raise ExperimentError(problem, key="--from-run", value=args.from_run)
    values, typed = arguments.overrides(args, words)
    workers = arguments.workers(args)
    with tempfile.TemporaryDirectory(prefix="akd-from-") as fetched:
        found = logged_run.find(args.from_run, args.tracking_uri, Path(args.output), "--from-run")
        file = found.experiment(Path(fetched), said=list(values.values()))
        # Written by akd: it spells out every key, those without effect, too.
        full = load(file, values, typed, strict=False)
        tags = {"from_run": found.run_id, "from_run_name": found.name}
        note = _OF_FINAL if found.kind == "final" else ""
        start = Start(found.student(Path(fetched)), "--from-run", found.run_id, tags, note)
        single.distil(full, workers=workers, start=start, **arguments.places(args))
