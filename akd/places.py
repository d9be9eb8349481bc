"""What fits where: trials and workers on the nodes of a Ray, those that are there and those that may come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from akd.config import SearchConfig
from akd.errors import ExperimentError, many, reason

#: Fewer images than this keep no worker busy; the teacher and the final runs take no more workers than that allows.
_LEAST_SHARE = 16


@dataclass(frozen=True)
class Team:
    """The workers of one run.

    Attributes:
        size: how many.
        cpus, gpus: of each.
    """

    size: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Resources:
    """What one trial gets and how many fit.

    Attributes:
        cpus, gpus: of one trial, all its workers together.
        concurrent: trials at a time.
        workers: of one trial.
    """

    cpus: float
    gpus: float
    concurrent: int
    workers: int = 1

    @property
    def team(self) -> Team | None:
        """The workers of a trial that has several."""
        return Team(self.workers, self.cpus / self.workers, self.gpus / self.workers) if self.workers > 1 else None


def share(search: SearchConfig, nodes: list[dict[str, float]]) -> Resources:
    """What a trial gets on these nodes, and how many trials fit at once.

    Args:
        nodes: the ``CPU`` and ``GPU`` of each node.

    Raises:
        ExperimentError: a trial, or one of its workers, fits on no node; fewer places than workers.
    """
    workers = search.workers_per_trial
    any_gpu = any(n.get("GPU", 0) for n in nodes)
    asked = None if search.gpus_per_trial == "auto" else search.gpus_per_trial  # auto: one, until it is measured
    # Of each worker.
    gpus = float(asked) / workers if asked is not None else float(any_gpu)
    # Two workers of one run cannot share a GPU: their collectives would wait for each other.
    if workers > 1 and gpus % 1:
        raise ExperimentError(
            f"must be a whole number for each of {workers} workers",
            key="search.gpus_per_trial",
            value=search.gpus_per_trial,
        )
    if gpus > 1 and gpus % 1:
        problem, value = "must be a part of one GPU or a whole number", search.gpus_per_trial
        raise ExperimentError(problem, key="search.gpus_per_trial", value=value)
    # The least share of CPUs that goes with these GPUs on a node that has them: then every GPU is used.
    shares = [n.get("CPU", 0) * gpus // n["GPU"] for n in nodes if gpus and n.get("GPU", 0) >= gpus]
    cpus = search.cpus_per_trial / workers if search.cpus_per_trial else max(1.0, min(shares, default=1.0))
    places = [_places(n, cpus, gpus) for n in nodes]
    if sum(places) < 1:
        most = {k: max((n.get(k, 0) for n in nodes), default=0) for k in ("CPU", "GPU")}
        key, value, have = ("cpus_per_trial", cpus, most["CPU"])
        if gpus and gpus > most["GPU"]:
            key, value, have = ("gpus_per_trial", gpus, most["GPU"])
        total = value * workers
        each = f"; {value:g} for each of {workers} workers" if workers > 1 else ""
        raise ExperimentError(
            f"fits on no node; the largest has {many(have, key[:3].upper())}{each}",
            key=f"search.{key}",
            value=int(total) if total == int(total) else total,
        )
    if sum(places) < workers:
        what = f"{many(gpus, 'GPU')} and {many(cpus, 'CPU')}" if gpus else many(cpus, "CPU")
        raise ExperimentError(
            f"must be at most {sum(places)} here, with {what} for each worker",
            key="search.workers_per_trial",
            value=workers,
        )
    room = sum(places) // workers  # workers of one trial may sit on several nodes
    return Resources(cpus * workers, gpus * workers, min(room, search.concurrent or room), workers)


def _places(node: dict[str, float], cpus: float, gpus: float) -> int:
    counts = [int(node.get("CPU", 0) / cpus + 1e-9)]
    if gpus:
        each, whole = int(1 / gpus + 1e-9), int(node.get("GPU", 0))  # a part of a GPU is of one of them
        counts.append(whole * each if gpus < 1 else int(whole / gpus + 1e-9))
    return min(counts)


def everything(search: SearchConfig, nodes: list[dict[str, float]], batch_size: int) -> Team:
    """The workers of a run that has the whole cluster to itself: one for each GPU, or an even share of the CPUs each.

    Args:
        batch_size: of the run; a worker gets 16 images at least.

    Raises:
        ExperimentError: ``search.final_workers`` is more than there is place for, or than a batch has images.
    """
    gpus = [int(n.get("GPU", 0)) for n in nodes]
    if sum(gpus):
        cpus = min(n.get("CPU", 0) // int(n["GPU"]) for n in nodes if int(n.get("GPU", 0)))
        places, one = sum(gpus), Team(1, max(1.0, cpus), 1.0)
    else:
        places, one = sum(int(n.get("CPU", 0)) for n in nodes), Team(1, 1.0, 0.0)
    size = search.final_workers or max(1, min(places, batch_size // _LEAST_SHARE))
    if size > places:
        raise ExperimentError(
            f"must be at most {places} here, one for each {'GPU' if sum(gpus) else 'CPU'}",
            key="search.final_workers",
            value=size,
        )
    if size > batch_size:
        problem = f"must be at most {batch_size}, an image of each batch for each"
        raise ExperimentError(problem, key="search.final_workers", value=size)
    if sum(gpus):
        return replace(one, size=size)
    # As many CPUs for each as leave places for all: nodes may be uneven.
    cpus = next(c for c in range(places // size, 0, -1) if sum(_places(n, c, 0) for n in nodes) >= size)
    return Team(size, float(cpus), 0.0)


def check_shared(nodes: Sequence[Mapping[str, float]], shared: str | None) -> None:
    """Refuse several nodes that share nothing.

    Args:
        nodes: those of a Ray, with those it may start.
        shared: storage that they share.
    """
    if len(nodes) > 1 and shared is None:
        problem = f"has {len(nodes)} nodes; what they share must be named: --storage s3://BUCKET/FOLDER"
        raise ExperimentError(problem, key="ray-address")


def coming(path: Path, workers: int) -> list[dict[str, float]]:
    """Resources of the nodes that Ray may yet start.

    Args:
        path: the file it starts them by, as it lies on a head.
        workers: nodes beside the head that are there.

    Raises:
        ExperimentError: the file cannot be read.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        types, most = found["available_node_types"], int(found.get("max_workers", 0))
        head = found.get("head_node_type")
        rest = {name: int(t.get("max_workers", most)) for name, t in types.items() if name != head}
        rows = [dict(types[name].get("resources") or {}) for name, count in rest.items() for _ in range(count)]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        problem = f"names no cluster file: {reason(error)}"
        raise ExperimentError(problem, key="AKD_CLUSTER_FILE", value=str(path)) from None
    # Which types are there already is not told apart: as many fewer may come.
    return [row for row in rows if row][: max(0, most - workers)]
