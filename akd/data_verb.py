"""``akd data prepare`` on the command line; ``akd data score`` is in :mod:`akd.score`."""

from __future__ import annotations

import argparse
from pathlib import Path

from akd.errors import ExperimentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    parser.add_argument(
        "action",
        choices=["prepare", "score"],
        help="prepare: fetch or decode NAME; score: rank augmentations for a teacher",
    )
    parser.add_argument("name", metavar="NAME", help="cifar10, cifar100 or imagefolder")
    parser.add_argument("--data-dir", metavar="DIR", help="default $AKD_DATA_DIR or ~/.cache/akd/data")
    parser.add_argument("--image-size", metavar="N", help="imagefolder: side of the images networks see; default 64")
    parser.add_argument("--stored-size", metavar="N", help="imagefolder: side they are kept at")


def prepare(args: argparse.Namespace) -> Path:
    """``akd data prepare``: the folder that is ready now."""
    from akd.data import cifar, imagefolder
    from akd.data.dataset import DataConfig, data_dir
    from akd.settings import Origins, build
    from akd.yamlfile import parse_value

    if args.action == "score":
        raise ExperimentError("comes right after 'akd data', before all flags", key="score")
    if args.name not in ("cifar10", "cifar100", "imagefolder"):
        problem = "needs no files" if args.name == "digits" else "cifar10, cifar100 and imagefolder can be prepared"
        raise ExperimentError(problem, key="data", value=args.name)
    typed = {"dir": args.data_dir, "image_size": args.image_size, "stored_size": args.stored_size}
    values = {name: text if name == "dir" else parse_value(text) for name, text in typed.items() if text is not None}
    origins = Origins({f"data.{name}": f"--{name.replace('_', '-')}" for name in values})
    config = build(DataConfig, {"name": args.name, **values}, prefix="data", origins=origins)
    if args.name == "imagefolder":
        return imagefolder.prepare(data_dir(config), config.image_size, config.stored_size)[0]
    return cifar.prepare(args.name, data_dir(config))


def run(args: argparse.Namespace) -> None:
    """The verb."""
    print(prepare(args))
