"""What a comparison found: a table of methods, from their studies' folders, and the words under it.

Every statement holds together with the others of its kind: intervals are Student's over paired seeds, at a level that
the number of comparisons has raised (Bonferroni). Differences to the first space and to the student alone were planned;
that a method is the best is seen only afterwards, so it is held against all pairs there are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from akd import config as configuration
from akd import folder as run_folder
from akd.errors import many
from akd.folder import Run
from akd.result import CONTROL_WORDS, Gain, StudyResult, mean_interval, paired_gain, scores
from akd.summary import lent
from akd.terminal import percent, short_names, show_value

#: Budgets may differ by so much before it is said: a share of the largest.
TOLERANCE = 0.03


def gather(name: str, studies: Mapping[str, Path], failed: Mapping[str, str]) -> dict[str, Any]:
    """The table of a comparison, as ``comparison.json`` keeps it. Accuracies are 0..1, differences percentage points.

    Args:
        studies: label -> folder of a finished study; the first is what the others are compared with.
        failed: label -> why there is none.
    """
    methods, tests = [], {}
    for label, folder in studies.items():
        result = StudyResult.read(folder)
        assert result is not None
        methods.append(_method(label, folder, result))
        tests[label] = _by_seed(result.champion["test"])
    controls = {}
    if methods:
        told = StudyResult.read(next(iter(studies.values())))
        assert told is not None
        controls = {c: _by_seed(told.controls[c]["test"]) for c in told.controls}
    first = next(iter(tests), None)
    for method in methods:
        mine, others = tests[method["label"]], max(1, len(tests) - 1)
        method["over_first"] = (
            None if method["label"] == first else asdict(paired_gain(mine, tests[str(first)], others))
        )
        method["over_alone"] = asdict(paired_gain(mine, controls["none"], len(tests))) if "none" in controls else None
    return {
        "comparison": name,
        "first": first,
        "methods": methods,
        "controls": {c: _figures(values) for c, values in controls.items()},
        "failed": dict(failed),
        "best": _best(tests),
        "budget": _budget(methods),
    }


def _by_seed(test: Mapping[str, Any]) -> dict[int, float]:
    return {int(seed): accuracy for seed, accuracy in test["accuracy"].items()}


def _figures(values: dict[int, float]) -> dict[str, Any]:
    low, high = mean_interval(list(values.values()))
    # No accuracy lies outside 0..1: cut off there, the interval holds what it held.
    ends = {"low": None if low is None else max(0.0, low), "high": None if high is None else min(1.0, high)}
    return {**asdict(scores(values)), **ends}


def _method(label: str, folder: Path, result: StudyResult) -> dict[str, Any]:
    experiment = configuration.load(folder / "experiment.yaml", {}, strict=False)
    best, told = result.best_trial, result.confirmation
    confirmed = next((t for t in told.get("trials", ()) if t["number"] == best["number"]), None)
    return {
        "label": label,
        "study": folder.name,
        "method": experiment.with_values(best["parameters"]).method.title,
        "parameters": best["parameters"],
        "trial": best["number"],
        "validation": best["validation_accuracy"],
        "confirmed": confirmed["mean"] if confirmed else None,
        "test": _figures(_by_seed(result.champion["test"])),
        "trials": result.trials,
        **_work(folder, experiment),
    }


def _work(folder: Path, experiment: configuration.Experiment) -> dict[str, Any]:
    """What a study was asked to train and trained, controls that another study trained left out."""
    epochs, asked, hours = {"trials": 0, "confirm": 0, "finals": 0, "controls": 0}, 0, {"search": 0.0, "finals": 0.0}
    for path in folder.glob("*/*/run.json"):
        part, run = path.parent.parent.name, Run.read(path.parent)
        if part not in epochs or run is None or lent(path.parent):
            continue
        factor = run.parameters.get("train.epoch_factor", experiment.train.epoch_factor)
        entries = run_folder.history(path.parent)
        every = [*run_folder.head_history(path.parent), *entries]
        epochs[part] += len(entries) * factor
        asked += experiment.train.epochs * factor * (part == "trials")
        seconds = sum(e["time/epoch_s"] * e.get("time/devices", 1) for e in every)
        hours["finals" if part == "finals" else "search"] += seconds / 3600
    return {"epochs_asked": asked, "epochs": epochs, "device_hours": hours}


def _best(tests: Mapping[str, Mapping[int, float]]) -> dict[str, Any] | None:
    """The highest mean, and how it stands against each other method."""
    if len(tests) < 2:
        return None
    means = {label: sum(values.values()) / len(values) for label, values in tests.items()}
    best = max(means, key=lambda label: means[label])
    pairs = len(list(combinations(tests, 2)))
    return {
        "label": best,
        "over": {o: asdict(paired_gain(tests[best], tests[o], pairs)) for o in tests if o != best},
    }


def _budget(methods: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked = {m["label"]: m["epochs_asked"] for m in methods}
    most = max(asked.values(), default=0)
    return {"equal": all(most - n <= TOLERANCE * most for n in asked.values()), "epochs_asked": asked}


# -- in words ------------------------------------------------------------------------------------------


def budget_words(table: Mapping[str, Any]) -> str:
    """Whether all methods had the same."""
    asked = table["budget"]["epochs_asked"]
    if table["budget"]["equal"]:
        return f"Equal budget: trials of {max(asked.values(), default=0):,} epochs were asked for of each method."
    shown = ", ".join(f"{n:,} of {label}" for label, n in asked.items())
    return f"NOT an equal budget: trials of {shown} epochs were asked for."


def verdict(table: Mapping[str, Any]) -> str:
    """Which method is shown to be better than which."""
    best = table["best"]
    if best is None:
        return "One method alone: nothing to compare."
    gains = {o: Gain(**g) for o, g in best["over"].items()}
    beaten = [o for o, g in gains.items() if g.low is not None and g.low > 0]
    open_ = [o for o in gains if o not in beaten]
    parts = [f"beats {' and '.join(beaten)} beyond noise"] if beaten else []
    parts += [f"is not shown to beat {' or '.join(open_)}"] if open_ else []
    more = ""
    if open_:
        one = all(len(m["test"]["accuracy"]) < 2 for m in table["methods"])
        more = ": one seed gives no interval" if one else ": more seeds would tell"
    return f"{best['label']} has the highest mean; it {', and '.join(parts)}{more}."


def _percent(figures: Mapping[str, Any]) -> tuple[str, str]:
    spread = "" if figures["std"] is None else f" ± {100 * figures['std']:.2f}"
    interval = "" if figures["low"] is None else f"{100 * figures['low']:.2f} to {100 * figures['high']:.2f}"
    return f"{100 * figures['mean']:.2f}{spread}", interval


def _difference(gain: Mapping[str, Any] | None) -> str:
    if gain is None:
        return ""
    found = Gain(**gain)
    return f"{found.mean:+.2f}{found.interval() or ' (no interval: one seed, or the same in every seed)'}"


def rows(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: a row for each method, then the controls."""
    head = [
        "",
        "method of the winner",
        "validation (%)",
        "test (%)",
        "95 % interval",
        f"over {table['first']} (points)",
    ]
    head += ["over the student alone (points)", "epochs: trials, confirmation", "device-minutes: search, final runs"]
    found = []
    for m in table["methods"]:
        test, interval = _percent(m["test"])
        value = m["confirmed"] if m["confirmed"] is not None else m["validation"]
        minutes = [f"{60 * m['device_hours'][k]:.1f}" for k in ("search", "finals")]
        ran = [f"{m['epochs'][k]:,}" for k in ("trials", "confirm")]
        cells = [m["label"], m["method"], percent(value), test, interval, _difference(m["over_first"])]
        found.append([*cells, _difference(m["over_alone"]), ", ".join(ran), ", ".join(minutes)])
    for name, figures in table["controls"].items():
        found.append([CONTROL_WORDS[name], "", "", *_percent(figures), "", "", "", ""])
    return head, found


