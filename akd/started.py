"""What a study was started with, beside the experiment that people read: a search cannot go on as another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from akd import checkpoint
from akd import config as configuration
from akd.config import Experiment
from akd.errors import ExperimentError

_FILE = ".experiment.yaml"
#: What an experiment may leave open: filled in from the machine a study was started on.
_OPEN = ("data.dir", "search.champion_seeds", "train.threads", "teacher.train.threads")


def keep(folder: Path, experiment: Experiment) -> None:
    """Note what the study in ``folder`` is started with."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(folder / _FILE, experiment.to_yaml())


def compare(folder: Path, experiment: Experiment, given: Experiment) -> None:
    """Refuse to go on as another experiment than the study was started with.

    Args:
        experiment: complete, as the study would go on.
        given: the same before anything was filled in.

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
    raise ExperimentError(
        f"was started with another experiment ({', '.join(shown)}{more}); put it back, or start a new study",
        key="resume",
        value=folder.name,
        where=given.origins.of(keys[0]) or given.origins.file,
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    return dict(_leaves(tree, prefix))


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inside in value.items():
            yield from _leaves(inside, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
