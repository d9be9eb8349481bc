"""The model card of a student: ``README.md`` with the front matter that model hubs read.

It says what the weights are, how they were made, what was measured and how sure that is, what must not be concluded
from it, and how to use the files beside it. Nothing of the machine goes in: a card is made to be handed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from akd import __version__, checkpoint
from akd.data.dataset import readers
from akd.errors import many
from akd.folder import PRUNED
from akd.handed import Handed, load_handed
from akd.models import parameter_count
from akd.origin import Origin, origin_of
from akd.programs import INPUT, OUTPUT, Parity, operations
from akd.provenance import sha256, versions
from akd.result import CONTROL_WORDS
from akd.summary import plus_minus, verdict
from akd.usage import ways

#: Public data sets, whose names say something to others and whose pictures may be handed on.
PUBLIC = ("digits", "cifar10", "cifar100")
_MEGA = 1e6


@dataclass(frozen=True)
class Measured:
    """What was measured of the student itself.

    Attributes:
        parameters: trainable values.
        operations: of one image's forward pass, as :func:`akd.programs.operations`.
        scores: on the test images, as :meth:`akd.metrics.Scores.read`; empty if they were not at hand or too many.
        parity: of the programs.
        times: (program, images) -> seconds.
        hardware: that the times were measured on.
        images: what parity was checked on, in words.
        example: what ``example.npz`` holds, in words.
    """

    parameters: int
    operations: int
    scores: Mapping[str, float] = field(default_factory=dict)
    parity: Sequence[Parity] = ()
    times: Mapping[tuple[str, int], float] = field(default_factory=dict)
    hardware: str = ""
    images: str = ""
    example: str = ""


def measured(handed: Handed, config: Mapping[str, Any]) -> Measured:
    """What takes one image to know."""
    image = torch.zeros(1, config["in_channels"], *config["image_size"])
    return Measured(parameter_count(handed), operations(handed, image))


def write(folder: Path) -> None:
    """Put a card beside a student that was handed over.

    Raises:
        ExperimentError: the folder is damaged.
    """
    origin = origin_of(folder)
    files = {name: folder / name for name in ("student.safetensors", "config.json")}
    checkpoint.write_text(folder / "README.md", text(origin, measured(load_handed(folder), origin.config), files))


def text(origin: Origin, found: Measured, files: Mapping[str, Path]) -> str:
    """The card.

    Args:
        files: name -> where it lies now, of all that is beside the card.
    """
    parts = [
        _front(origin),
        *_opening(origin),
        *_results(origin, found),
        *_making(origin),
        *_input(origin, files),
        *ways(origin.config, files, found.example),
        *_limits(origin),
        *_files(found, files),
        *_again(origin),
    ]
    return "\n".join(parts).rstrip() + "\n"


# -- what it is ----------------------------------------------------------------------------------------


def _front(origin: Origin) -> str:
    """Front matter. Whose the weights are is not akd's to say: the licence is left to whoever hands them on."""
    config, data = origin.config, origin.data
    method = config.get("method") or {}
    tags = ["knowledge-distillation", "akd"] if origin.taught else ["akd"]
    names = [(method.get(part) or {}).get("name") for part in ("host", "views")]
    tags += [str(name) for name in names if name not in (None, "none")]
    head: dict[str, Any] = {
        "license": "unknown",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": tags,
        **({"datasets": [data]} if data in PUBLIC else {}),
        "metrics": ["accuracy"],
    }
    if (accuracy := origin.test_accuracy) is not None:
        metric = {"type": "accuracy", "value": round(accuracy, 4), "name": "test accuracy of these weights"}
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": data or "unknown", "type": data or "unknown", "split": "test"},
            "metrics": [metric],
        }
        head["model-index"] = [{"name": str(config["model"]), "results": [result]}]
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n"


def _opening(origin: Origin) -> list[str]:
    model, data, teacher = origin.config["model"], origin.data, origin.teacher
    learned = f", distilled from {_code(teacher)}" if origin.taught and teacher else ""
    where = f" on {_code(data)}" if data else ""
    name = origin.run.name if origin.run else ""
    title = f"# {_code(model)}{learned}{where}"
    what = {
        "champion": "the champion of a search for the best way to distil: the winning settings, trained anew",
        "final": f"a final run of such a search ({name})",
        "control": f"a fixed run beside a search ({name})",
        "trial": f"one configuration that a search tried ({name})",
        "single": "one training run, without a search",
        "teacher": "a teacher, trained on labels alone",
    }.get(origin.kind, "handed over without a record of its training")
    return [
        title,
        "",
        f"An image classifier of {len(origin.classes)} classes, written by akd {__version__}. It is {what}.",
        "",
    ]


# -- what was measured -----------------------------------------------------------------------------------


