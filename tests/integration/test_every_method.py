"""One short real search for every method, in its own shipped space. Takes minutes: ``make test-long``."""

from __future__ import annotations

import math
from pathlib import Path

import program
import pytest
import yaml
from safetensors.torch import load_file

from akd import folder as run_folder
from akd import spaces
from akd.config import load
from akd.data.policies import augments
from akd.methods import hosts, views

pytestmark = [pytest.mark.ray, pytest.mark.long]

SEARCH = ["--trials", "2", "--epochs", "2", "--final-workers", "1", "--champion-seeds", "1"]


def short(name: str, folder: Path, **changes: object) -> dict[str, object]:
    """``folder/NAME.yaml``: the method and the space shipped under a name, everything else as in the small search."""
    shipped = yaml.safe_load(spaces.find(name).read_text(encoding="utf-8"))
    tree = yaml.safe_load(program.SMALL) | {"method": shipped["method"], "space": shipped["space"]}
    if "head_warmup_epochs" in (tree["method"].get("views") or {}):
        tree["method"]["views"]["head_warmup_epochs"] = 1
    tree |= changes
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tree


def search(name: str, folder: Path, title: str) -> None:
    """Search and look at what is left: a finished trial, the winner's method, weights and curves that are finite."""
    code, output = program.run(["search", f"{name}.yaml", "--name", "m", *SEARCH], folder)
    assert code == 0, output
    assert f"winner: {title}, resnet8" in output
    assert "Warning" not in output
    study = folder / "runs" / "m"
    result = program.read(study / "result.json")
    assert result["trials"].get("COMPLETE", 0) >= 1
    assert sum(result["trials"].values()) == 2
    for path in study.glob("trials/*"):
        run = run_folder.Run.read(path)
        assert run is not None
        # Ranges reach weights that are too much for some learning rates; nothing else may go wrong.
        assert run.state != run_folder.FAILED or str(run.reason).startswith("diverged"), run.reason
    assert result["best_trial"]["epochs_run"] == 2
    students = [*study.glob("trials/*/student/student.safetensors"), study / "champion" / "student.safetensors"]
    assert len(students) >= 2
    for path in students:
        assert all(t.isfinite().all() for t in load_file(path).values()), path
    for path in [*study.glob("trials/*"), study / "finals" / "champion-seed1"]:
        entries = run_folder.history(path)
        assert len(entries) == 2 or path.parent.name == "trials"
        assert all(math.isfinite(v) for e in entries for v in e.values())


@pytest.mark.parametrize("name", [n for n in hosts.names() if n != "none"])
def test_host(name: str, tmp_path: Path) -> None:
    short(name, tmp_path)
    search(name, tmp_path, name)


@pytest.mark.parametrize("name", views.names())
def test_views(name: str, tmp_path: Path) -> None:
    short(name, tmp_path)
    search(name, tmp_path, f"{name} over kd")
    assert len(run_folder.head_history(tmp_path / "runs/m/trials/00000")) == (name != "tekap")


@pytest.mark.parametrize("form", ["second", "only"])
def test_augmentation(form: str, tmp_path: Path) -> None:
    """The policy that does most: it mixes, scores candidates with both networks and keeps some."""
    name, space = "cutmix_pick", yaml.safe_load(spaces.find("augmentation").read_text(encoding="utf-8"))["space"]
    assert name in augments
    told = {"method.augment.name": name, "method.augment.form": form, "train.epoch_factor": 1}
    mine = {k: s for k, s in space.items() if k not in told and name in applies(s)}
    kept = {k: {f: v for f, v in s.items() if f != "when"} for k, s in mine.items()}
    assert {"method.augment.criterion", "method.augment.pool", "method.augment.alpha"} <= kept.keys()
    short("augmentation", tmp_path, space=told | kept)
    search("augmentation", tmp_path, f"kd with {name}")
    resolved = load(tmp_path / "runs/m/trials/00000/experiment.yaml", {}, strict=False)
    assert resolved.method.augment.form == form


def applies(parameter: dict[str, dict[str, list[str]]]) -> list[str]:
    """Augmentations under which a parameter of the shipped space exists."""
    return parameter.get("when", {}).get("method.augment.name", augments.names())
