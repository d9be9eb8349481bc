"""``akd report --verify``: do a study's folders, Optuna's study and MLflow tell the same?

The folders are the truth (see :mod:`akd.folder`); a difference is a fault of whichever of the other two fell behind, or
of a folder that was touched. Nothing is mended or written here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd import config as configuration
from akd import confirm, front
from akd import folder as run_folder
from akd.addresses import check_tracking
from akd.champion import final_seeds
from akd.errors import ExperimentError, many, reason
from akd.folder import COMPLETE, FAILED, RUNNING, Run
from akd.journal import read_trials
from akd.logged import scrubbed, title_of
from akd.objectives import as_results, figures_of
from akd.result import CONTROL_WORDS, StudyResult
from akd.space import parse
from akd.tracked import STATUS, mark_of
from akd.tracking_store import client_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Logged
    from optuna.trial import FrozenTrial

#: How many differences a line names.
_MOST = 3


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: what is compared.
        problems: the differences; none if all agrees.
        text: what agrees, if it does.
    """

    name: str
    problems: tuple[str, ...]
    text: str

    @property
    def good(self) -> bool:
        return not self.problems

    def line(self) -> str:
        """As it is printed."""
        more = f"; and {len(self.problems) - _MOST} more" if len(self.problems) > _MOST else ""
        said = self.text if self.good else "; ".join(self.problems[:_MOST]) + more
        return f"{'ok' if self.good else 'WRONG':<7}{self.name:<13}{said}"


@dataclass
class _Books:
    """What the three keep of a study.

    Attributes:
        runs: of each folder that holds a trial, a control, a confirmation run or a final run.
        damaged: folders whose files cannot be read, with why.
        told: Optuna's trials, by number.
        logged: MLflow's runs of each folder, the study's own among them; ``None`` if MLflow was not reached.
        strangers: MLflow's runs below the study's that belong to no folder.
    """

    study: Path
    own: Run
    runs: dict[Path, Run] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    told: dict[int, FrozenTrial] = field(default_factory=dict)
    logged: dict[Path, list[Logged]] | None = None
    strangers: list[Logged] = field(default_factory=list)
    client: MlflowClient | None = None

    def of(self, part: str) -> dict[Path, Run]:
        return {folder: run for folder, run in self.runs.items() if folder.parent.name == part}

    def trials(self) -> dict[int, Path]:
        return {int(f.name): f for f in self.of("trials") if f.name.isdigit()}

    def only(self, folder: Path) -> Logged | None:
        """MLflow's run of a folder, if it has exactly one."""
        found = (self.logged or {}).get(folder, [])
        return found[0] if len(found) == 1 else None


def verify(study: Path, uri: str) -> list[Check]:
    """Compare what folders, Optuna and MLflow say of a study.

    Args:
        study: its folder.
        uri: MLflow's address.

    Raises:
        ExperimentError: ``uri`` cannot be an address.
        AkdError: the study itself cannot be read.
    """
    own = Run.read(study)
    assert own is not None
    check_tracking(uri, study.parent, answers=False)
    books = _Books(study, own)
    _read_folders(books)
    books.told = {t.number: t for t in read_trials(study / "optuna.log", study.name)}
    away = _read_mlflow(books, uri)
    where = f"at {scrubbed(uri)}"
    checks = [
        Check("files", tuple(books.damaged), f"{many(len(books.runs), 'run folder')} can be read"),
        Check("MLflow", (f"{where}: {away}",) if away else (), f"{where} answers"),
        _trials(books),
        _once(books),
        _states(books),
        _counts(books),
        _accuracies(books),
        _epochs(books),
        _parameters(books),
        _controls(books),
        _confirmation(books, StudyResult.read(study)),
        _finals(books),
    ]
    result = StudyResult.read(study)
    search = front.asked(study)
    if any(figures_of(run.results) for run in books.runs.values()):
        checks.append(_costs(books, search.objectives))
    if len(search.objectives) > 1 and result is not None and own.state == COMPLETE:
        checks.append(_front(books, result))
    if result is not None or own.state == COMPLETE:
        checks.append(_result(books, result))
    return checks


def verdict(checks: Iterable[Check], state: str) -> str:
    """The last line."""
    wrong = [c.name for c in checks if not c.good]
    going = "" if state != RUNNING else "; the search has not ended, and MLflow may be seconds behind one that runs"
    if not wrong:
        return f"verified: folders, Optuna and MLflow agree{going}"
    if wrong == ["MLflow"]:
        return f"NOT VERIFIED: folders and Optuna agree, MLflow could not be asked{going}"
    return f"NOT VERIFIED: {', '.join(wrong)}{going}"