def _results(origin: Origin, found: Measured) -> list[str]:
    lines = ["## Results", ""]
    result, accuracy, config = origin.result, origin.test_accuracy, origin.config
    if result is not None:
        test = result.champion["test"]
        seeds = ", ".join(test["accuracy"])
        lines += [
            f"Test accuracy over {many(len(test['accuracy']), 'seed')} ({seeds}); each run met the test images once, "
            "after its last epoch:",
            "",
            "| | test accuracy | gain of the champion (95 % interval) |",
            "|---|---|---|",
            f"| champion | {plus_minus(test)} | |",
        ]
        for name, gain in result.gain.items():
            control = plus_minus(result.controls[name]["test"])
            lines.append(f"| {CONTROL_WORDS[name]} | {control} | {gain.mean:+.2f} points{gain.interval()} |")
        lines += ["", verdict(result), ""]
    if accuracy is not None:
        which = f" (seed {config['seed']}, the first, not the best)" if origin.study and "seed" in config else ""
        lines += [f"These weights: **{100 * accuracy:.2f} %** of the test images{which}.", ""]
    elif (held := config.get("validation_accuracy")) is not None:
        lines += [f"These weights: {100 * held:.2f} % of the validation images, which a search selects by.", ""]
    if found.scores:
        s = found.scores
        again = "again " if accuracy is not None else ""
        top5 = f", top-5 {100 * s['top5']:.2f} %" if "top5" in s else ""
        lines += [
            f"Measured {again}at export, on {int(s['images']):,} test images: top-1 {100 * s['top1']:.2f} %{top5}, "
            f"cross-entropy {s['nll']:.4f}, calibration error {100 * s['ece']:.2f} % (ECE, 15 bins).",
            "",
        ]
    lines += [
        f"{found.parameters:,} parameters; {found.operations / 2 / _MEGA:,.1f} million multiply-adds for an image.",
        "",
    ]
    return lines


# -- how it was made ---------------------------------------------------------------------------------------


def _making(origin: Origin) -> list[str]:
    e = origin.experiment
    if e is None:
        return []
    lines = ["## Training", ""]
    if origin.taught:
        accuracy = origin.result.teacher_accuracy if origin.result else None
        known = f", {100 * accuracy:.2f} % of the validation images" if accuracy is not None else ""
        lines.append(f"* teacher: {_code(e.teacher.name)}{known}")
    subset = f" of a subset of {e.data.subset:,}" if e.data.subset else ""
    final = origin.run is not None and origin.run.kind == "final"
    joined = "training and validation images" if final else "training images without the validation split"
    size = readers.info(e.data.name).get("images", "")
    lines.append(f"* data: {_code(e.data.name)}{f' ({size})' if size else ''}; the {joined}{subset}")
    lines.append(f"* method: {e.method.title}")
    lines += [f"  * `{key}`: {value}" for key, value in _settings(e.to_dict()["method"])]
    train = e.train
    passes = f" of {train.epoch_factor} passes" if train.epoch_factor > 1 else ""
    done = int(origin.epochs[-1]["epoch"]) if origin.epochs else train.epochs
    stopped = f" of {train.epochs} planned" if done < train.epochs else ""
    lines.append(
        f"* optimisation: {many(done, 'epoch')}{stopped}{passes}, batches of {train.batch_size}, SGD with lr "
        f"{train.lr:.4g} ({train.schedule}), momentum {train.momentum:g}{', Nesterov' if train.nesterov else ''}, "
        f"weight decay {train.weight_decay:g}"
        + (f", averaged weights (decay {train.ema})" if train.ema else "")
        + (f", label smoothing {train.label_smoothing:g}" if train.label_smoothing else "")
    )
    lines.append(f"* seeds: {train.seed} (initialisation, order), {train.plan_seed} (augmentation)")
    seconds = sum(entry.get("time/epoch_s", 0.0) * entry.get("time/devices", 1) for entry in origin.epochs)
    if seconds:
        lines.append(f"* time of training: {_duration(seconds)} of one device")
    if origin.result is not None:
        r = origin.result
        lines.append(
            f"* search: {many(sum(r.trials.values()), 'trial')}, {r.device_hours * 60:.1f} device-minutes, "
            f"{_duration(r.wall_clock_s)}; trial {r.best_trial['number']} won by validation accuracy alone"
        )
    return [*lines, ""]


def _settings(method: Mapping[str, Any], prefix: str = "method") -> list[tuple[str, Any]]:
    """A method's settings with dotted keys; what is off is left out."""
    found: list[tuple[str, Any]] = []
    for key, value in method.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            found += _settings(value, name)
        elif value is not None and value is not False and value != []:
            found.append((name, f"{value:.4g}" if isinstance(value, float) else value))
    return found


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


# -- how to use it -----------------------------------------------------------------------------------------


