"""The command line: ``akd search``, ``akd evaluate``, ``akd data``, ``akd list``, ``akd ui``."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from akd import __version__
from akd.errors import AkdError, ExperimentError, Interrupted, near

# Flags that stand for a key of the experiment: flag -> (key, metavar, help).
_FLAGS = {
    "--data": ("data", "NAME", "data set (akd list data)"),
    "--data-dir": ("data.dir", "DIR", "folder of the data set's files; default $AKD_DATA_DIR"),
    "--teacher": ("teacher", "NAME", "network to distil (akd list models)"),
    "--teacher-weights": ("teacher.weights", "FILE", "the teacher's weights; it is then not trained"),
    "--student": ("student", "NAME", "network to train"),
    "--method": ("method", "NAME", "distillation method (akd list methods)"),
    "--epochs": ("train.epochs", "N", "epochs of a trial"),
    "--trials": ("search.trials", "N", "configurations to try, controls not counted"),
    "--concurrent": ("search.concurrent", "N", "trials at a time; default what the machine holds"),
    "--cpus-per-trial": ("search.cpus_per_trial", "X", "default 1"),
    "--gpus-per-trial": ("search.gpus_per_trial", "X", "default 1 where there are GPUs"),
    "--time-budget": ("search.time_budget", "T", "no new trial after this time: 90, 30m, 2h"),
    "--champion-seeds": ("search.champion_seeds", "N", "final runs of winner and controls"),
    "--sampler": ("search.sampler", "NAME", "tpe or random"),
    "--scheduler": ("search.scheduler", "NAME", "asha or none"),
    "--log-checkpoints": (
        "search.log_checkpoints",
        "WHICH",
        "students MLflow keeps: all (each epoch), best (each run's last), champion, none",
    ),
}


_EVALUATE = (
    "Top-1 and top-5 accuracy of a network on the test images. A network is a name of 'akd list models', "
    "module:factory, torchvision:name or timm:name, with its weights, or the folder of a student akd handed over."
)


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        raise ExperimentError(f"{message}; see '{self.prog} --help'")


def _parser() -> _Parser:
    parser = _Parser(prog="akd", description="Find the best way to distil a teacher network into a student.")
    parser.add_argument("--version", action="version", version=f"akd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    search = verbs.add_parser(
        "search",
        help="search a space, train the winner",
        description="Search a space of distillation settings, then train the winner and the controls.",
        epilog="Any key of an experiment can be set as --dotted.key VALUE, for example --train.lr 0.1.",
        allow_abbrev=False,
    )
    search.add_argument("space", nargs="?", help="experiment file or name of a shipped space (akd list spaces)")
    for flag, (key, metavar, text) in _FLAGS.items():
        search.add_argument(flag, dest=key, metavar=metavar, help=text)
    search.add_argument("--seed", metavar="N", help="of sampler, initialisation and augmentation")
    search.add_argument("--name", help="of the study; default from data, method and time")
    search.add_argument("--output", default="runs", metavar="DIR", help="folder of all studies (default: runs)")
    search.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow; default $MLFLOW_TRACKING_URI, else DIR/mlflow.db"
    )
    search.add_argument("--ray-address", metavar="ADDRESS", help="default $RAY_ADDRESS, else a private local Ray")
    search.add_argument("--dry-run", action="store_true", help="show what would be done and how long it would take")
    search.add_argument("--resume", metavar="NAME", help="go on with a study that was interrupted")

    evaluate = verbs.add_parser(
        "evaluate", help="measure a network on the test images", allow_abbrev=False, description=_EVALUATE
    )
    evaluate.add_argument("--data", required=True, metavar="NAME", help="data set (akd list data)")
    evaluate.add_argument("--data-dir", metavar="DIR", help="default $AKD_DATA_DIR or ~/.cache/akd/data")
    evaluate.add_argument("--model", required=True, metavar="NAME", help="network, or folder of a handed-over student")
    evaluate.add_argument("--weights", metavar="FILE", help="safetensors, or a file of torch.save")
    evaluate.add_argument("--mean", metavar="M,M,M", help="the network's normalisation; default the data set's")
    evaluate.add_argument("--std", metavar="S,S,S", help="goes with --mean")

    data = verbs.add_parser(
        "data",
        help="fetch a data set, or decode a folder of pictures; rank augmentations (akd data score --help)",
        allow_abbrev=False,
        epilog="'akd data score' ranks augmentations for a teacher: akd data score --help",
    )
    data.add_argument("action", choices=["prepare"])
    data.add_argument("name", help="cifar10, cifar100 or imagefolder")
    data.add_argument("--data-dir", metavar="DIR", help="default $AKD_DATA_DIR or ~/.cache/akd/data")
    data.add_argument("--image-size", metavar="N", help="imagefolder: side of the images networks see; default 64")
    data.add_argument("--stored-size", metavar="N", help="imagefolder: side they are kept at")

    listing = verbs.add_parser("list", help="models, methods, data, spaces", allow_abbrev=False)
    listing.add_argument("what", choices=["models", "methods", "data", "spaces"])

    ui = verbs.add_parser("ui", help="open MLflow on loopback", allow_abbrev=False)
    ui.add_argument("study", nargs="?", help="study to show; default the newest")
    ui.add_argument("--output", default="runs", metavar="DIR")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--tracking-uri", metavar="URI")
    return parser


def _apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments, and the ``--dotted.key value`` pairs among them: argparse would take such a value for the space."""
    plain: list[str] = []
    dotted: list[str] = []
    words = iter(arguments)
    for word in words:
        if not re.match(r"--[a-z_]+\.", word):
            plain.append(word)
            continue
        dotted.append(word)
        if "=" not in word:
            dotted += [value for value in (next(words, None),) if value is not None]
    return plain, dotted


