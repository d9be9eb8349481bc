"""The tracker against a real MLflow store: doing it twice, being away, what is kept, and what must never show."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run as MLflowRun
from mlflow.exceptions import MlflowException

from akd import checkpoint, registered, tracked, tracking, tracking_store
from akd import folder as run_folder
from akd.config import Experiment, resolve
from akd.data import TrainData, load, split
from akd.data.dataset import DataConfig
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run
from akd.logged import default_uri, scrubbed
from akd.models import seeded_model
from akd.provenance import note_data
from akd.teacher.keep import load_student
from akd.tracking import Tracker

NAMES = (f"study{i}" for i in itertools.count())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests: making one takes seconds. Every test has a study, and so an experiment, of its own."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def client(output: Path) -> MlflowClient:
    return MlflowClient(default_uri(output))


@pytest.fixture
def study(output: Path) -> Path:
    folder = output / next(NAMES)
    run_folder.create(folder, experiment(), Run("study", folder.name))
    return folder


@pytest.fixture
def tracker(output: Path, study: Path) -> Iterator[Callable[..., Tracker]]:
    """Makes trackers of this study and ends them."""
    made: list[Tracker] = []

    def make(uri: str = default_uri(output), **kw: Any) -> Tracker:
        made.append(Tracker(uri, output, study, study.name, retry_s=0.01, **kw))
        return made[-1]

    yield make
    for one in made:
        if one.closed is None:
            one.close(5)


def experiment() -> Experiment:
    return resolve({"data": {"subset": 100}, "train": {"epochs": 3}, "method": {"host": {"temperature": 2.0}}})


def put(study: Path, number: int, epochs: int = 2, state: str = RUNNING, **kw: Any) -> Path:
    """A trial's folder as the trainer and the searcher leave it."""
    folder = study / "trials" / f"{number:05d}"
    run = Run("trial", f"trial {number}", number=number, parameters={"train.lr": 0.1 * (number + 1)}, **kw)
    run_folder.create(folder, experiment(), run)
    grow(folder, epochs)
    if state != RUNNING:
        end(folder, state)
    return folder