# -- reading -------------------------------------------------------------------------------------------


def _read_folders(books: _Books) -> None:
    for part in ("controls", "trials", "confirm", "finals", "finals-*"):  # the last: of earlier winners
        for path in sorted(books.study.glob(f"{part}/*/run.json")):
            name = path.parent.relative_to(books.study)
            try:
                run = Run.read(path.parent)
                run_folder.history(path.parent)
            except (ValueError, TypeError, KeyError, OSError) as error:
                books.damaged.append(f"{name} is damaged: {reason(error)}")
                continue
            if run is not None:
                books.runs[path.parent] = run
                if part == "trials" and str(run.number) != path.parent.name.lstrip("0").rjust(1, "0"):
                    books.damaged.append(f"{name} says it is trial {run.number}")


def _read_mlflow(books: _Books, uri: str) -> str | None:
    """Read MLflow's runs of the study; why they cannot be read, if so."""
    try:
        check_tracking(uri, books.study.parent)
    except ExperimentError as error:
        return error.problem.partition("; start its server")[0]
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.is_file():  # MLflow would make an empty store there
        return "there is no such file"
    config = configuration.load(books.study / "experiment.yaml", {}, strict=False)
    title = title_of(books.own, config.data.name, config.teacher.name, config.student.name)
    try:
        client = client_of(uri)
        experiment = client.get_experiment_by_name(title)
        if experiment is None:
            return f"it has no experiment {title!r}"
        runs = list(_all_runs(client, experiment.experiment_id, books.study.name))
    except Exception as error:  # whatever MLflow, the network or a damaged store raises
        return f"cannot be read: {scrubbed(reason(error), uri)[:200]}"
    folders = {**books.runs, books.study: books.own}
    marks = {mark_of(books.study, folder, run): folder for folder, run in folders.items()}
    books.client, books.logged = client, {folder: [] for folder in folders}
    for run in runs:
        folder = marks.get(run.data.tags.get("akd.mark", ""))
        if folder is not None:
            books.logged[folder].append(run)
    parents = {run.info.run_id for run in books.logged[books.study]}
    known = {run.info.run_id for found in books.logged.values() for run in found}
    books.strangers = [
        run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") in parents
        and run.info.run_id not in known
        and run.data.tags.get("akd.kind") in ("trial", "control", "confirm", "final")
    ]
    return None if parents else f"it has no run of study {books.study.name!r}"