def _input(origin: Origin, files: Iterable[str]) -> list[str]:
    config, own, classes = origin.config, origin.config["normalise"], origin.classes
    channels, (height, width) = config["in_channels"], config["image_size"]
    colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    shown = ", ".join(_code(c) for c in classes[:100])
    more = f" and {len(classes) - 100} more: `config.json` has all of them" if len(classes) > 100 else ""
    lines = ["## Input and output", ""]
    if {"student.pt2", "student.onnx"} & set(files):
        lines += [
            f"* input of the programs: `{INPUT}`, float32 [N, {channels}, {height}, {width}], {colour} pixels of 0..1, "
            "any N >= 1. The normalisation is inside: do not normalise.",
            f"* their output: `{OUTPUT}`, float32 [N, {len(classes)}]; a softmax gives probabilities.",
        ]
    lines += [
        f"* input of the bare weights (`akd.load_student`): {colour} images of {height}x{width}, (pixel - mean) / std, "
        f"pixels of 0..1, mean {own['mean']} and std {own['std']} per channel.",
        f"* classes, in the order of the logits: {shown}{more}",
    ]
    if origin.experiment is not None and origin.experiment.data.name == "imagefolder":
        stored = origin.experiment.data.stored_size or (round(height * 8 / 7) if height > 64 else height)
        lines.append(
            f"* pictures are met as in training's evaluation: shorter side resized to {stored}, the central square of "
            f"{stored}, of that the central {height} pixels"
        )
    return [*lines, ""]


def _limits(origin: Origin) -> list[str]:
    e, config = origin.experiment, origin.config
    height, width = config["image_size"]
    lines = [
        "## Intended use and limits",
        "",
        f"* It tells apart the {len(origin.classes)} classes above in pictures like those it was trained on, of "
        f"{height}x{width} pixels; it has an answer for every picture, also for one of none of these classes.",
        "* Nothing was measured under a shift of the data, on groups of people, or against attacks.",
        "* The licence of weights depends on the data and the teacher they come from; the front matter says `unknown` "
        "until you fill it in.",
    ]
    run, study = origin.run, origin.study
    tags = {**(study.tags if study else {}), **(run.tags if run else {})}
    if "teacher_saw_validation" in tags:
        lines.append(
            "* The teacher's weights were given from elsewhere: it may have seen the validation images that settings "
            "were selected by, and the test images too."
        )
    if e is not None and e.data.subset:
        lines.append(
            f"* Only {e.data.subset:,} images of the training file were used: numbers are not those of all its images."
        )
    if origin.rounded:
        lines.append("* The teacher's outputs were kept in half precision (float16), which rounds what it taught.")
    if run is not None and run.state == PRUNED:
        lines.append("* Its training was stopped early by the search's scheduler: it is not trained to its end.")
    if origin.kind in ("trial", "control", "single"):
        lines.append(
            "* The accuracy its training gave is that of validation images"
            + (
                ", by which configurations were selected: of test images expect less."
                if origin.kind == "trial"
                else "."
            )
        )
    if origin.result is not None and len(origin.result.champion["test"]["accuracy"]) < 2:
        lines.append("* There is one seed only: how far another one would be from it is not known.")
    return [*lines, ""]


# -- the files and the way back -----------------------------------------------------------------------------


def _files(found: Measured, files: Mapping[str, Path]) -> list[str]:
    lines = ["## Files", "", "| file | bytes | SHA-256 |", "|---|---|---|"]
    lines += [f"| `{name}` | {path.stat().st_size:,} | `{sha256(path)}` |" for name, path in files.items()]
    if found.parity:
        lines += [
            "",
            f"Programs against the student in torch, on {found.images}:",
            "",
            "| program | images | largest difference of logits | tolerance | same first class |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {p.program} | {p.batch} | {p.difference:.1e} | {p.tolerance:.0e} | {p.agreeing} of {p.batch} |"
            for p in found.parity
        ]
    if found.times:
        lines += [
            "",
            f"Median time of a forward pass on {found.hardware}:",
            "",
            "| program | images | ms |",
            "|---|---|---|",
        ]
        lines += [f"| {name} | {n} | {1000 * seconds:.2f} |" for (name, n), seconds in found.times.items()]
    return [*lines, ""]


def _again(origin: Origin) -> list[str]:
    run, study = origin.run, origin.study
    made_by = (study.tags.get("versions") if study else None) or (run.tags.get("versions") if run else None)
    lines = ["## How to reproduce", ""]
    if study is not None:
        lines += ["`akd search experiment.yaml --name again`, with the `experiment.yaml` of the study.", ""]
    elif run is not None and run.kind == "single":
        lines += ["`akd train experiment.yaml --name again`, with the `experiment.yaml` of the run.", ""]
    facts = {
        "student.safetensors (SHA-256)": origin.digest,
        "experiment.yaml (SHA-256)": origin.experiment_digest,
        "teacher (hash of all its weights depend on)": study.tags.get("teacher_hash") if study else None,
        "trained with": made_by,
        "card written with": versions(),
    }
    return lines + [f"* {key}: `{value}`" for key, value in facts.items() if value]


def _code(name: object) -> str:
    """A name that Markdown leaves alone."""
    return f"`{str(name).replace('`', '')}`"
