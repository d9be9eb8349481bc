"""A teacher whose weights are given: checked, measured, kept, and run with its own normalisation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from akd import folder as run_folder
from akd.config import Experiment, resolve
from akd.data import TrainData, split
from akd.data import load as load_data
from akd.data.augment import normalise
from akd.errors import ExperimentError
from akd.metrics import evaluate
from akd.models import create_model, seeded_model
from akd.prepare import prepare
from akd.single import distil
from akd.teacher.keep import load_teacher, obtain, teacher_hash
from akd.teacher.source import LiveTeacher, Renormalised

MEAN, STD = [0.5], [0.25]


def experiment(weights: Path | None, **teacher: Any) -> Experiment:
    return resolve(
        {
            "data": {"name": "digits", "subset": 300, "validation": 0.2},
            "teacher": {"name": "resnet8", "weights": str(weights) if weights else None, **teacher},
            "student": "resnet8",
            "train": {"epochs": 1, "batch_size": 64, "threads": 1},
            "space": {"train.lr": {"type": "float", "low": 0.05, "high": 0.2}},
        }
    )


def data_of(e: Experiment) -> TrainData:
    return split(e.data, load_data(e.data))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"state_dict": seeded_model("resnet8", 10, 5, in_channels=1).state_dict()}, tmp_path / "w.pth")
    return tmp_path / "w.pth"


def raw(data: TrainData, mean: list[float], std: list[float]) -> torch.Tensor:
    m, s = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
    return normalise(data.dataset.images[data.val], m, s)


def test_it_is_kept_measured_and_found_again(weights: Path, tmp_path: Path) -> None:
    e = experiment(weights, mean=MEAN, std=STD)
    data = data_of(e)
    kept = obtain(e, data, tmp_path / "store", lambda folder: pytest.fail("it was trained"))
    net = seeded_model("resnet8", 10, 5, in_channels=1).eval()
    scores = evaluate(net, [(raw(data, MEAN, STD), data.dataset.labels[data.val])])
    assert kept.accuracy == scores["accuracy"]
    run = run_folder.Run.read(kept.folder)
    assert run is not None
    assert (run.state, run.kind) == (run_folder.COMPLETE, "teacher")
    assert run.tags == {"teacher_hash": kept.hash, "teacher_saw_validation": "may have"}
    assert run.results["val/accuracy"] == kept.accuracy
    again = obtain(e, data, tmp_path / "store")
    assert (again.hash, again.accuracy, again.found) == (kept.hash, kept.accuracy, True)


def test_the_batch_is_the_students(weights: Path, tmp_path: Path) -> None:
    e = experiment(weights, mean=MEAN, std=STD)
    data = data_of(e)
    net = load_teacher(obtain(e, data, tmp_path / "store").folder)
    assert isinstance(net, Renormalised)
    x = raw(data, list(data.dataset.mean), list(data.dataset.std))
    before = x.clone()
    out = LiveTeacher(net, frozenset({"maps_preact:1"}))(x, None)  # type: ignore[arg-type]
    with torch.no_grad():
        want = seeded_model("resnet8", 10, 5, in_channels=1).eval()(raw(data, MEAN, STD), preact=True)
    assert torch.equal(x, before)
    assert torch.allclose(out.logits, want.logits, atol=1e-5)
    assert len(out.maps_preact or ()) == 4
    plain = load_teacher(obtain(experiment(weights), data, tmp_path / "store").folder)
    assert not isinstance(plain, Renormalised)


def test_renormalisation_is_exact() -> None:
    net = create_model("resnet8", 3).double().eval()
    image = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mine, own = ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]), ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    a, b = (normalise(image, *(torch.tensor(v, dtype=torch.float64) for v in ms), torch.float64) for ms in (mine, own))
    with torch.no_grad():
        assert torch.allclose(Renormalised(net, *own, *mine)(a).logits, net(b).logits, rtol=1e-10, atol=1e-12)


def test_the_hash_follows_what_the_teacher_is(weights: Path, tmp_path: Path) -> None:
    e = experiment(weights)
    data = data_of(e)
    hashes = [teacher_hash(e, data)]
    assert teacher_hash(experiment(weights, train={"lr": 0.3}), data) == hashes[0]  # nothing is trained
    weights.rename(tmp_path / "renamed")
    assert teacher_hash(experiment(tmp_path / "renamed"), data) == hashes[0]
    hashes.append(teacher_hash(experiment(tmp_path / "renamed", mean=MEAN, std=STD), data))
    torch.save(seeded_model("resnet8", 10, 6, in_channels=1).state_dict(), weights)
    hashes += [teacher_hash(e, data), teacher_hash(experiment(None), data)]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "resnet14"}, r"^teacher.weights = '.*w.pth': does not fit the network: 'layer1.1.conv1.weight' "),
        ({"mean": [0.5] * 3, "std": [0.2] * 3}, r"^teacher.mean = '.*': must have 1 values, one for each channel"),
        ({"name": "torchvision:resnet18"}, r"^teacher = 'torchvision:resnet18': takes images of 3 channels"),
    ],
)
def test_mistakes_before_anything_starts(teacher: dict[str, Any], message: str, weights: Path) -> None:
    with pytest.raises(ExperimentError, match=message):
        prepare(experiment(weights, **teacher))


@pytest.mark.parametrize(
    ("weights", "teacher", "message"),
    [
        (None, {"mean": [0.5], "std": [0.2]}, "teacher.mean = .*: has no effect without teacher.weights"),
        ("w", {"mean": [0.5]}, "teacher.mean = .*: needs teacher.std with as many values"),
        ("w", {"std": [0.5, 0.1], "mean": [0.1]}, "teacher.mean = .*: needs teacher.std with as many values"),
        ("w", {"std": [0.0], "mean": [0.1]}, "teacher.std = .*: must be a list of numbers > 0"),
        ("w", {"taps": [1]}, "teacher.taps = .*: must be a list of strings"),
        ("w", {"taps": "layer1"}, "teacher.taps = .*: must be a list of strings"),
    ],
)
def test_settings_that_make_no_sense(weights: str | None, teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        experiment(Path(weights) if weights else None, **teacher)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"^teacher.weights = '.*gone.pth': there is no such file$"):
        prepare(experiment(tmp_path / "gone.pth"))


def test_distilled_with_maps_of_its_own(tmp_path: Path) -> None:
    """A foreign student under a given teacher: trained, handed over and loaded again with its taps."""
    torch.save(seeded_model("resnet8", 10, 5, in_channels=1).state_dict(), tmp_path / "w.pth")
    e = experiment(tmp_path / "w.pth", mean=MEAN, std=STD)
    tree = e.to_dict() | {"student": {"name": "tests.foreign.tiny:network", "taps": ["first"]}}
    result = distil(resolve(tree, strict=False), output=tmp_path)
    config = json.loads((result.student / "config.json").read_text(encoding="utf-8"))
    assert (config["model"], config["taps"]) == ("tests.foreign.tiny:network", ["first"])
    from akd.teacher.keep import load_student

    out = load_student(result.student)(torch.zeros(1, 1, 8, 8))
    assert [m.shape[1] for m in out.maps] == [4]
