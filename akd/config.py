"""The experiment: one frozen object that says everything a run depends on.

Values come from the dataclasses' defaults, then a YAML file, then ``--dotted.override`` flags. Unknown keys, values
out of range and settings without effect are errors that name the place.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from akd import extras, objectives, yamlfile
from akd.data.dataset import DataConfig
from akd.data.dataset import readers as data_readers
from akd.errors import ExperimentError, near
from akd.method_section import read as read_method
from akd.methods import MethodConfig, hosts, views
from akd.models.registry import networks
from akd.objectives import ConstraintsConfig
from akd.settings import Origins, build, byte_count, check_value, mapping, setting


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation of one network.

    Defaults are the CIFAR-100 protocol of the literature, but that the cosine ends where a rung does, and that averaged
    weights are scored: so a rung ranks best what full training will (``tests/benchmarks/fidelity.py``).
    """

    epochs: int = setting(60, low=1, help="epochs of a run: what rungs, schedules and reports count in")
    epoch_factor: int = setting(
        1, low=1, high=100, help="passes over the training split in an epoch: stretches the run and its whole schedule"
    )
    batch_size: int = setting(64, low=1, help="images per step, whatever the number of workers")
    micro_batch: int | None = setting(
        None, low=1, help="most images of one forward pass of a worker; a larger share is added up part by part"
    )
    sync_batchnorm: bool = setting(True, help="batch statistics over all workers of a run")
    lr: float = setting(0.05, above=0, help="highest learning rate of SGD")
    momentum: float = setting(0.9, low=0, below=1)
    nesterov: bool = setting(False, help="Nesterov momentum")
    weight_decay: float = setting(5e-4, low=0)
    schedule: str = setting(
        "restarts",
        choices=["cosine", "restarts", "step", "constant"],
        help="cosine per step, of the whole run or (restarts) up to each rung; step per epoch",
    )
    restarts: tuple[int, ...] = setting(
        (),
        low=1,
        when=("schedule", "restarts"),
        help="lr is high again after these epochs; default the rungs of the first half",
    )
    decay_epochs: tuple[int, ...] = setting((), low=1, when=("schedule", "step"), help="lr falls after these epochs")
    decay_factor: float = setting(0.1, above=0, below=1, when=("schedule", "step"))
    label_smoothing: float = setting(0.0, low=0, below=1)
    ema: float | str = setting(
        "auto",
        low=0,
        below=1,
        word="auto",
        help="decay of averaged weights, which are then the scored ones; auto: a tenth of all steps behind; 0 is off",
    )
    grad_clip: float | None = setting(None, above=0, help="largest norm of the whole gradient")
    precision: str = setting("auto", choices=["auto", "float32", "bfloat16", "float64"], help="auto: bfloat16 on GPU")
    threads: int | None = setting(None, low=1, help="CPU threads of a step; default the trial's CPUs")
    compile: str = setting(
        "off",
        choices=["off", "on"],
        help="torch.compile of the student, on GPUs with CUDA graphs; a minute at the start",
    )
    seed: int = setting(0, low=0, help="initialisation, order and everything drawn in a step")
    plan_seed: int = setting(0, low=0, help="augmentation; one per study")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The teacher's outputs on disk, shared by the runs of a search. See akd/teacher/README.md."""

    use: str = setting(
        "auto", choices=["auto", "on", "off"], help="auto: for what several runs share; on: for single runs too"
    )
    dtype: str = setting(
        "float16", choices=["float16", "float32"], when=("use", ("auto", "on")), help="what outputs are kept in"
    )
    epochs: int | None = setting(
        None, low=1, help="augment the training images in so many ways, which then repeat; the order never does"
    )
    budget: str = setting(
        "20 GB", when=("use", ("auto", "on")), help="disk space on each node; what was not used for longest goes first"
    )
    dir: str | None = setting(
        None, when=("use", ("auto", "on")), help="folder, on a local disk; default cache in the output folder"
    )

    @property
    def bytes(self) -> int:
        """The budget as a number."""
        return byte_count(self.budget)