def _overrides(words: list[str], known: Sequence[str]) -> dict[str, str]:
    """``--a.b value`` and ``--a.b=value`` pairs; everything else is an unknown argument."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, given, value = word.partition("=")
        if not re.fullmatch(r"--[a-z_]+(\.[A-Za-z_]\w*)+", key):
            raise ExperimentError(f"unknown argument{near(key, known)}", key=word)
        if not given:
            if not rest:
                raise ExperimentError("needs a value", key=key)
            value = rest.pop(0)
        if key[2:] in found:
            raise ExperimentError("is given twice", key=key)
        found[key[2:]] = value
    return found


def _seconds(text: str) -> Any:
    """``90``, ``30m``, ``2h`` as seconds; anything else unchanged, for the settings to refuse."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if not match:
        raise ExperimentError("must be a time like 90, 90s, 30m or 2h", key="--time-budget", value=text)
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _experiment(args: argparse.Namespace, words: list[str]) -> Any:
    from akd import spaces
    from akd.config import load
    from akd.yamlfile import parse_value

    flags = {f: key for f, (key, _, _) in _FLAGS.items()}
    values: dict[str, Any] = {}
    typed: dict[str, str] = {}
    for flag, key in flags.items():
        text = getattr(args, key)
        if text is not None:
            values[key] = _seconds(text) if key == "search.time_budget" else parse_value(text)
            typed[key] = flag
    if args.seed is not None:
        for key in ("search.seed", "train.seed", "train.plan_seed"):
            values[key], typed[key] = parse_value(args.seed), "--seed"
    for key, text in _overrides(words, [*flags, "--seed", "--name", "--output", "--resume", "--dry-run"]).items():
        if key in values:
            raise ExperimentError(f"is given twice, as {typed[key]} too", key=f"--{key}")
        values[key] = parse_value(text)
    return load(spaces.find(args.space) if args.space else None, values, typed)


def _search(args: argparse.Namespace, words: list[str]) -> None:
    if args.resume:
        given = [f for f, (key, _, _) in _FLAGS.items() if getattr(args, key) is not None]
        given += [f"--{n}" for n in ("seed", "name") if getattr(args, n) is not None] + words
        if args.space or given or args.dry_run:
            extra = args.space or (given or ["--dry-run"])[0]
            raise ExperimentError(
                "a study goes on as it was started; nothing else can be given with --resume", key=extra
            )
        from akd.study import resume

        resume(args.resume, output=args.output, tracking_uri=args.tracking_uri, ray_address=args.ray_address)
        return
    if not args.space and not any("space." in w for w in words):
        from akd import spaces

        raise ExperimentError(f"name a search space: a file, or one of {', '.join(spaces.names())}")
    experiment = _experiment(args, words)
    if args.dry_run:
        from akd import dryrun, prepare
        from akd.terminal import standard_console

        ready = prepare.prepare(experiment)
        prepare.study_folder(Path(args.output), args.name or prepare.default_name(experiment), resume=False)
        dryrun.show(ready, standard_console(), Path(args.output))
        return
    from akd import study

    study.search(
        experiment, name=args.name, output=args.output, tracking_uri=args.tracking_uri, ray_address=args.ray_address
    )


