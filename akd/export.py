"""A student taken away: weights, programs, an example and a model card in a folder that needs nothing around it.

Everything is made and checked beside its place. A program whose logits are not the student's is not handed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from akd import __version__, card, checkpoint
from akd.data.augment import normalise
from akd.data.dataset import Dataset, load
from akd.data.loader import gather, held_out_images
from akd.errors import AkdError, ExperimentError, near
from akd.folder import COMPLETE, PRUNED, history
from akd.handed import Handed, load_handed
from akd.metrics import Scores
from akd.origin import Origin, origin_of, read_run
from akd.programs import EXTRA, FILES, PROGRAMS, Parity, ProgramError, Run, hardware, latencies, missing, parity, trace
from akd.provenance import sha256
from akd.teacher.keep import load_student

#: Numbers of images that programs are compared on: one, many, and one that divides nothing.
BATCHES = (1, 64, 37)
#: All that an export can hold.
_OWN = (*FILES.values(), "config.json", "example.npz", "README.md")
#: Images of the example, and the most operations that measuring on all test images may take (a minute on a core or so).
_EXAMPLES, _AFFORDABLE = 8, 2e12


@dataclass
class Exported:
    """What was written.

    Attributes:
        folder: where.
        origin: of what.
        measured: of the student and its programs.
        files: names, the card last.
        failed: why a format is not there, one line each: it was asked for and could not be made.
    """

    folder: Path
    origin: Origin
    measured: card.Measured
    files: list[str]
    failed: list[str] = field(default_factory=list)


# -- which student -------------------------------------------------------------------------------------


def find(name: str, output: Path) -> Path:
    """The folder of a student: of a study's champion, a run's, or a folder with one.

    Args:
        name: of a study or run in ``output``, or a path.

    Raises:
        ExperimentError: there is none, or it is not trained to its end.
    """
    if not name.strip():
        raise ExperimentError("needs the name of a study or run, or a folder", key="student", value=name)
    known = {p.parent.name: p.parent for p in output.glob("*/run.json")}
    folder = known.get(name) or Path(name).expanduser().absolute()
    try:
        there = folder.is_dir()
    except OSError:  # a name longer than the system takes
        there = False
    if not there:
        hint = near(name, known) or (f", there are {', '.join(sorted(known))}" if known else "")
        problem = f"there is no study or run of this name in {output}{hint}, and no such folder"
        raise ExperimentError(problem, key="student", value=name)
    if (folder / "config.json").is_file() or (folder / "student.safetensors").is_file():
        run = read_run(folder.parent) if folder.name == "student" else None
    else:
        run = read_run(folder)
        if run is None:
            problem = "holds no student (student.safetensors with config.json), no run and no study"
            raise ExperimentError(problem, key="student", value=name)
        part = "champion" if run.kind == "study" else "student"
        if not (folder / part).is_dir():
            problem = (
                f"the study has no champion yet, it is {run.state}" if run.kind == "study" else "has no student yet"
            )
            first = next(iter(sorted(folder.glob("trials/*/student"))), None)
            problem += f"; one of its runs can be named, like {first.parent}" if first else ""
            raise ExperimentError(problem, key="student", value=name)
        folder, run = folder / part, None if run.kind == "study" else run
    if run is not None and run.state not in (COMPLETE, PRUNED):
        problem = f"is not trained to its end: it is {run.state} after {len(history(folder.parent))} epochs"
        raise ExperimentError(problem, key="student", value=name)
    return folder


# -- where to ------------------------------------------------------------------------------------------


def check_target(target: Path, digest: str) -> None:
    """Refuse a place that holds anything but an earlier export of the same student.

    Args:
        digest: SHA-256 of the weights.
    """

    def refuse(problem: str) -> ExperimentError:
        return ExperimentError(problem, key="--to", value=str(target))

    try:
        if not target.parent.is_dir():
            raise refuse(f"there is no folder {target.parent} to make it in")
        if not target.exists():
            return
        if not target.is_dir():
            raise refuse("is a file, not a folder")
        names = [p.name for p in target.iterdir() if not p.name.startswith(_SIDE)]
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if not names:
        return
    if strange := sorted(set(names) - set(_OWN)):
        raise refuse(f"is not empty: it holds {strange[0]}; give an empty or a new folder")
    try:
        before = json.loads((target / "config.json").read_text(encoding="utf-8"))["export"]["student"]
    except (OSError, ValueError, KeyError, TypeError):
        raise refuse(
            "is not empty, and holds no export that could be replaced; give an empty or a new folder"
        ) from None
    if before != digest:
        problem = f"holds an export of another student (SHA-256 {str(before)[:12]}..., this one has {digest[:12]}...)"
        raise refuse(f"{problem}; give another folder, or remove that one")


_SIDE = ".akd-export-"


@contextlib.contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder on the same disk to make things in; gone at the end, whatever happens."""
    inside = target.is_dir()
    for left in target.glob(f"{_SIDE}*") if inside else target.parent.glob(f"{_SIDE}{target.name}-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    side = target / f"{_SIDE}{os.getpid()}" if inside else target.parent / f"{_SIDE}{target.name}-{os.getpid()}"
    try:
        side.mkdir()
    except OSError as error:
        raise ExperimentError(f"cannot be written: {error.strerror}", key="--to", value=str(target)) from None
    try:
        yield side
    finally:
        shutil.rmtree(side, ignore_errors=True)


def _publish(side: Path, target: Path, names: Sequence[str]) -> None:
    """Put what was made in its place: a new folder at once, into an earlier export file by file, the card last."""
    if not target.is_dir():
        os.replace(side, target)
        return
    for name in set(_OWN) - set(names):
        (target / name).unlink(missing_ok=True)
    for name in names:
        os.replace(side / name, target / name)


# -- what it is checked on --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Images [n, C, H, W] of 0..1 that programs are compared on.

    Attributes:
        words: what they are.
        dataset: whose test images they are; ``None`` if they are noise.
    """

    images: Tensor
    words: str
    dataset: Dataset | None = None

    @property
    def public(self) -> bool:
        """False for pictures of the user's own, which do not go into what is handed on."""
        return self.dataset is not None and self.dataset.name in card.PUBLIC

    @property
    def examples(self) -> Tensor:
        """The first images, or noise in their place."""
        return (self.images if self.public else _noise(_EXAMPLES, tuple(self.images.shape[1:])))[:_EXAMPLES]

    @property
    def example_words(self) -> str:
        """What the examples are."""
        return self.words if self.public else "images of uniform noise"


def _noise(count: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(0))


def pictures(origin: Origin) -> Pictures:
    """Test images of the student's data set; noise where they are not at hand, or are of other classes or sizes now."""
    config, count = origin.config, sum(BATCHES)
    shape = (config["in_channels"], *config["image_size"])
    try:
        dataset = load(origin.experiment.data) if origin.experiment is not None else None
    except ExperimentError:
        dataset = None
    if dataset is None or (dataset.channels, *dataset.size) != shape or len(dataset.classes) != config["num_classes"]:
        return Pictures(_noise(count, shape), "uniform noise, as its data set is not at hand")
    rows = torch.linspace(0, len(dataset.test_labels) - 1, min(count, len(dataset.test_labels))).long()
    images = dataset.plain(gather(dataset.test_images, rows, torch.device("cpu"))).float() / 255
    return Pictures(images, f"test images of {dataset.name}", dataset)


def reference(folder: Path, config: Mapping[str, Any]) -> Run:
    """The student as akd evaluates it, by another way than the programs came: its layout, akd's normalisation."""
    net = load_student(folder)
    mean, std = (torch.tensor(config["normalise"][k], dtype=torch.float64) for k in ("mean", "std"))

    def run(images: Tensor) -> Tensor:
        logits: Tensor = net(normalise(images * 255, mean, std)).logits
        return logits

    return run


def _scores(handed: Handed, seen: Pictures, operations: int) -> dict[str, float]:
    """On all test images, if that is not too many."""
    dataset = seen.dataset
    if dataset is None or operations * len(dataset.test_labels) > _AFFORDABLE:
        return {}
    scores = Scores(len(dataset.classes))
    with torch.inference_mode():
        for images, labels in held_out_images(dataset, "cpu"):
            scores.add(handed(images.float() / 255), labels)
    return scores.read()


# -- the export ---------------------------------------------------------------------------------------------


def export(origin: Origin, target: Path, formats: Sequence[str], *, timed: bool = False) -> Exported:
    """Write a student's export.

    Args:
        target: a folder that is not there, is empty, or holds an earlier export of the same student.
        formats: of :data:`akd.programs.FILES`.
        timed: measure how fast the programs are.

    Raises:
        ExperimentError: the student or the place are not fit; nothing was written.
    """
    check_target(target, origin.digest)
    handed = load_handed(origin.folder)
    seen, wanted = pictures(origin), reference(origin.folder, origin.config)
    found = card.measured(handed, origin.config)
    found = replace(found, scores=_scores(handed, seen, found.operations), images=seen.words)
    with _beside(target) as side:
        _plain_files(side, origin, handed, seen.examples, formats)
        runs, rows, failed = _programs(side, handed, seen.images, wanted, [f for f in formats if f in PROGRAMS])
        names = [FILES[f] for f in formats if f == "safetensors" or PROGRAMS[f][0] in runs]
        names += ["config.json", "example.npz"]
        if timed:
            batches = {n: seen.images[torch.arange(n) % len(seen.images)] for n in (1, 64)}
            times = latencies({"torch": handed, **runs}, batches)
            found = replace(found, times=times, hardware=hardware())
        found = replace(found, parity=rows, example=f"{_EXAMPLES} {seen.example_words}")
        _note(side, origin, names)
        text = card.text(origin, found, {name: side / name for name in names})
        checkpoint.write_text(side / "README.md", text)
        _publish(side, target, [*names, "README.md"])
    return Exported(target, origin, found, [*names, "README.md"], failed)


def _plain_files(side: Path, origin: Origin, handed: Handed, examples: Tensor, formats: Sequence[str]) -> None:
    """Weights as they are, bit for bit, and the example."""
    if "safetensors" in formats:
        shutil.copyfile(origin.folder / "student.safetensors", side / "student.safetensors")
        if sha256(side / "student.safetensors") != origin.digest:
            raise AkdError(f"{origin.folder / 'student.safetensors'} changed while it was exported")
    with torch.no_grad():
        logits = handed(examples)
    np.savez(side / "example.npz", images=examples.numpy(), logits=logits.numpy())


def _note(side: Path, origin: Origin, names: Sequence[str]) -> None:
    """Into ``config.json``: whose export this is, and the hash of each file, for programs to check."""
    own = {k: v for k, v in origin.config.items() if k != "export"}
    hashes = {name: sha256(side / name) for name in names if name != "config.json"}
    facts = {"student": origin.digest, "akd": __version__, "torch": torch.__version__, "sha256": hashes}
    checkpoint.write_json(side / "config.json", own | {"export": facts})


def _programs(
    side: Path, handed: Handed, images: Tensor, wanted: Run, formats: Sequence[str]
) -> tuple[dict[str, Run], list[Parity], list[str]]:
    """The programs that could be made and agree, by name; how far each is off; why others are not there."""
    runs: dict[str, Run] = {}
    rows: list[Parity] = []
    failed: list[str] = []
    if not formats:
        return runs, rows, failed
    try:
        program = trace(handed, images[:1])
    except ProgramError as error:
        return runs, rows, [f"{' and '.join(FILES[f] for f in formats)} cannot be made: {error}"]
    for form in formats:
        name, save, opened = PROGRAMS[form]
        path = side / FILES[form]
        try:
            save(program, path)
            run = opened(path)
            own = parity(name, run, wanted, images, BATCHES)
        except ProgramError as error:
            failed.append(f"{path.name} cannot be made: {error}")
            path.unlink(missing_ok=True)
            continue
        rows += own
        if all(row.good for row in own):
            runs[name] = run
            continue
        worst = max((row for row in own if not row.good), key=lambda row: row.difference / row.tolerance)
        failed.append(
            f"{path.name} was removed: its logits are off by {worst.difference:.1e}, {worst.tolerance:.0e} is allowed"
        )
        path.unlink()
    return runs, rows, failed


def chosen(text: str | None) -> tuple[list[str], str | None]:
    """Formats as typed, all if none were; and a line on what is left out of all for want of libraries.

    Raises:
        ExperimentError: an unknown name, one that is there twice, or ONNX by name without its libraries.
    """
    lacking = f"needs {', '.join(missing())}: {EXTRA}" if missing() else None
    if text is None:
        formats = [f for f in FILES if f != "onnx" or lacking is None]
        return formats, f"student.onnx is left out: it {lacking}" if lacking else None
    formats = [part.strip() for part in text.split(",")]
    for name in formats:
        if name not in FILES:
            hint = near(name, FILES) or f", there are {', '.join(FILES)}"
            raise ExperimentError(f"there is no format {name!r}{hint}", key="--format", value=text)
        if formats.count(name) > 1:
            raise ExperimentError(f"names {name} twice", key="--format", value=text)
    if lacking is None or "onnx" not in formats:
        return formats, None
    if formats == ["onnx"]:
        raise ExperimentError(lacking, key="--format", value=text)
    return [f for f in formats if f != "onnx"], f"student.onnx is left out: it {lacking}"


__all__ = ["Exported", "check_target", "chosen", "export", "find", "origin_of"]
