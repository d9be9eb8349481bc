"""``akd export``: programs that are the student, a card that says so, and nothing written where it cannot be right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import tests.made_study as made_study
from akd import export as exporting
from akd import programs
from akd.cli import main
from akd.config import resolve
from akd.data import load, split
from akd.data.dataset import DataConfig
from akd.errors import ExperimentError
from akd.folder import FAILED, RUNNING, Run, create
from akd.folder import export as hand_over
from akd.handed import Handed, load_handed
from akd.models import create_model, seeded_model
from akd.origin import origin_of
from akd.provenance import sha256
from akd.result import StudyResult
from akd.teacher.keep import load_student
from akd.usage import torch_script

ALL = {"student.safetensors", "student.pt2", "student.onnx", "config.json", "example.npz", "README.md"}


def student(folder: Path, seed: int = 5, name: str = "resnet8", **facts: float) -> Path:
    """A folder as akd hands a student over."""
    e = resolve({"data": "digits", "student": name})
    data = split(e.data, load(e.data))
    kw = {"in_channels": 1, "image_size": (8, 8)}
    hand_over(folder, seeded_model(name, 10, seed, **kw), e, data, facts)
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study ``runs/s`` whose champion is a network, though not a trained one."""
    folder = tmp_path / "runs" / "s"
    made_study.make(folder)
    result = StudyResult.read(folder)
    assert result is not None
    seed, accuracy = next(iter(result.champion["test"]["accuracy"].items()))
    student(folder / "champion", seed=int(seed), test_accuracy=accuracy)
    config = json.loads((folder / "champion" / "config.json").read_text(encoding="utf-8"))
    (folder / "champion" / "config.json").write_text(json.dumps(config | {"seed": int(seed)}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with everything, of a student that nothing else is known of."""
    top = tmp_path_factory.mktemp("exported")
    assert main(["export", str(student(top / "plain")), "--to", str(top / "out")]) == 0
    return top / "out"


def pixels(n: int, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(n))


class TestHanded:
    def test_it_is_the_student_on_normalised_images(self, tmp_path: Path) -> None:
        handed, net = load_handed(student(tmp_path / "a")), load_student(tmp_path / "a")
        data = load(DataConfig(name="digits"))
        images = data.test_images[:20].float() / 255
        with torch.no_grad():
            logits = net((images - data.mean[0]) / data.std[0]).logits
            assert torch.allclose(handed(images), logits, atol=1e-6)
        assert not handed.training
        assert not any(p.requires_grad for p in handed.parameters())
        assert all(p.is_contiguous() and p.dtype == torch.float32 for p in handed.parameters())

    def test_a_network_of_another_is_freed_of_its_taps(self, tmp_path: Path) -> None:
        handed = load_handed(student(tmp_path / "a", name="tests.foreign.tiny:network"))
        assert type(handed.net).__name__ == "Tiny"
        assert handed(pixels(3)).shape == (3, 10)

    @pytest.mark.parametrize("own", [{"mean": [0.5], "std": [0.0]}, {"mean": [0.5, 0.5], "std": [1, 1]}, {"mean": "x"}])
    def test_a_normalisation_that_does_not_fit(self, tmp_path: Path, own: dict[str, object]) -> None:
        folder = student(tmp_path / "a")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {"normalise": own}), encoding="utf-8")
        with pytest.raises(ExperimentError, match=r"config.json.*is not what akd hands over"):
            load_handed(folder)


class TestWhatIsWritten:
    def test_files_and_their_hashes(self, exported: Path) -> None:
        assert {p.name for p in exported.iterdir()} == ALL
        config = json.loads((exported / "config.json").read_text(encoding="utf-8"))["export"]
        own = {n: sha256(exported / n) for n in ("student.safetensors", "student.pt2", "student.onnx", "example.npz")}
        assert config["sha256"] == own
        assert config["student"] == own["student.safetensors"] == sha256(exported.parent / "plain/student.safetensors")
        assert {p.name for p in exported.parent.iterdir()} == {"plain", "out"}  # nothing is left beside them

    def test_the_example_holds_what_the_student_says(self, exported: Path) -> None:
        with np.load(exported / "example.npz") as example:
            images, logits = example["images"], example["logits"]
        assert images.dtype == logits.dtype == np.float32
        assert images.shape == (8, 1, 8, 8)
        assert 0 <= images.min() <= images.max() <= 1
        with torch.no_grad():
            assert np.allclose(load_handed(exported)(torch.from_numpy(images)).numpy(), logits, atol=1e-6)

    @pytest.mark.parametrize("batch", [1, 5, 64])
    def test_both_programs_take_any_number_of_images(self, exported: Path, batch: int) -> None:
        with torch.no_grad():
            wanted = load_handed(exported)(pixels(batch))
        for opened, name in ((programs.open_torch, "student.pt2"), (programs.open_onnx, "student.onnx")):
            assert torch.allclose(opened(exported / name)(pixels(batch)), wanted, atol=1e-5), name

    def test_names_of_input_and_output(self, exported: Path) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(exported / "student.onnx")
        (given,), (got,) = session.get_inputs(), session.get_outputs()
        assert (given.name, given.shape, given.type) == ("images_0_to_1", ["batch", 1, 8, 8], "tensor(float)")
        assert (got.name, got.shape) == ("logits", ["batch", 10])
        program = torch.export.load(exported / "student.pt2")
        assert program.graph_signature.user_inputs == ("images_0_to_1",)

    def test_no_file_names_a_folder_of_this_machine(self, exported: Path) -> None:
        here = str(Path(__file__).parents[1]).encode()
        for name in ALL:
            content = (exported / name).read_bytes()
            assert here not in content, name
            assert b"site-packages" not in content, name
            assert str(exported.parent).encode() not in content, name

    def test_batch_statistics_are_frozen(self, exported: Path) -> None:
        """An image's logits do not depend on its neighbours, and running a program changes nothing."""
        run, images = programs.open_torch(exported / "student.pt2"), pixels(6)
        once = run(images)
        assert torch.allclose(run(images[:1]), once[:1], atol=1e-6)
        assert torch.equal(run(images), once)

    def test_the_export_can_be_exported_again(self, exported: Path, tmp_path: Path) -> None:
        assert main(["export", str(exported), "--to", str(tmp_path / "b"), "--format", "safetensors"]) == 0
        assert (tmp_path / "b/student.safetensors").read_bytes() == (exported / "student.safetensors").read_bytes()


class TestUse:
    """The card's blocks, run as they stand."""

    def blocks(self, folder: Path) -> list[str]:
        return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)

    def test_plain_torch_in_ten_lines_without_akd(self, exported: Path, tmp_path: Path) -> None:
        from PIL import Image

        script = self.blocks(exported)[0]
        assert len([line for line in script.splitlines() if line.strip()]) <= 10
        (tmp_path / "use.py").write_text(script, encoding="utf-8")
        picture = (pixels(1)[0, 0] * 255).round().to(torch.uint8)
        Image.fromarray(picture.numpy()).resize((8, 8)).save(tmp_path / "picture.png")
        # Isolated, and whoever imports akd fails: the shared environment has it installed.
        twice = "import sys, runpy; sys.modules['akd'] = None; own = sys.argv[1:]\n"
        twice += "for sys.argv in (own[:1], own): runpy.run_path(own[0])"
        command = [sys.executable, "-I", "-c", twice, str(tmp_path / "use.py"), str(tmp_path / "picture.png")]
        done = subprocess.run(command, cwd=exported, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        with torch.no_grad():
            handed = load_handed(exported)
            known = [
                str(int(k)) for k in handed(torch.from_numpy(np.load(exported / "example.npz")["images"])).argmax(1)
            ]
            one = [str(int(handed(picture[None, None].float() / 255).argmax()))]
        assert done.stdout.splitlines() == [str(known), str(one)]

    def test_with_onnxruntime_and_with_akd(
        self, exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(exported)
        _, with_onnx, with_akd = self.blocks(exported)
        exec(with_onnx, {})
        logits = np.load("example.npz")["logits"]
        assert capsys.readouterr().out.strip() == str(logits.argmax(1))
        torch.manual_seed(3)
        exec(with_akd, {})
        torch.manual_seed(3)
        with torch.no_grad():
            wanted = load_handed(".")(torch.rand(4, 1, 8, 8)).argmax(1)
        assert capsys.readouterr().out.strip() == str(wanted)


class TestStudy:
    def test_champion_by_name_with_real_images(
        self, study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(study.parent.parent)
        assert main(["export", "s", "--format", "safetensors,torch"]) == 0
        said = capsys.readouterr().out
        assert "on test images of digits" in said
        assert re.search(r"torch\.export +64 +\d\.\de-\d\d +\de-\d\d +64 of 64", said)
        folder = study / "export"
        assert {p.name for p in folder.iterdir()} == ALL - {"student.onnx"}
        data = load(DataConfig(name="digits"))
        images = np.load(folder / "example.npz")["images"]
        known = data.test_images.float().numpy() / 255
        assert all((image == known).all((1, 2, 3)).any() for image in images)

    def test_card(self, study: Path, tmp_path: Path) -> None:
        assert main(["export", str(study), "--format", "safetensors", "--to", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        result = StudyResult.read(study)
        assert result is not None
        test = result.champion["test"]
        for name, gain in result.gain.items():
            assert f"{gain.mean:+.2f} points{gain.interval()}" in text, name
        from akd.summary import plus_minus, verdict

        assert plus_minus(test) in text
        assert verdict(result) in text
        assert f"**{100 * test['accuracy']['1']:.2f} %** of the test images (seed 1, the first, not the best)" in text
        assert "Only 300 images of the training file were used" in text
        assert "half precision" in text
        assert "calibration error" in text
        assert f"{result.best_trial['number']} won by validation accuracy alone" in text
        for fact in (sha256(study / "champion/student.safetensors"), sha256(study / "experiment.yaml"), "77,754"):
            assert str(fact) in text
        assert "Measured again at export, on 360 test images" in text
        assert "student.pt2" not in text  # nor how to use what is not there
        assert "input of the programs" not in text

    def test_front_matter_is_what_hubs_read(self, study: Path, tmp_path: Path) -> None:
        hub = pytest.importorskip("huggingface_hub")
        assert main(["export", str(study), "--format", "safetensors", "--to", str(tmp_path / "out")]) == 0
        data = hub.ModelCard.load(tmp_path / "out" / "README.md").data
        assert (data.license, data.datasets, data.metrics) == ("unknown", ["digits"], ["accuracy"])
        assert {"knowledge-distillation", "kd"} <= set(data.tags)
        assert data.eval_results[0].metric_value == pytest.approx(origin_of(study / "champion").test_accuracy, abs=1e-4)

    def test_limits_that_must_be_told(self, study: Path, tmp_path: Path) -> None:
        run = Run.read(study)
        assert run is not None
        run.tags["teacher_saw_validation"] = "may have"
        run.write(study)
        assert main(["export", str(study), "--format", "safetensors", "--to", str(tmp_path / "out")]) == 0
        text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
        assert "may have seen the validation images" in text

    def test_result_of_another_champion_is_not_told(self, study: Path, tmp_path: Path) -> None:
        config = json.loads((study / "champion" / "config.json").read_text(encoding="utf-8"))
        text = json.dumps(config | {"test_accuracy": 0.123})
        (study / "champion" / "config.json").write_text(text, encoding="utf-8")
        assert origin_of(study / "champion").result is None

    def test_a_trial_is_called_one(self, study: Path, tmp_path: Path) -> None:
        student(study / "trials" / "00002" / "student", validation_accuracy=0.9)  # stopped by the scheduler
        assert main(["export", str(study / "trials/00002"), "--format", "safetensors"]) == 0
        text = (study / "trials/00002/export/README.md").read_text(encoding="utf-8")
        assert "one configuration that a search tried (trial 2)" in text
        assert "stopped early" in text
        assert "of test images expect less" in text
        assert "90.00 % of the validation images" in text
        assert "Measured at export, on 360 test images" in text

    def test_images_of_ones_own_are_not_handed_on(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = exporting.pictures(origin_of(study / "champion"))
        assert torch.equal(seen.examples, seen.images[:8])
        monkeypatch.setattr(exporting.card, "PUBLIC", ())
        assert not torch.equal(seen.examples, seen.images[:8])
        assert seen.example_words == "images of uniform noise"


class TestAgain:
    def test_the_same_student_replaces_its_export_as_a_whole(self, tmp_path: Path) -> None:
        folder, out = student(tmp_path / "a"), tmp_path / "out"
        assert main(["export", str(folder), "--to", str(out), "--format", "safetensors,torch"]) == 0
        assert main(["export", str(folder), "--to", str(out), "--format", "safetensors"]) == 0
        assert {p.name for p in out.iterdir()} == {"student.safetensors", "config.json", "example.npz", "README.md"}

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert (
            main(["export", str(student(tmp_path / "a")), "--to", str(tmp_path / "out"), "--format", "safetensors"])
            == 0
        )

    def test_what_a_killed_export_left_goes(self, tmp_path: Path) -> None:
        (tmp_path / ".akd-export-out-999999999").mkdir()
        assert (
            main(["export", str(student(tmp_path / "a")), "--to", str(tmp_path / "out"), "--format", "safetensors"])
            == 0
        )
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "out"]


def damaged(name: str, text: bytes | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "a" / name).unlink()
        if text is not None:
            (folder / "a" / name).write_bytes(text)

    return spoil


def _other_export(folder: Path) -> None:
    assert (
        main(["export", str(student(folder / "b", seed=6)), "--to", str(folder / "out"), "--format", "safetensors"])
        == 0
    )


def _notes(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine", encoding="utf-8")


def _own_folder(folder: Path) -> None:
    student(folder / "out", seed=5)


def _file(folder: Path) -> None:
    (folder / "out").write_text("x", encoding="utf-8")


def _running(folder: Path) -> None:
    run = Run("single", "r")
    create(folder / "a", resolve({"data": "digits"}), run)
    student(folder / "a" / "student")
    for name in ("config.json", "student.safetensors"):
        (folder / "a" / name).unlink()


def _no_champion(folder: Path) -> None:
    _running(folder)
    Run("study", "a", state=RUNNING).write(folder / "a")


def _no_student(folder: Path) -> None:
    _running(folder)
    Run("trial", "trial 1", state=FAILED).write(folder / "a")
    for path in (folder / "a" / "student").iterdir():
        path.unlink()
    (folder / "a" / "student").rmdir()


@pytest.mark.parametrize(
    ("spoil", "more", "words"),
    [
        (damaged("config.json", None), [], r"config.json': cannot be read: No such file"),
        (damaged("config.json", b"{"), [], r"config.json': cannot be read: it is damaged"),
        (damaged("student.safetensors", None), [], r"student.safetensors': there is no such file"),
        (damaged("student.safetensors", b"nothing"), [], r"student.safetensors': cannot be read"),
        (lambda f: None, ["--format", "onxx"], r"--format = 'onxx': there is no format 'onxx', did you mean 'onnx'"),
        (lambda f: None, ["--format", "torch,torch"], r"--format = 'torch,torch': names torch twice"),
        (lambda f: None, ["--format", ""], r"--format: needs a value"),
        (_file, [], r"--to = '.*out': is a file, not a folder"),
        (_notes, [], r"--to = '.*out': is not empty: it holds notes.txt"),
        (_own_folder, [], r"--to = '.*out': is not empty, and holds no export"),
        (_other_export, [], r"--to = '.*out': holds an export of another student \(SHA-256 \w{12}..., this one has"),
        (lambda f: None, ["--to", "/proc/akd-out"], r"--to = '/proc/akd-out': cannot be written"),
        (lambda f: None, ["--to", "/nowhere/akd/out"], r"--to = '.*': there is no folder /nowhere/akd to make it in"),
        (_running, [], r"is not trained to its end: it is RUNNING after 0 epochs"),
        (_no_champion, [], r"the study has no champion yet, it is RUNNING"),
        (_no_student, [], r"has no student yet"),
    ],
)
def test_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], more: list[str], words: str
) -> None:
    student(tmp_path / "a")
    spoil(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    to = [] if "--to" in more else ["--to", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(["export", str(tmp_path / "a"), *to, *more]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.count("\n") == 1
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["nothing", "", "x" * 5000, "."])
def test_names_of_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", name]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


class Strange(nn.Module):
    """A network that gives something else than a program can."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.head = kind, nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.kind == "operator":
            x = torch.linalg.matrix_exp(x.reshape(-1, 8, 8)).flatten(1)
        if self.kind == "value" and x.sum().item() > 0:
            x = 2 * x
        if self.kind == "batch":
            x = x.reshape(2, 64)
        return self.head(x)


def strange(kind: str) -> Handed:
    return Handed(Strange(kind).eval(), [0.5], [0.5]).eval().requires_grad_(False)


class TestWhatCannotBe:
    def test_an_operator_without_onnx_form_is_named(self, tmp_path: Path) -> None:
        program = programs.trace(strange("operator"), pixels(1))
        programs.save_torch(program, tmp_path / "a.pt2")
        with pytest.raises(programs.ProgramError, match=r"operator aten\.linalg_matrix_exp has no ONNX form"):
            programs.save_onnx(program, tmp_path / "a.onnx")

    @pytest.mark.parametrize(
        ("kind", "words"), [("value", "data-dependent.* in forward"), ("batch", "made for batches of 2 images")]
    )
    def test_a_network_that_is_no_program(self, kind: str, words: str) -> None:
        with pytest.raises(programs.ProgramError, match=words):
            programs.trace(strange(kind), pixels(1))

    def test_a_program_that_is_off_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name, save, opened = programs.PROGRAMS["torch"]
        off = lambda path: lambda images: opened(path)(images) + 0.01  # noqa: E731
        monkeypatch.setattr(exporting, "PROGRAMS", {"torch": (name, save, off)})
        command = [
            "export",
            str(student(tmp_path / "a")),
            "--to",
            str(tmp_path / "out"),
            "--format",
            "safetensors,torch",
        ]
        assert main(command) == 1
        said = capsys.readouterr()
        assert "student.pt2 was removed: its logits are off by 1.0e-02, 1e-04 is allowed" in said.err
        assert "too far" in said.out
        assert {p.name for p in (tmp_path / "out").iterdir()} == ALL - {"student.pt2", "student.onnx"}
        assert "student.pt2" not in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")

    def test_a_wrong_normalisation_would_be_found(self, tmp_path: Path) -> None:
        folder = student(tmp_path / "a")
        wrong = Handed(load_student(folder), [0.2], [0.4])
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        rows = programs.parity("x", wrong, exporting.reference(folder, config), pixels(64), [64])
        assert not rows[0].good

    def test_numbers_that_are_none_are_not_near(self) -> None:
        nan = programs.parity("x", lambda i: i.flatten(1) * float("nan"), lambda i: i.flatten(1), pixels(4), [4])
        assert not nan[0].good

    def test_without_the_extra(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(programs, "_ONNX", ("onnx", "no_such_library"))
        folder = student(tmp_path / "a")
        assert main(["export", str(folder), "--to", str(tmp_path / "out")]) == 0
        said = capsys.readouterr().out
        assert "student.onnx is left out: it needs no_such_library: pip install 'akd[onnx]'" in said
        assert (tmp_path / "out" / "student.pt2").is_file()
        assert main(["export", str(folder), "--to", str(tmp_path / "two"), "--format", "onnx"]) == 2
        assert "pip install 'akd[onnx]'" in capsys.readouterr().err
        assert not (tmp_path / "two").exists()
        assert main(["export", str(folder), "--to", str(tmp_path / "two"), "--format", "safetensors,onnx"]) == 1
        assert (tmp_path / "two" / "student.safetensors").is_file()


def test_a_pickle_in_a_pt2_is_why_the_card_warns() -> None:
    """The day torch reads these files without unpickling, the card's warning can go."""
    source = Path(torch.export.pt2_archive._package.__file__).read_text(encoding="utf-8")
    assert "weights_only=False" in source


def test_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(student(tmp_path / "a")), "--to", str(tmp_path / "out"), "--format", "torch", "--time"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert re.search(r"median time of a forward pass on .*, 1 thread\n", said)
    assert re.search(r"\ntorch\.export +\d+\.\d\d +\d+\.\d\d", said)
    assert "| torch.export | 64 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_front_matter_is_yaml_with_any_names(tmp_path: Path) -> None:
    folder = student(tmp_path / "a", name="tests.foreign.tiny:network")
    assert main(["export", str(folder), "--to", str(tmp_path / "out"), "--format", "safetensors"]) == 0
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "pytorch"
    assert "# `tests.foreign.tiny:network`" in text


def test_operations_are_those_of_convolutions_by_hand() -> None:
    net = Handed(create_model("resnet8", 10, in_channels=1).eval(), [0.5], [0.5])
    # 3x3 convolutions of 8x8, 4x4 and 2x2 maps, two shortcuts, one linear layer; a multiply-add is two.
    first = 9 * 64 * (16 + 2 * 16 * 16)
    second = 16 * (9 * (16 * 32 + 32 * 32) + 16 * 32)
    third = 4 * (9 * (32 * 64 + 64 * 64) + 32 * 64)
    assert programs.operations(net, pixels(1)) == 2 * (first + second + third + 640)


def test_the_script_of_the_readme_is_that_of_a_card() -> None:
    """The card's is run by the tests above."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```py\n(.*?)\n```", text, re.DOTALL)
    assert script == torch_script({"in_channels": 1, "image_size": [8, 8]})
