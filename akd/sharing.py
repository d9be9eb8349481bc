"""What the runs of a search share of the teacher: which of them the cache serves, and what it keeps for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akd.config import Experiment
from akd.data.policies import augments
from akd.errors import ExperimentError
from akd.prepare import Prepared, check_output
from akd.space import Space, combinations, variants
from akd.teacher.served import live_because

#: Combinations of augmentation settings that are counted; a space with more hardly uses any of them twice.
MOST = 1000


@dataclass(frozen=True)
class Sharing:
    """The teacher's part in a study.

    Attributes:
        keep: needs of all the runs that the cache serves.
        live: methods that ask the network itself in every step -> why.
        views: a resolved experiment for every set of images the cache may hold outputs for.
        keys: of these, for one augmentation seed; :data:`MOST` may be fewer than there are.
    """

    keep: frozenset[str]
    live: dict[str, str]
    views: tuple[Experiment, ...]
    keys: int

    def words(self) -> list[str]:
        """For the terminal: a line on what is kept, and one for each reason why something is not."""
        lines = []
        if self.keep:
            more = "at least " if len(self.views) >= MOST else ""
            under = f"{more}{self.keys} key{'s' * (self.keys > 1)}"
            lines.append(f"the teacher runs once per image and view; kept are {', '.join(sorted(self.keep))} ({under})")
        reasons: dict[str, list[str]] = {}
        for method, why in self.live.items():
            reasons.setdefault(why, []).append(method)
        return lines + [f"the teacher runs in every step of {', '.join(m)}: {why}" for why, m in reasons.items()]


def cache_folder(experiment: Experiment, output: Path, storage: str | None = None) -> Path:
    """Where the teacher's outputs are kept: on the node that reads them.

    Args:
        output: folder of all studies.
        storage: that nodes share; other nodes need not have the output folder.

    Returns:
        The folder; one that begins with ``~`` is in the home of whoever reads it.
    """
    if given := experiment.teacher.cache.dir:
        return Path(given).expanduser().absolute()
    if storage is None:
        return output.absolute() / "cache"
    # Each node's own: homes may have different names.
    return Path("~/.cache/akd/outputs") / hashlib.sha256(storage.encode()).hexdigest()[:16]


def check_cache(experiment: Experiment, output: Path) -> None:
    """Refuse a folder of one's own for the teacher's outputs that cannot be written to, or that a file should not name.

    An experiment file may come from somebody else: what it names lies below the output folder. A flag is the user's
    own word, and what a study that goes on was started with has been checked.

    Args:
        output: folder of all studies.
    """
    given = experiment.teacher.cache.dir
    if not given:
        return
    folder, key = cache_folder(experiment, output), "teacher.cache.dir"
    where, file, inside = experiment.origins.of(key), experiment.origins.file, output.resolve()
    foreign = where and not where.startswith("--") and not (file and Path(file).resolve().is_relative_to(inside))
    if foreign and not folder.resolve().is_relative_to(inside):
        problem = f"leads out of the output folder {output}; a place elsewhere must be given as --{key}"
        raise ExperimentError(problem, key=key, value=given, where=where)
    check_output(folder, key)


def sharing(ready: Prepared) -> Sharing:
    """The teacher's part in a study that has passed its checks."""
    keep: set[str] = set()
    live: dict[str, str] = {}
    runs = [*variants(ready.space, ready.experiment)] or [ready.experiment]
    for experiment in [*ready.controls.values(), *runs]:
        if not experiment.needs_teacher:
            continue
        why = live_because(experiment)
        if why is None:
            keep |= experiment.method.needs
        else:
            live[experiment.method.title] = why
    views: list[Experiment] = []
    seen: set[str] = set()
    for experiment in [*ready.controls.values(), *_augmentations(ready.space, ready.experiment)]:
        names = images_of(experiment)
        if experiment.needs_teacher and live_because(experiment) is None and not names <= seen:
            seen |= names
            views.append(experiment)
    return Sharing(frozenset(keep), live, tuple(views), len(seen))


def images_of(experiment: Experiment) -> set[str]:
    """A name for each view of an image in a run's batches."""
    augment = experiment.method.augment
    if augment is None:
        return {"standard"}
    policy: Any = augments.get(augment.name)
    drawn = json.dumps(policy.pixels(augment), sort_keys=True)
    names = {f"{drawn} {k}" for k in range(getattr(augment, "pool", 1))}
    return names if augment.form == "only" else names | {"standard"}


def _augmentations(space: Space, experiment: Experiment) -> Iterator[Experiment]:
    """The experiment under every combination of searched augmentation settings, at most :data:`MOST`."""
    found = 0
    for values in combinations(space, "method.augment"):
        try:
            yield experiment.with_values(values)
        except ExperimentError:  # two ends of ranges that never meet
            continue
        found += 1
        if found == MOST:
            return
