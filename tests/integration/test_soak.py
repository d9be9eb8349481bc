"""A search killed twenty times, at moments drawn from a seed, equals an undisturbed one. ``make test-long``.

``AKD_SOAK_SEED`` repeats the draws of an earlier run.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import program
import pytest
import torch
from safetensors.torch import load_file
from server import Server
from soak import SPACE, Soak
from studies import agree, identical

from akd import folder as run_folder
from akd.fit import EpochRecord
from akd.folder import Run
from akd.job import Job, run_job

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(3000)]

KILLS = 20
SEARCH = ["search", "soak.yaml", "--name", "s", "--seed", "3"]


def seed() -> int:
    return int(os.environ.get("AKD_SOAK_SEED", random.SystemRandom().randrange(10**6)))


def soaked(folder: Path, concurrent: int, capsys: pytest.CaptureFixture[str]) -> Path:
    """The study after its kills, with the table shown and all records compared."""
    server = Server(folder, program.free_port())
    server.start(wait=True)
    try:
        arguments = [*SEARCH, "--concurrent", str(concurrent), "--tracking-uri", server.uri]
        one = Soak(folder, arguments, seed(), KILLS, server)
        with capsys.disabled():
            print(f"\nAKD_SOAK_SEED={one.seed}", flush=True)
            try:
                one.run()
            finally:
                print(one.table(), flush=True)
        assert len(one.kills) == KILLS, "the search was too short for all kills"
        agree(one.study)
        code, output = program.run(["report", "s", "--verify"], folder)
        with capsys.disabled():
            print(output, flush=True)
        assert code == 0, output
    finally:
        server.kill()
    return one.study


def test_one_trial_at_a_time_equals_the_undisturbed_search(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The sequence of configurations, all metrics and all weights."""
    alone = tmp_path / "undisturbed"
    alone.mkdir()
    (alone / "soak.yaml").write_text(SPACE, encoding="utf-8")
    code, output = program.run([*SEARCH, "--concurrent", "1"], alone, timeout=900)
    assert code == 0, output
    study = soaked(tmp_path, 1, capsys)
    identical(study, alone / "runs" / "s")


def test_two_trials_at_a_time_are_each_as_if_undisturbed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who is stopped, and so what is suggested, hangs on the clock; what a configuration and a seed give does not.

    Every run of the search is trained again, in one piece, by itself and with a cache of its own.
    """
    study = soaked(tmp_path, 2, capsys)
    (teacher,) = [p.parent for p in study.parent.glob("teachers/*/run.json")]
    compared = 0
    for path in sorted(study.glob("*/*/run.json")):
        mine, run = path.parent, Run.read(path.parent)
        assert run is not None
        assert run.state in (run_folder.COMPLETE, run_folder.PRUNED), f"{run.name}: {run.reason}"
        again, epochs = tmp_path / "again" / path.parent.relative_to(study), len(run_folder.history(mine))
        again.mkdir(parents=True)
        (again / "experiment.yaml").write_bytes((mine / "experiment.yaml").read_bytes())
        job = Job(str(again), str(teacher), final=mine.parent.name == "finals", cache=str(tmp_path / "cache"))
        done: list[int] = []

        def report(record: EpochRecord, done: list[int] = done) -> None:
            done.append(record.epoch)

        run_job(job, on_epoch=report, stop=lambda done=done, epochs=epochs: len(done) >= epochs)
        assert program.metrics_of(again) == program.metrics_of(mine), run.name
        a, b = (load_file(f / "student" / "student.safetensors") for f in (again, mine))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a), run.name
        compared += 1
    confirmed = len(list(study.glob("confirm/*/run.json")))
    assert confirmed > 0
    assert compared == 2 + 24 + confirmed + 6
    with capsys.disabled():
        print(f"{compared} runs trained again in one piece: the same bits", flush=True)
