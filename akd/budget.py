"""What a search may take, in device-hours, money and time: what was spent, what is bound, and whether more fits.

No part of a trial (up to its next rung; all of it without a scheduler) is started that would pass the budget, what runs
is finished, and the winner is confirmed and trained whatever it takes: the share of these runs is set aside from the
first epoch that was measured. A device is what an epoch's line calls one: a GPU, or the CPUs of a worker where there is
none.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akd import confirm
from akd import folder as run_folder
from akd.config import Experiment, SearchConfig
from akd.folder import COMPLETE, PRUNED, RUNNING, Run
from akd.rungs import stages

#: What so many trials of ten took at most is what the next one is expected to take. Not the most of all: the first
#: trial may run the teacher for all others.
_OF_TEN = 9


def limit_of(search: SearchConfig) -> float | None:
    """Device-seconds that a search may take, by its device-hours or its cost, whichever is less; ``None``: any."""
    hours = [search.device_hours] if search.device_hours else []
    hours += [search.cost / search.price] if search.cost and search.price else []
    return 3600 * min(hours) if hours else None


def limit_words(search: SearchConfig) -> str:
    """The budget that binds: ``0.5 device-hours``, ``a cost of 3 (1.5 device-hours at 2)``."""
    if search.cost and search.price and (not search.device_hours or search.cost / search.price < search.device_hours):
        return f"a cost of {search.cost:g} ({hours(3600 * search.cost / search.price)} at {search.price:g})"
    return f"{search.device_hours:g} device-hours"


def hours(seconds: float) -> str:
    """Device-seconds as ``0.514 device-hours``."""
    return f"{seconds / 3600:.3g} device-hours"


def spent(folder: Path) -> tuple[float, float, int]:
    """Device-seconds of a run's epochs and of its head epochs, and how many epochs it has."""
    entries = run_folder.history(folder)
    return _seconds(entries), _seconds(run_folder.head_history(folder)), len(entries)


def _seconds(entries: list[dict[str, float]]) -> float:
    return sum(e.get("time/epoch_s", 0.0) * e.get("time/devices", 1) for e in entries)


@dataclass
class _Live:
    """A run that has not ended: device-seconds so far, epochs, and the epoch up to which it is bound to go."""

    kind: str
    name: str
    until: int
    seconds: float = 0.0
    heads: float = 0.0
    epochs: int = 0

    @property
    def pace(self) -> float | None:
        """Device-seconds of an epoch."""
        return self.seconds / self.epochs if self.epochs else None


