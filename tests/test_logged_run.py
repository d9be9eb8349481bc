"""Runs in MLflow as something to go on from: 'akd evaluate --run', 'akd train --from-run', and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from akd import folder as run_folder
from akd import logged_run
from akd.cli import main
from akd.errors import ExperimentError
from akd.folder import Run
from akd.logged import Logged, default_uri
from akd.state import TrainState

#: Without a teacher and in this process: a second or two a run.
ALONE = ["--data", "digits", "--data.subset", "200", "--method", "none", "--student", "resnet8", "--workers", "1"]
ALONE += ["--train.batch_size", "20", "--train.threads", "1", "--train.lr", "0.05"]


@dataclass(frozen=True)
class Store:
    """A store with a run that was trained (``first``), and beside it runs made up for what is refused."""

    output: Path
    run_id: str
    student: Path
    client: MlflowClient

    @property
    def uri(self) -> str:
        return default_uri(self.output)

    def made_up(self, tags: dict[str, str], files: dict[str, str | bytes]) -> str:
        """A run as somebody else may write one."""
        (experiment,) = [e for e in self.client.search_experiments() if e.name != "Default"]
        run_id = self.client.create_run(experiment.experiment_id, tags=tags, run_name="odd").info.run_id
        for name, what in files.items():
            file = self.output / "made up" / Path(name).name
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(what if isinstance(what, bytes) else what.encode())
            self.client.log_artifact(run_id, str(file), str(Path(name).parent) if "/" in name else None)
        return str(run_id)

    def files(self, **changes: Any) -> dict[str, str | bytes]:
        """Of the trained run, with other words in ``config.json``."""
        config = json.loads((self.student / "config.json").read_text()) | changes
        return {
            "student/config.json": json.dumps(config),
            "student/student.safetensors": (self.student / "student.safetensors").read_bytes(),
            "experiment.yaml": (self.student.parent / "experiment.yaml").read_bytes(),
        }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    output = tmp_path_factory.mktemp("store") / "runs"
    assert main(["train", *ALONE, "--epochs", "3", "--name", "first", "--output", str(output)]) == 0
    run_id = Logged.read(output / "first", default_uri(output)).run_id
    return Store(output, run_id, output / "first" / "student", MlflowClient(default_uri(output)))


def train(store: Store, output: Path, name: str, *arguments: str, run_id: str | None = None) -> int:
    where = ["--tracking-uri", store.uri, "--output", str(output), "--name", name]
    return main(["train", "--from-run", run_id or store.run_id, "--workers", "1", *where, *arguments])


class TestEvaluate:
    def test_as_the_folder(self, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        common = ["evaluate", "--data", "digits", "--noise", "none", "--json", str(tmp_path / "found.json")]
        assert main([*common, "--model", str(store.student)]) == 0
        wanted = json.loads((tmp_path / "found.json").read_text())["networks"][0]["metrics"]
        capsys.readouterr()
        assert main([*common, "--model", str(store.student), "--run", store.run_id, "--tracking-uri", store.uri]) == 0
        found = json.loads((tmp_path / "found.json").read_text())["networks"]
        assert [n["metrics"] for n in found] == [wanted, wanted]
        assert found[1]["model"] == f"runs:/{store.run_id}/student"
        assert found[1]["name"] == f"first ({store.run_id[:8]})"
        shown = capsys.readouterr().out
        assert "first" in shown
        assert "MLflow" not in shown  # an address to read from is no wish to log

    def test_logs_where_it_read(self, store: Store) -> None:
        arguments = ["--data", "digits", "--noise", "none", "--log", "--output", str(store.output)]
        assert main(["evaluate", *arguments, "--run", store.run_id]) == 0
        found = store.client.get_experiment_by_name("digits: evaluation")
        assert found is not None
        (logged,) = store.client.search_runs([found.experiment_id])
        assert logged.data.params["model"] == f"runs:/{store.run_id}/student"
        store.client.delete_experiment(found.experiment_id)

    def test_leaves_nothing(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        assert (
            main(["evaluate", "--data=digits", "--noise=none", "--run", store.run_id, f"--output={store.output}"]) == 0
        )
        assert list(tmp_path.iterdir()) == []


class TestTrain:
    def test_starts_from_its_weights_with_its_experiment(self, store: Store, tmp_path: Path) -> None:
        """With steps of next to nothing the filters stay what they were."""
        assert train(store, tmp_path, "second", "--epochs", "1", "--train.lr", "1e-12", "--train.ema", "0") == 0
        mine = load_file(tmp_path / "second" / "student" / "student.safetensors")
        theirs = load_file(store.student / "student.safetensors")
        filters = [k for k, v in theirs.items() if v.ndim == 4]
        assert filters
        assert all(torch.allclose(mine[k], theirs[k], atol=1e-8) for k in filters)
        kept = load_file(tmp_path / "second" / "start" / "student.safetensors")
        assert all(torch.equal(kept[k], theirs[k]) for k in theirs)
        text = (tmp_path / "second" / "experiment.yaml").read_text()
        assert "subset: 200" in text
        assert "epochs: 1" in text
        run_id = Logged.read(tmp_path / "second", store.uri).run_id
        tags = store.client.get_run(run_id).data.tags
        assert (tags["akd.from_run"], tags["akd.from_run_name"]) == (store.run_id, "first")

    def test_searched_keys_of_a_trial_can_be_given_anew(self, store: Store, tmp_path: Path) -> None:
        """A trial's experiment has its study's space beside the values; a single run has none."""
        files = store.files()
        space = b"{train.lr: {type: float, low: 0.01, high: 0.2}}"
        whole = bytes(files["experiment.yaml"])
        assert b"space: {}" in whole
        files["experiment.yaml"] = whole.replace(b"space: {}", b"space: " + space)
        trial = store.made_up({"akd.kind": "trial"}, files)
        assert train(store, tmp_path, "anew", "--epochs", "1", "--train.lr", "0.03", run_id=trial) == 0
        text = (tmp_path / "anew" / "experiment.yaml").read_text()
        assert "lr: 0.03" in text
        assert "low: 0.01" not in text

    def test_one_of_a_final_run_says_what_its_student_has_seen(
        self, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        final = store.made_up({"akd.kind": "final"}, store.files())
        for run_id, said in ((final, True), (store.run_id, False)):
            assert train(store, tmp_path, f"from-{run_id[:4]}", "--epochs", "1", run_id=run_id) == 0
            told = " ".join(capsys.readouterr().out.split())
            assert ("trained on the validation images" in told) == said

    @pytest.mark.parametrize("kept", [0, 1], ids=["before its first epoch was kept", "after it"])
    def test_interrupted_and_resumed_gives_the_same_bits(
        self, kept: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert train(store, tmp_path, "whole", "--epochs", "2") == 0
        saved, real = [0], TrainState.save

        def stopped(self: TrainState, folder: Path) -> Any:
            if saved[0] == kept:
                raise KeyboardInterrupt
            saved[0] += 1
            return real(self, folder)

        monkeypatch.setattr(TrainState, "save", stopped)
        assert train(store, tmp_path, "cut", "--epochs", "2") == 130
        monkeypatch.undo()
        assert len(run_folder.history(tmp_path / "cut")) == kept
        assert main(["train", "--resume", "cut", "--output", str(tmp_path), "--tracking-uri", store.uri]) == 0
        whole, cut = (load_file(tmp_path / n / "student" / "student.safetensors") for n in ("whole", "cut"))
        assert all(torch.equal(whole[k], cut[k]) for k in whole)
        first = load_file(store.student / "student.safetensors")
        assert not all(torch.equal(whole[k], first[k]) for k in whole)

    def test_what_a_killed_run_left_is_not_started_from(self, store: Store, tmp_path: Path) -> None:
        left = tmp_path / "new" / "start"
        left.mkdir(parents=True)
        save_file({"not": torch.zeros(1)}, left / "student.safetensors")
        words = ["--epochs", "1", "--name", "new", "--output", str(tmp_path), "--tracking-uri", store.uri]
        if main(["train", *ALONE, *words]) == 0:
            assert not left.exists()
        else:  # a folder that is there is refused as a whole
            assert Run.read(tmp_path / "new") is None


#: What is asked, and words of the one line that answers.
Case = tuple[Callable[[Store], list[str]], list[str]]
MISTAKES: dict[str, Case] = {
    "no such run": (lambda s: ["0" * 32], ["there is no such run at sqlite:///"]),
    "no id": (lambda s: ["../x"], ["'../x'", "is no id of an MLflow run"]),
    "another's run": (lambda s: [s.made_up({}, {})], ["is no run of akd's", "akd.kind"]),
    "a study": (lambda s: [s.made_up({"akd.kind": "study"}, {})], ["the run of a study", "final"]),
    "a deleted run": (lambda s: [deleted(s)], ["was deleted"]),
    "no student": (lambda s: [s.made_up({"akd.kind": "trial"}, {"experiment.yaml": "{}"})], ["has no student"]),
    "half a student": (
        lambda s: [s.made_up({"akd.kind": "trial"}, {"experiment.yaml": "{}", "student/config.json": "{}"})],
        ["has no student"],
    ),
    "a damaged student": (
        lambda s: [s.made_up({"akd.kind": "trial"}, s.files() | {"student/config.json": "{"})],
        ["its student", "damaged"],
    ),
    "a pickle": (
        lambda s: [s.made_up({"akd.kind": "trial"}, s.files() | {"student/student.safetensors": b"\x80\x04N."})],
        ["student", "deserializing header"],
    ),
    "code": (
        lambda s: [s.made_up({"akd.kind": "trial"}, s.files(model="os:abort"))],
        ["os:abort", "code of this machine"],
    ),
    "an address where nobody is": (
        lambda s: [s.run_id, "--tracking-uri", "http://u:secret@127.0.0.1:1"],
        ["does not answer", "http://127.0.0.1:1"],
    ),
    "a store that is not there": (
        lambda s: [s.run_id, "--tracking-uri", f"sqlite:///{s.output}/none.db"],
        ["nothing was logged at sqlite:///"],
    ),
}
OF_TRAINING: dict[str, Case] = {
    "no experiment": (lambda s: [s.made_up({"akd.kind": "final"}, {})], ["has no experiment.yaml"]),
    "an experiment with code": (
        lambda s: [s.made_up({"akd.kind": "trial"}, s.files() | {"experiment.yaml": "student: os:abort"})],
        ["os:abort", "say so with a flag"],
    ),
    "another network": (lambda s: [s.run_id, "--student", "resnet14"], ["is a resnet8, student.name is resnet14"]),
    "an experiment file": (lambda s: [s.run_id, "kd.yaml"], ["--from-run", "leave the file out"]),
    "a run that goes on": (lambda s: [s.run_id, "--resume", "one"], ["--from-run", "nothing else can be given"]),
}


def deleted(store: Store) -> str:
    run_id = store.made_up({"akd.kind": "trial"}, {})
    store.client.delete_run(run_id)
    return run_id


def one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    told = capsys.readouterr()
    (line,) = told.err.strip().splitlines()
    assert line.startswith("akd: ")
    assert all(word in line for word in words), line
    assert "secret" not in line


class TestMistakes:
    @pytest.mark.parametrize("name", MISTAKES)
    def test_evaluate(
        self,
        name: str,
        store: Store,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        asked, words = MISTAKES[name]
        given = asked(store)
        where = [] if "--tracking-uri" in given else ["--tracking-uri", store.uri]
        capsys.readouterr()
        assert main(["evaluate", "--data", "digits", "--run", *given, *where]) == 2
        one_line(capsys, words)
        assert list(tmp_path.iterdir()) == []
        assert not (store.output / "none.db").exists()

    @pytest.mark.parametrize("name", [*(n for n in MISTAKES if n != "half a student"), *OF_TRAINING])
    def test_train(
        self,
        name: str,
        store: Store,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        asked, words = (MISTAKES | OF_TRAINING)[name]
        given = asked(store)
        where = [] if "--tracking-uri" in given else ["--tracking-uri", store.uri]
        capsys.readouterr()
        assert main(["train", "--from-run", *given, *where]) == 2
        one_line(capsys, words)
        assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/run.json"))
        assert not (store.output / "none.db").exists()

    def test_a_run_given_twice(self, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
        where = ["--tracking-uri", store.uri]
        assert main(["evaluate", "--data", "digits", "--run", store.run_id, "--run", store.run_id, *where]) == 2
        one_line(capsys, ["--run", "is given twice"])

    def test_own_code_that_the_user_names_too(self, store: Store, tmp_path: Path) -> None:
        """The name in the experiment is then no more than what the user typed."""
        run_id = store.made_up({"akd.kind": "trial"}, store.files() | {"experiment.yaml": "student: my:net"})
        found = logged_run.find(run_id, store.uri, store.output, "--from-run")
        assert found.experiment(tmp_path, said=["my:net"]).read_text() == "student: my:net\n"
        with pytest.raises(ExperimentError, match="my:net, code of this machine"):
            found.experiment(tmp_path, said=["my:other"])
