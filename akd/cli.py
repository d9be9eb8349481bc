"""The command line: ``akd search``, ``akd train``, ``akd teacher``, ``akd evaluate``, ``akd data``, ..."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from akd import __version__, evaluate_verb, replay_verb
from akd.errors import AkdError, ExperimentError, Interrupted, near
from akd.flags import FLAGS as _FLAGS
from akd.flags import RUN_FLAGS as _RUN_FLAGS
from akd.flags import TEACHER_FLAGS as _TEACHER_FLAGS
from akd.flags import resumed, unknown
from akd.report import command as report

_DOTTED = "Any key of an experiment can be set as --dotted.key VALUE, for example --train.lr 0.1."


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += near(choice[1], re.findall(r"'?([\w-]+)'?", choice[2]))
        for action in self._actions:  # an argument that is missing, with what it may be
            if action.choices and action.dest in message.partition("required: ")[2].split(", "):
                message = f"{message.partition(action.dest)[0]}one of {', '.join(action.choices)}"
        raise ExperimentError(f"{message}; see '{self.prog} --help'")


def _parser() -> tuple[_Parser, Mapping[str, argparse.ArgumentParser]]:
    """The program's parser, and that of each verb."""
    parser = _Parser(prog="akd", description="Find the best way to distil a teacher network into a student.")
    parser.add_argument("--version", action="version", version=f"akd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    search = verbs.add_parser(
        "search",
        help="search a space, train the winner",
        description="Search a space of distillation settings, then train the winner and the controls.",
        epilog=_DOTTED,
        allow_abbrev=False,
    )
    _add_experiment(search, "space", list(_FLAGS))
    search.add_argument("--seed", metavar="N", help="of sampler, initialisation and augmentation")
    search.add_argument("--name", help="of the study; default from data, method and time")
    _add_places(search)
    search.add_argument("--dry-run", action="store_true", help="show what would be done and how long it would take")
    search.add_argument("--resume", metavar="NAME", help="go on with a study that was interrupted")
    search.add_argument(
        "--add-trials", metavar="N", help="with --resume: N more trials, also of a study that has ended"
    )
    search.add_argument(
        "--warm-start",
        metavar="STUDY[:N]",
        action="append",
        default=[],
        help="try the best configurations of an earlier study first, also of other data or networks; may be repeated",
    )

    train = verbs.add_parser(
        "train",
        help="train one student, without a search",
        description="Train one student as an experiment says, on all devices; its space is not searched.",
        epilog=_DOTTED,
        allow_abbrev=False,
    )
    _add_experiment(train, "experiment", _RUN_FLAGS)
    train.add_argument("--workers", metavar="N", help="that share the run (Ray Train); default all devices")
    train.add_argument("--seed", metavar="N", help="of initialisation and augmentation")
    train.add_argument("--name", help="of the run; default from data, method and time")
    _add_places(train)
    train.add_argument("--resume", metavar="NAME", help="go on with a run that was interrupted")

    teacher = verbs.add_parser(
        "teacher",
        help="train an experiment's teacher and keep it",
        description="Train the teacher of an experiment on all devices, unless it is kept already.",
        epilog=f"{_DOTTED} 'akd teacher cache' keeps its outputs ahead of a search: akd teacher cache --help",
        allow_abbrev=False,
    )
    _add_experiment(teacher, "experiment", _TEACHER_FLAGS)
    teacher.add_argument("--workers", metavar="N", help="that share the run (Ray Train); default all devices")
    teacher.add_argument("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    _add_machines(teacher)

    cache = verbs.add_parser(
        "teacher-cache",
        prog="akd teacher cache",
        description="Keep the outputs of an experiment's teacher ahead of a search, on all devices. Give what the "
        "search will be given: its data, teacher, seed, epochs and space.",
        epilog=_DOTTED,
        allow_abbrev=False,
    )
    _add_experiment(cache, "experiment", list(_FLAGS))
    cache.add_argument("--passes", metavar="N", help="over the training images; default a trial's epochs")
    cache.add_argument("--seed", metavar="N", help="as of the search")
    cache.add_argument("--workers", metavar="N", help="that share the work (Ray Train); default all devices")
    cache.add_argument("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    _add_machines(cache)

    evaluate = verbs.add_parser(
        "evaluate",
        help="measure networks on the test images",
        allow_abbrev=False,
        description=evaluate_verb.DESCRIPTION,
    )
    evaluate_verb.add_arguments(evaluate)

    reporting = verbs.add_parser(
        "report",
        help="a study as a page or a table; check its records",
        allow_abbrev=False,
        description=report.DESCRIPTION,
    )
    report.add_arguments(reporting)

    replaying = verbs.add_parser(
        "replay",
        help="run a trial again and compare every bit",
        allow_abbrev=False,
        description=replay_verb.DESCRIPTION,
    )
    replay_verb.add_arguments(replaying)

    data = verbs.add_parser(
        "data",
        help="fetch a data set, or decode a folder of pictures; rank augmentations",
        allow_abbrev=False,
        epilog="The flags above are of prepare; those of score: akd data score --help",
    )
    data.add_argument(
        "action",
        choices=["prepare", "score"],
        help="prepare: fetch or decode NAME; score: rank augmentations for a teacher",
    )
    data.add_argument("name", metavar="NAME", help="cifar10, cifar100 or imagefolder")
    data.add_argument("--data-dir", metavar="DIR", help="default $AKD_DATA_DIR or ~/.cache/akd/data")
    data.add_argument("--image-size", metavar="N", help="imagefolder: side of the images networks see; default 64")
    data.add_argument("--stored-size", metavar="N", help="imagefolder: side they are kept at")

    listing = verbs.add_parser("list", help="models, methods, data, spaces", allow_abbrev=False)
    listing.add_argument("what", choices=["models", "methods", "data", "spaces"])
    listing.add_argument("name", nargs="?", help="methods: the settings of this one")

    ui = verbs.add_parser("ui", help="open MLflow on loopback", allow_abbrev=False)
    ui.add_argument("study", nargs="?", help="study to show; default the newest")
    ui.add_argument("--output", default="runs", metavar="DIR")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--tracking-uri", metavar="URI")
    return parser, verbs.choices


def _add_experiment(parser: argparse.ArgumentParser, name: str, flags: Sequence[str]) -> None:
    """The experiment file, and flags that stand for keys of it."""
    parser.add_argument(
        "space", metavar=name, nargs="?", help="experiment file or name of a shipped space (akd list spaces)"
    )
    for flag in flags:
        key, metavar, text = _FLAGS[flag]
        parser.add_argument(flag, dest=key, metavar=metavar, help=text)


def _add_places(parser: argparse.ArgumentParser) -> None:
    """Where things are kept and where they run."""
    parser.add_argument("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow; default $MLFLOW_TRACKING_URI, else DIR/mlflow.db"
    )
    parser.add_argument(
        "--tracking-later", action="store_true", help="start even if MLflow does not answer; it is filled in later"
    )
    _add_machines(parser)


def _add_machines(parser: argparse.ArgumentParser) -> None:
    """Where things run, and what the machines share."""
    parser.add_argument("--ray-address", metavar="ADDRESS", help="default $RAY_ADDRESS, else a private local Ray")
    parser.add_argument(
        "--storage", metavar="ADDRESS", help="what several nodes share: s3://BUCKET/FOLDER; default $AKD_STORAGE"
    )


def _given(args: argparse.Namespace, plain: Sequence[str]) -> None:
    """Refuse an empty value, which would stand for a default nobody asked for, and a flag given twice."""
    flags_given = [word.partition("=")[0] for word in plain if word.startswith("--")]
    repeated = {"evaluate": evaluate_verb.REPEATED, "search": ("--warm-start",)}.get(args.verb, ())
    for flag in flags_given:
        if flags_given.count(flag) > 1 and flag not in repeated:
            raise ExperimentError("is given twice", key=flag)
    positional = {"data": "name", "ui": "study", "report": "study", "replay": "study"}.get(args.verb, "space")
    for name, value in vars(args).items():
        if isinstance(value, str) and not value.strip() and name != positional:
            flags = {key: flag for flag, (key, _, _) in _FLAGS.items()}
            raise ExperimentError("needs a value", key=flags.get(name, f"--{name.replace('_', '-')}"))


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


def _overrides(words: list[str]) -> dict[str, str]:
    """``--a.b value`` and ``--a.b=value`` pairs."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, given, value = word.partition("=")
        if not re.fullmatch(r"--[a-z_]+(\.[A-Za-z_]\w*)+", key):
            raise ExperimentError("is no dotted key, like --train.lr", key=key)
        if not given:
            if not rest:
                raise ExperimentError("needs a value", key=key)
            value = rest.pop(0)
        if not value.strip():
            raise ExperimentError("needs a value", key=key)
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
        text = getattr(args, key, None)
        if text is not None:
            values[key] = _seconds(text) if key == "search.time_budget" else parse_value(text, flag)
            typed[key] = flag
    if getattr(args, "seed", None) is not None:
        for key in ("search.seed", "train.seed", "train.plan_seed"):
            values[key], typed[key] = parse_value(args.seed, "--seed"), "--seed"
    for key, text in _overrides(words).items():
        if key in values:
            raise ExperimentError(f"is given twice, as {typed[key]} too", key=f"--{key}")
        values[key] = parse_value(text, f"--{key}")
    return load(spaces.find(args.space) if args.space else None, values, typed)


def _search(args: argparse.Namespace, words: list[str]) -> None:
    if args.resume is not None:
        _resume(args, words)
        return
    if args.add_trials is not None:
        problem = "is for a study that is there; give --resume NAME too, or --trials N for a new one"
        raise ExperimentError(problem, key="--add-trials", value=args.add_trials)
    if not args.space and not any("space." in w for w in words):
        from akd import spaces

        raise ExperimentError(f"name a search space: a file, or one of {', '.join(spaces.names())}")
    experiment = _experiment(args, words)
    if args.dry_run:
        from akd import dryrun, study
        from akd.terminal import standard_console

        ready, _, _, mirror = study.check(experiment, **_places(args))
        first = study.planned(ready, args.warm_start, mirror)
        dryrun.show(ready, standard_console(), Path(args.output))
        for line in first.lines:
            standard_console().print(line)
        return
    from akd import study

    study.search(experiment, **_places(args), warm_start=args.warm_start)


def _places(args: argparse.Namespace) -> dict[str, Any]:
    names = ("name", "output", "tracking_uri", "tracking_later", "ray_address", "storage")
    return {name: getattr(args, name) for name in names}


def _resume(args: argparse.Namespace, words: list[str]) -> None:
    given = [f for f, (key, _, _) in _FLAGS.items() if getattr(args, key) is not None]
    given += ["--seed"] * (args.seed is not None) + words
    never = ["--name"] * (args.name is not None) + ["--dry-run"] * args.dry_run
    never += ["--warm-start"] * bool(args.warm_start)
    if never or (given and not args.space):
        raise resumed("study", (never or given)[0])
    from akd.study import resume

    experiment = _experiment(args, words) if args.space else None
    places = {name: value for name, value in _places(args).items() if name not in ("name", "tracking_later")}
    resume(args.resume, experiment=experiment, add_trials=_workers(args, "--add-trials"), **places)


def _workers(args: argparse.Namespace, flag: str = "--workers") -> int | None:
    from akd.yamlfile import parse_value

    text = getattr(args, flag[2:].replace("-", "_"))
    if text is None:
        return None
    value = parse_value(text, flag)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExperimentError("must be a whole number of at least 1", key=flag, value=value)
    return value


def _something(args: argparse.Namespace, flags: Sequence[str], words: list[str]) -> None:
    """Refuse a command that says nothing of what to train."""
    if not args.space and not words and all(getattr(args, _FLAGS[f][0]) is None for f in flags):
        from akd import spaces

        names = ", ".join(spaces.names())
        raise ExperimentError(f"name an experiment: a file, or one of {names}; or set one with {', '.join(flags)}")


def _train(args: argparse.Namespace, words: list[str]) -> None:
    from akd import single

    if args.resume is not None:
        given = [f for f in _RUN_FLAGS if getattr(args, _FLAGS[f][0]) is not None]
        given += [f"--{n}" for n in ("seed", "name", "workers") if getattr(args, n) is not None] + words
        if args.space or given:
            raise resumed("run", args.space or given[0])
        places = {name: getattr(args, name) for name in ("output", "tracking_uri", "ray_address", "storage")}
        single.go_on(args.resume, **places)
        return
    _something(args, _RUN_FLAGS, words)
    single.distil(_experiment(args, words), workers=_workers(args), **_places(args))


def _teacher(args: argparse.Namespace, words: list[str]) -> None:
    from akd import single
    from akd.summary import shown_path

    _something(args, _TEACHER_FLAGS, words)
    places = {name: getattr(args, name) for name in ("output", "ray_address", "storage")}
    found = single.teach(_experiment(args, words), workers=_workers(args), **places)
    if not found.found:
        print(f"kept in {shown_path(found.folder)}; searches with the same settings find it")


def _teacher_cache(args: argparse.Namespace, words: list[str]) -> None:
    from akd import single

    _something(args, list(_FLAGS), words)
    experiment, passes, workers = _experiment(args, words), _workers(args, "--passes"), _workers(args)
    places = {name: getattr(args, name) for name in ("output", "ray_address", "storage")}
    single.cache(experiment, passes=passes, workers=workers, **places)


def _list(what: str, name: str | None) -> None:
    from rich.table import Table

    from akd.terminal import standard_console

    if what == "methods":
        from akd import listing

        listing.show(standard_console(), name)
        return
    if name is not None:
        raise ExperimentError("is one argument too many: only methods have pages of their own", key=name)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    if what == "models":
        from akd.models import create_model, list_models, parameter_count

        table.add_column("model")
        table.add_column("parameters (100 classes)", justify="right")
        for name in list_models():
            table.add_row(name, f"{parameter_count(create_model(name, 100)):,}")
        table.caption = "also module:factory, torchvision:name, timm:name"
        table.caption_justify = "left"
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


def _prepare_data(args: argparse.Namespace) -> Path:
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


def _run(arguments: Sequence[str]) -> None:
    parser, verbs = _parser()
    if list(arguments[:2]) == ["teacher", "cache"]:
        arguments = ["teacher-cache", *arguments[2:]]
    if list(arguments[:2]) == ["data", "score"]:
        from akd import score

        score.run(arguments[2:], _Parser)
        return
    plain, dotted = _apart(arguments)
    args, strange = parser.parse_known_args(plain)
    words = strange + dotted
    if args.verb is None and words:
        raise ExperimentError("unknown argument; see 'akd --help'", key=words[0])
    if args.verb is None:
        parser.print_help()
        return
    _given(args, plain)
    if strange:
        raise unknown(args.verb, strange[0], plain, verbs)
    if args.verb == "search":
        _search(args, words)
        return
    if args.verb == "train":
        _train(args, words)
        return
    if args.verb == "teacher":
        _teacher(args, words)
        return
    if args.verb == "teacher-cache":
        _teacher_cache(args, words)
        return
    if words:
        raise ExperimentError(f"akd {args.verb} takes no keys of an experiment", key=words[0].partition("=")[0])
    if args.verb == "list":
        _list(args.what, args.name)
    elif args.verb == "evaluate":
        evaluate_verb.run(args)
    elif args.verb == "report":
        report.run(args)
    elif args.verb == "replay":
        replay_verb.run(args)
    elif args.verb == "data":
        print(_prepare_data(args))
    else:
        from akd.ui import serve

        uri = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        serve(Path(args.output), args.study, args.port, uri, lambda line: print(line, flush=True))


def _terminated(number: int, frame: Any) -> NoReturn:
    """SIGTERM, which batch systems and `timeout` send, or SIGHUP of a lost connection: as Ctrl-C, so that everything
    ends in order and the way on is printed."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, 1 (failed), 2 (a mistake of the user's) or 130 (interrupted)."""
    # A network of the user's own lies beside the experiment. At the end of the path: a file that is called like a
    # library must not stand in for it. Ray's workers get the driver's current folder by themselves.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(signal.SIGHUP, _terminated)
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
        return 0
    except ExperimentError as error:
        print(f"akd: {error}", file=sys.stderr)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"akd: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except AkdError as error:
        print(f"akd: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"akd: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
