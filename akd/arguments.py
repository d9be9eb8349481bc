"""What verbs that take an experiment share: its file, its flags, its dotted keys, and where things lie and run."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from akd.errors import ExperimentError
from akd.flags import FLAGS

if TYPE_CHECKING:
    from akd.config import Experiment

#: At the end of the help of a verb that takes an experiment.
DOTTED = "Any key of an experiment can be set as --dotted.key VALUE, for example --train.lr 0.1."


def add_experiment(parser: argparse.ArgumentParser, name: str, flags: Sequence[str]) -> None:
    """The experiment file, and flags that stand for keys of it."""
    parser.add_argument(
        "space", metavar=name, nargs="?", help="experiment file or name of a shipped space (akd list spaces)"
    )
    for flag in flags:
        key, metavar, text = FLAGS[flag]
        parser.add_argument(flag, dest=key, metavar=metavar, help=text)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where things are kept and where they run."""
    parser.add_argument("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    parser.add_argument(
        "--tracking-uri", metavar="URI", help="MLflow; default $MLFLOW_TRACKING_URI, else DIR/mlflow.db"
    )
    parser.add_argument(
        "--tracking-later", action="store_true", help="start even if MLflow does not answer; it is filled in later"
    )
    add_machines(parser)


def add_machines(parser: argparse.ArgumentParser) -> None:
    """Where things run, and what the machines share."""
    parser.add_argument("--ray-address", metavar="ADDRESS", help="default $RAY_ADDRESS, else a private local Ray")
    parser.add_argument(
        "--storage", metavar="ADDRESS", help="what several nodes share: s3://BUCKET/FOLDER; default $AKD_STORAGE"
    )


def apart(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
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


def experiment(args: argparse.Namespace, words: list[str]) -> Experiment:
    """The experiment that a file, flags and dotted keys give together."""
    from akd import spaces
    from akd.config import load

    return load(spaces.find(args.space) if args.space else None, *overrides(args, words))


def overrides(args: argparse.Namespace, words: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What flags and dotted keys set: key -> value, and key -> the flag as typed."""
    from akd.yamlfile import parse_value

    flags = {f: key for f, (key, _, _) in FLAGS.items()}
    values: dict[str, Any] = {}
    typed: dict[str, str] = {}
    for flag, key in flags.items():
        text = getattr(args, key, None)
        if text is not None:
            values[key] = _seconds(text) if key == "search.time_budget" else parse_value(text, flag)
            # 'akd compare' calls the seeds of final runs so.
            typed[key] = "--seeds" if args.verb == "compare" and flag == "--champion-seeds" else flag
    if getattr(args, "seed", None) is not None:
        for key in ("search.seed", "train.seed", "train.plan_seed"):
            values[key], typed[key] = parse_value(args.seed, "--seed"), "--seed"
    for key, text in _overrides(words).items():
        if key in values:
            raise ExperimentError(f"is given twice, as {typed[key]} too", key=f"--{key}")
        values[key] = parse_value(text, f"--{key}")
    return values, typed


def places(args: argparse.Namespace) -> dict[str, Any]:
    """Where things are kept and where they run, as a search and a run take it."""
    names = ("name", "output", "tracking_uri", "tracking_later", "ray_address", "storage")
    return {name: getattr(args, name) for name in names}


def workers(args: argparse.Namespace, flag: str = "--workers") -> int | None:
    """The whole number a flag gives; ``None`` if it was not given."""
    from akd.yamlfile import parse_value

    text = getattr(args, flag[2:].replace("-", "_"))
    if text is None:
        return None
    value = parse_value(text, flag)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ExperimentError("must be a whole number of at least 1", key=flag, value=value)
    return value


def something(args: argparse.Namespace, flags: Sequence[str], words: list[str]) -> None:
    """Refuse a command that says nothing of what to train."""
    if not args.space and not words and all(getattr(args, FLAGS[f][0]) is None for f in flags):
        from akd import spaces

        names = ", ".join(spaces.names())
        raise ExperimentError(f"name an experiment: a file, or one of {names}; or set one with {', '.join(flags)}")
