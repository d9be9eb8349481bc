"""The report of a search that runs: in MLflow too, as it stood last, and never in the way of the search."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import made_study
import pytest
from mlflow import MlflowClient

from akd import running
from akd.folder import RUNNING, Run
from akd.logged import default_uri
from akd.report import formats
from akd.tracking import Tracker


def page(client: MlflowClient, run_id: str, place: Path) -> str:
    return Path(client.download_artifacts(run_id, "report.html", str(place))).read_text(encoding="utf-8")


def test_mlflow_has_the_page_of_a_search_that_runs(tmp_path: Path) -> None:
    study = made_study.make(tmp_path / "s", ended=False)
    tracker = Tracker(default_uri(tmp_path), tmp_path, study, "pages", retry_s=0.01)
    for text in ("<p>one</p>", "<p>two</p>"):
        (study / "report.html").write_text(text, encoding="utf-8")
        tracker.changed(study)
        assert tracker._idle.wait(60)
        run_id = tracker.run_id(study)
        assert page(MlflowClient(default_uri(tmp_path)), run_id, tmp_path) == text
    assert tracker.close()
    run = Run.read(study)
    assert run is not None
    assert run.state == RUNNING


class Told:
    """A tracker's ears."""

    def __init__(self) -> None:
        self.jobs: list[Any] = []
        self.news: list[Path] = []

    def later(self, job: Any) -> None:
        self.jobs.append(job)

    def changed(self, folder: Path) -> None:
        self.news.append(folder)


@pytest.fixture
def one(tmp_path: Path) -> Any:
    """What a session of a study needs for its page."""
    one = SimpleNamespace(
        folder=made_study.make(tmp_path / "s", ended=False), tracker=Told(), _page=threading.Lock(), _page_due=0.0
    )
    one._meanwhile = lambda: running.RunningStudy._meanwhile(one)  # type: ignore[arg-type]
    return one


def test_it_is_made_seldom_and_by_another_thread(one: Any) -> None:
    ask = running.RunningStudy._report_meanwhile
    for _ in range(5):
        ask(one)
    assert len(one.tracker.jobs) == 1, "asked for again before it was made"
    assert not (one.folder / "report.html").exists()
    one.tracker.jobs[0]()
    assert "<html" in (one.folder / "report.html").read_text(encoding="utf-8")
    assert one.tracker.news == [one.folder]
    ask(one)
    assert len(one.tracker.jobs) == 1
    assert time.monotonic() + running.PAGE_S - 5 < one._page_due < math.inf


def test_a_page_that_cannot_be_made_is_tried_again_later(one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kw: Any) -> None:
        raise ValueError("a chart")

    monkeypatch.setattr(formats, "write", broken)
    running.RunningStudy._report_meanwhile(one)
    one.tracker.jobs[0]()
    assert one._page_due < math.inf
