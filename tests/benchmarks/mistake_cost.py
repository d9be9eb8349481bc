"""What a mistake costs until its line is there: wall-clock and CPU seconds of the whole program.

    .venv/bin/python tests/benchmarks/mistake_cost.py [--rounds 5]

Each way into akd once a round, in turn; medians. A mistake is to be answered in less than 5 seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPACE = """\
data: digits
teacher: wrn_16_1
student: resnet8
method: kd
search: {trials: 4}
space:
  train.lr: {type: float, low: 0.05, high: 0.2}
"""

COMMANDS = {
    "a name": ["search", "quikstart"],
    "a value": ["search", "s.yaml", "--trials", "0"],
    "a file": ["search", "bad.yaml"],
    "weights": ["search", "s.yaml", "--teacher-weights", "bad.pt"],
    "data": ["search", "s.yaml", "--data", "cifar100", "--data-dir", "."],
    "the machine": ["search", "s.yaml", "--concurrent", "1000"],
    "the tracker": ["search", "s.yaml", "--tracking-uri", "http://127.0.0.1:1"],
    "ray": ["search", "s.yaml", "--ray-address", "127.0.0.1:1"],
    "a resume": ["search", "--resume", "nothing"],
}


def cost(arguments: list[str], folder: Path) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one program, which must refuse."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "akd.cli", *arguments],
        cwd=folder,
        capture_output=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        check=False,
    )
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 2:
        raise SystemExit(f"akd {' '.join(arguments)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "s.yaml").write_text(SPACE, encoding="utf-8")
        (folder / "bad.yaml").write_text(SPACE.replace("trials: 4", "trials: ["), encoding="utf-8")
        (folder / "bad.pt").write_bytes(b"no weights")
        figures = [{key: cost(arguments, folder) for key, arguments in COMMANDS.items()} for _ in range(rounds)]
    print(f"{'mistake in':<14} {'wall':>7} {'CPU':>7}   medians of {rounds}")
    for key in COMMANDS:
        wall, cpu = (statistics.median(f[key][i] for f in figures) for i in range(2))
        print(f"{key:<14} {wall:5.2f} s {cpu:5.2f} s")


if __name__ == "__main__":
    main()
