"""Files from elsewhere that mean harm: nothing of them is run, and nothing is written outside the output folder.

Weights, experiment files and data that are refused before a search starts are in ``test_mistakes.py``.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_study
import pytest
import torch
import yaml

from akd import cli
from akd import config as configuration
from akd.errors import AkdError, ExperimentError
from akd.searcher import open_study
from akd.sharing import check_cache
from akd.teacher.cache import Store
from akd.teacher.keep import load_student

MARK = "pwned"


class _Evil:
    """Leaves a folder where it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARK,)


TAG = f"!!python/object/apply:os.mkdir [{MARK}]"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study.make(tmp_path_factory.mktemp("made") / "s")


@pytest.fixture
def study(finished: Path, place: Path) -> Path:
    shutil.copytree(finished, place / "runs" / "s")
    return place / "runs" / "s"


def refused(arguments: list[str], place: Path, capfd: pytest.CaptureFixture[str], *codes: int) -> str:
    """What is said, in one line; nothing was run, and nothing is new elsewhere."""
    before = sorted(p for p in place.parent.rglob("*") if place / "runs" not in p.parents)
    capfd.readouterr()
    code = cli.main(arguments)
    said = capfd.readouterr().err
    assert code in (codes or (2,)), said
    assert said.count("\n") == 1, said
    assert said.startswith("akd: ")
    assert not list(place.parent.rglob(MARK))
    assert sorted(p for p in place.parent.rglob("*") if place / "runs" not in p.parents) == before
    return said


@pytest.mark.parametrize("name", ["experiment.yaml", ".experiment.yaml"])
def test_the_experiment_of_a_study_that_goes_on(
    name: str, study: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in ("experiment.yaml", ".experiment.yaml"):
        text = (study / "experiment.yaml").read_text()
        (study / file).write_text(text if file != name else text.replace("name: wrn_16_1", f"name: {TAG}"))
    assert TAG.split()[0] in (study / name).read_text()
    said = refused(["search", "--resume", "s"], place, capfd)
    assert "tags can run code" in said
    assert f"{name}:" in said


def test_weights_to_evaluate(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Evil()}, "evil.pth")
    said = refused(["evaluate", "--data", "digits", "--model", "resnet8", "--weights", "evil.pth"], place, capfd)
    assert "could run code" in said


