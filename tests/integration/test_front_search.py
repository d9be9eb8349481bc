"""A real search for accuracy and parameters among students: what it leaves, and how it goes on after kills."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import program
import pytest
from mlflow import MlflowClient
from studies import agree, identical

from akd.folder import COMPLETE, Run
from akd.logged import default_uri
from akd.report import verify
from akd.teacher.keep import load_student

pytestmark = pytest.mark.ray

ARGUMENTS = ["search", "small.yaml", "--name", "s", "--concurrent", "1", "--epochs", "2", "--champion-seeds", "1"]
# vgg8 is the experiment's own student, which no trial may have; wrn_40_2 costs too much.
ARGUMENTS += ["--student", "vgg8", "--space.student.name", "{choices: [resnet8, resnet14, wrn_40_2]}", "--seed", "3"]
ARGUMENTS += ["--objectives", "accuracy,parameters", "--constraint", "parameters=1M,latency_1=10000"]
COUNTED = {"resnet8": {"parameters": 77754.0, "flops": 1527040.0}}
COUNTED |= {"resnet14": {"parameters": 174970.0, "flops": 3296512.0}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("front")
    code, output = program.run([*ARGUMENTS, "--trials", "4"], folder)
    assert code == 0, output
    return folder / "runs" / "s"


def test_everything_is_of_the_winners_student(study: Path) -> None:
    result = program.read(study / "result.json")
    winner = result["best_trial"]["parameters"]["student.name"]
    assert result["student"] == winner
    for name in ("champion", "none", "kd"):
        assert program.read(study / "finals" / f"{name}-seed4" / "student" / "config.json")["model"] == winner
    assert sum(p.numel() for p in load_student(study / "champion").parameters()) == COUNTED[winner]["parameters"]
    for name in ("none", "kd"):  # beside the search, when no winner was known
        assert program.read(study / "controls" / name / "student" / "config.json")["model"] == "resnet8"
    assert result["mlflow"]["registered_model"] == f"models:/akd-digits-{winner}/1"


def test_what_was_said(study: Path) -> None:
    output = (study.parents[1] / "out.txt").read_text(encoding="utf-8")
    result = program.read(study / "result.json")
    assert "study s: digits: wrn_16_1 to resnet8, resnet14, wrn_40_2" in output
    assert "student resnet8: 77.8 k parameters, 1.53 M FLOPs of an image, 0" in output
    assert "left out: wrn_40_2 costs 2,243,258 parameters, at most 1,000,000 are allowed" in output
    finished = result["trials"][COMPLETE]
    head = f"front of accuracy and parameters: {len(result['front'])} trial"
    (line,) = [line for line in output.splitlines() if head in line]
    assert f"of {finished} finished; the winner is the most accurate" in line
    assert f"{result['student']}, the winner)" in output


def test_costs_are_measured_once_and_kept_with_every_run(study: Path) -> None:
    table = program.read(study / "costs.json")
    assert table["wrn_40_2"] == {"parameters": 2243258.0, "flops": 40915456.0}  # left out before the clock ran
    client = MlflowClient(default_uri(study.parent))
    for path in [*study.glob("trials/*"), *study.glob("controls/*")]:
        run = Run.read(path)
        assert run is not None
        own = run.parameters.get("student.name", "resnet8")
        assert {k: table[own][k] for k in ("parameters", "flops")} == COUNTED[own]
        wanted = {f"cost/{k}": v for k, v in COUNTED[own].items()} | {"cost/latency_1_ms": table[own]["latency_1"]}
        assert run.results == wanted
        (note,) = program.read(path / "mlflow.json").values()
        logged = client.get_run(note["run_id"]).data.metrics
        assert {k: v for k, v in logged.items() if k.startswith("cost/")} == wanted


def test_front_and_records(study: Path) -> None:
    result = program.read(study / "result.json")
    front = result["front"]
    assert front[0]["number"] == result["best_trial"]["number"]
    assert front[0]["values"]["accuracy"] == result["best_trial"]["validation_accuracy"]
    client = MlflowClient(default_uri(study.parent))
    experiment = client.get_experiment_by_name("digits: wrn_16_1 to resnet8, resnet14, wrn_40_2")
    assert experiment is not None
    tagged = client.search_runs([experiment.experiment_id], "tags.akd.front = 'yes'")
    assert {int(run.data.tags["akd.trial"]) for run in tagged} == {member["number"] for member in front}
    checks = verify.verify(study, default_uri(study.parent))
    assert [check.line() for check in checks if not check.good] == []
    assert [check.name for check in checks][-3:] == ["costs", "front", "result"]
    page = (study / "report.html").read_text(encoding="utf-8")
    assert "<h2>Front</h2>" in page
    assert ('class="square"' in page) == (len(front) > 1)  # the winner alone is a diamond


#: Where a session is killed: a file of the run that is under way, and its lines by then.
MOMENTS = [("s/run.json", 1), ("s/trials/00001/history.jsonl", 1), ("s/trials/00005/experiment.yaml", 1)]
MOMENTS += [("s/finals/champion-seed4/history.jsonl", 1)]


@pytest.mark.long
def test_killed_again_and_again_equals_undisturbed(tmp_path: Path) -> None:
    """Beyond the sampler's first, random suggestions; the latencies of the first session stay."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    code, output = program.run([*ARGUMENTS, "--trials", "8"], whole)
    assert code == 0, output

    def lines(pattern: str, count: int) -> bool:
        return any(len(p.read_text().splitlines()) >= count for p in (cut / "runs").glob(pattern))

    arguments, table = [*ARGUMENTS, "--trials", "8"], []
    for pattern, count in MOMENTS:
        process = program.start(arguments, cut)
        try:
            program.wait_for(partial(lines, pattern, count))
            assert process.poll() is None, (cut / "out.txt").read_text()
            os.kill(process.pid, signal.SIGKILL)
        finally:
            program.kill_group(process)
        table.append(program.read(cut / "runs" / "s" / "costs.json"))
        arguments = ["search", "--resume", "s"]
    code, output = program.run(arguments, cut)
    assert code == 0, output
    assert all(one == table[-1] for one in table)
    mine, theirs = cut / "runs" / "s", whole / "runs" / "s"
    identical(mine, theirs)
    assert program.read(mine / "result.json")["front"] == program.read(theirs / "result.json")["front"]
    agree(mine)
    checks = verify.verify(mine, default_uri(mine.parent))
    assert [check.line() for check in checks if not check.good] == []