def _words(table: Mapping[str, Any]) -> list[str]:
    seeds = len(table["methods"][0]["test"]["accuracy"]) if table["methods"] else 0
    failed = [f"{label} failed and is not in the table: {why}." for label, why in table["failed"].items()]
    alone = [m["label"] for m in table["methods"] if m["confirmed"] is None]
    one = f"of {', '.join(alone)} that of the trial, which was chosen for it: no other ran to its end, or none was to"
    confirmed = f"Validation accuracy is over the confirmation runs{f'; {one}' if alone else ''}."
    held = "Intervals of differences are paired by seed, and those of a column hold together with 95 %."
    return [
        verdict(table),
        *failed,
        budget_words(table),
        confirmed,
        f"Test accuracy is over {many(seeds, 'final run')} of each winner, from the same seeds. {held} They tell of "
        "seeds, not of other test images, and not of what another search would have found.",
    ]


def markdown(table: Mapping[str, Any]) -> str:
    """``comparison.md``."""
    head, body = rows(table)
    parts = [f"# {table['comparison']}", *_words(table), _grid(head, body), "## Winners"]
    for m in table["methods"]:
        names = short_names(list(m["parameters"]))
        values = ", ".join(f"{names[k]} {show_value(v)}" for k, v in m["parameters"].items())
        parts.append(f"* {m['label']}: trial {m['trial']} of study `{m['study']}`: {values}")
    return "\n\n".join(parts) + "\n"


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines_ = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, *body)]
    return "\n".join([lines_[0], f"|{'---|' * len(head)}", *lines_[1:]])


