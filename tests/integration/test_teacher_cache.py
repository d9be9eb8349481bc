"""A teacher's outputs kept ahead, by one process or several, and found by searches and single runs."""

from __future__ import annotations

from pathlib import Path

import program
import pytest
from safetensors.torch import load_file
from studies import identical

import akd
from akd import cli
from akd import folder as run_folder
from akd.config import load

SINGLE = """\
data: {name: digits, subset: 200}
teacher: {name: wrn_16_1, train: {epochs: 2, batch_size: 16}, cache: {use: on, epochs: 2}}
student: resnet8
method: {host: kd, augment: cutmix}
train: {epochs: 3, batch_size: 30, threads: 1, epoch_factor: 2}
"""
SPACE = """\
data: {name: digits, validation: 0.2, subset: 400}
teacher: {name: wrn_16_1, train: {epochs: 1, lr: 0.1}}
student: resnet8
train: {epochs: 2, lr: 0.1}
search: {trials: 3, confirm: 0, champion_seeds: 1, scheduler: none, final_workers: 1, concurrent: 1}
space:
  method.host.name: {choices: [kd, amd, fitnet]}
  method.augment.name: {choices: [none, mixup]}
"""


def images(folder: Path) -> tuple[float, float]:
    """Whose outputs a run asked for, and on which the teacher was run in it."""
    entries = run_folder.history(folder)
    return tuple(sum(e[f"time/teacher_{k}"] for e in entries) for k in ("asked", "images"))  # type: ignore[return-value]


def test_a_run_finds_what_was_kept_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Ray: the command and the library, one worker each."""
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SINGLE, encoding="utf-8")
    assert cli.main(["teacher", "cache", "s.yaml", "--workers", "1", "--passes", "9"]) == 0
    # There are no more than two augmentation tables; a training image has a standard and a strong view.
    assert f"run on {2 * 2 * 180} images; logits of 2 passes in runs/cache: " in capsys.readouterr().out
    found = akd.distil("s.yaml", name="found")
    assert images(found.folder) == (3 * 2 * 2 * 180, 0)
    assert "the teacher's outputs are kept in runs/cache" in capsys.readouterr().out
    again = akd.distil("s.yaml", name="again")
    one, two = (load_file(r.student / "student.safetensors") for r in (found, again))
    assert all(one[k].equal(two[k]) for k in one)
    assert cli.main(["train", "s.yaml", "--workers", "1", "--name", "live", "--teacher.cache.use", "auto"]) == 0
    assert images(Path("runs/live"))[1] == 3 * 2 * 2 * 180
    assert not Path("runs/live/cache.json").exists()


def test_what_cannot_be_kept_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SINGLE, encoding="utf-8")
    flags = ["--workers", "1", "--name", "maps", "--method", "fitnet", "--train.epochs", "1"]
    assert cli.main(["train", "s.yaml", *flags]) == 0
    output = capsys.readouterr().out
    assert "the teacher runs in every step of fitnet: it reads whole feature maps" in output
    assert not (tmp_path / "runs" / "cache").exists()


@pytest.mark.long
@pytest.mark.ray
def test_a_search_reads_what_two_workers_kept(tmp_path: Path) -> None:
    """The command fills on two workers what one trial after the other then reads; alone the search finds the same."""
    (tmp_path / "s.yaml").write_text(SPACE, encoding="utf-8")
    code, output = program.run(["teacher", "s.yaml", "--workers", "1"], tmp_path)  # as the search trains it
    assert code == 0, output
    code, output = program.run(["teacher", "cache", "s.yaml", "--workers", "2", "--seed", "4"], tmp_path)
    assert code == 0, output
    kept = "attention:-1, attention:-2, attention:-3, logits of 2 passes in runs/cache"
    assert f"run on {2 * 2 * 320:,} images; {kept}: " in output
    assert "under 2 keys" in output
    files = {p: p.read_bytes() for p in (tmp_path / "runs" / "cache").rglob("*.arrow")}
    code, output = program.run(["search", "s.yaml", "--name", "s", "--seed", "4"], tmp_path)
    assert code == 0, output
    assert "Warning" not in output
    study = tmp_path / "runs" / "s"
    for path in [*study.glob("trials/*"), *study.glob("controls/*")]:
        host = load(path / "experiment.yaml", {}, strict=False).method.host_name
        asked, made = images(path) if host != "none" else (0, 0)
        assert made == (asked if host == "fitnet" else 0), path
    assert all(p.read_bytes() == content for p, content in files.items())
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "s.yaml").write_text(SPACE, encoding="utf-8")
    code, output = program.run(["search", "s.yaml", "--name", "s", "--seed", "4"], alone)
    assert code == 0, output
    identical(study, alone / "runs" / "s")
    made = [program.read(s / "result.json")["teacher_passes"]["made"] for s in (study, alone / "runs" / "s")]
    assert made[0] < made[1]