def grow(folder: Path, epochs: int) -> None:
    """Write epochs up to ``epochs``, each with the students a run keeps."""
    known = len(run_folder.history(folder))
    for epoch in range(known + 1, epochs + 1):
        for place in (folder / "student", folder / "students" / f"epoch_{epoch:06d}"):
            place.mkdir(parents=True, exist_ok=True)
            (place / "student.safetensors").write_bytes(bytes([epoch]) * 100)
            (place / "config.json").write_text(json.dumps({"epoch": epoch}))
        entry = {"epoch": epoch, "at": 1000.0 + epoch, "val/accuracy": 0.1 * epoch, "train/loss": 1 / epoch}
        with open(folder / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def end(folder: Path, state: str, reason: str | None = None, **results: float) -> None:
    run = Run.read(folder)
    assert run is not None
    run.end(folder, state, reason, **results)


def runs_of(client: MlflowClient, study: Path) -> list[MLflowRun]:
    found = client.get_experiment_by_name(study.name)
    return list(client.search_runs([found.experiment_id], max_results=1000)) if found else []


def by_trial(client: MlflowClient, study: Path) -> dict[str, MLflowRun]:
    return {r.data.tags["akd.trial"]: r for r in runs_of(client, study) if "akd.trial" in r.data.tags}


def curve(client: MlflowClient, run: MLflowRun, key: str = "val/accuracy") -> list[tuple[int, float, int]]:
    return [(m.step, round(m.value, 6), m.timestamp) for m in client.get_metric_history(run.info.run_id, key)]


def files(client: MlflowClient, run: MLflowRun, path: str | None = None) -> list[str]:
    found: list[str] = []
    for item in client.list_artifacts(run.info.run_id, path):
        found += files(client, run, item.path) if item.is_dir else [item.path]
    return sorted(found)


class TestRuns:
    def test_a_trial_is_a_child_with_parameters_curve_and_tags(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        folder = put(study, 4, 3)
        run = Run.read(folder)
        assert run is not None
        run.rung, run.tags = 3, {"teacher_hash": "abc"}
        run.end(folder, COMPLETE, None, **{"test/accuracy": 0.75})
        one = tracker()
        one.changed(folder)
        assert one.close()
        logged = by_trial(client, study)["4"]
        assert one.run_id(folder) == logged.info.run_id
        assert logged.data.tags["mlflow.parentRunId"] == one.run_id(study)
        assert {k: v for k, v in logged.data.tags.items() if k.startswith("akd.") and k != "akd.mark"} == {
            "akd.kind": "trial",
            "akd.trial": "4",
            "akd.study": study.name,
            "akd.method": "kd",
            "akd.status": COMPLETE,
            "akd.rung": "3",
            "akd.teacher_hash": "abc",
        }
        assert logged.data.params["train.lr"] == "0.5"
        assert logged.data.params["method.host.temperature"] == "2.0"
        assert curve(client, logged) == [(1, 0.1, 1001000), (2, 0.2, 1002000), (3, 0.3, 1003000)]
        assert logged.data.metrics["test/accuracy"] == 0.75
        assert logged.info.status == "FINISHED"
        assert logged.info.start_time == int(run.started * 1000)
        assert logged.info.end_time == int((run.ended or 0) * 1000)
        assert files(client, logged) == ["experiment.yaml", "student/config.json", "student/student.safetensors"]

    @pytest.mark.parametrize(
        ("state", "status"), [(COMPLETE, "FINISHED"), (PRUNED, "FINISHED"), (FAILED, "FAILED"), (RUNNING, "RUNNING")]
    )
    def test_states(
        self, state: str, status: str, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        folder = put(study, 0, state=state)
        if state == FAILED:
            (folder / "error.txt").write_text("Traceback ...")
            end(folder, FAILED, "out of memory")
        one = tracker()
        one.changed(folder)
        assert one.close()
        logged = by_trial(client, study)["0"]
        assert logged.info.status == status
        assert logged.data.tags["akd.status"] == state
        assert logged.data.tags.get("akd.reason") == ("out of memory" if state == FAILED else None)
        assert ("error.txt" in files(client, logged)) == (state == FAILED)

    def test_a_run_that_is_asked_for_while_it_grows(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        folder, one = put(study, 0, 1), tracker()
        for epochs in (1, 2, 3):
            grow(folder, epochs)
            one.changed(folder)
            one.changed(folder, delay=0.05)
            assert one._idle.wait(20)
        end(folder, COMPLETE)
        one.changed(folder, delay=60)  # close does not wait for it
        began = time.monotonic()
        assert one.close()
        assert time.monotonic() - began < 20
        logged = by_trial(client, study)["0"]
        assert [step for step, _, _ in curve(client, logged)] == [1, 2, 3]
        assert logged.info.status == "FINISHED"

    @pytest.mark.parametrize("before", [FAILED, COMPLETE])
    def test_a_study_that_ended_and_goes_on(
        self, before: str, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        end(study, before, "the disk was full" if before == FAILED else None)
        assert tracker().close()
        run = Run.read(study)
        assert run is not None
        run.state, run.reason, run.ended = RUNNING, None, None
        run.write(study)
        assert tracker().close()
        (logged,) = runs_of(client, study)
        assert (logged.info.status, logged.data.tags["akd.status"]) == ("RUNNING", RUNNING)
        end(study, COMPLETE)
        assert tracker().close()
        (logged,) = runs_of(client, study)
        assert (logged.info.status, logged.data.tags["akd.status"]) == ("FINISHED", COMPLETE)

    def test_a_folder_without_a_run_is_passed_over(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        one = tracker()
        one.changed(study / "trials" / "99999")
        assert one.close()
        assert len(runs_of(client, study)) == 1


class TestTwice:
    def test_changes_nothing(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, uploads = put(study, 0, 3, COMPLETE), []
        real = MlflowClient.log_artifacts

        def counted(self: MlflowClient, run_id: str, local: str, path: str) -> None:
            uploads.append(path)
            real(self, run_id, local, path)

        monkeypatch.setattr(MlflowClient, "log_artifacts", counted)
        found = []
        for _ in range(2):
            one = tracker(keep="all")
            one.changed(folder)
            assert one.close()
            (logged,) = by_trial(client, study).values()
            found.append((logged.info.run_id, curve(client, logged), files(client, logged), one.bytes_logged()))
        assert found[0] == found[1]
        every = [folder / name for name in uploads]
        assert found[0][3] == sum(f.stat().st_size for place in every for f in place.iterdir())
        assert sorted(uploads) == ["student", *(f"students/epoch_00000{e}" for e in (1, 2, 3))]  # once each

    def test_without_its_notes_finds_the_same_runs(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        """As after a kill between making a run and noting it."""
        folder = put(study, 0, 3, COMPLETE)
        seen = []
        for _ in range(2):
            one = tracker()
            one.changed(folder)
            assert one.close()
            runs = runs_of(client, study)
            logged = by_trial(client, study)["0"]
            seen.append(
                (sorted(r.info.run_id for r in runs), curve(client, logged), curve(client, logged, "train/loss"))
            )
            for path in (study, folder):
                (path / "mlflow.json").unlink()
        assert seen[0] == seen[1]
        assert len(seen[0][0]) == 2

    def test_a_run_whose_maker_died_at_once_gets_its_parameters(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, failed = put(study, 0, 1, COMPLETE), [0]
        real = Tracker._params

        def dying(self: Tracker, *args: Any) -> None:
            if failed[0] < 2:
                failed[0] += 1
                raise ConnectionError("gone")
            real(self, *args)

        monkeypatch.setattr(Tracker, "_params", dying)
        one = tracker()
        one.changed(folder)
        assert one.close()
        assert len(runs_of(client, study)) == 2
        for logged in runs_of(client, study):
            assert logged.data.params["data"] == "digits"
            assert "experiment.yaml" in files(client, logged)

    def test_another_store_is_filled_on_its_own(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        folder = put(study, 0)
        notes = {"sqlite:////elsewhere/mlflow.db": {"run_id": "x", "epochs": 2, "uploaded": [], "ended": ""}}
        checkpoint.write_json(folder / "mlflow.json", notes)
        one = tracker()
        one.changed(folder)
        assert one.close()
        assert [step for step, _, _ in curve(client, by_trial(client, study)["0"])] == [1, 2]
        kept = json.loads((folder / "mlflow.json").read_text())
        assert kept["sqlite:////elsewhere/mlflow.db"]["run_id"] == "x"
        assert len(kept) == 2


class TestAway:
    @pytest.mark.parametrize("method", ["create_run", "log_batch", "log_artifacts", "set_terminated", "search_runs"])
    def test_filled_in_after_failures(
        self,
        method: str,
        study: Path,
        tracker: Callable[..., Tracker],
        client: MlflowClient,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folders = [put(study, n, 3, COMPLETE) for n in range(2)]
        real, left, trouble = getattr(MlflowClient, method), [3], []

        def failing(self: MlflowClient, *args: Any, **kw: Any) -> Any:
            if left[0]:
                left[0] -= 1
                raise ConnectionError("no route to host\nand more")
            return real(self, *args, **kw)

        monkeypatch.setattr(MlflowClient, method, failing)
        one = tracker(on_trouble=trouble.append)
        for folder in folders:
            one.changed(folder)
        assert one.close()
        monkeypatch.undo()
        assert trouble[0] == "MLflow did not take a write and will be filled in later: no route to host"
        assert len(runs_of(client, study)) == 3
        for logged in by_trial(client, study).values():
            assert [step for step, _, _ in curve(client, logged)] == [1, 2, 3]
            assert logged.info.status == "FINISHED"
            assert "student/student.safetensors" in files(client, logged)

    def test_one_line_however_long_it_is_away(
        self, study: Path, tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*args: Any, **kw: Any) -> Any:
            raise ConnectionError("away")

        trouble: list[str] = []
        monkeypatch.setattr(MlflowClient, "search_runs", failing)
        one = tracker(on_trouble=trouble.append)
        for _ in range(5):
            one.changed(study)
            time.sleep(0.02)
        assert one.close(0.2) is False
        assert len(trouble) == 1
        assert one.closed is False
        assert not one._thread.is_alive()

    def test_an_address_that_does_not_answer_holds_nothing_up(
        self, study: Path, tracker: Callable[..., Tracker]
    ) -> None:
        began, trouble = time.monotonic(), []
        one = tracker("http://user:secret@127.0.0.1:1", on_trouble=trouble.append)
        one.changed(put(study, 0))
        assert time.monotonic() - began < 0.5  # who trains does not wait
        assert one.close(1.0) is False
        assert time.monotonic() - began < 10
        assert one.run_id(study) == ""

    def test_a_slow_one_is_waited_for_as_long_as_it_takes_something(
        self, study: Path, tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Tracker, "_sync", lambda self, folder: time.sleep(0.1))
        said: list[str] = []
        one = tracker(on_trouble=said.append)
        for number in range(20):
            one.changed(study / "trials" / f"{number:05d}")
        assert one.close(0.8)
        assert one.closed
        assert said
        assert all(line.startswith("MLflow is taking what is left, ") for line in said)

    def test_what_is_asked_for_later_comes_after_the_runs(
        self, study: Path, tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        order: list[str] = []
        real = Tracker._sync
        monkeypatch.setattr(Tracker, "_sync", lambda self, folder: (real(self, folder), order.append("run"))[0])
        tries = [0]

        def job() -> None:
            tries[0] += 1
            if tries[0] < 3:
                raise ConnectionError("away")
            order.append("job")

        one = tracker()
        one.later(job)
        one.changed(put(study, 0))
        assert one.close()
        assert tries[0] == 3
        assert order.index("job") == len(order) - 1


class TestKeep:
    @pytest.mark.parametrize(
        ("keep", "trial", "final"),
        [
            ("all", ["student", "students/epoch_000001", "students/epoch_000002"], True),
            ("best", ["student"], True),
            ("champion", [], True),
            ("none", [], False),
        ],
    )
    def test_students(
        self,
        keep: str,
        trial: list[str],
        final: bool,
        study: Path,
        tracker: Callable[..., Tracker],
        client: MlflowClient,
    ) -> None:
        ended = put(study, 0, 2, PRUNED)
        champion = study / "finals" / "champion-seed1"
        run_folder.create(champion, experiment(), Run("final", "champion seed 1"))
        grow(champion, 2)
        end(champion, COMPLETE)
        one = tracker(keep=keep)
        for folder in (ended, champion):
            one.changed(folder)
        assert one.close()
        wanted = [f"{place}/{name}" for place in trial for name in ("config.json", "student.safetensors")]
        assert files(client, by_trial(client, study)["0"]) == sorted(["experiment.yaml", *wanted])
        (logged,) = [r for r in runs_of(client, study) if r.data.tags["akd.kind"] == "final"]
        assert ("student/student.safetensors" in files(client, logged)) == final

    def test_a_running_trial_gives_what_is_surely_written(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        folder = put(study, 0, 3)
        one = tracker(keep="all")
        one.changed(folder)
        assert one.close()
        found = {f.split("/")[1] for f in files(client, by_trial(client, study)["0"]) if f.startswith("students")}
        assert found == {"epoch_000001", "epoch_000002"}

    def test_result_goes_to_the_parent(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        (study / "result.json").write_text("{}")
        (study / "report.html").write_text("<!doctype html>")
        end(study, COMPLETE)
        assert tracker().close()
        (logged,) = runs_of(client, study)
        assert files(client, logged) == ["experiment.yaml", "report.html", "result.json"]


def handed(folder: Path, seed: int = 5) -> Path:
    """A student as training hands it over."""
    e = resolve({"data": "digits", "student": "resnet8"})
    run_folder.export(folder, seeded_model("resnet8", 10, seed, in_channels=1), e, digits(), {})
    return folder


@cache
def digits() -> TrainData:
    config = DataConfig(name="digits")
    return split(config, load(config))


def champion(study: Path, seed: int = 1) -> Path:
    """A final run that ended, with a student."""
    folder = study / "finals" / f"champion-seed{seed}"
    run_folder.create(folder, experiment(), Run("final", f"champion seed {seed}"))
    grow(folder, 1)
    handed(folder / "student", seed)
    end(folder, COMPLETE, **{"test/accuracy": 0.75})
    return folder


class TestRegistry:
    def test_once_however_often_it_is_asked(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient
    ) -> None:
        note_data(study, experiment().data, digits())
        folder, name, seen = champion(study), f"akd-{study.name}", []
        for _ in range(2):
            one = tracker()
            one.changed(folder)
            one.register(folder, name, 0.9, seen.append)
            assert one.close()
        assert seen[0] == seen[1] == one.registered
        assert (seen[0].model, seen[0].version, seen[0].alias, seen[0].problem) == (name, "1", "is set to it", "")
        (version,) = client.search_model_versions(f"name='{name}'")
        assert version.run_id == one.run_id(folder)
        assert version.tags["akd.val_accuracy"] == "0.9"
        assert version.tags["akd.test_accuracy"] == "0.75"
        assert client.get_model_version_by_alias(name, "champion").version == version.version
        (model,) = client.search_logged_models([one.experiment_id], filter_string="tags.`akd.kind` = 'champion'")
        assert model.model_id == seen[0].model_id
        assert model.source_run_id == version.run_id
        assert {m.key: m.value for m in model.metrics} == {"test/accuracy": 0.75}
        for run_id in (one.run_id(study), one.run_id(folder)):
            assert (
                client.get_run(run_id).data.tags["akd.registered"] == f"{name} version 1; alias champion is set to it"
            )
        outputs = client.get_run(version.run_id).outputs
        assert [o.model_id for o in outputs.model_outputs] == [model.model_id]

    def test_loads_without_akd_and_gives_the_student_s_logits(
        self, study: Path, tracker: Callable[..., Tracker]
    ) -> None:
        import mlflow.pytorch

        folder, name = champion(study), f"akd-{study.name}"
        one = tracker()
        one.changed(folder)
        one.register(folder, name, 0.9)
        assert one.close()
        assert one.registered is not None
        data = digits().dataset
        pixels = data.test_images[:5].float() / 255
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (data.mean, data.std))
        with torch.no_grad():
            wanted = load_student(folder / "student")((pixels - mean) / std).logits
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(one.uri)
        try:
            for address in (f"models:/{one.registered.model_id}", f"models:/{name}@champion"):
                loaded = mlflow.pytorch.load_model(address)
                assert "akd" not in type(loaded).__module__
                with torch.no_grad():
                    assert torch.allclose(loaded(pixels), wanted, atol=1e-5)
                    assert torch.allclose(loaded(pixels[:1]), wanted[:1], atol=1e-5)
                    assert loaded(pixels[:1]).shape == (1, 10)
        finally:
            mlflow.set_tracking_uri(before)

    def test_the_alias_goes_to_a_better_one_on_the_same_images(
        self, output: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """First, better, worse, of other images, of unknown ones, and the first asked for once more."""
        monkeypatch.setattr(registered, "save", _no_model)
        name, words, versions = "akd-digits-alias", {}, {}
        plan = [("a", 0.8, "x"), ("b", 0.9, "x"), ("c", 0.85, "x"), ("d", 0.99, "y"), ("e", None, "x"), ("a", 0.8, "x")]
        for step, (letter, accuracy, images) in enumerate(plan):
            folder = output / f"alias-{letter}"
            if not folder.exists():
                run_folder.create(folder, experiment(), Run("study", folder.name))
                checkpoint.write_json(folder / "data.json", facts(images))
                champion(folder)
            one = Tracker(default_uri(output), output, folder, "alias", retry_s=0.01)
            one.changed(folder / "finals" / "champion-seed1")
            one.register(folder / "finals" / "champion-seed1", name, accuracy)
            assert one.close()
            assert one.registered is not None
            assert "no program" in one.registered.problem
            words[step], versions[step] = one.registered.alias, one.registered.version
            wanted = "1" if step == 0 else "2"
            assert str(client.get_model_version_by_alias(name, "champion").version) == wanted, step
        assert versions == {0: "1", 1: "2", 2: "3", 3: "4", 4: "5", 5: "1"}
        assert words[1].startswith("moved from version 1 (80")
        assert words[2].startswith("stays at version 2 (90")
        assert words[3] == "stays at version 2, which was chosen on other validation images"
        assert words[4] == "stays at version 2: of this one no validation accuracy is known"
        assert words[5] == words[0]
        assert len(client.search_model_versions(f"name='{name}'")) == 5

    def test_without_a_logged_model_a_version_has_the_run_s_student(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registered, "save", _no_model)
        folder = champion(study)
        one = tracker()
        one.changed(folder)
        one.register(folder, f"akd-{study.name}", 0.9)
        assert one.close()
        (version,) = client.search_model_versions(f"name='akd-{study.name}'")
        assert version.source.endswith("/artifacts/student")

    @pytest.mark.parametrize("refused", [True, False])
    def test_one_that_is_refused_is_left_and_one_that_waits_is_not(
        self, refused: bool, study: Path, tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow.protos import databricks_pb2 as codes

        code = codes.PERMISSION_DENIED if refused else codes.INTERNAL_ERROR
        tries, seen, said, real = [0], [], [], MlflowClient.create_registered_model
        monkeypatch.setattr(registered, "save", _no_model)

        def failing(self: MlflowClient, *args: Any, **kw: Any) -> Any:
            tries[0] += 1
            if refused or tries[0] < 6:
                raise MlflowException("not yours, http://u:secret@host", code)
            return real(self, *args, **kw)

        monkeypatch.setattr(MlflowClient, "create_registered_model", failing)
        folder, one = champion(study), tracker(on_trouble=said.append)
        one.changed(folder)
        one.register(folder, f"akd-{study.name}", 0.9, seen.append)
        assert one.close()  # all that can be written has been
        assert (tries[0], len(seen), one.registered is None) == ((3, 0, True) if refused else (6, 1, False))
        assert "secret" not in str(said)
        last = f"the champion is not registered as akd-{study.name}: not yours, http://host"
        assert (said[-1] == last) == refused


def _no_model(student: Path, place: Path) -> None:
    raise ValueError("no program")


def facts(images: str) -> dict[str, Any]:
    """What :func:`akd.provenance.note_data` keeps, of validation images that are told apart by a word."""
    parts = {part: {"digest": f"{images}-{part[:4]}", "images": 10} for part in ("training", "validation", "test")}
    parts["training and validation"] = {"digest": f"{images}-all", "images": 20}
    about = {"name": "digits", "hash": images, "classes": 10, "shape": [1, 8, 8], "source_type": "code"}
    return about | {"source": {"uri": "digits"}, "parts": parts}


class TestCredentials:
    @pytest.mark.parametrize(
        ("address", "shown"),
        [
            ("http://user:pass@host:5000", "http://host:5000"),
            ("https://token@host/path", "https://host/path"),
            ("https://user:p@ss@host/path", "https://host/path"),
            ("postgresql://user:pa/ss@host/db", "postgresql://host/db"),
            ("mysql+pymysql://user:p@ss@host/db", "mysql+pymysql://host/db"),
            ("http://host:5000", "http://host:5000"),
            ("http://host/a@b", "http://host/a@b"),
            ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
            ("sqlite:////a@b/mlflow.db", "sqlite:////a@b/mlflow.db"),
            ("cannot reach http://u:p@a:1/x nor http://u:p@b:2/y", "cannot reach http://a:1/x nor http://b:2/y"),
            ("http://host:5000/a@b", "http://host:5000/a@b"),
            ("http://user:p'a\"ss@host/x", "http://host/x"),
            ("http://host/x?token=abc&page=2", "http://host/x?token=***&page=2"),
            ("postgresql://host/db?user=me&password=x/y+z", "postgresql://host/db?user=me&password=***"),
            ("s3://AKIA:w/x+y=@bucket/p?region=eu", "s3://bucket/p?region=eu"),
            (
                "s3://bucket/p?access_key=A&secret_key=b/c+d&scheme=http",
                "s3://bucket/p?access_key=***&secret_key=***&scheme=http",
            ),
            (
                "s3://AKIA:w/x@bucket?endpoint_override=http://127.0.0.1:9000",
                "s3://bucket?endpoint_override=http://127.0.0.1:9000",
            ),
            ("s3://bucket/a@b", "s3://bucket/a@b"),
            ("gs://anonymous@bucket/x", "gs://anonymous@bucket/x"),
            ("abfs://place:k/e+y==@account.dfs.core.windows.net/x", "abfs://place@account.dfs.core.windows.net/x"),
            ("abfss://place@account.dfs.core.windows.net/x", "abfss://place@account.dfs.core.windows.net/x"),
            ("abfs://:k/ey@account.blob.core.windows.net/c", "abfs://account.blob.core.windows.net/c"),
            ("sent Authorization: Basic dXNlcjpwYXNz to it", "sent Authorization: Basic *** to it"),
        ],
    )
    def test_scrubbed(self, address: str, shown: str) -> None:
        assert scrubbed(address) == shown

    def test_pieces_of_a_known_password(self) -> None:
        """As a library quotes the half that it took for a host."""
        uri = "postgresql://user:sesame@opens%2Fit@host/db"
        said = 'could not translate host name "opens/it@host", password "sesame"'
        assert scrubbed(said, uri) == 'could not translate host name "***/it@host", password "***"'

    def test_an_address_that_is_refused_hides_rather_too_much(self) -> None:
        assert scrubbed("http://user:123/abc@host", refused=True) == "http://host"

    @pytest.mark.parametrize("padding", [0, 120])
    def test_trouble_shows_none(
        self, padding: int, study: Path, tracker: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uri = "http://user:sesame@host:5000"

        def failing(*arguments: Any) -> Any:
            raise ConnectionError(f"{'x' * padding} {'y' * (padding // 2)} {uri} did not answer {uri}/api")

        trouble: list[str] = []
        monkeypatch.setattr(tracking, "connect", failing)
        one = tracker(uri, on_trouble=trouble.append)
        one.changed(study)
        assert one.close(0.2) is False
        assert len(trouble) == 1
        assert "sesame" not in trouble[0]
        assert "user" not in trouble[0]

    def test_files_and_tags_hold_none(
        self, study: Path, tracker: Callable[..., Tracker], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store whose address has a password, played by the local one."""
        monkeypatch.setattr(tracking, "MlflowClient", None, raising=False)
        real = MlflowClient.__init__

        def local(self: MlflowClient, uri: str, *args: Any, **kw: Any) -> None:
            real(self, default_uri(study.parent), *args, **kw)

        monkeypatch.setattr(MlflowClient, "__init__", local)
        uri = "sqlite+driver://user:sesame@host/db"
        run = Run.read(study)
        assert run is not None
        run.tags = {"tracking": scrubbed(uri)}
        run.end(study, COMPLETE)
        folder = put(study, 0, 2, COMPLETE)
        one = tracker(uri)
        one.changed(folder)
        assert one.close()
        assert list(json.loads((folder / "mlflow.json").read_text())) == ["sqlite+driver://host/db"]
        for path in study.rglob("*"):
            assert not path.is_file() or b"sesame" not in path.read_bytes(), path
        for logged in runs_of(client, study):
            assert "sesame" not in str(logged.data.tags) + str(logged.data.params)
            assert "akd.tracking" not in logged.data.tags


class TestWords:
    def test_a_server_s_runs_end_in_silence(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else MLflow asks the server for the run's name and prints two lines, for each of thousands of runs."""
        monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
        tracking_store.client_of("http://127.0.0.1:1")._tracking_client._log_url("0123")
        assert capsys.readouterr().out == ""

    def test_augmentation_and_long_schedules_are_among_the_parameters(self) -> None:
        tree = {"method": {"host": "kd", "augment": {"name": "cutmix", "alpha": 0.5}}, "train": {"epoch_factor": 3}}
        experiment = resolve(tree)
        config = experiment.to_dict()
        assert tracked.method_of(config) == experiment.method.title == "kd with cutmix"
        params = tracked.params_of(config, Run("trial", "trial 0"))
        assert params["method.augment.name"] == "cutmix"
        assert params["method.augment.alpha"] == "0.5"
        assert params["train.epoch_factor"] == "3"
        plain = resolve({"method": "kd"}).to_dict()
        assert tracked.method_of(plain) == "kd"
        assert not {"train.epoch_factor", "method.augment.name"} & tracked.params_of(plain, Run("trial", "t")).keys()