def lines(table: Mapping[str, Any]) -> list[str]:
    """For the closing box: a line of accuracies for each method, then differences, then the words."""
    width = max([14, *(len(m["label"]) for m in table["methods"])])
    found = [f"{'':<{width}} validation  {'test accuracy':<18} {'95 % interval':<17} device-min  epochs"]
    for m in table["methods"]:
        test, interval = _percent(m["test"])
        value = m["confirmed"] if m["confirmed"] is not None else m["validation"]
        minutes = 60 * sum(m["device_hours"].values())
        ran = m["epochs"]["trials"] + m["epochs"]["confirm"]
        found.append(
            f"{m['label']:<{width}} {percent(value):>8} %  {test + ' %':<18} {interval:<17} {minutes:>10.1f}  {ran:>6,}"
        )
    for name, figures in table["controls"].items():
        test, interval = _percent(figures)
        found.append(f"{CONTROL_WORDS[name]:<{width}} {'':>10}  {test + ' %':<18} {interval}".rstrip())
    for key, title in (("over_first", f"over {table['first']}"), ("over_alone", "over the student alone")):
        told = [(m["label"], _difference(m[key])) for m in table["methods"] if m[key] is not None]
        if told:
            found += ["", f"{title} (points, paired, 95 % together)"]
            found += [f"  {label:<{width}} {text}" for label, text in told]
    return [*found, "", *_words(table)[:-1]]


def note(table: Mapping[str, Any]) -> str:
    """For the tracker."""
    return f"{verdict(table)}\n\n{_grid(*rows(table))}"


def figures(table: Mapping[str, Any]) -> dict[str, float]:
    """For the tracker: test accuracy, validation accuracy and device-hours of each method."""
    found: dict[str, float] = {}
    for m in table["methods"]:
        values = {
            "test_accuracy": m["test"]["mean"],
            "validation_accuracy": m["confirmed"] if m["confirmed"] is not None else m["validation"],
            "device_hours": sum(m["device_hours"].values()),
            "over_alone_points": m["over_alone"]["mean"] if m["over_alone"] else math.nan,
        }
        found |= {f"{m['label']}/{key}": value for key, value in values.items() if math.isfinite(value)}
    return found