#: Of a teacher, which no rung stops: its defaults that are others than a student's.
_TAUGHT_BY: dict[str, Any] = {"schedule": "cosine", "ema": 0.0}


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The network that is distilled; trained by akd and kept for the next search when no weights are given."""

    name: str = setting("wrn_16_2", help="a registered model, module:factory, torchvision:name or timm:name")
    weights: str | None = setting(None, help="file of the teacher's weights; it is then not trained")
    mean: tuple[float, ...] = setting((), help="normalisation the weights were trained with; default the data set's")
    std: tuple[float, ...] = setting((), above=0, help="goes with mean, in units of the 0..1 range")
    taps: tuple[str, ...] = setting((), help="modules whose outputs are the maps; default found by themselves")
    train: TrainConfig = field(default_factory=lambda: TrainConfig(**_TAUGHT_BY))
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The network that is handed over."""

    name: str = setting("resnet8", help="a registered model, module:factory, torchvision:name or timm:name")
    taps: tuple[str, ...] = setting((), help="modules whose outputs are the maps; default found by themselves")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How the space is searched."""

    trials: int = setting(20, low=1, help="configurations to try; controls are not counted")
    sampler: str = setting(
        "tpe",
        choices=["tpe", "gp", "cmaes", "nsga2", "qmc", "random", "grid"],
        help="what suggests configurations; tpe, random, qmc and grid know conditions",
    )
    scheduler: str = setting(
        "asha", choices=["asha", "median", "none"], help="what stops trials at rungs: ASHA, or the median of the others"
    )
    grace: int | None = setting(
        None, low=1, when=("scheduler", ("asha", "median")), help="first rung; default max(1, epochs/9)"
    )
    eta: int = setting(
        3,
        low=2,
        when=("scheduler", ("asha", "median")),
        help="each rung has eta times the epochs of the one before; with asha one of eta goes on",
    )
    seed: int = setting(0, low=0, help="seed of the sampler and of every trial")
    concurrent: int | None = setting(None, low=1, help="trials at a time; default what the machine holds")
    workers_per_trial: int = setting(1, low=1, help="several share a trial's batches, as a Ray Train job")
    cpus_per_trial: float | None = setting(None, above=0, help="default 1 a worker, or a GPU's share of the CPUs")
    gpus_per_trial: float | str | None = setting(
        None, low=0, word="auto", help="default 1 a worker where there are GPUs; auto: what a trial's memory needs"
    )
    final_workers: int | None = setting(
        None, low=1, help="workers of teacher and final runs; default all GPUs, or all CPUs where there is no GPU"
    )
    time_budget: float | None = setting(None, above=0, help="seconds after which no trial starts or passes a rung")
    champion_seeds: int | None = setting(None, low=1, help="runs of winner and controls; default 2 for digits, else 3")
    log_checkpoints: str = setting(
        "best",
        choices=["all", "best", "champion", "none"],
        help="what MLflow keeps: every epoch, each trial's student, the champion's only, nothing",
    )
    device_hours: float | None = setting(
        None, above=0, help="device-hours of all runs: no trial starts or passes a rung that would go over them"
    )
    cost: float | None = setting(None, above=0, help="the same as money: device-hours times price")
    price: float | None = setting(None, above=0, help="of a device-hour")
    objectives: tuple[str, ...] = setting(
        ("accuracy",), choices=objectives.NAMES, help="accuracy, and what the student should cost little of"
    )
    constraints: ConstraintsConfig | None = None
    confirm: int = setting(
        3, low=0, help="so many of the best finished trials run again before one wins; 0 or 1 turns it off"
    )
    confirm_seeds: int | None = setting(None, low=1, help="seeds they run again from; default 2 for digits, else 3")
    system_metrics: bool = setting(True, help="log how busy the steering machine is in the study's own MLflow run")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything a run depends on, resolved."""

    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    space: Mapping[str, Any] = field(default_factory=dict)
    origins: Origins = field(default_factory=Origins, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested values: what the experiment file with every key spelled out would hold."""
        plain = _plain(self)
        del plain["origins"]
        return plain

    def to_yaml(self) -> str:
        """:meth:`to_dict` as an experiment file."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def with_values(self, values: Mapping[str, Any]) -> Experiment:
        """The experiment with dotted keys set, checked as if they stood in the file.

        Raises:
            ExperimentError: a key is unknown for the resulting method, or a value is out of range.
        """
        tree = self.to_dict()
        if values.get("student.name", self.student.name) != self.student.name:  # taps are those of one network
            tree["student"] = {"name": values["student.name"]}
        method = self.method
        members = {"host": method.host_name, "views": method.views_name, "augment": method.augment_name}
        for part, mine in members.items():
            name = values.get(f"method.{part}.name")
            if name is not None and name != mine:  # another member starts from its own defaults
                tree["method"][part] = {"name": name}
        extras.restart(tree["method"]["extra"], self.method.extra, values)
        for key, value in values.items():
            _put(tree, key, value, self.origins)
            tree = _expand(tree, self.origins)
        return resolve(tree, self.origins, strict=False)

    @property
    def needs_teacher(self) -> bool:
        """True if the method as configured asks the teacher for anything."""
        return bool(self.method.needs)


_SHORT = {"data": "name", "teacher": "name", "student": "name"}
_NAMED = {k: f"{k}.name" for k in _SHORT} | {
    "method": "method.host.name",
    "method.host": "method.host.name",
    "method.views": "method.views.name",
    "method.augment": "method.augment.name",
}
_SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "teacher": TeacherConfig,
    "student": StudentConfig,
    "method": MethodConfig,
    "train": TrainConfig,
    "search": SearchConfig,
    "space": dict,
}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _mapping(value: Any, key: str, origins: Origins) -> dict[str, Any]:
    return mapping(value, key, origins, or_name=key in _NAMED)


