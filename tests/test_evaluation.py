"""``akd evaluate``: networks of akd, of others, and students that were handed over, side by side."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from akd.cli import main
from akd.config import resolve
from akd.data import load, split
from akd.data.dataset import DataConfig, Dataset, readers
from akd.errors import ExperimentError
from akd.evaluate_verb import Report, tables, titles
from akd.evaluation import Asked, Network, evaluate_model, evaluate_networks, open_network, sized_for, teacher_of
from akd.folder import Run, create, export
from akd.logged import default_uri
from akd.models import seeded_model
from akd.seeds import generator

DIGITS = DataConfig(name="digits")


def student(folder: Path, seed: int = 5, name: str = "resnet8") -> Path:
    """A folder as akd hands a student over."""
    e = resolve({"data": "digits", "student": name})
    export(folder, seeded_model(name, 10, seed, in_channels=1), e, split(e.data, load(e.data)), {})
    return folder


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(seeded_model("resnet8", 10, 5, in_channels=1).state_dict(), tmp_path / "w.pth")
    return tmp_path / "w.pth"


def logits_by_hand(mean: float, std: float, images: Tensor | None = None, seed: int = 5) -> Tensor:
    data = load(DIGITS)
    pixels = data.test_images.double() / 255 if images is None else images
    with torch.no_grad():
        return seeded_model("resnet8", 10, seed, in_channels=1).eval()(((pixels - mean) / std).float()).logits.double()


def by_hand(mean: float, std: float) -> tuple[float, float]:
    logits, labels = logits_by_hand(mean, std), load(DIGITS).test_labels
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    return (ranks < 1).double().mean().item(), (ranks < 5).double().mean().item()


def test_top_1_and_top_5(weights: Path) -> None:
    data = load(DIGITS)
    found = evaluate_model(DIGITS, "resnet8", weights, device="cpu")
    top1, top5 = by_hand(data.mean[0], data.std[0])
    assert list(found) == ["images", "top1", "top5", "nll", "ece"]
    assert found["images"] == len(data.test_labels)
    assert (found["top1"], found["top5"]) == pytest.approx((top1, top5))
    log_p = logits_by_hand(data.mean[0], data.std[0]).log_softmax(1)
    nll = -log_p.gather(1, data.test_labels[:, None]).mean().item()
    assert found["nll"] == pytest.approx(nll, rel=1e-4)
    other = evaluate_model(DIGITS, "resnet8", weights, mean=[0.5], std=[0.25], device="cpu")
    assert (other["top1"], other["top5"]) == pytest.approx(by_hand(0.5, 0.25))
    assert other != found


class TestNetworks:
    def test_agreement_with_a_teacher(self, tmp_path: Path) -> None:
        data = load(DIGITS)
        folders = [student(tmp_path / str(seed), seed) for seed in (5, 6)]
        mine, teacher = (open_network(Asked(str(f)), data, "cpu") for f in folders)
        same, found = evaluate_networks(data, [teacher, mine], teacher=teacher)
        assert (same["teacher_agreement"], same["teacher_kl"]) == (1, pytest.approx(0, abs=1e-12))
        z, t = (logits_by_hand(data.mean[0], data.std[0], seed=seed) for seed in (5, 6))
        want = (z.argmax(1) == t.argmax(1)).double().mean().item()
        assert found["teacher_agreement"] == pytest.approx(want, abs=1e-9)
        kl = (t.softmax(1) * (t.log_softmax(1) - z.log_softmax(1))).sum(1).mean().item()
        assert found["teacher_kl"] == pytest.approx(kl, rel=1e-4)

    def test_noise_is_the_same_for_every_network_in_its_own_normalisation(self, weights: Path) -> None:
        data = load(DIGITS)
        own = open_network(Asked("resnet8", weights), data, "cpu")
        other = open_network(Asked("resnet8", weights, [0.5], [0.25]), data, "cpu")
        found = evaluate_networks(data, [own, other, own], noise=(0.05, 0.3), seed=4)
        assert found[0] == found[2]
        grain = torch.randn(data.test_images.shape, generator=generator("evaluation noise", 4)).double()
        for strength in (0.05, 0.3):
            pixels = (data.test_images.double() / 255 + strength * grain).clamp(0, 1)
            for scores, (mean, std) in zip(found, [(data.mean[0], data.std[0]), (0.5, 0.25)], strict=False):
                right = logits_by_hand(mean, std, pixels).argmax(1) == data.test_labels
                assert scores[f"noise_{strength:g}_top1"] == pytest.approx(right.double().mean().item(), abs=1e-9)
        again, elsewhere = (evaluate_networks(data, [own], noise=(0.3,), seed=s)[0] for s in (4, 5))
        assert again["noise_0.3_top1"] == found[0]["noise_0.3_top1"]
        assert again["top1"] == elsewhere["top1"]
        assert again["noise_0.3_top1"] != elsewhere["noise_0.3_top1"]

    def test_noise_in_batches_and_pictures_stay_what_they_are(self, weights: Path) -> None:
        """More images than one batch: each has a draw of its own, and clean scores do not feel the noise."""
        data = load(DIGITS)
        many = replace(data, test_images=data.test_images.repeat(2, 1, 1, 1), test_labels=data.test_labels.repeat(2))
        before = many.test_images.clone()
        network = open_network(Asked("resnet8", weights), many, "cpu")
        with_noise, without = (evaluate_networks(many, [network], noise=n)[0] for n in ((0.2,), ()))
        assert {k: v for k, v in with_noise.items() if "noise" not in k} == without
        assert torch.equal(many.test_images, before)

    def test_a_network_keeps_its_mode_of_evaluation(self, weights: Path) -> None:
        data = load(DIGITS)
        network = open_network(Asked("resnet8", weights), data, "cpu")
        before = {k: v.clone() for k, v in network.net.state_dict().items()}
        evaluate_networks(data, [network], noise=(0.1,))
        assert not network.net.training
        assert all(torch.equal(v, before[k]) for k, v in network.net.state_dict().items())

    def test_folders_of_runs_and_teachers(self, tmp_path: Path) -> None:
        """The student inside a run's folder, with the normalisation that lies beside it."""
        student(tmp_path / "run" / "student")
        config = json.loads((tmp_path / "run" / "student" / "config.json").read_text())
        config["normalise"] |= {"mean": [0.5], "std": [0.25]}
        (tmp_path / "run" / "student" / "config.json").write_text(json.dumps(config))
        found = evaluate_model(DIGITS, str(tmp_path / "run"), device="cpu")
        assert (found["top1"], found["top5"]) == pytest.approx(by_hand(0.5, 0.25))

    @pytest.mark.parametrize("kind", ["teacher", "single"])
    def test_a_run_that_has_not_ended_is_no_network_yet(self, kind: str, tmp_path: Path) -> None:
        folder = tmp_path / "one"
        student(folder / "student")
        run = Run(kind, "one")
        run.write(folder)
        (folder / "history.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n', encoding="utf-8")
        asked = Asked(str(folder))
        with pytest.raises(ExperimentError, match="is not trained to its end: it is RUNNING after 2 epochs"):
            open_network(asked, load(DIGITS), "cpu")
        run.end(folder, "COMPLETE")
        assert open_network(asked, load(DIGITS), "cpu").folder == folder / "student"

    def test_the_teacher_of_a_study_is_that_it_learned_from(self, tmp_path: Path) -> None:
        study, hashed = tmp_path / "runs" / "s", "0123456789abcdef"
        assert teacher_of("resnet8") == "resnet8"
        create(study, resolve({}), Run("study", "s", tags={"teacher_hash": hashed}))
        assert teacher_of(str(study)) == str(study)  # which is refused where it is opened
        student(tmp_path / "runs" / "teachers" / hashed / "student")
        assert teacher_of(str(study)) == str(tmp_path / "runs" / "teachers" / hashed)
        (study / "run.json").write_text("{}")
        assert teacher_of(str(study)) == str(study)

    def test_images_of_any_size_follow_a_handed_over_student(self, tmp_path: Path) -> None:
        folder = student(tmp_path / "s")
        pictures = DataConfig(name="imagefolder")
        assert sized_for(pictures, [Asked("resnet8"), Asked(str(folder))]).image_size == 8
        assert sized_for(replace(pictures, image_size=16), [Asked(str(folder))]).image_size == 16
        assert sized_for(pictures, [Asked("resnet8")]).image_size is None
        assert sized_for(DIGITS, [Asked(str(folder))]) == DIGITS


def test_the_verb(weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["evaluate", "--data", "digits", "--model", "resnet8", "--weights", str(weights)]
    assert main([*arguments, "--mean", "0.5", "--std", "[0.25]", "--noise", "none", "--json", str(tmp_path / "f")]) == 0
    top1, top5 = by_hand(0.5, 0.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["digits,", "360", "test", "images", "resnet8"]
    assert lines[1].split() == ["top-1", "accuracy", f"{100 * top1:.2f}", "%"]
    assert lines[2].split() == ["top-5", "accuracy", f"{100 * top5:.2f}", "%"]
    assert [line.split("  ")[0] for line in lines[3:]] == ["cross-entropy (NLL)", "calibration error (ECE)"]
    told = json.loads((tmp_path / "f").read_text())
    assert (told["data"], told["split"]) == ("digits", "test")
    (network,) = told["networks"]
    assert (network["name"], network["metrics"]["top1"]) == ("resnet8", pytest.approx(top1))


def test_several_networks_side_by_side(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    champion, plain = student(tmp_path / "champion", 6), student(tmp_path / "finals" / "kd-seed0" / "student", 7)
    arguments = ["evaluate", "--data", "digits", "--model", str(champion), "--model", "resnet8"]
    arguments += ["--weights", str(weights), "--mean", "0.5", "--std", "0.25", "--model", str(plain)]
    arguments += ["--teacher", "resnet8", "--teacher-weights", str(weights), "--noise", "0.1", "--transfer", "digits"]
    assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[0].split()[-3:] == ["champion", "resnet8", "kd-seed0"]
    told = json.loads((tmp_path / "found.json").read_text())
    assert told["teacher"] == "resnet8"
    assert told["noise"] == [0.1]
    assert told["transfer"] == "digits"
    for entry, (seed, mean, std) in zip(
        told["networks"], [(6, None, None), (5, 0.5, 0.25), (7, None, None)], strict=True
    ):
        data = load(DIGITS)
        z = logits_by_hand(mean or data.mean[0], std or data.std[0], seed=seed)
        assert entry["metrics"]["top1"] == pytest.approx((z.argmax(1) == data.test_labels).double().mean().item())
        assert {"teacher_agreement", "teacher_kl", "noise_0.1_top1", "transfer_top1"} <= entry["metrics"].keys()
        assert entry["metrics"]["transfer_top1"] > 0.5  # features of random networks do that much
    (shown,) = [line for line in lines if line.startswith("linear probe on digits ")]
    assert shown.split()[4::2] == [f"{100 * n['metrics']['transfer_top1']:.2f}" for n in told["networks"]]


def test_one_network_may_come_after_its_weights(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--data", "digits", "--weights", str(weights), "--model", "resnet8"]) == 0
    assert "top-1, noise 0.05" in capsys.readouterr().out


def test_titles(tmp_path: Path) -> None:
    folders = [tmp_path / p for p in ("a/champion", "b/champion", "b/finals/kd-seed0/student")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert titles([str(f) for f in folders]) == ["a/champion", "b/champion", "kd-seed0"]
    assert titles(["resnet8", "resnet8", "wrn_16_1"]) == ["resnet8 (1)", "resnet8 (2)", "wrn_16_1"]


@pytest.mark.parametrize("width", [40, 80, 100, 250])
def test_networks_that_a_terminal_does_not_hold_go_below(width: int) -> None:
    """Every number whole, every title once, every row's name whole; nothing wider than the terminal."""
    from rich.console import Console

    names = ["champion", *(f"kd-seed{k}" for k in range(8)), "torchvision:efficientnet_v2_large_and_more"]
    scores = [{"images": 360.0, "top1": k / 10, "ece": 0.1, "nll": 1.5 + k, "noise_0.1_top1": 0.25} for k in range(10)]
    console = Console(width=width, record=True, file=io.StringIO())
    blocks = tables(Report("digits", names, [], scores), width)
    for block in blocks:
        console.print(block)
    text = console.export_text()
    lines = [line.rstrip() for line in text.splitlines()]
    assert max(map(len, lines)) <= max(width, 49)  # a name and one number are never cut
    assert "…" not in text
    assert (len(blocks) == 1) == (width == 250)
    assert sum(line.startswith("calibration error (ECE) ") for line in lines) == len(blocks)
    found = [v for line in lines if line.startswith("top-1 accuracy") for v in line.split()[2::2]]
    assert found == [f"{10.0 * k:.2f}" for k in range(10)]
    assert [w for line in lines if line.startswith("digits, 360") for w in line.split()[4:]][:9] == names[:9]


def test_a_handed_over_student(tmp_path: Path, weights: Path) -> None:
    student(tmp_path / "s")
    assert evaluate_model(DIGITS, str(tmp_path / "s"), device="cpu") == evaluate_model(
        DIGITS, "resnet8", weights, device="cpu"
    )
    assert main(["evaluate", "--data", "digits", "--model", str(tmp_path / "s"), "--weights", "x"]) == 2


class TestLogged:
    def test_a_run_for_each_network_beside_its_study(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        study = tmp_path / "runs" / "s"
        e = resolve({"data": "digits", "student": "resnet8"})
        create(study, e, Run("study", "s"))
        (study / "trials").mkdir()
        champion = student(study / "champion")
        create(study / "finals" / "kd-seed0", e, Run("final", "kd seed 0"))
        plain = student(study / "finals" / "kd-seed0" / "student", 6)
        alone = student(tmp_path / "elsewhere", 7)
        arguments = ["evaluate", "--data", "digits", "--noise", "0.1", "--log", "--output", str(tmp_path / "runs")]
        arguments += ["--model", str(champion), str(plain), str(alone)]
        assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
        said = capsys.readouterr().out
        client = MlflowClient(default_uri(tmp_path / "runs"))
        by_name = {x.name: x.experiment_id for x in client.search_experiments()}
        beside = client.search_runs([by_name["digits: wrn_16_2 to resnet8"]])
        assert {r.data.tags["akd.run"] for r in beside} == {"champion", "kd-seed0"}
        assert {r.data.tags["akd.study"] for r in beside} == {"s"}
        (other,) = client.search_runs([by_name["digits: evaluation"]])
        assert "akd.study" not in other.data.tags
        told = {n["name"]: n["metrics"] for n in json.loads((tmp_path / "found.json").read_text())["networks"]}
        for run in [*beside, other]:
            title = run.info.run_name.removeprefix("evaluation of ")
            called = {"top1": "accuracy", "nll": "loss"}  # as in a final run
            assert run.data.metrics == pytest.approx({f"test/{called.get(k, k)}": v for k, v in told[title].items()})
            assert run.data.tags["akd.kind"] == "evaluation"
            assert run.data.params["data"] == "digits"
            assert run.info.status == "FINISHED"
            assert run.info.run_id in said
        assert said.endswith(f"to be seen with: akd ui s --output {tmp_path / 'runs'}\n")

    def test_a_store_that_cannot_be_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = student(tmp_path / "s")
        arguments = ["evaluate", "--data", "digits", "--model", str(folder), "--noise", "none"]
        assert main([*arguments, "--tracking-uri", "postgresql://me:secret@nowhere.invalid/db"]) == 1
        out, err = capsys.readouterr()
        assert "top-1" in out  # what was found is not lost
        assert err.startswith("akd: MLflow did not take the evaluation: ")
        assert err.count("\n") == 1
        assert "secret" not in err

    def test_measuring_does_not_import_mlflow(self) -> None:
        import subprocess
        import sys

        code = "import sys, akd.evaluation, akd.probe, akd.evaluate_verb; sys.exit('mlflow' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def colour() -> Iterator[str]:
    """A small data set of coloured images of another size than the digits'."""

    @readers.register("colour")
    def made(folder: Path) -> Dataset:
        draw = torch.Generator().manual_seed(0)
        labels = torch.arange(60) % 3
        images = torch.randint(0, 60, (60, 3, 12, 10), generator=draw, dtype=torch.uint8)
        images[torch.arange(60), labels] += 150
        return Dataset("colour", images, labels, images[:30], labels[:30], ("r", "g", "b"), (0.5,) * 3, (0.25,) * 3)

    yield "colour"
    del readers._factories["colour"], readers._info["colour"]


def test_transfer_of_a_network_of_colour_images_to_grey_ones_of_another_size(colour: str, tmp_path: Path) -> None:
    net = seeded_model("resnet8", 3, 1)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    arguments = ["evaluate", "--data", colour, "--model", "resnet8", "--weights", str(tmp_path / "w.pth")]
    assert main([*arguments, "--transfer", "digits", "--json", str(tmp_path / "found.json")]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())["networks"]
    assert found["metrics"]["transfer_top1"] > 0.5
    assert "top5" not in found["metrics"]


def test_transfer_to_pictures_is_decoded_at_the_networks_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: str
) -> None:
    from PIL import Image

    monkeypatch.setenv("AKD_CACHE_DIR", str(tmp_path / "cache"))
    for part, count in (("train", 15), ("val", 3)):
        for name, shade in (("dark", 40), ("light", 200)):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (30, 20), (shade + i, shade, shade)).save(
                    tmp_path / "pictures" / part / name / f"{i}.png"
                )
    torch.save(seeded_model("resnet8", 3, 1).state_dict(), tmp_path / "w.pth")
    seen, asked = [], []
    monkeypatch.setattr("akd.data.dataset.load", lambda config: asked.append(config) or load(config))
    original = Network.__call__
    monkeypatch.setattr(Network, "__call__", lambda self, x: seen.append(tuple(x.shape[2:])) or original(self, x))
    arguments = ["evaluate", "--data", colour, "--model", "resnet8", "--weights", str(tmp_path / "w.pth")]
    arguments += ["--transfer", "imagefolder", "--transfer-dir", str(tmp_path / "pictures"), "--noise", "none"]
    assert main([*arguments, "--json", str(tmp_path / "found.json")]) == 0
    (found,) = json.loads((tmp_path / "found.json").read_text())["networks"]
    assert found["metrics"]["transfer_top1"] == 1
    assert set(seen) == {(12, 10)}
    assert asked[-1].image_size == 12


def test_colour_for_a_network_of_grey_images(colour: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evaluate", "--data", "digits", "--model", "resnet8", "--weights", str(weights)]
    assert main([*arguments, "--transfer", colour]) == 2
    assert "--transfer = 'colour': has 3 channels, resnet8 takes 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet8"], "--model = 'resnet8': has random weights; give a file with --weights"),
        (["--model", "resnet9", "--weights", "W"], "there is no such model, did you mean 'resnet"),
        (["--model", "resnet14", "--weights", "W"], "w.pth': does not fit the network: 'layer1.1.conv1.weight'"),
        (["--model", "resnet8", "--weights", "gone"], "--weights = 'gone': there is no such file"),
        (["--model", "resnet8", "--weights", "W", "--mean", "a"], "--mean = 'a': must be numbers with commas"),
        (["--model", "resnet8", "--weights", "W", "--mean", "nan", "--std", "1"], "--mean = 'nan': must be numbers"),
        (["--model", "resnet8", "--weights", "W", "--mean", "0.5"], "--std = []: must have 1 values"),
        (["--model", "resnet8", "--weights", "W", "--mean", "0,0", "--std", "1,1"], "--mean = [0.0, 0.0]: must have 1"),
        ([], "--model: is missing"),
        (["--weights", "W", "--model", "resnet8", "--model", "S"], "--weights = 'w.pth': belongs after the --model"),
        (["--model", "resnet8", "--weights", "W", "--weights", "W"], "--weights = 'w.pth': is given twice for --model"),
        (["--model", "S", "--teacher", "resnet8"], "--teacher = 'resnet8': has random weights; give a file with --tea"),
        (["--model", "S", "--teacher-weights", "W"], "--teacher-weights = 'w.pth': has no effect without --teacher"),
        (["--model", "S", "--teacher", "S", "--teacher-weights", "W"], "--teacher-weights = 'w.pth': has no effect: "),
        (["--model", "S", "--noise", "0.1,2"], "--noise = '0.1,2': must be numbers > 0 and <= 1"),
        (["--model", "S", "--noise", "loud"], "--noise = 'loud': must be numbers with commas"),
        (["--model", "S", "--seed", "-1"], "--seed = '-1': must be a whole number >= 0"),
        (["--model", "S", "--transfer", "digit"], "there is no such data set, did you mean 'digits'?"),
        (["--model", "S", "--transfer", "digit"], "akd: --transfer = 'digit': "),
        (["--model", "S", "--transfer", "cifar10", "--transfer-dir", "no"], "--transfer = 'cifar10': "),
        (["--model", "S", "--transfer", "cifar10", "--transfer-dir", "no"], "name its folder with --transfer-dir"),
        (["--model", "runs/nothing"], "--model = 'runs/nothing': there is no such folder"),
        (["--model", "STUDY"], "--model = 'study': holds no student that akd handed over: there is no config.json in"),
        (["--model", "STUDY"], "; the winner of the study is study/champion"),
        (["--model", "S", "--transfer-dir", "x"], "--transfer-dir = 'x': has no effect without --transfer"),
        (["--model", "S", "--json", "no/where"], "--json = 'no/where': there is no such folder"),
        (["--model", "S", "--output", "x"], "--output = 'x': has no effect without --log"),
        (
            ["--model", "S", "--image-size", "32"],
            "--image-size: data.image_size = 32: has no effect while name is 'digits'",
        ),
        (["--model", "BAD"], "--model = 'bad': bad/config.json: cannot be read: it is damaged"),
        (["--model", "EMPTY"], "--model = 'empty': empty/student.safetensors: is damaged"),
        (["--model", "OTHER"], "--model = 'other': is made for 7 classes and 1 channels of 8x8, digits has 10"),
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
    student(Path("s"))
    (student(Path("bad")) / "config.json").write_text("{")
    (student(Path("empty")) / "student.safetensors").write_bytes(b"")
    config = json.loads((student(Path("other")) / "config.json").read_text())
    (Path("other") / "config.json").write_text(json.dumps(config | {"num_classes": 7}))
    student(Path("study/champion"))
    words = {"W": "w.pth", "STUDY": "study", "S": "s", "BAD": "bad", "EMPTY": "empty", "OTHER": "other"}
    assert main(["evaluate", "--data", "digits", *(words.get(a, a) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.skipif("AKD_DATA" not in os.environ, reason="AKD_DATA names no folder with cifar100 and teachers")
def test_a_teacher_of_somebody_else() -> None:
    """71.69 % on all 10,000 test images; here the first 500, of which 365 are right."""
    folder = Path(os.environ["AKD_DATA"])
    data = load(DataConfig(name="cifar100", dir=str(folder / "cifar100")))
    few = replace(data, test_images=data.test_images[:500], test_labels=data.test_labels[:500])
    weights = folder / "teachers" / "cifar100_resnet32_wide_stem.pth"
    network = open_network(Asked("tests.foreign.wide_stem:network", weights), few, "cpu")
    assert sum(p.numel() for p in network.net.parameters()) == 501_316
    assert evaluate_networks(few, [network])[0]["top1"] * 500 == pytest.approx(365, abs=1)