def _list(what: str) -> None:
    from rich.table import Table

    from akd.terminal import standard_console

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    if what == "models":
        from akd.models import create_model, list_models, parameter_count

        table.add_column("model")
        table.add_column("parameters (100 classes)", justify="right")
        for name in list_models():
            table.add_row(name, f"{parameter_count(create_model(name, 100)):,}")
        table.caption = "also module:factory, torchvision:name, timm:name"
        table.caption_justify = "left"
    elif what == "methods":
        from dataclasses import fields

        from akd.data.policies import augments
        from akd.methods import hosts, views

        for column in ("method", "does", "settings (default)", "paper"):
            table.add_column(column)
        for name, info in [(n, r.info(n)) for r in (hosts, views, augments) for n in r.names()]:
            config = info.get("config")
            settings = [f"{f.name} ({f.default})" for f in fields(config) if f.name != "name"] if config else []
            table.add_row(name, info.get("summary", ""), ", ".join(settings), info.get("paper", ""))
    elif what == "data":
        from akd.data import readers

        for column in ("data set", "images", "files"):
            table.add_column(column)
        for name in readers.names():
            table.add_row(name, readers.info(name).get("images", ""), readers.info(name).get("files", ""))
    else:
        from akd import spaces

        table.add_column("space")
        table.add_column("question")
        for name in spaces.names():
            table.add_row(name, spaces.headline(spaces.find(name)))
    standard_console().print(table)


def _evaluate(args: argparse.Namespace) -> None:
    from akd.data.dataset import DataConfig
    from akd.evaluation import evaluate_model
    from akd.score import numbers

    scores = evaluate_model(
        DataConfig(name=args.data, dir=args.data_dir),
        args.model,
        Path(args.weights).expanduser() if args.weights else None,
        mean=numbers("--mean", args.mean),
        std=numbers("--std", args.std),
    )
    top5 = f", top-5 {100 * scores['top5']:.2f} %" if "top5" in scores else ""
    print(f"{args.data}: top-1 {100 * scores['top1']:.2f} %{top5} of {scores['images']:,.0f} test images")


def _prepare_data(args: argparse.Namespace) -> Path:
    """``akd data prepare``: the folder that is ready now."""
    from akd.data import cifar, imagefolder
    from akd.data.dataset import DataConfig, data_dir
    from akd.settings import Origins, build
    from akd.yamlfile import parse_value

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


def _run(arguments: Sequence[str]) -> None:
    parser = _parser()
    if list(arguments[:2]) == ["data", "score"]:
        from akd import score

        score.run(arguments[2:], _Parser)
        return
    plain, dotted = _apart(arguments)
    args, words = parser.parse_known_args(plain)
    words += dotted
    if args.verb is None:
        parser.print_help()
        return
    if args.verb == "search":
        _search(args, words)
        return
    if words:
        raise ExperimentError(f"unknown argument for akd {args.verb}", key=words[0])
    if args.verb == "list":
        _list(args.what)
    elif args.verb == "evaluate":
        _evaluate(args)
    elif args.verb == "data":
        print(_prepare_data(args))
    else:
        from akd.ui import serve

        uri = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        serve(Path(args.output), args.study, args.port, uri, lambda line: print(line, flush=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 (failed), 2 (a mistake of the user's) or 130 (interrupted)."""
    # A network of the user's own lies beside the experiment. At the end of the path: a file that is called like a
    # library must not stand in for it. Ray's workers get the driver's current folder by themselves.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
        return 0
    except ExperimentError as error:
        print(f"akd: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"akd: {error or 'interrupted'}", file=sys.stderr)
        return 130
    except AkdError as error:
        print(f"akd: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"akd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