def _expand(tree: dict[str, Any], origins: Origins) -> dict[str, Any]:
    """Shorthands spelled out: ``data: cifar100``, ``method: kd``, ``method: angular_kd``, ``method: {host: kd}``."""
    for key, name in _SHORT.items():
        if isinstance(tree.get(key), str):
            tree[key] = {name: tree[key]}
    if isinstance(tree.get("method"), str):
        name = tree["method"]
        tree["method"] = {"views": name} if name not in hosts and name in views else {"host": name}
    method = tree.get("method")
    if isinstance(method, Mapping):
        named = {k: {"name": method[k]} for k in ("host", "views", "augment") if isinstance(method.get(k), str)}
        tree["method"] = {**method, **named}
        if "extra" in method:
            tree["method"]["extra"] = extras.expand(method["extra"], origins)
    return tree


def _put(tree: dict[str, Any], key: str, value: Any, origins: Origins) -> None:
    """Set a dotted key. A name given where a section stands chooses another member and keeps what fits it."""
    parts = key.split(".")
    node = tree
    for depth, part in enumerate(parts[:-1]):
        if part == "space":  # keys of the space are dotted themselves
            if node.get("space") is None:  # missing, or a key with nothing under it
                node["space"] = {}
            space = _mapping(node["space"], "space", origins)
            node["space"] = {**space, ".".join(parts[depth + 1 :]): value}
            return
        if node.get(part) is None:  # missing, or a section with nothing under it
            node[part] = {}
        child = node[part]
        if not isinstance(child, dict):
            above = ".".join(parts[: depth + 1])
            raise ExperimentError(f"{above} holds a value, not keys", key=key, value=value, where=origins.of(key))
        node = child
    last = parts[-1]
    if isinstance(value, str) and isinstance(node.get(last), dict):
        if key in _SHORT:
            node[last]["name"] = value
            return
        if key in ("method", "method.host", "method.views", "method.augment"):
            node[last] = value
            _expand(tree, origins)
            return
    node[last] = value


