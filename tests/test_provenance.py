"""What a study notes of its code, its command and its data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from akd import provenance
from akd.config import resolve
from akd.data import load, split
from akd.data.dataset import DataConfig
from akd.folder import Run
from akd.provenance import command, commit, data_of, note_data, origin
from akd.tracked import dataset_inputs, shared_tags, tags_of


def git(folder: Path, *words: str) -> str:
    own = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *who, "-C", folder, *words], capture_output=True, text=True, env=os.environ | own)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    git(folder, "init")
    (folder / "nets.py").write_text("a = 1\n")
    git(folder, "add", "nets.py")
    git(folder, "commit", "-m", "first")
    return folder


class TestCommit:
    def test_clean_and_changed(self, checkout: Path) -> None:
        head = git(checkout, "rev-parse", "HEAD")
        assert commit(checkout) == (head, False)
        (checkout / "runs").mkdir()
        (checkout / "runs" / "new.txt").write_text("what a search writes")
        assert commit(checkout) == (head, False)
        (checkout / "nets.py").write_text("a = 2\n")
        assert commit(checkout) == (head, True)
        assert commit(checkout / "runs") == (head, True)

    def test_a_file_that_git_does_not_know_is_of_no_commit(self, checkout: Path) -> None:
        """An environment within a checkout."""
        installed = checkout / ".venv" / "akd"
        installed.mkdir(parents=True)
        (installed / "__init__.py").write_text("")
        assert commit(installed, "__init__.py") is None
        assert commit(checkout, "nets.py") is not None

    def test_none(self, tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = tmp_path / "plain"
        plain.mkdir()
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
        assert commit(plain) is None
        empty = tmp_path / "empty"
        empty.mkdir()
        git(empty, "init")
        assert commit(empty) is None
        monkeypatch.setenv("PATH", str(plain))
        assert commit(checkout) is None

    def test_a_checkout_s_own_helper_is_not_run(self, checkout: Path) -> None:
        helper, left = checkout / "helper.sh", checkout / "ran"
        helper.write_text(f"#!/bin/sh\ntouch {left}\n")
        helper.chmod(0o755)
        git(checkout, "config", "core.fsmonitor", str(helper))
        assert commit(checkout) is not None
        assert not left.exists()

    def test_whose(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[Path, str | None]] = []

        def installed(folder: Path, member: str | None = None) -> tuple[str, bool] | None:
            seen.append((folder, member))
            return None if member else ("abc", True)

        monkeypatch.setattr(provenance, "commit", installed)
        monkeypatch.chdir(checkout)
        facts = origin()
        assert seen == [(Path(provenance.__file__).parent, "__init__.py"), (checkout, None)]
        assert (facts["commit"], facts["commit_of"], facts["uncommitted_changes"]) == (
            "abc",
            "the working folder",
            "yes",
        )
        assert shared_tags(facts)["mlflow.source.git.commit"] == "abc"

    def test_runs_of_a_study_carry_it(self, tmp_path: Path) -> None:
        study, config = tmp_path / "s", resolve({}).to_dict()
        own = Run("study", "s", tags={"commit": "abc", "command": "akd search kd", "tracking": "x"})
        study.mkdir()
        own.write(study)
        tags = tags_of(study, study / "trials" / "00003", Run("trial", "trial 3", number=3), config)
        assert (tags["mlflow.source.git.commit"], tags["akd.command"]) == ("abc", "akd search kd")
        assert "akd.tracking" not in tags
        assert (tags["akd.kind"], tags["akd.trial"]) == ("trial", "3")


class TestCommand:
    def test_as_typed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["/home/me/.venv/bin/akd", "search", "my space.yaml", "--trials", "3"])
        assert command() == "akd search 'my space.yaml' --trials 3"

    @pytest.mark.parametrize("argv", [[""], ["-c"], []])
    def test_none(self, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", argv)
        assert command() == ""
        assert "command" not in origin()

    @pytest.mark.parametrize(
        "words",
        [
            ["--tracking-uri", "http://me:sesame@host:5000"],
            ["--tracking-uri=http://me:sesame@host:5000"],
            ["--tracking-uri", "postgresql://me:ses/a@me@host/db"],
            ["--storage", "s3://KEY:ses+a/me@bucket/folder"],
            ["--storage", "s3://bucket/p?access_key=sesame&secret_key=sesame"],
        ],
    )
    def test_no_password(self, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "argv", ["akd", "search", "kd", *words])
        shown = command()
        assert shown.startswith("akd search kd --")
        for secret in ("sesame", "ses/a", "ses+a", "KEY"):
            assert secret not in shown


class TestData:
    config = DataConfig(name="digits", subset=300)

    def test_parts_are_told_apart(self, tmp_path: Path) -> None:
        data = split(self.config, load(self.config))
        note_data(tmp_path, self.config, data)
        facts = data_of(tmp_path)
        assert facts is not None
        assert facts["hash"] == data.hash
        assert {k: v["images"] for k, v in facts["parts"].items()} == {
            "training": 270,
            "validation": 30,
            "training and validation": 300,
            "test": 360,
        }
        assert len({part["digest"] for part in facts["parts"].values()}) == 4
        other = replace(self.config, split_seed=1)
        (tmp_path / "b").mkdir()
        note_data(tmp_path / "b", other, split(other, load(other)))
        mine, theirs = facts["parts"], (data_of(tmp_path / "b") or {})["parts"]
        assert mine["training"]["digest"] != theirs["training"]["digest"]
        assert mine["test"]["digest"] == theirs["test"]["digest"]

    def test_test_images_change_the_digest(self, tmp_path: Path) -> None:
        data = split(self.config, load(self.config))
        (tmp_path / "b").mkdir()
        note_data(tmp_path, self.config, data)
        changed = replace(data.dataset, test_images=torch.zeros_like(data.dataset.test_images))
        note_data(tmp_path / "b", self.config, replace(data, dataset=changed))
        ours, theirs = ((data_of(f) or {})["parts"]["test"]["digest"] for f in (tmp_path, tmp_path / "b"))
        assert ours != theirs

    def test_inputs_of_a_run(self, tmp_path: Path) -> None:
        assert dataset_inputs(tmp_path, "trial") == []  # a study of before there were such notes
        note_data(tmp_path, self.config, split(self.config, load(self.config)))

        def contexts(kind: str) -> list[tuple[str, str]]:
            return [(i.tags[0].value, i.dataset.digest[-4:]) for i in dataset_inputs(tmp_path, kind)]

        assert contexts("trial") == [("training", "rain"), ("validation", "-val")]
        assert contexts("final") == [("training and validation", "-all"), ("test", "test")]
        for entry in dataset_inputs(tmp_path, "study"):
            assert len(entry.dataset.digest) <= 36  # MLflow's limit
            assert json.loads(entry.dataset.source) == {"uri": "digits"}

    def test_damaged_notes_are_none(self, tmp_path: Path) -> None:
        (tmp_path / "data.json").write_text("{")
        assert data_of(tmp_path) is None
