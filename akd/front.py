"""The trials of a study that no other one beats in everything: from its folders to its result and to MLflow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd import folder as run_folder
from akd import objectives
from akd.config import Experiment, SearchConfig, load
from akd.folder import COMPLETE, Run
from akd.logged import Logged
from akd.objectives import ACCURACY, COSTS

if TYPE_CHECKING:
    from akd.tracking import Tracker

#: Of MLflow's runs on the front: ``tags.akd.front = 'yes'`` lists them.
TAG = "akd.front"


def asked(study: Path) -> SearchConfig:
    """What a study is asked for; where its folder does not say, accuracy without bounds."""
    return _config(study).search


def _config(study: Path) -> Experiment:
    path = study / "experiment.yaml"
    return load(path, {}, strict=False) if path.is_file() else Experiment()


def obeys(search: SearchConfig, results: Mapping[str, float]) -> bool:
    """True if a run with these results is known to keep to every constraint."""
    if search.constraints is None:
        return True
    figures = objectives.figures_of(results)
    return figures.keys() >= search.constraints.given().keys() and not objectives.broken(search, figures)


def preferred(search: SearchConfig, results: Mapping[str, float]) -> tuple[float, ...]:
    """What decides between equally accurate trials: the costs among the objectives, in their order; else nothing.

    The more costly one of two equally accurate trials is beaten, and must not be handed over as the best.
    """
    costs = [COSTS[name].metric for name in search.objectives if name != ACCURACY]
    return tuple(results.get(metric, float("inf")) for metric in costs)


def members(study: Path) -> list[dict[str, Any]]:
    """The front of a study so far, by accuracy: a trial's ``number``, ``student`` and ``values``, objective -> value.

    Finished trials alone stand on it: the accuracy of a stopped one is that of fewer epochs. A study with one objective
    has no front.
    """
    config = _config(study)
    search = config.search
    names = search.objectives
    if len(names) < 2:
        return []
    points: dict[int, list[float]] = {}
    students: dict[int, str] = {}
    for path in sorted((study / "trials").glob("*/run.json")):
        run, accuracy = Run.read(path.parent), run_folder.accuracy(path.parent)
        if run is None or run.number is None or run.state != COMPLETE or not obeys(search, run.results):
            continue
        figures = objectives.figures_of(run.results)
        if accuracy == accuracy and all(name in figures for name in names if name != ACCURACY):
            points[run.number] = objectives.values_of(names, accuracy, figures)
            students[run.number] = str(run.parameters.get("student.name", config.student.name))
    return [
        {"number": number, "student": students[number], "values": dict(zip(names, points[number], strict=True))}
        for number in objectives.front(points, names)
    ]


def tag(tracker: Tracker, study: Path, numbers: Sequence[int]) -> None:
    """Have MLflow's runs of these trials carry :data:`TAG`, and no others of the study; in the background."""
    if asked(study).objectives == (ACCURACY,):
        return
    folders = {study / "trials" / f"{number:05d}" for number in numbers}

    def job() -> None:
        wanted = {Logged.read(folder, tracker.uri).run_id for folder in folders} - {""}
        for run_id in _tagged(tracker, study) - wanted:
            tracker.client.delete_tag(run_id, TAG)
        for run_id in wanted:
            tracker.client.set_tag(run_id, TAG, "yes")

    tracker.later(job)


def _tagged(tracker: Tracker, study: Path) -> set[str]:
    client, found, token = tracker.client, set(), None
    while True:
        mine = f"tags.`akd.study` = '{study.name}' and tags.`{TAG}` = 'yes'"
        page = client.search_runs([tracker.experiment_id], mine, max_results=1000, page_token=token)
        found |= {run.info.run_id for run in page}
        token = page.token
        if not token:
            return found


def lines(front: Iterable[Mapping[str, Any]], winner: int | None) -> list[str]:
    """The front as a closing box shows it, a line for each trial.

    Args:
        winner: number of the trial that is handed over.
    """
    rows = []
    for member in front:
        mark = ", the winner" if member["number"] == winner else ""
        costs = objectives.told(member["values"])
        accuracy = f"{100 * member['values'][ACCURACY]:.2f} %"
        rows.append([f"trial {member['number']}", accuracy, *costs, f"({member['student']}{mark})"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    found = []
    for name, *figures, student in rows:
        right = [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:-1], strict=True)]
        found.append("  ".join([f"  {name:<{widths[0]}}", *right, student]))
    return found
