"""Storage that nodes share: whole objects, working copies, and what steering processes keep of them."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from akd import checkpoint, reach, storage
from akd import folder as run_folder
from akd.config import resolve
from akd.data import load, split
from akd.errors import ExperimentError
from akd.folder import COMPLETE, Run
from akd.job import Job, run_job
from akd.logged import default_uri, tracking_tag
from akd.mirror import Mirror, mirror_of, open_mirror
from akd.storage import RefusedError, Storage, StorageError, WorkingCopy, admit, check
from akd.teacher.cache import Store


@pytest.fixture
def shared(tmp_path: Path) -> Storage:
    return Storage(f"file://{tmp_path}/shared")


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "said"),
        [
            ("bucket/folder", "must be an address like s3://BUCKET/FOLDER"),
            ("s4://bucket/x", "did you mean 's3'"),
            ("s3://", "must name a bucket"),
            ("s3://bucket/x?colour=red", "colour"),
            ("file://relative/x", "is no address of a storage"),
        ],
    )
    def test_what_is_none_is_refused_in_a_line(self, address: str, said: str) -> None:
        with pytest.raises(ExperimentError, match="storage") as error:
            check(address)
        assert said in str(error.value)
        assert "\n" not in str(error.value)

    def test_credentials_stay_in_the_process(self) -> None:
        shown = admit("s3://AKID:se%2Fcret@bucket/x?region=eu-west-1")
        assert "cret" not in shown
        assert "AKID" not in shown
        assert storage.known(shown) == "s3://AKID:se%2Fcret@bucket/x?region=eu-west-1"
        assert storage.known("s3://bucket/plain") is None
        assert "cret" not in Storage(shown).shown

    def test_nobody_there_is_told(self) -> None:
        with pytest.raises(ExperimentError, match="cannot be read") as error:
            check("s3://AKID:secret@bucket/x?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9")
        assert "secret" not in str(error.value)


class TestObjects:
    def test_put_get_names_remove(self, shared: Storage, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"one")
        shared.put(tmp_path / "a", "runs/a")
        shared.put_bytes(b"three", "runs/deep/b")
        assert shared.names("runs") == {"a": 3, "deep/b": 5}
        assert shared.names("nothing") == {}
        assert shared.get("runs/deep/b", tmp_path / "new" / "b")
        assert (tmp_path / "new" / "b").read_bytes() == b"three"
        assert not shared.get("runs/c", tmp_path / "c")
        assert shared.exists("runs/a")
        assert not shared.exists("runs/c")
        shared.remove_object("runs/a")
        shared.remove_object("runs/a")
        shared.remove("runs/deep")
        shared.remove("runs/deep")
        assert shared.names("") == {}

    def test_a_reader_sees_the_old_or_the_new(self, shared: Storage) -> None:
        contents = [bytes([65 + k]) * 200_000 for k in range(2)]
        shared.put_bytes(contents[0], "x")
        ended = threading.Event()

        def write() -> None:
            for k in range(60):
                shared.put_bytes(contents[k % 2], "x")
            ended.set()

        thread = threading.Thread(target=write)
        thread.start()
        while not ended.is_set():
            assert shared.get_bytes("x") in contents
        thread.join()
        assert shared.names("") == {"x": 200_000}

    def test_what_fails_for_a_while_is_tried_again(self, shared: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses: list[float] = []
        monkeypatch.setattr(storage.time, "sleep", pauses.append)
        answers: list[Any] = [OSError("no route"), OSError("no route"), "there"]

        def action() -> Any:
            found = answers.pop(0)
            if isinstance(found, OSError):
                raise found
            return found

        assert shared._tried(action) == "there"
        assert pauses == [0.5, 1.0]

    def test_what_keeps_failing_says_nothing_of_the_run(self, tmp_path: Path) -> None:
        impatient = Storage(f"file://{tmp_path}", patience_s=0)
        with pytest.raises(StorageError, match="no route"):
            impatient._tried(lambda: (_ for _ in ()).throw(OSError("no route")))
        with pytest.raises(RefusedError, match="Denied"):
            impatient._tried(lambda: (_ for _ in ()).throw(PermissionError("Denied")))
        assert not issubclass(RefusedError, StorageError)

    def test_a_node_tries_it_and_leaves_nothing(self, shared: Storage, tmp_path: Path) -> None:
        assert shared.tried() is None
        assert shared.names("") == {}
        (tmp_path / "file").write_text("in the way")
        why = Storage(f"file://{tmp_path}/file/below", patience_s=0).tried()
        assert why is not None
        reach.check_here(None)
        reach.check_here(shared.shown)
        with pytest.raises(ExperimentError, match=r"storage = .*: cannot be used"):
            reach.check_here(f"file://{tmp_path}/file/below")


class TestWorkingCopy:
    def test_only_what_is_new_is_stored_and_dropped_checkpoints_go(
        self, shared: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared.put_bytes(b"{}", "s/trials/1/experiment.yaml")
        order: list[str] = []
        put = Storage.put
        monkeypatch.setattr(Storage, "put", lambda self, path, key: (order.append(key), put(self, path, key))[1])
        with WorkingCopy(shared, "s/trials/1") as copy:
            assert (copy.folder / "experiment.yaml").read_text() == "{}"
            for epoch in (1, 2, 3):
                checkpoint.save(copy.folder / "checkpoints", epoch, {"w": torch.ones(3) * epoch}, {"epoch": epoch})
                run_folder._append_line(copy.folder / "history.jsonl", json.dumps({"epoch": epoch}))
                order.clear()
                copy.store()
                assert set(order) == {
                    *(
                        f"s/trials/1/checkpoints/epoch_00000{epoch}/{n}"
                        for n in ("manifest.json", "state.json", "weights.safetensors")
                    ),
                    "s/trials/1/history.jsonl",
                }
                # A kill before the last of these leaves an epoch that is made again.
                assert order[-2:] == [
                    f"s/trials/1/checkpoints/epoch_00000{epoch}/manifest.json",
                    "s/trials/1/history.jsonl",
                ]
            place = copy.folder
        assert not place.exists()
        names = shared.names("s/trials/1/checkpoints")
        assert {n.partition("/")[0] for n in names} == {"epoch_000002", "epoch_000003"}
        with WorkingCopy(shared, "s/trials/1") as again:
            assert [p.name for p in checkpoint.all_checkpoints(again.folder / "checkpoints")] == [
                "epoch_000002",
                "epoch_000003",
            ]
            order.clear()
            again.store()
            assert order == []


def test_copies_of_killed_processes_are_removed(
    shared: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path / "tmp"))
    gone, mine = tmp_path / "tmp" / "akd-run-99999999-x", tmp_path / "tmp" / f"akd-run-{os.getpid()}-x"
    for folder in (gone, mine):
        (folder / "1").mkdir(parents=True)
    WorkingCopy(shared, "s/1").close()
    assert [p.name for p in (tmp_path / "tmp").iterdir()] == [mine.name]


def _experiment(**train: Any) -> Any:
    return resolve(
        {
            "data": {"name": "digits", "subset": 160},
            "student": "resnet8",
            "method": "none",
            "train": {"epochs": 3, "batch_size": 32, "lr": 0.1, "threads": 1, **train},
        }
    )


def test_a_job_goes_on_elsewhere_where_its_node_was_lost(shared: Storage, tmp_path: Path) -> None:
    """Two nodes with nothing but the storage in common, one gone after two epochs: the same run as on one machine."""
    experiment = _experiment()
    run_folder.create(tmp_path / "here" / "s" / "one", experiment, Run("trial", "trial 0"))
    data = split(experiment.data, load(experiment.data))
    run_folder.train(tmp_path / "here" / "s" / "one", experiment, data, None)

    top = tmp_path / "steers"
    mirror = Mirror(shared.shown, top)
    folder = top / "s" / "one"
    run_folder.create(folder, experiment, Run("trial", "trial 0"))
    mirror.up(folder)
    job = mirror.jobs([Job(str(folder), session="a")])[0]

    class Lost(BaseException):
        pass

    def lost(record: Any) -> None:
        if record.epoch == 2:
            raise Lost

    with pytest.raises(Lost):
        run_job(job, on_epoch=lost)
    mirror.down(folder, ended=False)
    assert [e["epoch"] for e in run_folder.history(folder)] == [1, 2]
    assert not (folder / "student").exists()
    epochs: list[int] = []
    run_job(job, on_epoch=lambda record: epochs.append(record.epoch))
    assert epochs == [2, 3]  # the last one kept is told again: its news may have been lost
    mirror.down(folder)
    mine, theirs = run_folder.history(folder), run_folder.history(tmp_path / "here" / "s" / "one")
    assert [e["val/accuracy"] for e in mine] == [e["val/accuracy"] for e in theirs]
    a, b = ((f / "student" / "student.safetensors").read_bytes() for f in (folder, tmp_path / "here" / "s" / "one"))
    assert a == b
    assert not (folder / "checkpoints").exists()


class TestMirror:
    def test_without_storage_nothing_is_done(self, tmp_path: Path) -> None:
        mirror = Mirror(None, tmp_path)
        mirror.up(tmp_path)
        mirror.up_all(tmp_path)
        mirror.down(tmp_path)
        mirror.remove(tmp_path)
        assert not mirror.adopt(tmp_path)
        assert mirror.ended(tmp_path)
        assert mirror.tags() == {}
        assert list(tmp_path.iterdir()) == []

    def test_what_steering_writes_is_not_overwritten(self, shared: Storage, tmp_path: Path) -> None:
        mirror, folder = Mirror(shared.shown, tmp_path / "out"), tmp_path / "out" / "s" / "trials" / "0"
        run = Run("trial", "trial 0", number=0)
        run_folder.create(folder, _experiment(), run)
        mirror.up(folder)
        run.end(folder, COMPLETE)
        shared.put_bytes(b'{"epoch": 1, "at": 1}\n', "s/trials/0/history.jsonl")
        mirror.down(folder)
        found = Run.read(folder)
        assert found is not None
        assert found.state == COMPLETE
        assert run_folder.history(folder) == [{"epoch": 1, "at": 1}]
        assert not mirror.ended(folder)
        mirror.up(folder, "run.json")
        assert mirror.ended(folder)

    def test_a_study_is_adopted_by_another_machine_without_checkpoints(self, shared: Storage, tmp_path: Path) -> None:
        first = open_mirror(shared.shown, tmp_path / "a")
        folder = tmp_path / "a" / "s"
        run_folder.create(folder, _experiment(), Run("study", "s", tags=first.tags()))
        run_folder.create(folder / "trials" / "00000", _experiment(), Run("trial", "trial 0", number=0))
        first.up_all(folder)
        shared.put_bytes(b"x", "s/trials/00000/checkpoints/epoch_000001/weights.safetensors")
        second = mirror_of("s", tmp_path / "b", shared.shown)
        assert Run.read(tmp_path / "b" / "s" / "trials" / "00000") == Run.read(folder / "trials" / "00000")
        assert not list((tmp_path / "b").rglob("checkpoints"))
        assert second.shown == shared.shown

    def test_the_store_beside_a_study_is_found_where_the_study_is(self, tmp_path: Path) -> None:
        assert tracking_tag(default_uri(tmp_path), tmp_path) == {}
        assert tracking_tag("http://me:word@host:5000", tmp_path) == {"tracking": "http://host:5000"}
        assert tracking_tag(default_uri(tmp_path / "a"), tmp_path / "b") == {"tracking": default_uri(tmp_path / "a")}

    def test_what_is_nowhere_is_said_to_be(self, shared: Storage, tmp_path: Path) -> None:
        with pytest.raises(ExperimentError, match=r"there is no study or run of this name in .*, nor in file://"):
            mirror_of("s", tmp_path, shared.shown)

    def test_the_way_on_names_the_storage(
        self, shared: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("AKD_STORAGE", raising=False)
        assert Mirror(shared.shown, tmp_path).flag() == f" --storage {shared.shown}"
        assert Mirror(None, tmp_path).flag() == ""

    def test_no_name_leads_out_of_the_output_folder(self, shared: Storage, tmp_path: Path) -> None:
        shared.put_bytes(b"{}", "s/run.json")
        for name in ("../s", "/s", "s/../../s", "", "."):
            with pytest.raises(ExperimentError, match="resume"):
                mirror_of(name, tmp_path / "out" / "runs", shared.shown)
        assert not (tmp_path / "out").exists()

    def test_a_study_goes_on_with_its_own_storage_only(self, shared: Storage, tmp_path: Path) -> None:
        for name, tags in (("with", {"storage": shared.shown}), ("without", {})):
            run_folder.create(tmp_path / "out" / name, _experiment(), Run("study", name, tags=tags))
        assert mirror_of("with", tmp_path / "out", None).shown == shared.shown
        assert mirror_of("without", tmp_path / "out", None).storage is None
        with pytest.raises(ExperimentError, match="was started with file://"):
            mirror_of("with", tmp_path / "out", f"file://{tmp_path}/other")
        with pytest.raises(ExperimentError, match="was started without"):
            mirror_of("without", tmp_path / "out", shared.shown)


class TestTeachersOutputs:
    def make(self, root: Path, shared: Storage | None, asked: list[int]) -> torch.Tensor:
        def compute(part: int) -> dict[str, torch.Tensor]:
            asked.append(part)
            return {"logits": torch.arange(6.0).view(2, 3) + part}

        with Store(root, 1 << 20, shared).use({"fact": 1}, 1) as one:
            one.fill(["logits"], 2, compute, half=False)
            return torch.cat([c.values for c in one.read("logits", 2)])

    def test_one_node_makes_them_for_all(self, shared: Storage, tmp_path: Path) -> None:
        first: list[int] = []
        second: list[int] = []
        a = self.make(tmp_path / "a", shared, first)
        b = self.make(tmp_path / "b", shared, second)
        assert first == [0, 1]
        assert second == []
        assert torch.equal(a, b)

    def test_a_damaged_one_is_made_again_and_replaced(self, shared: Storage, tmp_path: Path) -> None:
        from akd.teacher.cache import Damaged

        self.make(tmp_path / "a", shared, [])
        (name, *_) = sorted(n for n in shared.names("cache") if n.endswith(".arrow"))
        shared.put_bytes(b"rubbish", f"cache/{name}")
        asked: list[int] = []
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(Damaged):
            self.make(tmp_path / "b", shared, asked)
        self.make(tmp_path / "b", shared, asked)
        assert asked == [0]
        c: list[int] = []
        self.make(tmp_path / "c", shared, c)
        assert c == []
