"""``akd search`` on the command line: its arguments; a search, its dry run, or going on with one."""

from __future__ import annotations

import argparse
from pathlib import Path

from akd import arguments
from akd.errors import ExperimentError
from akd.flags import FLAGS, resumed

DESCRIPTION = "Search a space of distillation settings, then train the winner and the controls."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    arguments.add_experiment(parser, "space", list(FLAGS))
    parser.add_argument("--seed", metavar="N", help="of sampler, initialisation and augmentation")
    parser.add_argument("--name", help="of the study; default from data, method and time")
    arguments.add_places(parser)
    parser.add_argument("--dry-run", action="store_true", help="show what would be done and how long it would take")
    parser.add_argument("--resume", metavar="NAME", help="go on with a study that was interrupted")


def run(args: argparse.Namespace, words: list[str]) -> None:
    """The verb."""
    if args.resume is not None:
        _resume(args, words)
        return
    if not args.space and not any("space." in w for w in words):
        from akd import spaces

        raise ExperimentError(f"name a search space: a file, or one of {', '.join(spaces.names())}")
    experiment = arguments.experiment(args, words)
    if args.dry_run:
        from akd import dryrun, study
        from akd.terminal import standard_console

        ready, _, _, _ = study.check(experiment, **arguments.places(args))
        dryrun.show(ready, standard_console(), Path(args.output))
        return
    from akd import study

    study.search(experiment, **arguments.places(args))


def _resume(args: argparse.Namespace, words: list[str]) -> None:
    given = [f for f, (key, _, _) in FLAGS.items() if getattr(args, key) is not None]
    given += ["--seed"] * (args.seed is not None) + words
    never = ["--name"] * (args.name is not None) + ["--dry-run"] * args.dry_run
    if never or (given and not args.space):
        raise resumed("study", (never or given)[0])
    from akd.study import resume

    experiment = arguments.experiment(args, words) if args.space else None
    places = {name: value for name, value in arguments.places(args).items() if name not in ("name", "tracking_later")}
    resume(args.resume, experiment=experiment, **places)