def _all_runs(client: MlflowClient, experiment: str, study: str) -> Iterator[Logged]:
    token = None
    while True:
        # The quotes are safe: a study's name is letters, digits, '.', '_' and '-'.
        page = client.search_runs([experiment], f"tags.`akd.study` = '{study}'", max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


# -- comparing -----------------------------------------------------------------------------------------


def _trials(books: _Books) -> Check:
    """Every trial is in all three."""
    folders, problems = books.trials(), []
    for number in sorted(folders.keys() | books.told.keys()):
        if number not in folders:
            problems.append(f"trial {number} is in Optuna and has no folder")
        elif number not in books.told:
            problems.append(f"trial {number} has a folder and is not in Optuna")
        elif books.logged is not None and not books.logged[folders[number]]:
            problems.append(f"trial {number} has a folder and no run in MLflow")
    logged = "" if books.logged is None else f", {sum(map(bool, map(books.logged.get, folders.values())))} in MLflow"
    return Check("trials", tuple(problems), f"{many(len(folders), 'folder')}, {len(books.told)} in Optuna{logged}")


def _once(books: _Books) -> Check:
    """No run is in MLflow twice, and none that has no folder."""
    if books.logged is None:
        return Check("no run twice", (), "each folder is one trial of Optuna's; MLflow was not asked")
    problems = [
        f"{'the study' if folder == books.study else books.runs[folder].name} has {len(found)} runs in MLflow"
        for folder, found in books.logged.items()
        if len(found) > 1
    ]
    problems += [f"MLflow has a run {run.info.run_name!r} that has no folder" for run in books.strangers]
    total = sum(len(found) for found in books.logged.values())
    return Check("no run twice", tuple(problems), f"{many(total, 'run')} in MLflow, each of one folder")


def _optuna_state(trial: FrozenTrial) -> str:
    return {"FAIL": FAILED, "WAITING": RUNNING}.get(trial.state.name, trial.state.name)


def _logged_state(run: Logged) -> str:
    state = str(run.data.tags.get("akd.status"))
    # A run carries akd's word and MLflow's own; both must say the same.
    return state if STATUS.get(state) == run.info.status else f"{state} ({run.info.status})"


def _states(books: _Books) -> Check:
    problems = []
    for folder, run in books.runs.items():
        said = {"folder": run.state}
        if run.number in books.told and folder.parent.name == "trials":
            said["Optuna"] = _optuna_state(books.told[run.number])
        if logged := books.only(folder):
            said["MLflow"] = _logged_state(logged)
        if len(set(said.values())) > 1:
            problems.append(f"{run.name}: {', '.join(f'{who} says {state}' for who, state in said.items())}")
        elif run.state == RUNNING and books.own.state == COMPLETE:
            problems.append(f"{run.name} has not ended, and the study has")
    return Check("states", tuple(problems), f"of {many(len(books.runs), 'run')} agree")


def _counts(books: _Books) -> Check:
    """How many trials stand how."""
    folders = books.trials()
    said = {
        "folders": Counter(books.runs[f].state for f in folders.values()),
        "Optuna": Counter(_optuna_state(t) for t in books.told.values()),
    }
    if books.logged is not None:
        every = [run for found in books.logged.values() for run in found] + books.strangers
        trials = [run for run in every if run.data.tags.get("akd.kind") == "trial"]
        said["MLflow"] = Counter(str(run.data.tags.get("akd.status")) for run in trials)
    words = {who: ", ".join(f"{n} {state}" for state, n in sorted(c.items())) or "none" for who, c in said.items()}
    if len(set(words.values())) > 1:
        return Check("counts", ("; ".join(f"{who}: {counted}" for who, counted in words.items()),), "")
    return Check("counts", (), f"{words['folders']} in {'all three' if len(words) == 3 else 'both'}")


def _same(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    # Stores may keep fewer digits than a file; NaN equals itself here.
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{100 * value:.4f} %"


def _accuracies(books: _Books) -> Check:
    """Each finished trial has the same final validation accuracy in all three."""
    problems, finished = [], 0
    for number, folder in books.trials().items():
        run, trial = books.runs[folder], books.told.get(number)
        if run.state != COMPLETE:
            continue
        finished += 1
        mine = run_folder.accuracy(folder)
        said = {"Optuna": trial.values[0] if trial and trial.values else None} if trial else {}
        if logged := books.only(folder):
            said["MLflow"] = logged.data.metrics.get("val/accuracy")
        if any(not _same(mine, value) for value in said.values()):
            words = [f"{who} {_shown(value)}" for who, value in {"folder": mine, **said}.items()]
            problems.append(f"trial {number}: {', '.join(words)}")
    return Check("accuracy", tuple(problems), f"the last of {many(finished, 'finished trial')} is the same")


def _costs(books: _Books, objectives: Sequence[str]) -> Check:
    """What students cost: as MLflow's metrics, and as values of Optuna's trials where cost is an objective."""
    problems, told = [], 0
    for folder, run in books.runs.items():
        mine, logged = as_results(figures_of(run.results)), books.only(folder)
        if logged is not None and run.state != RUNNING:  # it is logged when a run ends
            for metric, value in mine.items():
                if not _same(value, theirs := logged.data.metrics.get(metric)):
                    problems.append(f"{run.name}: {metric} is {value:g}, in MLflow {theirs}")
        trial = books.told.get(run.number if run.number is not None else -1)
        if trial is None or run.state != COMPLETE or folder.parent.name != "trials":
            continue
        told += 1
        figures = figures_of(run.results)
        values = list(trial.values or [])[1:]
        wanted = [figures.get(name) for name in objectives[1:]]
        if len(values) != len(wanted) or not all(map(_same, values, wanted)):
            problems.append(f"{run.name}: costs {', '.join(map(str, wanted))}, in Optuna {', '.join(map(str, values))}")
    more = f"; of {many(told, 'finished trial')} in Optuna, too" if len(objectives) > 1 else ""
    return Check("costs", tuple(problems), f"of the students are the same in folders and MLflow{more}")


def _front(books: _Books, result: StudyResult) -> Check:
    """The front of the folders is that of ``result.json``, and its trials alone are tagged in MLflow."""
    members = front.members(books.study)
    mine, said = ([member["number"] for member in one] for one in (members, result.front))
    problems = [] if mine == said else [f"trials {said} in result.json, {mine} by their folders"]
    if not problems:
        pairs = zip(members, result.front, strict=True)
        problems += [f"trial {a['number']} has other values in result.json" for a, b in pairs if a != b]
    for number, folder in books.trials().items():
        logged = books.only(folder)
        if logged is not None and (logged.data.tags.get(front.TAG) == "yes") != (number in mine):
            problems.append(f"trial {number} is {'' if number in mine else 'not '}on it, MLflow's tag says otherwise")
    return Check("front", tuple(problems), f"of {many(len(mine), 'trial')} is the same, and tagged in MLflow")


def _epochs(books: _Books) -> Check:
    """Validation accuracy of every epoch of every run.

    Of a run that goes on, or waits for a search that will, Optuna and MLflow may lack the last epochs: they are told
    from its folder.
    """
    problems, seen, going = [], 0, 0
    for folder, run in books.runs.items():
        mine = {int(e["epoch"]): e["val/accuracy"] for e in run_folder.history(folder) if "val/accuracy" in e}
        seen += len(mine)
        going += run.state == RUNNING
        trial, logged = books.told.get(run.number if run.number is not None else -1), books.only(folder)
        if trial is not None:
            problems += _difference(f"{run.name}, Optuna", mine, trial.intermediate_values, run.state)
        if logged is not None and books.client is not None:
            points = books.client.get_metric_history(logged.info.run_id, "val/accuracy")
            if len({p.step for p in points}) < len(points):
                problems.append(f"{run.name}, MLflow: an epoch is there twice")
            problems += _difference(f"{run.name}, MLflow", mine, {p.step: p.value for p in points}, run.state)
    more = f"; {many(going, 'run')} may be ahead of Optuna and MLflow" if going else ""
    return Check("epochs", tuple(problems), f"validation accuracy of {many(seen, 'epoch')} is the same{more}")


def _difference(who: str, mine: Mapping[int, float], theirs: Mapping[int, float], state: str) -> list[str]:
    """The first epoch in which two curves differ."""
    known = max(theirs, default=0)
    for epoch in sorted(mine.keys() | theirs.keys()):
        if state == RUNNING and epoch > known:
            break
        if not _same(mine.get(epoch), theirs.get(epoch)):
            return [f"{who}: epoch {epoch} is {_shown(theirs.get(epoch))}, in the folder {_shown(mine.get(epoch))}"]
    return []


def _parameters(books: _Books) -> Check:
    from optuna.trial import FixedTrial

    space = parse(configuration.load(books.study / "experiment.yaml", {}, strict=False))
    problems = []
    for number, folder in books.trials().items():
        run, trial, logged = books.runs[folder], books.told.get(number), books.only(folder)
        if trial is not None:
            try:  # lists travel by position: the space knows what stands there
                theirs = space(FixedTrial(trial.params))
            except (ValueError, IndexError):  # not all of the space's
                theirs = trial.params
            problems += [
                f"trial {number}: {key} is {run.parameters.get(key)!r}, in Optuna {theirs.get(key)!r}"
                for key in sorted(run.parameters.keys() | theirs.keys())
                if run.parameters.get(key) != theirs.get(key)
            ]
        if logged is not None:
            problems += [
                f"trial {number}: {key} is {value!r}, in MLflow {logged.data.params.get(key)!r}"
                for key, value in run.parameters.items()
                if logged.data.params.get(key) != str(value)[:6000]
            ]
    return Check("parameters", tuple(problems), f"of {many(len(books.trials()), 'trial')} are the same")


def _there(books: _Books, part: str, wanted: Iterable[str]) -> list[str]:
    """What keeps the folders of ``part`` from being there, ended, and each once in MLflow."""
    problems, found = [], {folder.name: folder for folder in books.of(part)}
    for name in wanted:
        folder = found.get(name)
        if folder is None:
            problems.append(f"{part}/{name} is missing")
        elif books.runs[folder].state != COMPLETE and part == "finals":
            problems.append(f"{part}/{name} is {books.runs[folder].state}")
        elif books.logged is not None and len(books.logged[folder]) != 1:
            problems.append(f"{part}/{name} has {many(len(books.logged[folder]), 'run')} in MLflow")
    problems += [f"{part}/{name} should not be there" for name in sorted(found.keys() - set(wanted))]
    return problems


def _controls(books: _Books) -> Check:
    ended = books.own.state == COMPLETE
    wanted = list(CONTROL_WORDS) if ended else [f.name for f in books.of("controls")]
    text = f"{', '.join(wanted) or 'none'}: there once{'' if ended else ' so far'}"
    return Check("controls", tuple(_there(books, "controls", wanted)), text)


def _confirmation(books: _Books, result: StudyResult | None) -> Check:
    """The runs of the race that named the winner: ended, there once, and telling what the result tells."""
    there = books.of("confirm")
    ended, told = books.own.state == COMPLETE, result.confirmation if result else {}
    problems = [
        f"{run.name} has {many(len(books.logged[folder]), 'run')} in MLflow"
        for folder, run in there.items()
        if books.logged is not None and ended and len(books.logged[folder]) != 1
    ]
    for trial in told.get("trials", ()):
        for seed, accuracy in trial["accuracy"].items():
            folder = confirm.folder_of(books.study, trial["number"], int(seed))
            mine = run_folder.accuracy(folder) if folder in there else None
            if not _same(mine, accuracy):
                name = folder.relative_to(books.study)
                problems.append(f"result.json says {_shown(accuracy)} of {name}, the folder {_shown(mine)}")
    if result is not None and told and told["winner"] not in (None, result.best_trial["number"]):
        problems.append(f"trial {told['winner']} won the confirmation, trial {result.best_trial['number']} the search")
    so_far = "" if ended else " so far"
    return Check("confirmation", tuple(problems), f"{many(len(there), 'run')} there once{so_far}" if there else "none")


def _finals(books: _Books) -> Check:
    """The champion's and the controls' final runs: there once, with the same test accuracy."""
    ended = books.own.state == COMPLETE
    config = configuration.load(books.study / "experiment.yaml", {}, strict=False)
    names, seeds = ["champion", *CONTROL_WORDS], final_seeds(config)
    wanted = [f"{name}-seed{seed}" for name in names for seed in seeds]
    if not ended:
        wanted = [f.name for f, run in books.of("finals").items() if run.state == COMPLETE and f.name in wanted]
    problems = _there(books, "finals", wanted) if ended else []
    for folder, run in books.of("finals").items():
        logged = books.only(folder)
        mine = run.results.get("test/accuracy")
        theirs = logged.data.metrics.get("test/accuracy") if logged else mine
        if not _same(mine, theirs):
            problems.append(f"{run.name}: test accuracy {_shown(mine)}, in MLflow {_shown(theirs)}")
    text = f"{', '.join(names)} x {many(len(seeds), 'seed')}: there once, test accuracy is the same"
    return Check("final runs", tuple(problems), text if ended else f"{len(wanted)} so far, there once")


def _result(books: _Books, result: StudyResult | None) -> Check:
    """``result.json`` and the study's own run tell what the folders tell."""
    if result is None:
        return Check("result", ("the study has ended and has no result.json",), "")
    problems = []
    counted = Counter(books.runs[f].state for f in books.trials().values())
    if counted != Counter(result.trials):
        problems.append(f"result.json counts {dict(result.trials)}, the folders {dict(counted)}")
    best = books.study / "trials" / f"{result.best_trial['number']:05d}"
    pairs: list[tuple[str, Any, Any]] = [
        ("the best trial", result.best_trial["validation_accuracy"], run_folder.accuracy(best))
    ]
    for name, scores in {"champion": result.champion, **result.controls}.items():
        for seed, accuracy in scores["test"]["accuracy"].items():
            run = books.runs.get(books.study / "finals" / f"{name}-seed{seed}")
            pairs.append((f"{name} seed {seed}", accuracy, run.results.get("test/accuracy") if run else None))
    if logged := books.only(books.study):
        if _logged_state(logged) != books.own.state:
            problems.append(f"the study: folder says {books.own.state}, MLflow says {_logged_state(logged)}")
        for key in books.own.results:
            pairs.append((f"MLflow's {key}", logged.data.metrics.get(key), books.own.results[key]))
    problems += [f"{what}: {theirs} and {mine}" for what, theirs, mine in pairs if not _same(theirs, mine)]
    return Check("result", tuple(problems), "result.json and the study's run say what the folders say")
