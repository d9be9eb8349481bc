"""What a search costs on this machine: time, memory, and the pause between two trials of a worker.

    .venv/bin/python tests/benchmarks/search_cost.py [ARGUMENTS OF akd search]

Runs ``akd search quickstart`` in an empty folder and samples, twice a second, the proportional set size (shared pages
counted once) of the program and everything it started, Ray's servers and workers included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def descendants(root: int, known: set[int]) -> set[int]:
    """Living processes below ``root``; those seen before stay known when their parent has gone."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found = {root} | known
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found & (parents.keys() | {root})


def proportional_bytes(pid: int) -> int:
    """Proportional set size of a process; 0 if it has gone."""
    try:
        lines = (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def measure(arguments: list[str]) -> list[tuple[str, str]]:
    """One search: what was measured, by name."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "akd.cli", "search", "quickstart", "--name", "bench", *arguments]
        began, peak, known = time.monotonic(), 0, set[int]()
        process = subprocess.Popen(command, cwd=folder)
        while process.poll() is None:
            known = descendants(process.pid, known)
            peak = max(peak, sum(proportional_bytes(pid) for pid in known))
            time.sleep(0.5)
        seconds = time.monotonic() - began
        if process.returncode:
            raise SystemExit(process.returncode)
        result = json.loads((Path(folder) / "runs/bench/result.json").read_text(encoding="utf-8"))
    return [
        ("cores", f"{len(os.sched_getaffinity(0))}"),
        ("whole command", f"{seconds:.1f} s"),
        ("of it training, all devices", f"{3600 * result['device_hours']:.1f} s"),
        ("largest memory (sum of PSS)", f"{peak / 1e9:.2f} GB"),
        ("pause between trials, median", f"{result['start_cost_s']['median']:.3f} s"),
        ("pause between trials, largest", f"{result['start_cost_s']['largest']:.3f} s"),
    ]


if __name__ == "__main__":
    for name, value in measure(sys.argv[1:]):
        print(f"{name:<32} {value}")
