"""``akd compare`` on the command line: methods at equal search budget, each with its own tuned winner."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from akd import arguments
from akd.errors import ExperimentError
from akd.flags import FLAGS, resumed

DESCRIPTION = (
    "Search several spaces on the same data, teacher, student, trials, epochs and seeds, one after the other, and put "
    "their winners side by side on the test images. Flags hold for all of them."
)
#: Of a search's flags, what has another name here.
SEEDS = "--champion-seeds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb that stand for keys of an experiment, and its own."""
    parser.add_argument("spaces", nargs="*", metavar="SPACE", help="experiment files or names of shipped spaces")
    for flag, (key, metavar, text) in FLAGS.items():
        if flag not in (SEEDS, "--method"):
            parser.add_argument(flag, dest=key, metavar=metavar, help=text)
    parser.add_argument("--seeds", dest=FLAGS[SEEDS][0], metavar="N", help="final runs of each winner and the controls")
    parser.add_argument("--seed", metavar="N", help="of samplers, initialisation and augmentation")
    parser.add_argument("--name", help="of the comparison; default from data and time; studies are called NAME-space")
    parser.add_argument("--resume", metavar="NAME", help="go on with a comparison that was interrupted")
    arguments.add_places(parser)


def run(args: argparse.Namespace, words: list[str]) -> None:
    """The verb."""
    from akd import compare, spaces

    places = arguments.places(args)

    if args.resume is not None:
        _alone(args, words)
        kept = {k: v for k, v in places.items() if k not in ("name", "tracking_later")}
        compare.resume(args.resume, **kept)
        return
    files = [spaces.find(name) for name in args.spaces]
    found = {}
    for label, path in zip(compare.labels(files), files, strict=True):
        args.space = str(path)
        found[label] = arguments.experiment(args, words)
    for label, one in found.items():
        if not one.space:
            raise ExperimentError("has no space: every method is tuned", key=label)
    data = next(iter(found.values())).data.name if found else ""
    name = places.pop("name") or f"{''.join(c if c.isalnum() else '-' for c in data)}-compare-{_now()}"
    compare.compare(found, name, **places)


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")


def _alone(args: argparse.Namespace, words: Sequence[str]) -> None:
    """Refuse what is given beside ``--resume``: a comparison goes on as it was started."""
    flags = {key: "--seeds" if flag == SEEDS else flag for flag, (key, _, _) in FLAGS.items()}
    given = [flag for key, flag in flags.items() if getattr(args, key, None) is not None]
    given += [f"--{name}" for name in ("seed", "name") if getattr(args, name) is not None]
    given += [*args.spaces, *words, *(["--tracking-later"] if args.tracking_later else [])]
    if given:
        raise resumed("comparison", given[0])
