"""``akd train`` on the command line: its arguments; one student, or going on with one."""

from __future__ import annotations

import argparse

from akd import arguments
from akd.flags import FLAGS, RUN_FLAGS, resumed

DESCRIPTION = "Train one student as an experiment says, on all devices; its space is not searched."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    arguments.add_experiment(parser, "experiment", RUN_FLAGS)
    parser.add_argument("--workers", metavar="N", help="that share the run (Ray Train); default all devices")
    parser.add_argument("--seed", metavar="N", help="of initialisation and augmentation")
    parser.add_argument("--name", help="of the run; default from data, method and time")
    arguments.add_places(parser)
    parser.add_argument("--resume", metavar="NAME", help="go on with a run that was interrupted")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """The verb."""
    from akd import single

    if args.resume is not None:
        given = [f for f in RUN_FLAGS if getattr(args, FLAGS[f][0]) is not None]
        given += [f"--{n}" for n in ("seed", "name", "workers") if getattr(args, n) is not None] + words
        if args.space or given:
            raise resumed("run", args.space or given[0])
        places = {name: getattr(args, name) for name in ("output", "tracking_uri", "ray_address", "storage")}
        single.go_on(args.resume, **places)
        return
    arguments.something(args, RUN_FLAGS, words)
    single.distil(arguments.experiment(args, words), workers=arguments.workers(args), **arguments.places(args))
