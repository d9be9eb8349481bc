"""``akd teacher`` and ``akd teacher cache`` on the command line: a teacher, and its outputs ahead of a search."""

from __future__ import annotations

import argparse

from akd import arguments
from akd.flags import FLAGS, TEACHER_FLAGS

DESCRIPTION = "Train the teacher of an experiment on all devices, unless it is kept already."
CACHE_DESCRIPTION = (
    "Keep the outputs of an experiment's teacher ahead of a search, on all devices. Give what the "
    "search will be given: its data, teacher, seed, epochs and space."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``akd teacher``."""
    arguments.add_experiment(parser, "experiment", TEACHER_FLAGS)
    parser.add_argument("--workers", metavar="N", help="that share the run (Ray Train); default all devices")
    parser.add_argument("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    arguments.add_machines(parser)


def add_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of ``akd teacher cache``."""
    arguments.add_experiment(parser, "experiment", list(FLAGS))
    parser.add_argument("--passes", metavar="N", help="over the training images; default a trial's epochs")
    parser.add_argument("--seed", metavar="N", help="as of the search")
    parser.add_argument("--workers", metavar="N", help="that share the work (Ray Train); default all devices")
    parser.add_argument("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    arguments.add_machines(parser)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """The verb."""
    from akd import single
    from akd.summary import shown_path

    arguments.something(args, TEACHER_FLAGS, words)
    places = {name: getattr(args, name) for name in ("output", "ray_address", "storage")}
    found = single.teach(arguments.experiment(args, words), workers=arguments.workers(args), **places)
    if not found.found:
        print(f"kept in {shown_path(found.folder)}; searches with the same settings find it")


def run_cache(args: argparse.Namespace, words: list[str]) -> None:
    """``akd teacher cache``."""
    from akd import single

    arguments.something(args, list(FLAGS), words)
    experiment, passes, workers = (
        arguments.experiment(args, words),
        arguments.workers(args, "--passes"),
        arguments.workers(args),
    )
    places = {name: getattr(args, name) for name in ("output", "ray_address", "storage")}
    single.cache(experiment, passes=passes, workers=workers, **places)
