"""Confirmation: the best of a search are trained again from other seeds before one of them is named the winner.

The best score of many trials is partly luck: of two equal configurations the one with the luckier seed comes first, and
the more trials, the more so (the winner's curse). The first k finished trials of the search's order therefore race over
n fresh seeds, seed by seed, and the best mean wins; ties go to the earlier rank. A confirmation run trains as a trial
does, on the training split, for all epochs, scored on the validation split; nothing but its seed differs. The score of
the search itself does not count in the mean: it was chosen for being high.

After each seed whoever is clearly behind leaves the race (:func:`behind`). A configuration with a run that fails leaves
it, too, and the race is what it would have been without it. Trials that the scheduler stopped take no part, even where
fewer than k finished: they were behind at equal epochs. With one finished trial there is nothing to decide.

All of this is a function of the folders alone, so that a search goes on after a kill as if nothing had been.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from akd import folder as run_folder
from akd.champion import final_seeds
from akd.config import Experiment
from akd.folder import COMPLETE, FAILED, Run
from akd.result import Gain, paired_gain
from akd.terminal import percent

#: How many times the noise seen, over the root of the number of seeds, a mean must be behind. Measured on simulated
#: searches of 8 and 40 trials, k of 2 to 5, 5,000 each (``tests/test_confirm.py``): the truly best candidate is
#: dropped in 1.3 % of races at most, most often where true values lie half as far apart as seeds do.
FACTOR = 2.0
#: First seed of confirmation, above the search's: final runs have those right after it.
_FIRST = 101


@dataclass(frozen=True)
class Entrant:
    """A trial in the race.

    Attributes:
        number: of the trial.
        search: the validation accuracy (0..1) it was chosen for.
        accuracy: seed -> validation accuracy, of the seeds that count: those up to where it left.
        dropped: it was clearly behind.
        failed: why it left, if a run of it failed.
    """

    number: int
    search: float
    accuracy: dict[int, float]
    dropped: bool = False
    failed: str | None = None

    @property
    def mean(self) -> float:
        """Over the seeds that count; minus infinity without any."""
        return statistics.fmean(self.accuracy.values()) if self.accuracy else -math.inf


@dataclass(frozen=True)
class Race:
    """How it stands.

    Attributes:
        seeds: all there are to run.
        entrants: by their rank in the search.
        wanted: (trial's number, seed) of runs that have not ended, the most urgent first. Those of the seed after the
            one that is decided next are among them: for workers that would stand idle.
    """

    seeds: tuple[int, ...]
    entrants: tuple[Entrant, ...]
    wanted: tuple[tuple[int, int], ...]

    @property
    def standing(self) -> list[Entrant]:
        """Who is left, the best mean first, ties by rank."""
        left = [e for e in self.entrants if not e.dropped and e.failed is None]
        return sorted(left, key=lambda e: -e.mean)

    @property
    def winner(self) -> Entrant | None:
        """The best of those left; ``None`` while runs are wanted, or where all have failed or there was no race."""
        return self.standing[0] if self.standing and not self.wanted else None

    @property
    def next(self) -> Entrant | None:
        """Who came next: of those left, else of those dropped, the best mean."""
        rest = [*self.standing[1:], *sorted((e for e in self.entrants if e.dropped), key=lambda e: -e.mean)]
        return rest[0] if rest else None


def seeds(experiment: Experiment) -> tuple[int, ...]:
    """Seeds of the confirmation runs: neither the search's nor those of the final runs."""
    search = experiment.search
    found: list[int] = []
    taken = {experiment.train.seed, search.seed, *final_seeds(experiment)}
    seed = search.seed + _FIRST
    while len(found) < (search.confirm_seeds or 1):
        found += [seed] if seed not in taken else []
        seed += 1
    return tuple(found)


def folder_of(study: Path, number: int, seed: int) -> Path:
    """Where a confirmation run lives."""
    return study / "confirm" / f"{number:05d}-seed{seed}"


def seeded(experiment: Experiment, parameters: Mapping[str, Any], seed: int) -> Experiment:
    """A trial's experiment with another seed; the images stay the same, so that the teacher's outputs are shared."""
    of_trial = experiment.with_values(parameters)
    return replace(of_trial, train=replace(of_trial.train, seed=seed))


def is_on(experiment: Experiment) -> bool:
    """True if anything is to be confirmed: one candidate alone has nobody to race with."""
    return experiment.search.confirm > 1


def epochs_left(study: Path, experiment: Experiment) -> int:
    """How many epochs confirmation will still take at most, at whatever point the study stands."""
    search = experiment.search
    if not is_on(experiment) or _before_its_time(study):
        return 0
    whole = min(search.confirm, search.trials) * len(seeds(experiment)) * experiment.train.epochs
    return max(0, whole - sum(len(run_folder.history(p.parent)) for p in study.glob("confirm/*/run.json")))


def _before_its_time(study: Path) -> bool:
    """A study whose final runs began before there was confirmation: its winner has been named."""
    return any(study.glob("finals/champion-*")) and not (study / "confirm").is_dir()


def race(study: Path, experiment: Experiment, ranked: Sequence[tuple[Run, float, int]], unfinished: int = 0) -> Race:
    """The race as the folders tell it.

    Args:
        ranked: trials, best first, see :func:`akd.searcher.ranking`.
        unfinished: trials that are still running. Until they have ended, only those take part that will be among the
            first whatever comes.
    """
    finished = [(run, value) for run, value, _ in ranked if run.state == COMPLETE and run.number is not None]
    most = experiment.search.confirm if is_on(experiment) and not _before_its_time(study) else 0
    chosen = finished[: max(0, most - unfinished)] if len(finished) > 1 else []
    order = seeds(experiment)
    told: dict[int, dict[int, float]] = {}
    failed: dict[int, str] = {}
    for run, _ in chosen:
        number = run.number or 0
        told[number] = {}
        for seed in order:
            one = Run.read(folder := folder_of(study, number, seed))
            if one is not None and one.state == COMPLETE:
                told[number][seed] = run_folder.accuracy(folder)
            elif one is not None and one.state == FAILED:
                failed[number] = one.reason or "failed"
    search = {run.number or 0: value for run, value in chosen}
    racing = {number: scores for number, scores in told.items() if number not in failed}
    left_after = _decided(racing, search, order) if not unfinished else []
    rounds = len(left_after)
    left = left_after[-1] if left_after else list(racing)
    over = rounds == len(order) or (len(left) < 2 and not unfinished and all(told[n] for n in left))
    # One seed ahead of what is decided, and no more: a worker should not stand idle, nor train what nobody may ask for.
    ahead = () if over else order[: rounds + 2]
    wanted = tuple((number, seed) for seed in ahead for number in left if seed not in told[number])
    # Of one who is left alone, seeds begun ahead of the decision do not count: one run at a time begins none.
    end = max(1, rounds) if over else len(order)
    entrants = []
    for number, scores in told.items():
        last = next((k for k, there in enumerate(left_after, 1) if number not in (*there, *failed)), end)
        counted = {seed: scores[seed] for seed in order[:last] if seed in scores}
        dropped = number not in failed and number not in left
        entrants.append(Entrant(number, search[number], counted, dropped, failed.get(number)))
    return Race(order, tuple(entrants), wanted)


def _decided(
    told: Mapping[int, Mapping[int, float]], search: Mapping[int, float], order: Sequence[int]
) -> list[list[int]]:
    """Who is left after each seed that all who were left have run."""
    left, found = list(told), []
    for k in range(1, len(order) + 1):
        if len(left) < 2 or any(seed not in told[n] for n in left for seed in order[:k]):
            break
        if k < len(order):  # after the last seed the mean decides
            gone = behind({n: [told[n][s] for s in order[:k]] for n in left}, search)
            left = [n for n in left if n not in gone]
        found.append(left)
    return found


def behind(scores: Mapping[int, Sequence[float]], search: Mapping[int, float]) -> set[int]:
    """Who is clearly behind the leader.

    The noise seen is the largest difference between two scores of one configuration, over all that are left; the score
    of the search, which comes from a seed of its own, is one of them. Clearly behind is a mean that is more than
    :data:`FACTOR` times this noise over the root of the number of seeds below the best mean: on one seed alone, a gap
    of more than twice anything that a seed was seen to do. Without noise everybody but the best is.

    Args:
        scores: of everybody left, of the same seeds in the same order.
        search: the score each was chosen for.
    """
    spread = {n: [*values, search[n]] for n, values in scores.items()}
    noise = max(max(values) - min(values) for values in spread.values())
    means = {n: statistics.fmean(values) for n, values in scores.items()}
    allowed = FACTOR * noise / math.sqrt(min(map(len, scores.values()))) + 1e-12
    return {n for n, mean in means.items() if max(means.values()) - mean > allowed}


# -- what is told of it --------------------------------------------------------------------------------


def summary(found: Race) -> dict[str, Any]:
    """The race as ``result.json`` keeps it; empty where there was none."""
    if not found.entrants:
        return {}
    winner, following = found.winner, found.next
    shared = [s for s in found.seeds if winner and following and s in following.accuracy and s in winner.accuracy]
    gap = None
    if winner is not None and following is not None and shared:
        gap = asdict(paired_gain({s: winner.accuracy[s] for s in shared}, following.accuracy))
    return {
        "seeds": list(found.seeds),
        "trials": [
            {
                "number": e.number,
                "search": e.search,
                "accuracy": {str(seed): value for seed, value in e.accuracy.items()},
                "mean": e.mean if e.accuracy else None,
                "std": statistics.stdev(e.accuracy.values()) if len(e.accuracy) > 1 else None,
                "dropped": e.dropped,
                "failed": e.failed,
            }
            for e in found.entrants
        ],
        "winner": winner.number if winner else None,
        "next": following.number if following else None,
        "difference": gap,
    }


def lines(confirmation: Mapping[str, Any]) -> list[str]:
    """For the closing box: what the winner and the next reached, and whether they differ beyond noise."""
    if not confirmation:
        return []
    told = {t["number"]: t for t in confirmation["trials"]}
    if confirmation["winner"] is None:
        return ["not confirmed: no confirmation run finished; the order of the search stands"]
    best = told[confirmation["winner"]]
    n = len(best["accuracy"])
    first = f"confirmed over {n} other seed{'s' * (n > 1)}: trial {best['number']} {_figure(best)}"
    following, gap = told.get(confirmation["next"]), confirmation["difference"]
    if following is None or gap is None:
        return [f"{first}; no other finished"]
    shown = f", next trial {following['number']} {_figure(following)}"
    if following["dropped"]:
        few = len(following["accuracy"])
        shown += f" (dropped after {few} seed{'s' * (few > 1)})"
    found, pairs = Gain(**gap), min(n, len(following["accuracy"]))
    interval = found.interval() or (" (the same in every seed)" if pairs > 1 else " (one seed gives no interval)")
    return [first + shown, f"  difference {found.mean:+.2f} points{interval}"]


def figures(confirmation: Mapping[str, Any]) -> dict[str, float]:
    """For MLflow: the winner's mean validation accuracy, and how far it is ahead of the next in points."""
    told = {t["number"]: t for t in confirmation.get("trials", ())}
    found = {}
    if (best := told.get(confirmation.get("winner"))) and best["mean"] is not None:
        found["val_accuracy"] = best["mean"]
    if gap := confirmation.get("difference"):
        found["ahead_points"] = gap["mean"]
    return found


def _figure(told: Mapping[str, Any]) -> str:
    spread = f" ± {percent(told['std'])}" if told["std"] is not None else ""
    return f"{percent(told['mean'])}{spread} %"


def rows(confirmation: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the report's table, the winner first."""
    head = ["trial", "mean (%)", "std (points)", "by seed (%)", "in the search (%)", "outcome"]
    trials = sorted(confirmation["trials"], key=lambda t: (t["number"] != confirmation["winner"], -(t["mean"] or 0)))
    found = []
    for t in trials:
        by_seed = ", ".join(f"{seed}: {percent(value)}" for seed, value in t["accuracy"].items())
        outcome = "won" if t["number"] == confirmation["winner"] else "clearly behind, dropped" if t["dropped"] else ""
        outcome = f"failed: {t['failed']}" if t["failed"] else outcome or "ran to the end"
        found.append([str(t["number"]), percent(t["mean"]), percent(t["std"]), by_seed, percent(t["search"]), outcome])
    return head, found