class Budget:
    """The account of a study, kept from report to report and found again from its folders.

    Args:
        experiment: complete.
        study: its folder.
        teacher_s: device-seconds in which the study trained its own teacher.
        final_share: images of a final run by those of a trial.
        elapsed: seconds the study has taken, earlier sessions too.
        say: is told what the user should know, once.
    """

    def __init__(
        self,
        experiment: Experiment,
        study: Path,
        *,
        teacher_s: float = 0.0,
        final_share: float = 1.0,
        elapsed: Callable[[], float] = lambda: 0.0,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.search, self.epochs = experiment.search, experiment.train.epochs
        self.limit, self.stages = limit_of(self.search), stages(self.search, self.epochs)
        self.final_share, self.elapsed, self.say = final_share, elapsed, say
        self._stretch = _longest(experiment)
        self._ended, self._finals = teacher_s, 0.0
        self._again = confirm.epochs_left(study, experiment)  # of confirmation runs that have not begun
        self._live: dict[Path, _Live] = {}
        self._paces: list[float] = []  # of trials that ended, in order
        self._controls: dict[str, float] = {}
        self._heads = 0.0  # the most of one run
        self._winner = False  # some trial could be trained as one
        self._stopped: dict[Path, str] = {}
        self._said: set[str] = set()
        #: Without a bound nothing is counted.
        self.active = self.limit is not None or self.search.time_budget is not None
        if self.active:
            for path in sorted(study.glob("*/*/run.json")):
                if (run := Run.read(path.parent)) is not None:
                    self._enter(path.parent, run)

    def _enter(self, folder: Path, run: Run) -> None:
        """A run of an earlier session."""
        if run.kind == "final":
            seconds, heads, _ = spent(folder)
            self._finals += seconds + heads
            return
        self.started(folder, run.kind)
        if run.state != RUNNING:
            self.ended(folder, run.state)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler, which has this, into a file that akd never reads: nothing goes in."""
        return {}

    # -- what happens ------------------------------------------------------------------------------

    def started(self, folder: Path, kind: str) -> None:
        """A run was handed out: it is bound to come to the end of the part it is in."""
        if folder in self._live or not self.active:
            return
        seconds, heads, epochs = spent(folder)
        bound = next(s for s in self.stages if s >= min(epochs, self.epochs)) if kind == "trial" else self.epochs
        self._live[folder] = _Live(kind, folder.name, bound, seconds, heads, epochs)
        if kind == "confirm":  # from here on it is bound, no longer set aside
            self._again = max(0, self._again - (self.epochs - epochs))
        self._heads = max(self._heads, heads)

    def epoch(self, folder: Path, epoch: int, seconds: float | None) -> None:
        """A run has finished an epoch, in so many device-seconds; ``None``: it is not known, as before is assumed."""
        run = self._live.get(folder)
        if run is None or epoch <= run.epochs:
            return
        if not run.epochs and not run.heads:
            run.heads = _seconds(run_folder.head_history(folder))
            self._heads = max(self._heads, run.heads)
        run.seconds += seconds if seconds is not None else self._pace(run)
        run.epochs = epoch

    def ended(self, folder: Path, state: str) -> None:
        """A run has ended: what its folder says of it counts from now on."""
        run = self._live.pop(folder, None)
        if run is None:
            return
        seconds, heads, epochs = spent(folder)
        self._ended += seconds + heads
        self._heads = max(self._heads, heads)
        if run.kind == "trial":
            self._winner = self._winner or (state in (COMPLETE, PRUNED) and epochs > 0)
        if epochs and seconds:
            if run.kind == "trial":
                insort(self._paces, seconds / epochs)
            elif run.kind == "control":
                self._controls[run.name] = seconds / epochs

    # -- what is asked -----------------------------------------------------------------------------

    def admits(self) -> bool | None:
        """Whether a new trial may start; ``None``: not now, but perhaps when something that runs has gone on."""
        if not self.active:
            return True
        if self.limit is not None:
            if self._unmeasured():
                return None
            self._tell_shares()
        need = self.stages[0] * self.typical + self._heads
        why = self._over(need)
        if why is None:
            return True
        if not self._winner and not any(run.kind == "trial" for run in self._live.values()):
            self._once(f"warning: {why}; one trial is tried all the same, and the winner trained")
            return True
        if self._live and self._late(need) is None:
            return None
        self._once(f"no more trials: {why}")
        return False

    def _unmeasured(self) -> bool:
        """True while a control, or the first trial, has not shown what an epoch takes: several could be far off."""
        trials = [run for run in self._live.values() if run.kind == "trial"]
        first = bool(trials) and not self._paces and not any(run.epochs for run in trials)
        return first or any(run.kind == "control" and not run.epochs for run in self._live.values())

    def goes_on(self, folder: Path) -> bool:
        """Whether a trial may go on: it has come to a rung and the next part of it fits, or it is not at a rung."""
        run = self._live.get(folder)
        if run is None or run.epochs < run.until or run.until >= self.epochs:
            return True
        until = next(s for s in self.stages if s > run.until)
        why = self._over((until - run.epochs) * self._pace(run))
        if why is not None:
            self._stopped[folder] = f"stopped at its rung, epoch {run.epochs}: {why}"
            return False
        run.until = until
        return True

    def reason(self, folder: Path) -> str | None:
        """Why a trial was not let go on; ``None`` if it was."""
        return self._stopped.pop(folder, None)

    # -- figures, in device-seconds ----------------------------------------------------------------

    @property
    def spent(self) -> float:
        """What runs have taken so far, the teacher and final runs too."""
        return self._ended + self._finals + sum(run.seconds + run.heads for run in self._live.values())

    @property
    def bound(self) -> float:
        """What those that run will take up to the end of the part they are in."""
        return sum(
            max(0, run.until - run.epochs) * self._pace(run) + (self._heads if not run.epochs else 0.0)
            for run in self._live.values()
        )

    @property
    def set_aside(self) -> float:
        """What confirmation and final runs will still take: the latter all seeds, on validation images too."""
        kd, none = (self._controls.get(name) for name in ("kd", "none"))
        champion = max(self.typical, kd or 0.0)
        for run in self._live.values():
            if run.kind == "control" and run.pace is not None:
                kd, none = (run.pace, none) if run.name == "kd" else (kd, run.pace)
        others = self._stretch * ((champion if kd is None else kd) + (champion if none is None else none))
        seeds = self.search.champion_seeds or 1
        full = seeds * self.final_share * (self.epochs * (champion + others) + self._heads)
        return max(0.0, full - self._finals) + self._again * champion

    @property
    def typical(self) -> float:
        """What an epoch of a new trial is expected to take: as those that ended, those that run, or the controls."""
        if self._paces:
            return self._paces[math.ceil(len(self._paces) * _OF_TEN / 10) - 1]
        for trials in (True, False):
            found = [r.pace for r in self._live.values() if (r.kind == "trial") == trials and r.pace is not None]
            found += [] if trials else list(self._controls.values())
            if found:
                return max(found)
        return 0.0

    def _pace(self, run: _Live) -> float:
        return self.typical if run.pace is None else run.pace

    # -- limits ------------------------------------------------------------------------------------

    def _over(self, need: float) -> str | None:
        """Why so many device-seconds more cannot be begun; ``None`` if they can."""
        if self.limit is not None:
            parts = {"spent": self.spent, "bound by what runs": self.bound, "set aside": self.set_aside}
            if sum(parts.values()) + need > self.limit * (1 + 1e-9):
                shown = ", ".join(f"{s / 3600:.3g} {words}" for words, s in parts.items())
                return f"{hours(need)} more would pass the budget of {limit_words(self.search)} ({shown})"
        return self._late(need)

    def _late(self, need: float) -> str | None:
        budget, passed = self.search.time_budget, self.elapsed()
        if budget is None:
            return None
        if passed >= budget:
            return f"the time budget of {budget:g} s is used up"
        wanted = need / self.search.workers_per_trial
        if passed + wanted > budget:
            return f"{wanted:.0f} s more would pass the time budget of {budget:g} s ({passed:.0f} s passed)"
        return None

    def _tell_shares(self) -> None:
        if self.typical and "shares" not in self._said:
            self._said.add("shares")
            self.say(
                f"budget {limit_words(self.search)}: {hours(self.spent)} spent so far, "
                f"about {hours(self.set_aside)} set aside for confirmation and final runs"
            )

    def _once(self, line: str) -> None:
        kind = line.partition(":")[0]
        if kind not in self._said:
            self._said.add(kind)
            self.say(line)


def _longest(experiment: Experiment) -> float:
    """By how much the space may stretch an epoch: controls are trained for as many passes as the winner."""
    spec = experiment.space.get("train.epoch_factor")
    values = [experiment.train.epoch_factor]
    if isinstance(spec, dict):
        values += [v for v in (spec.get("high"), spec.get("value")) if v is not None] + list(spec.get("choices") or [])
    elif spec is not None:
        values.append(spec)
    return max(values) / experiment.train.epoch_factor


# -- the end, and before the beginning -----------------------------------------------------------------


def account(search: SearchConfig, device_hours: float, seconds: float) -> dict[str, dict[str, float]]:
    """What was spent of what was set, for ``result.json``: name -> ``limit`` (where one is set) and ``spent``.

    Args:
        device_hours: of training, of all the study's runs.
        seconds: that passed in all sessions.
    """
    found: dict[str, dict[str, float]] = {}
    if search.device_hours is not None:
        found["device_hours"] = {"limit": search.device_hours, "spent": device_hours}
    if search.price is not None:
        limit = {} if search.cost is None else {"limit": search.cost}
        found["cost"] = limit | {"spent": device_hours * search.price, "price": search.price}
    if search.time_budget is not None:
        found["seconds"] = {"limit": search.time_budget, "spent": seconds}
    return found


def account_words(found: dict[str, dict[str, float]]) -> str | None:
    """``0.42 of 0.5 device-hours; cost 0.84 of 1, at 2 a device-hour``; ``None`` where nothing was set."""
    parts = []
    for name, unit in (("device_hours", " device-hours"), ("cost", ""), ("seconds", " s")):
        if name not in found:
            continue
        one = found[name]
        of = f" of {one['limit']:g}" if "limit" in one else ""
        over = ", passed by the final runs" if one["spent"] > one.get("limit", math.inf) else ""
        price = f", at {one['price']:g} a device-hour" if name == "cost" else ""
        parts.append(f"{'cost ' if name == 'cost' else ''}{one['spent']:.3g}{of}{unit}{price}{over}")
    return "; ".join(parts) or None


def allows(search: SearchConfig, fixed: float, trial: float, start: float) -> str | None:
    """What a budget would allow, in words; ``None`` where none is set.

    Args:
        fixed: device-seconds of teacher, controls, confirmation and final runs.
        trial: of a trial on average.
        start: of a trial's first part.
    """
    limit = limit_of(search)
    if limit is None:
        return None
    left, words = limit - fixed, f"the budget of {limit_words(search)}"
    rest = f"all but the trials takes about {hours(fixed)}"
    if left < start:
        return f"{words} would be passed: {rest}; one trial would be tried all the same"
    count = max(1, int(left / trial)) if trial else search.trials
    if count >= search.trials:
        return f"{words} is enough for all {search.trials} trials: {hours(fixed + search.trials * trial)}; {rest}"
    return f"{words} allows about {count} of {search.trials} trials: {rest}, a trial {hours(trial)} on average"
