"""A search under fire: kills at moments drawn from a seed, and the table of what each of them met and what came after.

A moment is drawn in epochs of the whole search, and a part of a second on top, so that the same kills fall within the
work of a slow machine and of a fast one; or in seconds from a session's start, before there is any work.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import program
from server import Server

from akd import folder as run_folder
from akd.folder import RUNNING, Run

#: Long enough for twenty kills, small enough for minutes.
SPACE = """\
data: {name: digits, validation: 0.2}
teacher: {name: wrn_16_1, train: {epochs: 6, lr: 0.1}}
student: resnet14
method: {host: {name: kd, temperature: 4.0}}
train: {epochs: 9, batch_size: 64, lr: 0.1, ema: 0.9}
search: {trials: 24, champion_seeds: 2, final_workers: 1, grace: 3, eta: 3}
space:
  method.host.weight: {type: float, low: 0.5, high: 8.0, log: true}
  train.lr:           {type: float, low: 0.02, high: 0.2, log: true}
"""

#: Epochs from one kill to the next, at most; all kills together take less than the search has. Seconds into a session
#: that has hardly begun, and how many of the sessions that end with a kill get no further.
EPOCHS, SECONDS, EARLY = 13, (2.0, 9.0), 0.25
#: What is killed, how often among the draws, and whether the session ends with it.
SEARCH, TERM, INT, TRIAL, WORKER, SERVER = (
    "SIGKILL search",
    "SIGTERM",
    "SIGINT",
    "SIGKILL trial",
    "SIGKILL worker",
    "SIGKILL MLflow",
)
KINDS = {SEARCH: 7, TERM: 3, INT: 2, TRIAL: 5, SERVER: 3}
ENDS = (SEARCH, TERM, INT)


def processes(session: int, word: bytes) -> list[int]:
    """Processes of a session with ``word`` in their command line."""
    found = []
    for pid in program.session_members(session):
        with contextlib.suppress(OSError):
            if word in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                found.append(pid)
    return found


@dataclass
class Kill:
    """One of them.

    Attributes:
        at: seconds into the session.
        when: seconds since 1970.
        running: unfinished runs, by folder, and their epochs so far.
        note: what is known at once.
    """

    kind: str
    session: int
    at: float
    when: float
    running: dict[Path, int]
    note: str = ""


@dataclass
class Soak:
    """A study that is killed ``wanted`` times and then left in peace.

    Attributes:
        arguments: of its first session.
    """

    folder: Path
    arguments: list[str]
    seed: int
    wanted: int
    server: Server | None = None
    kinds: dict[str, int] = field(default_factory=lambda: dict(KINDS))
    kills: list[Kill] = field(default_factory=list)
    sessions: int = 0

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.study = self.folder / "runs" / "s"
        self.ended: dict[Path, bytes] = {}
        (self.folder / "soak.yaml").write_text(SPACE, encoding="utf-8")

    def run(self) -> str:
        """All sessions; the output of the last."""
        code = None
        while code is None:
            code = self._session()
        output = (self.folder / "out.txt").read_text(encoding="utf-8")
        assert code == 0, output
        for path, text in self.ended.items():  # what had ended was never begun again
            assert path.read_bytes() == text, path
        return output

    def _session(self) -> int | None:
        """One session; its exit code if it ended by itself."""
        self.sessions += 1
        began = time.monotonic()
        resumed = (self.study / "run.json").exists()
        process = program.start(["search", "--resume", "s"] if resumed else self.arguments, self.folder)
        try:
            while len(self.kills) < self.wanted:
                (kind,) = self.draw.choices([*self.kinds], [*self.kinds.values()])
                early, epochs = self.draw.random() < EARLY and kind in ENDS, self.draw.randint(1, EPOCHS)
                seconds = self.draw.uniform(*SECONDS) if early else self.draw.uniform(0, 0.5)
                goal = self._epochs() + epochs
                while not early and process.poll() is None and self._epochs() < goal:
                    self._wait(process, 0.1)
                self._wait(process, seconds)
                if process.poll() is not None:
                    break
                kill = self._kill(kind, process, began)
                if kill.kind in ENDS:
                    return None
            while process.poll() is None:
                self._wait(process, 1)
            return process.returncode
        finally:
            program.kill_group(process)

    def _epochs(self) -> int:
        """All that was trained so far."""
        found = [*self.study.glob("*/*/history.jsonl"), *self.study.parent.glob("teachers/*/history.jsonl")]
        return sum(p.read_bytes().count(b"\n") for p in found)

    def _wait(self, process: subprocess.Popen[str], seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and process.poll() is None:
            if self.server is not None and self.server.due is not None and time.monotonic() > self.server.due:
                self.server.start()
            time.sleep(0.05)

    def _kill(self, kind: str, process: subprocess.Popen[str], began: float) -> Kill:
        session = process.pid
        victims = processes(session, b"ImplicitFunc" if kind == TRIAL else b"RayTrainWorker")
        if kind in (TRIAL, WORKER) and not victims:
            kind = SEARCH
        running = {}
        for path in [*self.study.glob("*/*/run.json"), *self.study.parent.glob("teachers/*/run.json")]:
            run = Run.read(path.parent)
            if run is not None and run.state == RUNNING:
                running[path.parent] = len(run_folder.history(path.parent))
            elif run is not None and kind != SERVER:
                self.ended[path] = path.read_bytes()
        kill = Kill(kind, self.sessions, time.monotonic() - began, time.time(), running)
        self.kills.append(kill)
        print(f"kill {len(self.kills)}: {kind}, {kill.at:.1f} s into session {kill.session}", flush=True)
        if kind == SEARCH:
            program.kill_group(process)
        elif kind == TRIAL:
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
        elif kind == WORKER:
            os.kill(self.draw.choice(victims), signal.SIGKILL)
        elif kind == SERVER:
            assert self.server is not None
            self.server.kill()
            away = self.draw.uniform(1, 6)
            self.server.due = time.monotonic() + away
            kill.note = f"away for {away:.0f} s and its start"
        else:
            number = signal.SIGTERM if kind == TERM else signal.SIGINT
            (os.killpg if kind == INT else os.kill)(session, number)  # Ctrl-C reaches all of a terminal's processes
            end = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < end:
                self._wait(process, 0.5)
            output = (self.folder / "out.txt").read_text(encoding="utf-8")
            # Before the program has begun (Python reads torch for seconds) a signal ends it as any other.
            early = not output and process.returncode == -number
            assert process.returncode == 130 or early, f"{kind}: {process.returncode}\n{output}"
            assert "Traceback" not in output, output
            assert early or "--resume s" in output or "akd: interrupted" in output, output
            kill.note = f"ended in {time.time() - kill.when:.1f} s"
        return kill

    # -- the table ---------------------------------------------------------------------------------

    def table(self) -> str:
        """A line for each kill; checks that no epoch it found was trained or written again."""
        rows = [("kill", "kind", "session", "at", "running", "after it")]
        for number, kill in enumerate(self.kills, 1):
            rows.append(
                (
                    str(number),
                    kill.kind,
                    str(kill.session),
                    f"{kill.at:.1f} s",
                    ", ".join(f"{self._name(f)} epoch {n}" for f, n in kill.running.items()) or "-",
                    "; ".join([*([kill.note] if kill.note else []), *self._after(kill)]),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(word.ljust(w) for word, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        head = f"AKD_SOAK_SEED={self.seed}: {len(self.kills)} kills in {self.sessions} sessions"
        return "\n".join([head, *lines])

    def _name(self, folder: Path) -> str:
        run = Run.read(folder)
        return run.name if run is not None else folder.name

    def _after(self, kill: Kill) -> list[str]:
        """What became of the runs it met; where it met none, what came next."""
        said = []
        for folder, epochs in kill.running.items():
            entries = run_folder.history(folder)
            assert all(e["at"] <= kill.when for e in entries[:epochs]), folder
            later = entries[epochs:]
            assert all(e["at"] >= kill.when - 0.05 for e in later), folder
            if later:
                epoch, pause = int(later[0]["epoch"]), later[0]["at"] - kill.when
                said.append(f"{self._name(folder)} went on with epoch {epoch}, {pause:.0f} s later")
            else:
                run = Run.read(folder)
                said.append(f"{self._name(folder)} had its last epoch: {run.state if run else 'gone'}")
        if said:
            return said
        folders = [p.parent for p in self.study.glob("*/*/history.jsonl")]
        starts = [(e["at"], self._name(f), int(e["epoch"])) for f in folders for e in run_folder.history(f)]
        next_one = min((s for s in starts if s[0] > kill.when), default=None)
        return [f"then {next_one[1]} epoch {next_one[2]}" if next_one else "only the result was left to write"]
