"""The command line: ``akd search``, ``akd train``, ``akd teacher``, ``akd evaluate``, ``akd data``, ...

A verb is a file of its own: what it takes (``add_arguments``) and what it does (``run``).
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from akd import (
    __version__,
    data_verb,
    evaluate_verb,
    export_verb,
    list_verb,
    search_verb,
    teacher_verb,
    train_verb,
    ui_verb,
)
from akd.arguments import DOTTED, apart
from akd.errors import AkdError, ExperimentError, Interrupted, near
from akd.flags import FLAGS as _FLAGS
from akd.flags import unknown
from akd.report import command as report


class _Parser(argparse.ArgumentParser):
    """Answers a mistake with one line."""

    def error(self, message: str) -> NoReturn:
        if choice := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += near(choice[1], re.findall(r"'?([\w-]+)'?", choice[2]))
        for action in self._actions:  # an argument that is missing, with what it may be
            if action.choices and action.dest in message.partition("required: ")[2].split(", "):
                message = f"{message.partition(action.dest)[0]}one of {', '.join(action.choices)}"
        raise ExperimentError(f"{message}; see '{self.prog} --help'")


#: Verbs that take the keys of an experiment, and those that do not.
_WITH_KEYS = {
    "search": search_verb.run,
    "train": train_verb.run,
    "teacher": teacher_verb.run,
    "teacher-cache": teacher_verb.run_cache,
}
_PLAIN = {
    "evaluate": evaluate_verb.run,
    "export": export_verb.run,
    "report": report.run,
    "data": data_verb.run,
    "list": list_verb.run,
    "ui": ui_verb.run,
}


def _parser() -> tuple[_Parser, Mapping[str, argparse.ArgumentParser]]:
    """The program's parser, and that of each verb."""
    parser = _Parser(prog="akd", description="Find the best way to distil a teacher network into a student.")
    parser.add_argument("--version", action="version", version=f"akd {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def add(name: str, arguments_of: Callable[[argparse.ArgumentParser], None], **words: Any) -> None:
        arguments_of(verbs.add_parser(name, allow_abbrev=False, **words))

    add(
        "search",
        search_verb.add_arguments,
        help="search a space, train the winner",
        description=search_verb.DESCRIPTION,
        epilog=DOTTED,
    )
    add(
        "train",
        train_verb.add_arguments,
        help="train one student, without a search",
        description=train_verb.DESCRIPTION,
        epilog=DOTTED,
    )
    add(
        "teacher",
        teacher_verb.add_arguments,
        help="train an experiment's teacher and keep it",
        description=teacher_verb.DESCRIPTION,
        epilog=f"{DOTTED} 'akd teacher cache' keeps its outputs ahead of a search: akd teacher cache --help",
    )
    add(
        "teacher-cache",
        teacher_verb.add_cache_arguments,
        prog="akd teacher cache",
        description=teacher_verb.CACHE_DESCRIPTION,
        epilog=DOTTED,
    )
    add(
        "evaluate",
        evaluate_verb.add_arguments,
        help="measure networks on the test images",
        description=evaluate_verb.DESCRIPTION,
    )
    add(
        "export",
        export_verb.add_arguments,
        help="take a student away: weights, torch.export, ONNX, model card",
        description=export_verb.DESCRIPTION,
    )
    add(
        "report",
        report.add_arguments,
        help="a study as a page or a table; check its records",
        description=report.DESCRIPTION,
    )
    add(
        "data",
        data_verb.add_arguments,
        help="fetch a data set, or decode a folder of pictures; rank augmentations",
        epilog="The flags above are of prepare; those of score: akd data score --help",
    )
    add("list", list_verb.add_arguments, help="models, methods, data, spaces")
    add("ui", ui_verb.add_arguments, help="open MLflow on loopback")
    return parser, verbs.choices


def _given(args: argparse.Namespace, plain: Sequence[str]) -> None:
    """Refuse an empty value, which would stand for a default nobody asked for, and a flag given twice."""
    flags_given = [word.partition("=")[0] for word in plain if word.startswith("--")]
    repeated = evaluate_verb.REPEATED if args.verb == "evaluate" else ()
    for flag in flags_given:
        if flags_given.count(flag) > 1 and flag not in repeated:
            raise ExperimentError("is given twice", key=flag)
    positional = {"data": "name", "ui": "study", "report": "study", "export": "student"}.get(args.verb, "space")
    for name, value in vars(args).items():
        if isinstance(value, str) and not value.strip() and name != positional:
            flags = {key: flag for flag, (key, _, _) in _FLAGS.items()}
            raise ExperimentError("needs a value", key=flags.get(name, f"--{name.replace('_', '-')}"))


def _run(arguments: Sequence[str]) -> None:
    parser, verbs = _parser()
    if list(arguments[:2]) == ["teacher", "cache"]:
        arguments = ["teacher-cache", *arguments[2:]]
    if list(arguments[:2]) == ["data", "score"]:
        from akd import score

        score.run(arguments[2:], _Parser)
        return
    plain, dotted = apart(arguments)
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
    if args.verb in _WITH_KEYS:
        _WITH_KEYS[args.verb](args, words)
        return
    if words:
        raise ExperimentError(f"akd {args.verb} takes no keys of an experiment", key=words[0].partition("=")[0])
    _PLAIN[args.verb](args)


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
