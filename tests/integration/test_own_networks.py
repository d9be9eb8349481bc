"""A search over networks that lie beside the experiment, with a teacher whose weights are given."""

from __future__ import annotations

import sys
from pathlib import Path

import program
import pytest
import torch
import yaml

from akd.folder import Run
from akd.metrics import evaluate
from akd.teacher.keep import load_student

pytestmark = pytest.mark.ray

NETWORK = Path(__file__).parents[1] / "foreign" / "tiny.py"


def test_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module is in the current folder alone: driver and Ray's workers must both find it there."""
    (tmp_path / "my_tiny.py").write_text(
        NETWORK.read_text(encoding="utf-8") + "\n\ndef wide(num_classes):\n    return network(num_classes, 32)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_tiny

    torch.manual_seed(0)
    torch.save({"state_dict": my_tiny.wide(10).state_dict()}, tmp_path / "teacher.pth")
    arguments = ["search", "small.yaml", "--name", "own", "--trials", "1", "--epochs", "1", "--champion-seeds", "1"]
    arguments += ["--teacher", "my_tiny:wide", "--teacher-weights", "teacher.pth", "--student", "my_tiny:network"]
    arguments += ["--teacher.mean", "[0.5]", "--teacher.std", "[0.3]"]
    code, output = program.run(arguments, tmp_path, PYTHONPATH=str(Path(program.__file__).parents[2]))
    assert code == 0, output
    assert "teacher my_tiny:wide: given, validation" in output
    study = tmp_path / "runs" / "own"
    resolved = yaml.safe_load((study / "experiment.yaml").read_text(encoding="utf-8"))
    assert resolved["teacher"]["weights"] == str(tmp_path / "teacher.pth")
    record, (teacher,) = Run.read(study), (tmp_path / "runs" / "teachers").glob("*/run.json")
    assert record is not None
    assert record.tags["teacher_saw_validation"] == "may have"
    assert record.tags["teacher_hash"] == teacher.parent.name
    result = program.read(study / "result.json")
    assert result["trials"] == {"COMPLETE": 1}
    assert result["teacher_passes"]["made"] > 0
    student = load_student(study / "champion")
    assert [m.shape[1] for m in student(torch.zeros(1, 1, 8, 8)).maps] == [4, 8]
    assert evaluate(student, [(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long))])["loss"] > 0
    sys.modules.pop("my_tiny")
