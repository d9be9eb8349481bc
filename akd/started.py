"""What a study was started with, beside the experiment that people read: a search cannot go on as another one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from akd import checkpoint
from akd import config as configuration
from akd.config import Experiment
from akd.errors import ExperimentError
from akd.flags import FLAGS
from akd.summary import program, shown_path

_FILE = ".experiment.yaml"
#: What an experiment may leave open: filled in from the machine a study was started on.
_OPEN = ("data.dir", "search.champion_seeds", "search.confirm_seeds", "train.threads", "teacher.train.threads")


def note(folder: Path) -> Path:
    """The file that holds it."""
    return folder / _FILE


def keep(folder: Path, experiment: Experiment) -> None:
    """Note what the study in ``folder`` is started with."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(note(folder), experiment.to_yaml())


def compare(folder: Path, experiment: Experiment, given: Experiment, *, beside: bool = False) -> None:
    """Refuse to go on as another experiment than the study was started with.

    Args:
        experiment: complete, as the study would go on.
        given: the same before anything was filled in.
        beside: it was given beside the study, which could go on without it.

    Raises:
        ExperimentError: they differ; the first differences with both values. A study of before these notes is not
            compared.
    """
    if not (folder / _FILE).is_file():
        return
    before = _flat(configuration.load(folder / _FILE, {}, strict=False).to_dict())
    now, asked = _flat(experiment.to_dict()), _flat(given.to_dict())
    keys = [k for k in {**before, **now} if before.get(k) != now.get(k)]
    keys = [k for k in keys if not (k in _OPEN and asked.get(k) is None)]
    if not keys:
        return
    keys.sort(key=lambda k: not k.startswith("space"))
    shown = [f"{k}: {before.get(k, '(not there)')} -> {now.get(k, '(not there)')}" for k in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    origins = given.origins
    where = origins.get(keys[0]) or origins.get(keys[0].removesuffix(".name"))
    ways = ["put it back"] if where or not beside else []
    if beside and keys == ["search.trials"] and (more := now[keys[0]] - before[keys[0]]) > 0:
        ways = [f"put it back and give --add-trials {more}"]
    if beside:
        flags = [] if where and where.startswith("--") else _flags({k: before.get(k) for k in keys})
        ways += [f"give {' '.join(flags)} too"] if flags else []
        place = "" if folder.parent == Path("runs").absolute() else f" --output {shown_path(folder.parent)}"
        what = "file" if origins.file else "experiment"
        ways += [f"go on without the {what}: {program()} search --resume {folder.name}{place}"]
    raise ExperimentError(
        f"was started with another experiment ({', '.join(shown)}{more}); {', or '.join(ways)}, or start a new study",
        key="resume",
        value=folder.name,
        where=where or (origins.file if beside else origins.of(keys[0]) or origins.file),
    )


def _flags(values: Mapping[str, Any], most: int = 3) -> list[str]:
    """The flags that set these keys; none if a key is not there or of the space, or if they are many."""
    values = dict(values)
    seeds = ("search.seed", "train.seed", "train.plan_seed")
    found = []
    if len({values.get(k) for k in seeds}) == 1 and values.get(seeds[0]) is not None:
        found = [f"--seed {values[seeds[0]]}"]
        values = {k: v for k, v in values.items() if k not in seeds}
    short = {key: flag for flag, (key, _, _) in FLAGS.items()}
    for section in [key.removesuffix("name") for key in values if re.fullmatch(r"method\.[^.]+\.name", key)]:
        values = {k: v for k, v in values.items() if k == f"{section}name" or not k.startswith(section)}
    for key, value in values.items():
        if value is None or key.startswith("space"):
            return []
        key = key.removesuffix(".name")
        flag = short.get(key) or f"--{key}"
        found.append(f"{flag} {shlex.quote(yaml.safe_dump(value, default_flow_style=True).partition(chr(10))[0])}")
    return found if len(found) <= most else []


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(leaves(tree, prefix))


def leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The keys below ``key`` that hold values, dotted, with their values."""
    if isinstance(value, Mapping) and value:
        for name, inside in value.items():
            yield from leaves(inside, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
