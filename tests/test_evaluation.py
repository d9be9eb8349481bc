"""``akd evaluate``: networks of akd, of others, and students that were handed over."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from akd.cli import main
from akd.data import load
from akd.data.dataset import DataConfig
from akd.evaluation import _scores, evaluate_model
from akd.folder import export
from akd.models import create_model, load_weights, seeded_model

DIGITS = DataConfig(name="digits")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(seeded_model("resnet8", 10, 5, in_channels=1).state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def by_hand(mean: float, std: float) -> tuple[float, float]:
    data = load(DIGITS)
    x = ((data.test_images.double() / 255 - mean) / std).float()
    with torch.no_grad():
        logits = seeded_model("resnet8", 10, 5, in_channels=1).eval()(x).logits
    ranks = (logits > logits.gather(1, data.test_labels[:, None])).sum(1)
    return (ranks < 1).double().mean().item(), (ranks < 5).double().mean().item()


def test_top_1_and_top_5(weights: Path) -> None:
    data = load(DIGITS)
    found = evaluate_model(DIGITS, "resnet8", weights, device="cpu")
    top1, top5 = by_hand(data.mean[0], data.std[0])
    assert found == {"images": len(data.test_labels), "top1": pytest.approx(top1), "top5": pytest.approx(top5)}
    other = evaluate_model(DIGITS, "resnet8", weights, mean=[0.5], std=[0.25], device="cpu")
    assert (other["top1"], other["top5"]) == pytest.approx(by_hand(0.5, 0.25))
    assert other != found


def test_the_verb(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--data", "digits", "--model", "resnet8", "--weights", str(weights)]
    assert main([*arguments, "--mean", "0.5", "--std", "[0.25]"]) == 0
    top1, top5 = by_hand(0.5, 0.25)
    want = f"digits: top-1 {100 * top1:.2f} %, top-5 {100 * top5:.2f} % of {len(load(DIGITS).test_labels)} test images"
    assert capsys.readouterr().out.strip() == want


def test_a_handed_over_student(tmp_path: Path, weights: Path) -> None:
    from akd.config import resolve
    from akd.data import split

    e = resolve({"data": "digits", "student": "resnet8"})
    export(tmp_path / "s", seeded_model("resnet8", 10, 5, in_channels=1), e, split(e.data, load(e.data)), {})
    assert evaluate_model(DIGITS, str(tmp_path / "s"), device="cpu") == evaluate_model(
        DIGITS, "resnet8", weights, device="cpu"
    )
    assert main(["evaluate", "--data", "digits", "--model", str(tmp_path / "s"), "--weights", "x"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet8"], "--model = 'resnet8': has random weights; give a file with --weights"),
        (["--model", "resnet9", "--weights", "W"], "there is no such model, did you mean 'resnet"),
        (["--model", "resnet14", "--weights", "W"], "w.pth': does not fit the network: 'layer1.1.conv1.weight'"),
        (["--model", "resnet8", "--weights", "gone"], "--weights = 'gone': there is no such file"),
        (["--model", "resnet8", "--weights", "W", "--mean", "a"], "--mean = 'a': must be numbers with commas"),
        (["--model", "resnet8", "--weights", "W", "--mean", "0.5"], "--std = []: must have 1 values"),
        (["--model", "resnet8", "--weights", "W", "--mean", "0,0", "--std", "1,1"], "--mean = [0.0, 0.0]: must have 1"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(weights.parent)
    assert main(["evaluate", "--data", "digits", *(str(weights) if a == "W" else a for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif("AKD_DATA" not in os.environ, reason="AKD_DATA names no folder with cifar100 and teachers")
def test_a_teacher_of_somebody_else() -> None:
    """71.69 % on all 10,000 test images; here the first 500, of which 365 are right."""
    folder = Path(os.environ["AKD_DATA"])
    data = load(DataConfig(name="cifar100", dir=str(folder / "cifar100")))
    few = replace(data, test_images=data.test_images[:500], test_labels=data.test_labels[:500])
    net = create_model("tests.foreign.wide_stem:network", 100).eval()
    load_weights(net, folder / "teachers" / "cifar100_resnet32_wide_stem.pth")
    assert sum(p.numel() for p in net.parameters()) == 501_316
    assert _scores(net, few, "cpu")["top1"] * 500 == pytest.approx(365, abs=1)
