"""What training takes on a GPU, in commands of under ten minutes that go on where the last one stopped.

Files first, once, in parts that fit a narrow way (each under 60 MiB); then, on the machine with the GPU:

    python tests/benchmarks/gpu.py parts --data-dir DIR --to PARTS         where CIFAR-100 is: cifar100.0 .. .2
    python tests/benchmarks/gpu.py join --work W --data-part PARTS/cifar100.0     there: once for each part
    python tests/benchmarks/gpu.py step --work W                           variants of a step, in turn; kernels of one
    python tests/benchmarks/gpu.py train --work W --what teacher --epochs 20      then 60; each resumes itself
    python tests/benchmarks/gpu.py train --work W --what angular --epochs 20      then 60: cached Angular-KD
    python tests/benchmarks/gpu.py train --work W --what teacher --epochs 240 --final     full runs, with test accuracy
    python tests/benchmarks/gpu.py report --work W                         the table so far

``W`` holds everything: data, runs, teacher's outputs and ``results.json``. ``train`` stops by itself after
``--minutes`` and prints what is left; the same command goes on. Runs of 20 and of 60 epochs give the seconds of an
epoch and of the start, and so those of 240 epochs. The floor is the arithmetic of these epochs at ``--peak``
operations per second (790e12: a dense bfloat16 product on an H100), of the network that is trained alone.
``--device cpu --images 512`` tries all of it in a minute or two, on random images where no parts were joined.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import statistics
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from baseline import BATCH, CLASSES, akd_dataset
from floor import training

from akd import folder as run_folder
from akd.checkpoint import write_json
from akd.config import Experiment, resolve
from akd.data import TrainData
from akd.data.loader import DeviceLoader
from akd.epochs import train_epoch
from akd.fit import _networks
from akd.folder import COMPLETE, Run
from akd.job import Job, run_job
from akd.models import seeded_model
from akd.models.layout import channels_last
from akd.step import Stepper
from akd.teacher import LiveTeacher
from akd.world import ALONE

#: Bytes of a part.
PART = 56 << 20
FILES = ("train", "test", "meta")
NETWORKS = {"teacher": "resnet32x4", "angular": "resnet8x4"}
#: Aims of issue and floor, in minutes for 240 epochs.
AIMS = {"teacher": 10.0, "angular": 4.0}
PUBLISHED = {"epochs": 240, "schedule": "step", "decay_epochs": [150, 180, 210]}


def cut(folder: Path, to: Path) -> list[Path]:
    """CIFAR-100's files as parts, and ``cifar100.json`` that says how many there are and what they add up to."""
    root = folder if (folder / "cifar-100-python").is_dir() else folder / "cifar100"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for name in FILES:
            archive.add(root / "cifar-100-python" / name, f"cifar-100-python/{name}")
    content = buffer.getvalue()
    to.mkdir(parents=True, exist_ok=True)
    paths = []
    count = -(-len(content) // PART)
    digest = hashlib.sha256(content).hexdigest()
    for i in range(count):
        paths.append(to / f"cifar100.{i}")
        header = json.dumps({"part": i, "of": count, "sha256": digest}).encode() + b"\n"
        paths[-1].write_bytes(header + content[i * PART : (i + 1) * PART])
    return paths


def join(part: Path, work: Path) -> bool:
    """Take a part; True once all are there and unpacked under ``work/data``."""
    held = work / "parts"
    held.mkdir(parents=True, exist_ok=True)
    header, _, _ = part.read_bytes().partition(b"\n")
    facts = json.loads(header)
    (held / f"{facts['part']}").write_bytes(part.read_bytes())
    if len(list(held.iterdir())) < facts["of"]:
        return False
    content = b"".join((held / f"{i}").read_bytes().partition(b"\n")[2] for i in range(facts["of"]))
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise SystemExit("the parts do not belong together: send them again")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(work / "data", filter="data")
    return True


def data_of(work: Path) -> Path | None:
    """The folder of CIFAR-100 under ``work``."""
    return work / "data" if (work / "data" / "cifar-100-python" / "train").exists() else None


def experiment_of(what: str, args: argparse.Namespace, teacher: Path | None) -> Experiment:
    """A run of ``train``."""
    folder = data_of(args.work)
    data: dict[str, Any] = {"name": "cifar100", "dir": str(folder)} if folder else {"name": "baseline:stand_in"}
    subset = {"subset": args.images} if args.images else {}
    train: dict[str, Any] = {"epochs": args.epochs, "batch_size": BATCH, "nesterov": True, "compile": args.compile}
    train |= PUBLISHED if args.epochs == PUBLISHED["epochs"] else {}
    method: Any = "none"
    if what == "angular":
        method = {"host": "kd", "views": {"name": "angular_kd", "count": 5, "head_warmup_epochs": min(5, args.epochs)}}
    return resolve(
        {
            "data": {**data, **subset, "validation": 0.1},
            "teacher": {"name": NETWORKS["teacher"]},
            "student": NETWORKS[what],
            "method": method,
            "train": train,
        }
    )


def finished(work: Path, what: str) -> Path | None:
    """The run of most epochs of this kind."""
    done = [p for p in (work / "runs").glob(f"{what}-*") if (run := Run.read(p)) and run.state == COMPLETE]
    return max(done, key=lambda p: int(p.name.split("-")[1]), default=None)


def train(args: argparse.Namespace) -> None:
    """Train as far as the minutes go; say how it stands."""
    began, what = time.monotonic(), args.what
    teacher = finished(args.work, "teacher") if what == "angular" else None
    if what == "angular" and teacher is None:
        raise SystemExit("train the teacher first: --what teacher --epochs 20")
    where = args.work / "runs" / f"{what}-{args.epochs}{'-final' * args.final}{'-compiled' * (args.compile == 'on')}"
    if Run.read(where) is None:
        run_folder.create(where, experiment_of(what, args, teacher), Run("control", where.name))
    kept: dict[str, Any] = {"cache": str(args.work / "cache"), "keep": ("logits", "embedding")} if teacher else {}
    job = Job(str(where), str(teacher) if teacher else None, args.final, **kept)
    results = run_job(job, device=args.device, stop=lambda: time.monotonic() - began > 60 * args.minutes)
    entries, heads = run_folder.history(where), run_folder.head_history(where)
    seconds = _results(args.work).get(where.name, {}).get("seconds", 0.0) + time.monotonic() - began
    found = {"what": what, "epochs": args.epochs, "done": len(entries), "seconds": seconds, **results}
    found["epoch_s"] = statistics.median(e["time/epoch_s"] for e in entries)
    found["images_per_s"] = statistics.median(e["time/images_per_s"] for e in entries)
    found["images"] = round(entries[0]["time/epoch_s"] * entries[0]["time/images_per_s"])
    found["heads_s"] = sum(e["time/epoch_s"] for e in heads)
    found["val"] = entries[-1].get("val/accuracy")
    if len(entries) == args.epochs:
        run = Run.read(where)
        assert run is not None
        run.end(where, COMPLETE)
    write_json(args.work / "results.json", _results(args.work) | {where.name: found})
    left = args.epochs - len(entries)
    print(json.dumps(found, indent=1))
    print(f"{left} epochs left: the same command goes on" if left else "done", flush=True)


def _results(work: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((work / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def report(args: argparse.Namespace) -> None:
    """The table of all runs, with 240 epochs extrapolated and the floor."""
    found = _results(args.work)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.zeros(BATCH, dtype=torch.long)
    print(f"{'run':<28} {'epochs':>7} {'seconds':>9} {'epoch s':>8} {'images/s':>9} {'val':>6} {'test':>6}")
    for name, row in sorted(found.items()):
        scores = [f"{100 * v:6.2f}" if (v := row.get(k)) is not None else " " * 6 for k in ("val", "test/accuracy")]
        print(
            f"{name:<28} {row['done']:>3}/{row['epochs']:<3} {row['seconds']:9.1f} {row['epoch_s']:8.2f} "
            f"{row['images_per_s']:9.0f} {' '.join(scores)}"
        )
    for what, network in NETWORKS.items():
        rows = sorted((r for r in found.values() if r["what"] == what and r["done"] == r["epochs"]), key=_epochs)
        if len(rows) < 2:
            continue
        short, long = rows[0], rows[-1]
        each = (long["seconds"] - short["seconds"]) / (long["epochs"] - short["epochs"])
        whole = short["seconds"] + (240 - short["epochs"]) * each
        operations = training(seeded_model(network, CLASSES, 0), images, labels).operations / BATCH
        floor = 240 * 50_000 * operations / args.peak
        of_all = whole * 50_000 / long["images"]
        print(
            f"{what}: {each:.2f} s an epoch, so {whole / 60:.1f} minutes for 240 epochs of {long['images']} images, "
            f"{of_all / 60:.1f} of 50,000 (aim: {AIMS[what]:g}); floor {floor:.0f} s: {of_all / floor:.1f} times"
        )


def _epochs(row: dict[str, Any]) -> int:
    return int(row["epochs"])


def _parts(network: str, method: str, args: argparse.Namespace, **train: Any) -> Callable[[int], float]:
    """A loop of few steps: its epoch number -> its seconds a step."""
    device, dataset = torch.device(args.device), akd_dataset(data_of(args.work))
    rows = torch.arange(args.steps * BATCH)
    data = TrainData(dataset, rows, rows[:0], dataset.augment)
    e = resolve(
        {
            "method": method,
            "student": network,
            "train": {"lr": 0.01, "nesterov": True, "ema": 0, "schedule": "cosine", **train},
        }
    )
    source = None
    if e.method.needs:
        net = seeded_model(NETWORKS["teacher"], CLASSES, 1).to(device)
        source = LiveTeacher(channels_last(net, torch.zeros(1, 3, 32, 32, device=device)), e.method.needs)
    loader = DeviceLoader(data, batch_size=BATCH, seed=0, plan_seed=0, device=device, dtype=torch.float32, world=ALONE)
    state, built = _networks(e, data, source, loader, ALONE)
    amp = e.train.precision == "bfloat16"
    stepper = Stepper(state.student, built, source, world=ALONE, amp=amp, compiled=e.train.compile == "on")

    def epoch(number: int) -> float:
        return train_epoch(state, loader, stepper, number)["time/epoch_s"] / args.steps

    return epoch


def step(args: argparse.Namespace) -> None:
    """Seconds of a step by variant, in turn, and what a profile of the default says."""
    device = torch.device(args.device)
    variants = {"bfloat16": {"precision": "bfloat16"}, "float32": {"precision": "float32"}}
    variants["bfloat16, compiled"] = {"precision": "bfloat16", "compile": "on"}
    for what, method in (("teacher", "none"), ("angular", "angular_kd")):
        loops, times = {}, {name: [] for name in variants}
        for name, settings in variants.items():
            began = time.perf_counter()
            try:
                loop = _parts(NETWORKS[what], method, args, **settings)
                for number in (1, 2):
                    loop(number)
            except Exception as error:  # a compiler that is not there is no reason to measure nothing
                print(f"{what:<10} {name:<22} failed: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
                continue
            loops[name] = loop
            print(f"{what:<10} {name:<22} ready after {time.perf_counter() - began:.1f} s", flush=True)
        for number in range(3, args.rounds + 3):
            for name, loop in loops.items():
                times[name].append(loop(number))
        for name in loops:
            middle = statistics.median(times[name])
            print(f"{what:<10} {name:<22} {1000 * middle:8.3f} ms a step, {BATCH / middle:8.0f} images/s", flush=True)
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
        with torch.profiler.profile(activities=activities) as profile:
            whole = loops["bfloat16"](100) * args.steps
        rows = profile.key_averages()
        busy = sum(getattr(r, "self_device_time_total", 0.0) for r in rows) / 1e6
        key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
        print(
            f"{what}: {whole / args.steps * 1000:.3f} ms a step under the profiler, the GPU is busy {busy / whole:.0%}"
        )
        print(rows.table(sort_by=key, row_limit=12, max_name_column_width=60), flush=True)


def main(arguments: list[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["parts", "join", "step", "train", "report"])
    parser.add_argument("--work", type=Path, default=Path("gpu-bench"))
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--to", type=Path, default=Path("parts"))
    parser.add_argument("--data-part", type=Path)
    parser.add_argument("--what", choices=list(NETWORKS), default="teacher")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--final", action="store_true", help="all 50,000 images, then the test images, once")
    parser.add_argument("--compile", choices=["off", "on"], default="off")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--images", type=int, help="fewer training images")
    parser.add_argument("--steps", type=int, default=100, help="of a variant in turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", type=float, default=790e12)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parent))  # where the stand-in's reader is found
    args.work = args.work.absolute()
    if args.command == "parts":
        for path in cut(args.data_dir, args.to):
            print(f"{path}  {path.stat().st_size / 2**20:.1f} MiB")
    elif args.command == "join":
        print("CIFAR-100 is whole" if join(args.data_part, args.work) else "taken; more parts are to come")
    else:
        {"step": step, "train": train, "report": report}[args.command](args)


if __name__ == "__main__":
    main()