@pytest.mark.parametrize("how", [pickle.dumps, torch.save])
def test_a_student_that_is_no_safetensors(
    how: Callable[..., Any], place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = place / "student"
    folder.mkdir()
    config = {"model": "resnet8", "num_classes": 10, "in_channels": 1, "image_size": [8, 8]}
    config["normalise"] = {"mean": [0.3], "std": [0.3], "range": "0..1"}
    (folder / "config.json").write_text(json.dumps(config))
    if how is pickle.dumps:
        (folder / "student.safetensors").write_bytes(pickle.dumps(_Evil()))
    else:
        torch.save({"model": _Evil()}, folder / "student.safetensors")
    with pytest.raises(ExperimentError, match="cannot be read, it may be damaged"):
        load_student(folder)
    assert "it may be damaged" in refused(["evaluate", "--data", "digits", "--model", "student"], place, capfd)


CONFIGS = {
    "a pickle": pickle.dumps(_Evil()),
    "a function of the system": json.dumps(
        {"model": "os:mkdir", "num_classes": MARK, "in_channels": 1, "image_size": [8, 8], "normalise": {}}
    ).encode(),
    "no numbers": b'{"model": "resnet8", "num_classes": {"a": 1}, "in_channels": [], "image_size": 3, "normalise": []}',
    "a list": b"[1, 2]",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_the_description_of_a_student(content: bytes, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (place / "student").mkdir()
    (place / "student" / "config.json").write_bytes(content)
    (place / "student" / "student.safetensors").write_bytes(b"")
    refused(["evaluate", "--data", "digits", "--model", "student"], place, capfd)


LINES = {
    "a pickle": pickle.dumps(_Evil(), protocol=0),
    "text": b"import os; os.mkdir('pwned')\n",
    "another operation": b'{"op_code": 99, "worker_id": "x"}\n',
    "another kind of parameter": json.dumps(
        {"op_code": 4, "worker_id": "x", "study_id": 0, "datetime_start": TAG, "distributions": {"a": "os.mkdir"}}
    ).encode()
    + b"\n",
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_the_journal_of_a_study(line: bytes, study: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = (study / "optuna.log").read_bytes().splitlines(keepends=True)
    (study / "optuna.log").write_bytes(b"".join([*content[:3], line + b"\n", *content[3:]]))
    assert "optuna.log" in refused(["report", "s", "--verify"], place, capfd, 1)
    with pytest.raises(AkdError, match=r"optuna\.log is damaged, the study cannot go on"):
        open_study(study / "optuna.log", "s")
    assert not (place / MARK).exists()


HISTORY = {
    "a pickle": pickle.dumps(_Evil(), protocol=0),
    "no numbers": b'{"epoch": 1, "at": "now", "val/accuracy": "<script>alert(1)</script>", "train/loss": {}}\n',
    "no epoch": b'{"epoch": [1], "val/accuracy": 0.5}\n{"epoch": null}\n17\n"x"\n',
}


@pytest.mark.parametrize("content", HISTORY.values(), ids=HISTORY)
def test_the_history_of_a_trial(content: bytes, study: Path, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (study / "trials" / "00000" / "history.jsonl").write_bytes(content)
    refused(["report", "s", "--verify"], place, capfd, 1)
    code = cli.main(["report", "s"])
    out, err = capfd.readouterr()
    assert code in (0, 1), err
    assert err.count("\n") == code
    assert "Traceback" not in out + err
    assert not (study / "report.html").exists() or "<script>alert" not in (study / "report.html").read_text()


@pytest.mark.parametrize("verb", ["new", "resume"])
@pytest.mark.parametrize("there", [True, False], ids=["somewhere", "nowhere"])
def test_a_study_that_is_a_link(
    verb: str, there: bool, finished: Path, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = place.parent / "elsewhere" / "x"
    if there and verb == "resume":
        shutil.copytree(finished, target)
    elif there:
        target.mkdir()
    (place / "runs").mkdir()
    (place / "runs" / "x").symlink_to(target)
    arguments = ["search", "quickstart", "--name", "x"] if verb == "new" else ["search", "--resume", "x"]
    assert "is a link" in refused(arguments, place, capfd)
    if verb == "new":
        assert "is a link" in refused(["train", "quickstart", "--name", "x"], place, capfd)


OUTSIDE = ["../kept", "/tmp/akd-kept-elsewhere", "runs/../../kept", "link/kept", "~/kept"]


@pytest.mark.parametrize("folder", OUTSIDE)
def test_a_file_cannot_send_the_teachers_outputs_out_of_the_output_folder(
    folder: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "link").symlink_to(place.parent / "elsewhere")
    tree = {"data": "digits", "teacher": {"name": "wrn_16_1", "cache": {"dir": folder}}, "search": {"trials": 1}}
    Path("s.yaml").write_text(yaml.safe_dump(tree | {"space": {"train.lr": {"choices": [0.1, 0.2]}}}))
    for verb in (["search", "s.yaml"], ["train", "s.yaml"], ["teacher", "cache", "s.yaml"]):
        said = refused(verb, place, capfd)
        assert "s.yaml:" in said
        assert "teacher.cache.dir" in said
        assert "leads out of the output folder" in said
    # As a flag it is the user's own word, and a study that was started with it goes on.
    check_cache(configuration.load(Path("s.yaml"), {"teacher.cache.dir": folder}, {}), place / "runs")
    Path("runs/s").mkdir(parents=True)
    Path("runs/s/experiment.yaml").write_bytes(Path("s.yaml").read_bytes())
    check_cache(configuration.load(Path("runs/s/experiment.yaml"), {}, strict=False), place / "runs")


def test_a_cache_folder_that_holds_other_things_loses_none_of_them(tmp_path: Path) -> None:
    others = ["photos/2024/one.jpg", "0123456789abcdef-not/000001/x", "photos/.gone-by/x", "0123456789abcdef/2024/x"]
    for name in others:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x" * 1000)
    Store(tmp_path, 0).make_room(10**9, free=True)
    assert all((tmp_path / name).is_file() for name in others)
