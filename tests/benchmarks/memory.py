"""Peak memory of a training process: akd's loop and the loop everybody uses, each in a process of its own.

    .venv/bin/python tests/benchmarks/memory.py [--data-dir DIR] [--workers 2] [--steps 8] [--device cpu]
                                                [TEACHER:STUDENT ...]

``process`` is the largest sum of proportional set sizes (shared pages counted once) of the process and, for the
baseline, the workers of its DataLoader, with torch itself and all of CIFAR-100 in it; ``device`` is the most that the
allocator of a GPU had given out. What a whole search takes, Ray included, is printed by ``search_cost.py``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import torch
from search_cost import descendants, proportional_bytes

ROWS = ("baseline", "akd, teacher live", "akd, student alone")


def child(row: str, pair: tuple[str, str], args: argparse.Namespace) -> dict[str, float]:
    """Train a few steps here."""
    from baseline import BATCH, CLASSES, Loop, akd_dataset, data_folder
    from throughput import akd_seconds

    from akd.data import TrainData
    from akd.models import seeded_model
    from akd.models.layout import channels_last
    from akd.teacher import LiveTeacher

    torch.set_num_threads(1)
    folder, device = data_folder(args.data_dir), torch.device(args.device)
    rows = torch.arange(args.steps * BATCH)
    if row == "baseline":
        student, teacher = seeded_model(pair[1], CLASSES, 0), seeded_model(pair[0], CLASSES, 1)
        Loop(student, teacher, rows, folder, workers=args.workers, device=device).epoch()
    else:
        dataset = akd_dataset(folder)
        teacher = channels_last(seeded_model(pair[0], CLASSES, 1).to(device), torch.zeros(1, 3, 32, 32, device=device))
        source = LiveTeacher(teacher) if "live" in row else None
        akd_seconds(TrainData(dataset, rows, rows[:0], dataset.augment), pair[1], source, device, 1, 0)
    return {"device": float(torch.cuda.max_memory_allocated()) if device.type == "cuda" else 0.0}


def measured(row: str, pair: str, args: argparse.Namespace) -> dict[str, float]:
    """Bytes of a row by name."""
    command = [sys.executable, __file__, pair, "--child", row, "--workers", str(args.workers)]
    command += ["--steps", str(args.steps), "--device", args.device]
    command += ["--data-dir", args.data_dir] if args.data_dir else []
    process, peak, known = subprocess.Popen(command, stdout=subprocess.PIPE, text=True), 0, set[int]()
    while process.poll() is None:
        known = descendants(process.pid, known)
        peak = max(peak, sum(proportional_bytes(pid) for pid in known))
        time.sleep(0.05)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    told: dict[str, Any] = json.loads(process.stdout.read().splitlines()[-1])
    return {"process": float(peak), **told}


def main(arguments: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure the pairs asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=["resnet32x4:resnet8x4", "wrn_40_2:wrn_16_2"])
    parser.add_argument("--data-dir", help="folder with CIFAR-100; default $AKD_DATA, else random images")
    parser.add_argument("--workers", type=int, default=2, help="processes of the baseline's DataLoader")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        teacher, _, student = args.pairs[0].partition(":")
        print(json.dumps(child(args.child, (teacher, student), args)))
        return {}
    found = {}
    print(f"{'peak memory, MB':<48} {'process':>9} {'device':>9}")
    for pair in args.pairs:
        for row in ROWS:
            found[f"{pair} {row}"] = bytes_of = measured(row, pair, args)
            device = f"{bytes_of['device'] / 1e6:9.0f}" if bytes_of["device"] else ""
            print(f"{pair.replace(':', ' -> ') + ', ' + row:<48} {bytes_of['process'] / 1e6:9.0f} {device}", flush=True)
    return found


if __name__ == "__main__":
    main()