def resolve(tree: Mapping[str, Any], origins: Origins | None = None, *, strict: bool = True) -> Experiment:
    """An experiment from a plain nested mapping.

    Args:
        tree: as read from a file, shorthands allowed.
        origins: where each key was written, for messages.
        strict: refuse settings that have no effect.

    Raises:
        ExperimentError: see :mod:`akd.settings`.
    """
    origins = Origins() if origins is None else origins
    tree = _expand(copy.deepcopy(dict(tree)), origins)
    for key in tree:
        if key not in _SECTIONS:
            hint = near(key, _SECTIONS) or f", allowed are {', '.join(_SECTIONS)}"
            raise ExperimentError(f"unknown key{hint}", key=str(key), where=origins.of(str(key)))
    parts: dict[str, Any] = {}
    for key in ("data", "student", "train"):
        values = _mapping(tree.get(key, {}), key, origins)
        parts[key] = build(_SECTIONS[key], values, prefix=key, origins=origins, strict=strict)
    parts["search"] = _search(_mapping(tree.get("search", {}), "search", origins), origins, strict)
    teacher = _mapping(tree.get("teacher", {}), "teacher", origins)
    teacher_train = build(
        TrainConfig,
        _TAUGHT_BY | _mapping(teacher.pop("train", {}), "teacher.train", origins),
        prefix="teacher.train",
        origins=origins,
        strict=strict,
    )
    ready = {"train": teacher_train, "cache": _cache(teacher.pop("cache", {}), origins, strict)}
    parts["teacher"] = build(TeacherConfig, teacher, prefix="teacher", origins=origins, strict=strict, ready=ready)
    parts["method"] = read_method(
        _mapping(tree.get("method", {"host": {"name": "kd"}}), "method", origins), origins, strict
    )
    space = _mapping(tree.get("space", {}) or {}, "space", origins)
    _check_names(parts, origins)
    if parts["search"].cost is not None and parts["search"].price is None:
        problem = "needs the price of a device-hour: search.price, or --price X"
        raise ExperimentError(problem, key="search.cost", value=parts["search"].cost, where=origins.of("search.cost"))
    if strict and parts["search"].confirm < 2 and parts["search"].confirm_seeds is not None:
        key, search = "search.confirm_seeds", parts["search"]
        problem = f"has no effect where search.confirm is {search.confirm}: nothing is run again"
        raise ExperimentError(problem, key=key, value=search.confirm_seeds, where=origins.of(key))
    return Experiment(**parts, space=space, origins=origins)


def _search(values: dict[str, Any], origins: Origins, strict: bool) -> SearchConfig:
    ready = {"constraints": objectives.constraints(values.pop("constraints", None), origins, strict)}
    if "objectives" in values:
        values["objectives"] = objectives.listed(values["objectives"])
    built = build(SearchConfig, values, prefix="search", origins=origins, strict=strict, ready=ready)
    objectives.check(built, origins)
    return built


def _cache(given: Any, origins: Origins, strict: bool) -> CacheConfig:
    prefix = "teacher.cache"
    values = {"use": given} if isinstance(given, (bool, str)) else _mapping(given, prefix, origins)
    if isinstance(values.get("use"), bool):  # YAML reads a bare on and off as truth values
        values["use"] = "on" if values["use"] else "off"
    found = build(CacheConfig, values, prefix=prefix, origins=origins, strict=strict)
    try:
        byte_count(found.budget)
    except ValueError as error:
        key = f"{prefix}.budget"
        raise ExperimentError(str(error), key=key, value=found.budget, where=origins.of(key)) from None
    return found


