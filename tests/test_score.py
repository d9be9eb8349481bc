"""T. stddev: against loops, on a teacher whose answer is known, and from the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from akd.checkpoint import save_tensors
from akd.cli import main
from akd.config import resolve
from akd.data import DataConfig, TrainData, load, split
from akd.data.loader import DeviceLoader
from akd.data.policies import augments, create_policy
from akd.errors import ExperimentError
from akd.folder import export
from akd.models import Output, seeded_model
from akd.score import STANDARD, Score, default_policies, plot, score_policies, standard_error, t_stddev
from akd.world import ALONE


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=400)  # 360 training rows: five batches, one subset of 320 images an epoch
    return split(config, load(config))


class Linear(nn.Module):
    """A teacher whose logits are sums over thirds of the image."""

    def forward(self, images: Tensor) -> Output:
        logits = torch.stack([part.flatten(1).sum(1) for part in images.flatten(1).tensor_split(3, 1)], 1) / 10
        return Output(logits, logits)


def test_stddev_in_loops() -> None:
    means = torch.rand(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = 0.0
    for c in range(4):
        column = [means[i, c].item() for i in range(6)]
        middle = sum(column) / 6
        total += math.sqrt(sum((v - middle) ** 2 for v in column) / 5) / 4
    assert t_stddev(means) == pytest.approx(total, rel=1e-12)


def test_standard_error_is_about_the_spread_of_repeated_scores() -> None:
    draws = torch.randn(400, 30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = torch.tensor([t_stddev(d) for d in draws]).std().item()
    claimed = sum(standard_error(d) for d in draws[:60]) / 60
    assert claimed == pytest.approx(spread, rel=0.15)
    assert math.isnan(standard_error(draws[0, :2]))


@pytest.mark.parametrize("name", ["cutmix", "randaugment"])
def test_scores_in_loops(name: str, data: TrainData) -> None:
    """Subset by subset, image by image, each with its standard and its strong view."""
    config, epochs, teacher = augments.info(name)["config"](), 3, Linear()
    (got,) = [s for s in score_policies(teacher, data, {name: config}, epochs=epochs) if s.name == name]
    policy = create_policy(augments.info(name)["config"](form="second"), data)
    kw = {"batch_size": 64, "seed": 0, "plan_seed": 0, "dtype": torch.float32, "world": ALONE}
    loader = DeviceLoader(data, device=torch.device("cpu"), policy=policy, **kw)
    subsets = []
    for epoch in range(1, epochs + 1):
        singles = [image[None] for images, _ in loader.epoch(epoch) for image in images]
        rows = [torch.softmax(teacher(image).logits.double(), 1)[0] for image in singles]
        assert len(rows) == 2 * 320
        subsets.append(sum(rows) / len(rows))
    assert got.subsets == epochs
    assert got.stddev == pytest.approx(t_stddev(torch.stack(subsets)), rel=1e-6)


def test_a_view_that_varies_more_scores_better_where_the_teacher_follows(data: TrainData) -> None:
    """A teacher that answers at random whenever a view differs: the second view halves the variance of the mean."""

    class Random(nn.Module):
        def forward(self, images: Tensor) -> Output:
            key = (images.double().flatten(1) * torch.linspace(1, 2, images[0].numel(), dtype=torch.float64)).sum(1)
            draws = torch.sin(1e4 * key[:, None] * torch.arange(1, 5))
            return Output(5 * draws, draws)

    names = {n: c for n, c in default_policies().items() if n in ("mixup", "cutmix")}
    scores = {s.name: s for s in score_policies(Random(), data, names, epochs=40)}
    for name in names:
        assert scores[name].stddev / scores[STANDARD].stddev == pytest.approx(math.sqrt(0.5), abs=0.12)


def test_best_first_and_every_policy_is_there(data: TrainData) -> None:
    seen: list[str] = []
    scores = score_policies(Linear(), data, default_policies(), epochs=3, advance=seen.append)
    assert [s.stddev for s in scores] == sorted(s.stddev for s in scores)
    assert {s.name for s in scores} == {STANDARD, *augments.names()} == set(seen)
    again = score_policies(Linear(), data, default_policies(), epochs=3)
    assert again == scores
    assert score_policies(Linear(), data, {}, epochs=3, seed=1)[0] != next(s for s in scores if s.name == STANDARD)


def test_too_few_images(data: TrainData) -> None:
    with pytest.raises(ExperimentError, match=r"--epochs = 1: gives 1 subsets of 320 images from 360"):
        score_policies(Linear(), data, {}, epochs=1)


def test_plot_is_a_page_of_its_own_with_a_bar_for_each() -> None:
    scores = [Score("a<b", 0.1, 0.01, 1.0, 5), Score(STANDARD, 0.2, math.nan, 1.0, 5)]
    page = plot(scores, "digits & more")
    assert "digits &amp; more" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    svg = ElementTree.fromstring(page[page.index("<svg") : page.index("</svg>") + 6])
    bars = [float(r.get("width", "")) for r in svg if r.tag.endswith("rect")]
    assert bars[1] == pytest.approx(2 * bars[0], abs=0.2)
    assert [t.text for t in svg if t.tag.endswith("text")] == ["a<b", "0.10000", STANDARD, "0.20000"]


class TestCommand:
    @pytest.fixture
    def weights(self, tmp_path: Path) -> Path:
        path = tmp_path / "teacher.safetensors"
        save_tensors(path, seeded_model("resnet8", 10, seed=0, in_channels=1).state_dict())
        return path

    def test_table_and_plot(self, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        page = tmp_path / "deep" / "plot.html"
        words = ["data", "score", "--data", "digits", "--images", "400", "--epochs", "2", "--teacher", "resnet8"]
        words += ["--teacher-weights", str(weights), "--augment", "cutmix,cutout", "--plot", str(page)]
        assert main(words) == 0
        out = capsys.readouterr().out
        for word in ("cutmix", "cutout", STANDARD, "T. stddev", "2 subsets of 320 images", str(page)):
            assert word in out
        assert "randaugment" not in out
        assert page.read_text(encoding="utf-8").count("<rect") == 3
        # The data set's own normalisation, said aloud, changes nothing; another one does.
        dataset = load(DataConfig())
        own = [f"--{k}={getattr(dataset, k)[0]!r}" for k in ("mean", "std")]
        assert main([*words, *own]) == 0
        same = capsys.readouterr().out
        assert main([*words, "--mean", "0.0", "--std", "0.1"]) == 0
        other = capsys.readouterr().out
        assert same == out
        assert other != out

    def test_a_folder_is_the_network_in_it(
        self, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Of a student or a teacher, with its own normalisation, which is not that of the data set here."""
        words = ["data", "score", "--data", "digits", "--images", "400", "--epochs", "2", "--augment", "cutout"]
        words += ["--plot", str(tmp_path / "plot.html"), "--teacher"]
        normalised = ["--mean", "0.25", "--std", "0.5"]
        assert main([*words, "resnet8", "--teacher-weights", str(weights), *normalised]) == 0
        named = capsys.readouterr().out
        experiment = resolve({"data": "digits", "student": "resnet8"})
        data = split(experiment.data, load(experiment.data))
        student = tmp_path / "teachers" / "hash" / "student"
        export(student, seeded_model("resnet8", 10, seed=0, in_channels=1), experiment, data, {})
        config = json.loads((student / "config.json").read_text(encoding="utf-8"))
        config["normalise"] |= {"mean": [0.25], "std": [0.5]}
        (student / "config.json").write_text(json.dumps(config), encoding="utf-8")
        for folder in (student, student.parent):
            assert main([*words, str(folder)]) == 0
            assert capsys.readouterr().out == named
        assert main([*words, str(student), "--teacher-weights", str(weights)]) == 2
        assert "--teacher-weights = " in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ([], ["--teacher: is missing", "--teacher-weights FILE", "folder"]),
            (
                ["--teacher", "resnet8"],
                ["--teacher = 'resnet8': has random weights; give a file with --teacher-weights"],
            ),
            (["--teacher", "runs/teachers/x"], ["--teacher = 'runs/teachers/x': there is no such folder"]),
            (["--teacher", "."], ["--teacher = '.': holds no student that akd handed over"]),
            (["--augment", "cutmx"], ["--augment = 'cutmx'", "did you mean 'cutmix'"]),
            (["--epochs", "0"], ["--epochs = 0", ">= 1"]),
            (["--epochz", "1"], ["unrecognized arguments"]),
            (["--teacher", "resnet8", "--teacher-weights", "no.pt"], ["--teacher-weights = 'no.pt': there is no such"]),
            (["--teacher", "resnet8", "--teacher-weights", "x", "--mean", "a"], ["--mean = 'a'", "numbers"]),
        ],
    )
    def test_mistakes_are_one_line(
        self, more: list[str], words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert main(["data", "score", "--data", "digits", *more]) == 2
        line = capsys.readouterr().err.strip()
        assert "\n" not in line
        assert all(word in line for word in words), line
