"""The flags that stand for keys of an experiment, and what is said of those a verb does not have."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from akd.errors import ExperimentError, near

# Flags that stand for a key of the experiment: flag -> (key, metavar, help).
FLAGS = {
    "--data": ("data", "NAME", "data set (akd list data)"),
    "--data-dir": ("data.dir", "DIR", "folder of the data set's files; default $AKD_DATA_DIR"),
    "--teacher": ("teacher", "NAME", "network to distil (akd list models)"),
    "--teacher-weights": ("teacher.weights", "FILE", "the teacher's weights; it is then not trained"),
    "--student": ("student", "NAME", "network to train"),
    "--method": ("method", "NAME", "distillation method (akd list methods)"),
    "--epochs": ("train.epochs", "N", "epochs of a trial"),
    "--trials": ("search.trials", "N", "configurations to try, controls not counted"),
    "--concurrent": ("search.concurrent", "N", "trials at a time; default what the machine holds"),
    "--workers-per-trial": ("search.workers_per_trial", "N", "workers that share each trial (Ray Train); default 1"),
    "--cpus-per-trial": ("search.cpus_per_trial", "X", "default 1 a worker"),
    "--gpus-per-trial": ("search.gpus_per_trial", "X", "default 1 a worker where there are GPUs; 0.25, auto"),
    "--final-workers": ("search.final_workers", "N", "workers of teacher and final runs; default all devices"),
    "--time-budget": ("search.time_budget", "T", "no trial starts or passes a rung after this time: 90, 30m, 2h"),
    "--champion-seeds": ("search.champion_seeds", "N", "final runs of winner and controls"),
    "--sampler": ("search.sampler", "NAME", "tpe, gp, cmaes, nsga2, qmc, random or grid"),
    "--scheduler": ("search.scheduler", "NAME", "asha, median or none"),
    "--log-checkpoints": (
        "search.log_checkpoints",
        "WHICH",
        "students MLflow keeps: all (each epoch), best (each run's last), champion, none",
    ),
    "--device-hours": ("search.device_hours", "X", "no trial starts or passes a rung that would go over them"),
    "--cost": ("search.cost", "X", "the same as money; needs --price"),
    "--price": ("search.price", "X", "of a device-hour; alone, it only shows what was spent"),
    "--objectives": (
        "search.objectives",
        "NAMES",
        "accuracy, and costs to keep low beside it: accuracy,parameters (flops, latency_1, latency_64)",
    ),
    "--constraint": ("search.constraints", "COST=MOST", "what the student may cost at most: parameters=1M,latency_1=3"),
    "--confirm": ("search.confirm", "K", "the best K trials run again before one wins; 0 turns it off"),
    "--confirm-seeds": ("search.confirm_seeds", "N", "seeds they run again from"),
}
#: Flags of a single run and of a teacher: those that are not about a search.
RUN_FLAGS = ["--data", "--data-dir", "--teacher", "--teacher-weights", "--student", "--method", "--epochs"]
TEACHER_FLAGS = ["--data", "--data-dir", "--teacher", "--teacher-weights"]
#: What stands for a flag of one verb in another: (verb, flag) -> what to write there.
_INSTEAD = {
    ("teacher", "--epochs"): "the teacher's epochs are --teacher.train.epochs",
    ("teacher", "--seed"): "the teacher's seed is --teacher.train.seed",
    ("search", "--workers"): "a search has --workers-per-trial and --final-workers",
    ("train", "--workers-per-trial"): "a single run has --workers",
    ("train", "--final-workers"): "a single run has --workers",
    ("teacher", "--final-workers"): "a teacher has --workers",
}


def unknown(
    verb: str, word: str, typed: Sequence[str], verbs: Mapping[str, argparse.ArgumentParser]
) -> ExperimentError:
    """The mistake of a word that a verb does not know.

    Args:
        word: the first such word.
        typed: all words of the command, in their order.
        verbs: the parser of each verb.
    """
    flag = word.partition("=")[0]
    own = verbs[verb]._option_string_actions
    if not flag.startswith("-"):
        return _one_too_many(word, typed, own) or ExperimentError(f"unknown argument for akd {verb}", key=word)
    instead = _INSTEAD.get((verb, flag))
    having = [
        f"akd {name.replace('-', ' ')}" for name, parser in verbs.items() if flag in parser._option_string_actions
    ]
    if having:
        others = " and ".join([", ".join(having[:-1]), having[-1]] if having[1:] else having)
        problem = f"akd {verb} has no such flag, {others} {'have' if having[1:] else 'has'} it"
        return ExperimentError(problem + (f"; {instead}" if instead else ""), key=flag)
    return ExperimentError(
        f"unknown argument for akd {verb}{near(flag, [f for f in own if f.startswith('--')])}", key=flag
    )


def _one_too_many(word: str, typed: Sequence[str], own: Mapping[str, argparse.Action]) -> ExperimentError | None:
    """The mistake of two values for a flag of one, as of a pattern that a shell fills in with two files."""
    before = list(typed[: typed.index(word)]) if word in typed else []
    values: list[str] = []
    while before and not before[-1].startswith("--"):
        values.insert(0, before.pop())
    action = own.get(before[-1]) if before else None
    if not values or action is None or action.nargs is not None:
        return None
    what = "network" if action.dest == "teacher" else "value"
    return ExperimentError(f"takes one {what}, {word} is one too many", key=before[-1], value=values[0])


def resumed(kind: str, given: str) -> ExperimentError:
    """The mistake of giving more to a study or a run that goes on."""
    instead = "; --add-trials N gives it more trials" if (kind, given) == ("study", "--trials") else ""
    problem = (
        f"a {kind} goes on as it was started; nothing else can be given with --resume: leave it out, "
        f"or start a new {kind} with it{instead}"
    )
    return ExperimentError(problem, key=given)