def _check_names(parts: Mapping[str, Any], origins: Origins) -> None:
    for key, registry in (("data", data_readers), ("teacher", networks), ("student", networks)):
        registry.get(parts[key].name, key=key, where=origins.of(f"{key}.name"))
    _check_teacher(parts["teacher"], origins)
    for key in ("teacher.train", "train"):
        train: TrainConfig = parts["train"] if key == "train" else parts["teacher"].train
        if train.schedule == "step" and not train.decay_epochs:
            raise ExperimentError(
                "a step schedule needs decay_epochs, for example [150, 180, 210]",
                key=f"{key}.decay_epochs",
                where=origins.of(f"{key}.schedule"),
            )
        if train.schedule == "restarts" and train.restarts != tuple(
            sorted({e for e in train.restarts if e < train.epochs})
        ):
            raise ExperimentError(
                f"must be epochs below {key}.epochs ({train.epochs}), each after the one before it",
                key=f"{key}.restarts",
                value=list(train.restarts),
                where=origins.of(f"{key}.restarts"),
            )
        if train.nesterov and not train.momentum:
            raise ExperimentError(
                "has no effect without momentum", key=f"{key}.nesterov", value=True, where=origins.of(f"{key}.nesterov")
            )
    if parts["train"].micro_batch and parts["method"].relational:
        raise whole_batches(parts["method"], parts["train"], origins)


def whole_batches(method: MethodConfig, train: TrainConfig, origins: Origins) -> ExperimentError:
    """The mistake of giving a method that compares images only parts of a batch."""
    return ExperimentError(
        f"cannot be combined with {method.title}, which compares the images of a whole batch",
        key="train.micro_batch",
        value=train.micro_batch,
        where=origins.of("train.micro_batch"),
    )


def _check_teacher(teacher: TeacherConfig, origins: Origins) -> None:
    for key, other in (("mean", "std"), ("std", "mean")):
        value, where = getattr(teacher, key), origins.of(f"teacher.{key}")
        if value and not teacher.weights:
            problem = "has no effect without teacher.weights: a teacher that is trained here sees the student's images"
            raise ExperimentError(problem, key=f"teacher.{key}", value=list(value), where=where)
        if len(value) != len(getattr(teacher, other)):
            problem = f"needs teacher.{other} with as many values"
            raise ExperimentError(problem, key=f"teacher.{key}", value=list(value), where=where)


def load(
    file: Path | None,
    overrides: Mapping[str, Any],
    flags: Mapping[str, str] | None = None,
    *,
    strict: bool = True,
) -> Experiment:
    """An experiment from a file and overrides.

    Args:
        file: an experiment file; ``None`` starts from the defaults.
        overrides: dotted key -> value, applied in order.
        flags: dotted key -> the flag as typed, for messages; default ``--<key>``.
        strict: see :func:`resolve`; a resolved experiment that akd wrote itself spells out every key.

    Raises:
        ExperimentError: see :func:`resolve`.
    """
    tree, origins = yamlfile.read(file) if file else ({}, Origins())
    tree = _expand(tree, origins)
    for key, value in overrides.items():
        if isinstance(value, Mapping) or key not in _SHORT:  # what the file says below it is replaced
            for below in [other for other in origins if other.startswith(f"{key}.")]:
                del origins[below]
        origins[key] = (flags or {}).get(key, f"--{key}")
        if key in _NAMED:  # a name given for a section: messages are about the name
            origins[_NAMED[key]] = origins[key]
        if isinstance(tree.get("space"), Mapping) and key in tree["space"]:
            raise ExperimentError(
                f"is searched by {origins.of('space.' + key)}; to fix it there say --space.{key} {value}",
                key=key,
                value=value,
                where=origins[key],
            )
        _put(tree, key, value, origins)
        tree = _expand(tree, origins)  # so that --data cifar100 --data.subset 3000 goes on from the name
    return resolve(tree, origins, strict=strict)


__all__ = [
    "DataConfig",
    "Experiment",
    "SearchConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "check_value",
    "load",
    "resolve",
]
