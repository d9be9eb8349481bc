"""``akd evaluate`` on the command line: its arguments, its table, its file."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd.errors import ExperimentError

if TYPE_CHECKING:
    from rich.table import Table

    from akd.data.dataset import DataConfig, Dataset
    from akd.evaluation import Asked, Network

DESCRIPTION = (
    "Networks on the test images, side by side: accuracy, calibration, accuracy under noise and, if asked for, "
    "agreement with a teacher and transfer to another data set. A network is a name of 'akd list models', "
    "module:factory, torchvision:name or timm:name, with its weights, or a folder: of a student akd handed over, of a "
    "run, of a teacher. --weights, --mean and --std belong to the --model before them. --run takes the student of a "
    "run in MLflow, by the run's id."
)
_OWN = ("weights", "mean", "std")
#: Flags that may be given several times.
REPEATED = ("--model", "--run", *(f"--{name}" for name in _OWN))


class _Own(argparse.Action):
    """Keeps ``--model``, ``--run`` and what belongs to them in the order they were typed."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        typed = list(getattr(namespace, "typed", None) or [])
        namespace.typed = typed + [(self.dest, v) for v in (values if isinstance(values, list) else [values])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("--data", required=True, metavar="NAME", help="data set (akd list data)")
    add("--data-dir", metavar="DIR", help="default $AKD_DATA_DIR or ~/.cache/akd/data")
    add("--image-size", metavar="N", help="imagefolder: side of the images; default that of a folder's student, or 64")
    add("--model", action=_Own, nargs="+", metavar="NAME", help="networks, or folders of them, to compare")
    add(
        "--run",
        action=_Own,
        nargs="+",
        metavar="ID",
        help="runs in MLflow (trial, final, ...) whose students to compare",
    )
    add("--weights", action=_Own, metavar="FILE", help="safetensors, or a file of torch.save")
    add("--mean", action=_Own, metavar="M,M,M", help="the network's normalisation; default the data set's")
    add("--std", action=_Own, metavar="S,S,S", help="goes with --mean")
    add("--teacher", metavar="NAME", help="network or folder to compare answers with; of a study: its teacher")
    add("--teacher-weights", metavar="FILE", help="its weights")
    add("--teacher-mean", metavar="M,M,M", help="its normalisation")
    add("--teacher-std", metavar="S,S,S", help="goes with --teacher-mean")
    add(
        "--noise", metavar="S,S", help="strengths of Gaussian noise, of pixels 0..1, or none; default 0.02,0.05,0.1,0.2"
    )
    add("--seed", default="0", metavar="N", help="of the noise; default 0")
    add("--transfer", metavar="NAME", help="data set a linear classifier on the frozen embedding is fitted to")
    add("--transfer-dir", metavar="DIR", help="its files; default as for --data-dir")
    add("--json", metavar="FILE", help="write what was found")
    add("--log", action="store_true", help="log what was found in MLflow")
    add(
        "--tracking-uri",
        metavar="URI",
        help="MLflow, for --run and --log; default $MLFLOW_TRACKING_URI, else DIR/mlflow.db; alone it logs",
    )
    add("--output", metavar="DIR", help="for --run and --log: folder of MLflow's default store (default: runs)")


@dataclass
class Report:
    """What was found.

    Attributes:
        data: name of the data set.
        titles: of the networks, unlike each other.
        networks: as they were evaluated.
        scores: of each network: metric -> value.
        settings: what else decides the numbers: teacher, noise, seed, transfer.
    """

    data: str
    titles: list[str]
    networks: list[Network]
    scores: list[dict[str, float]]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as ``--json`` writes them."""
        rows = zip(self.titles, self.networks, self.scores, strict=True)
        networks = [{"name": t, "model": n.name, "metrics": s} for t, n, s in rows]
        return {"data": self.data, "split": "test", **self.settings, "networks": networks}


def numbers(flag: str, text: str | None) -> tuple[float, ...]:
    """``0.5,0.4,0.4``, with brackets or without, as numbers."""
    try:
        found = tuple(float(v) for v in text.strip("[]() ").split(",")) if text else ()
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ExperimentError("must be numbers with commas between", key=flag, value=text)
    return found


def asked_networks(typed: Sequence[tuple[str, str]]) -> list[Asked]:
    """Networks in the order they were typed, each with the weights and the normalisation behind it."""
    from akd.evaluation import Asked

    models = [value for name, value in typed if name == "model"]
    if not models:
        raise ExperimentError("is missing: a network, or the folder of a student", key="--model")
    sets: list[dict[str, str]] = [{} for _ in models]
    at = 0 if len(models) == 1 else -1  # one network may come after its weights
    for name, value in typed:
        if name == "model":
            at = 0 if len(models) == 1 else at + 1
        elif at < 0:
            raise ExperimentError("belongs after the --model it is of", key=f"--{name}", value=value)
        elif name in sets[at]:
            raise ExperimentError(f"is given twice for --model {models[at]}", key=f"--{name}", value=value)
        else:
            sets[at][name] = value
    return [
        Asked(
            model,
            Path(own["weights"]).expanduser() if "weights" in own else None,
            numbers("--mean", own.get("mean")),
            numbers("--std", own.get("std")),
        )
        for model, own in zip(models, sets, strict=True)
    ]


def _teacher(args: argparse.Namespace) -> Asked | None:
    from akd.evaluation import Asked, teacher_of

    if args.teacher is None:
        for name in _OWN:
            if (value := getattr(args, f"teacher_{name}")) is not None:
                raise ExperimentError("has no effect without --teacher", key=f"--teacher-{name}", value=value)
        return None
    return Asked(
        teacher_of(args.teacher),
        Path(args.teacher_weights).expanduser() if args.teacher_weights else None,
        numbers("--teacher-mean", args.teacher_mean),
        numbers("--teacher-std", args.teacher_std),
        flags=("--teacher", "--teacher-weights", "--teacher-mean", "--teacher-std"),
    )


def _noise(text: str | None) -> tuple[float, ...]:
    from akd.evaluation import NOISE

    if text is None:
        return NOISE
    found = () if text.strip() == "none" else numbers("--noise", text)
    if any(not 0 < v <= 1 for v in found) or len(set(found)) < len(found):
        raise ExperimentError("must be numbers > 0 and <= 1, each once, or none", key="--noise", value=text)
    return found


def _whole(flag: str, text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise ExperimentError(f"must be a whole number >= {low}", key=flag, value=text)
    return value


def _data(args: argparse.Namespace) -> DataConfig:
    from akd.data.dataset import DataConfig
    from akd.settings import Origins, build
    from akd.yamlfile import parse_value

    values = {"name": args.data, "dir": args.data_dir}
    if args.image_size is not None:
        values["image_size"] = parse_value(args.image_size)
    return build(DataConfig, values, prefix="data", origins=Origins({"data.image_size": "--image-size"}))


def evaluate(args: argparse.Namespace) -> Report:
    """:func:`_evaluate`, with the students of runs in MLflow at hand for as long as it takes."""
    runs = [value for name, value in getattr(args, "typed", None) or [] if name == "run"]
    if not runs:
        return _evaluate(args)
    from akd import logged_run

    if twice := next((run for run in runs if runs.count(run) > 1), None):
        raise ExperimentError("is given twice", key="--run", value=twice)
    _data(args)  # a mistake in it is told before anything is fetched
    with tempfile.TemporaryDirectory(prefix="akd-runs-") as fetched:
        found = {r: logged_run.find(r, args.tracking_uri, Path(args.output or "runs"), "--run") for r in runs}
        at = {run: str(one.student(Path(fetched) / run)) for run, one in found.items()}
        own = argparse.Namespace(**vars(args))
        own.typed = [("model", at[value]) if name == "run" else (name, value) for name, value in args.typed]
        report = _evaluate(own)
        called = {place: run for run, place in at.items()}
        for i, network in enumerate(report.networks):
            if run := called.get(network.name):
                report.titles[i] = f"{found[run].name} ({run[:8]})"
                report.networks[i] = replace(network, name=f"runs:/{run}/student", folder=None)
    return report


def _evaluate(args: argparse.Namespace) -> Report:
    """Open everything that was named, then measure: a mistake is told before the work."""
    import torch

    from akd import probe
    from akd.data.dataset import load
    from akd.evaluation import evaluate_networks, open_network, sized_for

    asked, teacher_asked = asked_networks(getattr(args, "typed", None) or []), _teacher(args)
    noise, seed = _noise(args.noise), _whole("--seed", args.seed, 0)
    if args.transfer_dir and not args.transfer:
        raise ExperimentError("has no effect without --transfer", key="--transfer-dir", value=args.transfer_dir)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dataset = load(sized_for(_data(args), asked))
    networks = [open_network(a, dataset, device) for a in asked]
    teacher = None if teacher_asked is None else open_network(teacher_asked, dataset, device)
    settings: dict[str, Any] = {"noise": list(noise), "noise_seed": seed} if noise else {}
    settings |= {"teacher": teacher.name} if teacher else {}
    other = None
    if args.transfer:
        other = _other(args, dataset.size[0])
        settings["transfer"] = args.transfer
        for network in networks:
            probe.check(other, network)
    scores = evaluate_networks(dataset, networks, teacher=teacher, noise=noise, seed=seed, device=device)
    if other is not None:
        for network, score in zip(networks, scores, strict=True):
            found = probe.transfer(network, other, device)
            score |= {"transfer_top1": found["top1"], "transfer_penalty": found["penalty"]}
    return Report(args.data, titles([a.model for a in asked]), networks, scores, settings)


def _other(args: argparse.Namespace, size: int) -> Dataset:
    """The data of ``--transfer``; mistakes in it name that flag."""
    from akd.data.dataset import DataConfig, load, readers

    readers.get(args.transfer, key="--transfer")
    try:
        return load(DataConfig(name=args.transfer, dir=args.transfer_dir, image_size=size))
    except ExperimentError as error:
        problem = error.problem.replace("--data-dir", "--transfer-dir")
        raise ExperimentError(problem, key="--transfer", value=args.transfer) from None


def titles(models: Sequence[str]) -> list[str]:
    """Short names for columns: of folders the shortest endings that tell them apart."""

    def ending(model: str, length: int) -> str:
        parts = [p for p in Path(model).parts if p not in ("student", "/", "..", ".")] if Path(model).is_dir() else []
        return "/".join(parts[-length:]) if parts else model

    found: list[str] = []
    for i, model in enumerate(models):
        others = [m for k, m in enumerate(models) if k != i]
        length = next((n for n in range(1, 9) if ending(model, n) not in {ending(m, n) for m in others}), 0)
        found.append(ending(model, length) if length else f"{ending(model, 1)} ({i + 1})")
    return found


#: Columns: of a number with its unit, and of a title before it is folded; and what is left between them.
_NUMBER, _TITLE, _GAP = 8, 24, 2


def tables(report: Report, width: int) -> list[Table]:
    """A column for each network, a row for each metric; further tables for what ``width`` does not hold."""
    from rich.table import Table

    head = f"{report.data}, {int(report.scores[0]['images']):,} test images"
    label = max(len(head), *(len(words) for _, words, _ in _rows(report))) + _GAP
    widest = max(_NUMBER, min(_TITLE, width - label - _GAP))
    widths = [min(widest, max(_NUMBER, len(title))) for title in report.titles]
    blocks: list[list[int]] = [[]]
    for at, own in enumerate(widths):
        taken = label + sum(widths[k] + _GAP for k in blocks[-1])
        if blocks[-1] and taken + own + _GAP > width:
            blocks.append([])
        blocks[-1].append(at)
    found = []
    for block in blocks:
        shown = Table(box=None, padding=(0, _GAP, 0, 0), header_style="bold")
        shown.add_column(head, no_wrap=True)
        for at in block:
            shown.add_column(report.titles[at], justify="right", overflow="fold", width=widths[at])
        for name, words, per_cent in _rows(report):
            values = [report.scores[at][name] for at in block]
            shown.add_row(words, *(f"{100 * v:.2f} %" if per_cent else f"{v:.4f}" for v in values))
        found.append(shown)
    return found


def _rows(report: Report) -> list[tuple[str, str, bool]]:
    """Metric, what to call it, and whether it is a share."""
    words: Mapping[str, tuple[str, bool]] = {
        "top1": ("top-1 accuracy", True),
        "top5": ("top-5 accuracy", True),
        "ece": ("calibration error (ECE)", True),
        "nll": ("cross-entropy (NLL)", False),
        "teacher_agreement": ("same first class as teacher", True),
        "teacher_kl": ("KL from teacher", False),
        "transfer_top1": (f"linear probe on {report.settings.get('transfer')}", True),
    }
    rows = []
    for name in report.scores[0]:
        if name.startswith("noise_"):
            rows.append((name, f"top-1, noise {name.split('_')[1]}", True))
        elif name in words:
            rows.append((name, *words[name]))
    return rows


def run(args: argparse.Namespace) -> None:
    """The verb."""
    runs = any(name == "run" for name, _ in getattr(args, "typed", None) or [])
    logs = args.log or (args.tracking_uri is not None and not runs)
    if args.output is not None and not logs and not runs:
        raise ExperimentError("has no effect without --log or --run", key="--output", value=args.output)
    file = Path(args.json).expanduser() if args.json else None
    if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
        problem = "is a folder" if file.is_dir() else "there is no such folder to write into"
        raise ExperimentError(problem, key="--json", value=args.json)
    report = evaluate(args)
    from akd.terminal import standard_console

    console = standard_console()
    for at, block in enumerate(tables(report, console.width)):
        if at:
            console.print()
        console.print(block)
    if file is not None:
        from akd import checkpoint

        checkpoint.write_json(file, report.to_dict())
    if logs:
        from akd.evaluation_log import log

        for line in log(report, args.tracking_uri, Path(args.output or "runs")):
            console.print(line, soft_wrap=True)
