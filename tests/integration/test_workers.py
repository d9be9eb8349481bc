"""Runs on several Ray Train workers: searched, stopped early, killed, failing; and what they leave."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import program
import pytest
from studies import agree, identical

from akd import folder as run_folder

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

SEARCH = ["search", "small.yaml", "--name", "s", "--workers-per-trial", "2", "--concurrent", "1"]
SEARCH += ["--final-workers", "2", "--champion-seeds", "2", "--seed", "3"]
# The first trial gets through its rung, a later one does not: at eta 2 the worse half of those before it stops.
SHORT = [*SEARCH, "--trials", "2", "--epochs", "4", "--search.grace", "1", "--search.eta", "2"]


def workers_of(session: int) -> list[int]:
    """Ray Train's workers among the processes of a session."""
    found = []
    for pid in program.session_members(session):
        with contextlib.suppress(OSError):
            if b"RayTrainWorker" in (Path("/proc") / str(pid) / "cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[int]]:
    """A search on two workers, one of which is killed in the first control; and the workers of its final runs."""
    folder = tmp_path_factory.mktemp("workers")
    study = folder / "runs" / "s"
    # What another Ray on this machine looks like to who looks for one.
    words = ["raylet", "-c", "import time; time.sleep(1500)", "--gcs-address=127.0.0.1:9"]
    another = subprocess.Popen(words, executable=sys.executable)
    process = program.start(SHORT, folder)
    try:
        line = study / "controls" / "none" / "history.jsonl"
        program.wait_for(lambda: line.exists() or process.poll() is not None, 200)
        program.nobody_else_listens(program.listening(program.session_members(process.pid)), outside=1)
        (first, *_) = workers_of(process.pid)
        os.kill(first, signal.SIGKILL)
        ended, finals = (lambda: process.poll() is not None), set()
        program.wait_for(lambda: ended() or list(study.glob("finals/*/history.jsonl")), 500)
        while not ended() and not (study / "result.json").exists():
            finals |= set(workers_of(process.pid))
            time.sleep(0.3)
        code = process.wait(60)
    finally:
        another.kill()
        program.kill_group(process)
    assert code == 0, (folder / "out.txt").read_text(encoding="utf-8")
    return study, finals


@pytest.fixture(scope="module")
def study(searched: tuple[Path, set[int]]) -> Path:
    return searched[0]


def test_finishes_and_everything_agrees(study: Path) -> None:
    agree(study)
    result = program.read(study / "result.json")
    assert sum(result["trials"].values()) == 2
    assert set(result["champion"]["test"]["accuracy"]) == {"4", "5"}
    told = result["teacher_passes"]
    assert told["saved"] > told["made"] > 0
    assert told["keys"] == 3  # of the trials, and of each seed of the final runs
    assert "on 2 workers" in (study.parents[1] / "out.txt").read_text(encoding="utf-8")


def test_a_killed_worker_costs_no_epoch(study: Path) -> None:
    for path in study.glob("*/*/history.jsonl"):
        epochs = [int(e["epoch"]) for e in program.epochs_of(study)[str(path.parent.relative_to(study))]]
        assert epochs == list(range(1, len(epochs) + 1))
        assert all(e["time/devices"] == 2 for e in run_folder.history(path.parent))
    run = run_folder.Run.read(study / "controls" / "none")
    assert run is not None
    assert run.state == "COMPLETE"


def test_a_stopped_trial_ends_at_its_rung_and_gives_its_workers_back_within_seconds(study: Path) -> None:
    runs = [run_folder.Run.read(p.parent) for p in sorted(study.glob("trials/*/run.json"))]
    folders = [p.parent for p in sorted(study.glob("trials/*/run.json"))]
    stopped = [i for i, run in enumerate(runs) if run is not None and run.state == "PRUNED"]
    assert stopped, [run.state for run in runs if run is not None]
    for i in stopped:
        run = runs[i]
        assert run is not None
        assert run.ended is not None
        assert len(run_folder.history(folders[i])) == run.rung
    # After a stopped trial the next run's workers come as soon as after one that ended by itself.
    started = sorted(
        (run_folder.history(p.parent)[0]["at"], run_folder.Run.read(p.parent))
        for p in [*study.glob("trials/*/run.json"), *study.glob("controls/*/run.json")]
    )
    ended = {run.ended: run.state for _, run in started if run is not None and run.ended is not None}
    waits: dict[str, list[float]] = {"PRUNED": [], "COMPLETE": []}
    finals = min(run_folder.history(p.parent)[0]["at"] for p in study.glob("finals/*/history.jsonl"))
    for at in [at for at, _ in started[1:]] + [finals]:
        before = max(e for e in ended if e < at)
        waits[ended[before]].append(at - before)
    # A wait is that of two processes that load torch: on a busy machine it differs from one to the next.
    assert max(waits["PRUNED"]) < 1.5 * max(waits["COMPLETE"]) + 10, waits


def test_final_runs_share_one_group_of_workers(searched: tuple[Path, set[int]]) -> None:
    study, workers = searched
    assert len(list(study.glob("finals/*/run.json"))) == 6
    assert len(workers) == 2


# -- a single run ----------------------------------------------------------------------------------------

TRAIN = ["train", "small.yaml", "--method", "none", "--workers", "2", "--epochs", "8", "--name", "s", "--seed", "3"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    code, output = program.run(TRAIN, folder)
    assert code == 0, output
    assert "student resnet8 on 2 workers" in output
    return folder / "runs"


@pytest.mark.long
def test_killed_and_resumed_gives_the_same_bits(whole: Path, tmp_path: Path) -> None:
    """SIGKILL to the program and all it started, in the third epoch on two workers."""
    process = program.start(TRAIN, tmp_path)
    lines = tmp_path / "runs" / "s" / "history.jsonl"
    try:
        program.wait_for(lambda: lines.exists() and len(lines.read_text().splitlines()) >= 3)
        assert process.poll() is None
        program.nobody_else_listens(program.listening(program.session_members(process.pid)), outside=1)
    finally:
        program.kill_group(process)
    code, output = program.run(["train", "--resume", "s"], tmp_path)
    assert code == 0, output
    assert re.search(r"goes on after epoch [2-8] of 8\n", output)
    assert len(run_folder.history(tmp_path / "runs" / "s")) == 8
    mine, theirs = tmp_path / "runs" / "s", whole / "s"
    entries = [
        [{k: v for k, v in e.items() if not k.startswith(("at", "time/"))} for e in run_folder.history(f)]
        for f in (mine, theirs)
    ]
    assert entries[0] == entries[1]
    files = [(f / "student" / "student.safetensors").read_bytes() for f in (mine, theirs)]
    assert files[0] == files[1]


@pytest.mark.long
def test_one_worker_gives_the_same_student_to_rounding(tmp_path: Path) -> None:
    told = []
    for workers in ("1", "2"):
        folder = tmp_path / workers
        folder.mkdir()
        arguments = ["train", "small.yaml", "--workers", workers, "--epochs", "2", "--name", "s"]
        arguments += ["--train.precision", "float64", "--teacher.train.precision", "float64"]
        code, output = program.run(arguments, folder)
        assert code == 0, output
        history = run_folder.history(folder / "runs" / "s")
        told.append([e[key] for e in history for key in ("train/loss", "val/loss", "val/accuracy")])
    assert told[1] == pytest.approx(told[0], rel=1e-7)


# -- failures ---------------------------------------------------------------------------------------------

FAILING = """\
import sys
from dataclasses import replace
from pathlib import Path

import akd.cluster
from akd import folder as run_folder
from akd.places import Team
from akd.config import resolve
from akd.errors import RunError
from akd.job import Job
from akd.prepare import complete

akd.cluster.connect("local")
akd.cluster.check_state_api()
import ray
from akd.workers import carry

def job(name, **tree):
    experiment = complete(resolve({
        "data": {"name": "digits", "subset": 300, "validation": 0.2}, "method": "none",
        "train": {"epochs": 2, "threads": 1, **tree.pop("train", {})}, **tree,
    }))
    run_folder.create(Path(name), experiment, run_folder.Run("single", name))
    return Job(str(Path(name).absolute()))

for name, tree in {
    "diverging": {"train": {"lr": 1e30}},
    "broken": {"student": "unlucky:net"},
}.items():
    begun = []
    try:
        carry([job(name, **tree), job(name + "-next")], Team(2, 1.0, 0.0), on_begin=lambda j: begun.append(j.folder))
    except RunError as error:
        print(name, "|", error, "|", len(set(begun)), Path(name, "error.txt").exists(), flush=True)
free = lambda: ray.available_resources().get("CPU", 0)
import time
end = time.monotonic() + 20
while free() < 2 and time.monotonic() < end:
    time.sleep(0.2)
print("free", free(), flush=True)
"""

UNLUCKY = """\
import torch
import torch.distributed as dist
from akd.models import create_model

class Net(torch.nn.Module):
    def __init__(self, num_classes=10, in_channels=1, **kw):
        super().__init__()
        self.net = create_model("resnet8", num_classes, in_channels=in_channels)
        self.fc = self.net.fc

    def forward(self, x):
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("out of luck on worker 1")
        return self.net(x)

def net(**kw):
    return Net(**kw)
"""


@pytest.mark.long
def test_failing_runs_end_with_their_reason_and_free_their_workers(tmp_path: Path) -> None:
    """One that all workers see diverge, and one that fails on one worker alone while the other waits for it."""
    (tmp_path / "unlucky.py").write_text(UNLUCKY, encoding="utf-8")
    (tmp_path / "failing.py").write_text(FAILING, encoding="utf-8")
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    done = subprocess.run(
        [sys.executable, "failing.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=500
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-3000:]
    assert lines[0].startswith("diverging | diverged in epoch 1")
    assert lines[0].endswith("| 1 True")  # the job after it was not begun
    assert lines[1] == "broken | out of luck on worker 1 | 1 True"
    assert lines[2] == "free 2.0"


SILENT = """\
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False)
from akd.cluster import check_state_api
from akd.errors import AkdError
try:
    check_state_api(1)
except AkdError as error:
    print(error)
"""


def test_a_silent_state_api_is_found_at_the_start(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", SILENT], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.startswith("Ray's State API does not answer, and several workers need it"), done.stderr[-2000:]


# -- long ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_searches_killed_and_resumed_equal_the_undisturbed_one(study: Path, tmp_path: Path) -> None:
    """The whole program is killed in a control, in a trial and in a final run, all of them on two workers."""
    moments = ["s/controls/kd/history.jsonl", "s/trials/00001/history.jsonl", "s/finals/*-seed5/history.jsonl"]
    arguments = SHORT
    for pattern in moments:
        process = program.start(arguments, tmp_path)
        try:
            program.wait_for(lambda pattern=pattern: list((tmp_path / "runs").glob(pattern)), 400)
            assert process.poll() is None, (tmp_path / "out.txt").read_text()
        finally:
            program.kill_group(process)
        arguments = ["search", "--resume", "s"]
    code, output = program.run(arguments, tmp_path, timeout=600)
    assert code == 0, output
    identical(tmp_path / "runs" / "s", study)
    agree(tmp_path / "runs" / "s")


HEAD = """\
import sys
import time
from ray.cluster_utils import Cluster

facts = {"num_cpus": 4, "include_dashboard": True, "dashboard_port": int(sys.argv[1])}
print(Cluster(initialize_head=True, head_node_args=facts).address, flush=True)
time.sleep(1000)
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_two_trials_of_two_workers_at_once_on_a_ray_that_was_there(tmp_path: Path) -> None:
    """The processes that steer them take no CPU from the workers: nothing waits for ever."""
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_USAGE_STATS_ENABLED": "0"}
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(program.free_port())],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert head.stdout is not None
        address = head.stdout.readline().strip()
        arguments = ["search", "small.yaml", "--name", "s", "--workers-per-trial", "2", "--final-workers", "2"]
        arguments += ["--champion-seeds", "1", "--ray-address", address]
        code, output = program.run(arguments, tmp_path, timeout=600)
        assert code == 0, output
        assert "2 trials at a time, 2 CPUs and 0 GPUs each, on 2 workers" in output
        agree(tmp_path / "runs" / "s")
        assert head.poll() is None  # it was not akd's to end
    finally:
        program.kill_group(head)
