"""A search of Angular-KD: what a method with views and head epochs leaves in result, folders and MLflow."""

from __future__ import annotations

from pathlib import Path

import program
import pytest
from mlflow import MlflowClient

from akd import folder as run_folder

pytestmark = pytest.mark.ray

SPACE = """\
data: {name: digits, validation: 0.2, subset: 400}
teacher: {name: wrn_16_1, train: {epochs: 1, lr: 0.1}}
student: resnet8
method:
  host: {name: kd, weight: 2.0}
  views: {name: angular_kd, count: 2, head_warmup_epochs: 2, as_released: true}
train: {epochs: 2, lr: 0.1}
search: {trials: 2, champion_seeds: 1, scheduler: none, final_workers: 1, confirm: 0}
space:
  method.views.margin: {type: float, low: 0.1, high: 0.5}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("views")
    (folder / "views.yaml").write_text(SPACE, encoding="utf-8")
    code, output = program.run(["search", "views.yaml", "--name", "v"], folder)
    assert code == 0, output
    return folder / "runs" / "v"


def test_the_method_is_named_and_weighed(study: Path) -> None:
    output = (study.parents[1] / "out.txt").read_text(encoding="utf-8")
    assert "winner: angular_kd over kd, resnet8" in output
    assert "Warning" not in output
    result = program.read(study / "result.json")
    mass = (1 + 0.8 * 2) / (1 + 0.64 * 2) ** 0.5
    assert result["effective_soft_target_weight"] == pytest.approx(2.0 * 16 * mass)
    assert set(result["controls"]) == {"none", "kd"}


def test_controls_have_no_views(study: Path) -> None:
    for name in ("none", "kd"):
        folder = study / "controls" / name
        assert run_folder.head_history(folder) == []
        assert not any(k.startswith("views/") for e in run_folder.history(folder) for k in e)


def test_head_epochs_are_charged_and_unseen_by_the_search(study: Path) -> None:
    result = program.read(study / "result.json")
    assert result["best_trial"]["epochs_run"] == 2
    for folder in sorted((study / "trials").iterdir()):
        assert len(run_folder.head_history(folder)) == len(run_folder.history(folder)) == 2
    # trials: 2 head and 2 student epochs of 5 steps; the control kd 2 of them; finals of 6 steps: champion and kd
    told = result["teacher_passes"]
    assert told["made"] + told["saved"] == 64 * (2 * 4 * 5 + 2 * 5 + 4 * 6 + 2 * 6)
    assert told["made"] == 2 * 320 + 2 * 400  # head epochs see the images of the student's first


def test_mlflow_has_both_stages_on_one_axis(study: Path) -> None:
    client = MlflowClient(f"sqlite:///{study.parent}/mlflow.db")
    for folder in [*sorted((study / "trials").iterdir()), *(study / "finals").glob("champion*")]:
        run = client.get_run(next(iter(program.read(folder / "mlflow.json").values()))["run_id"])
        assert run.data.tags["akd.method"] == "angular_kd over kd"
        assert run.data.params["method.views.count"] == "2"
        assert len(run.data.metrics) < 30
        heads, epochs = run_folder.head_history(folder), run_folder.history(folder)
        curve = client.get_metric_history(run.info.run_id, "views/angle_to_teacher")
        wanted = [e["views/angle_to_teacher"] for e in heads + epochs]
        assert sorted((m.step, m.value) for m in curve) == list(zip((-1, 0, 1, 2), wanted, strict=True))
        assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/kd")] == [1, 2]
        assert len(client.get_metric_history(run.info.run_id, "heads/loss")) == 2
        assert [m.step for m in client.get_metric_history(run.info.run_id, "lr")] == [1, 2]
