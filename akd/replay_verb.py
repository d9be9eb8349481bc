"""``akd replay`` on the command line: a run once more, beside its study, and whether it came out the same."""

from __future__ import annotations

import argparse
from pathlib import Path

from akd.errors import AkdError, many
from akd.report.command import find_study

DESCRIPTION = (
    "Run a trial, a control or a final run of a study again, from its folder alone, in this process or on as many "
    "workers as it had, for as many epochs, and compare every figure of every epoch and the student's weights. Nothing "
    "of the study is touched. Exit 1 if they differ."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("study", metavar="STUDY", help="name of a study")
    add("trial", metavar="TRIAL", help="number of a trial; control:kd; champion:1 for a final run and its seed")
    add("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    add("--keep", action="store_true", help="leave what is trained in the study's folder replays/")


def run(args: argparse.Namespace) -> None:
    """Do what the command asks."""
    study = find_study(Path(args.output).absolute(), args.study)
    from akd.replay import Epoch, replay
    from akd.summary import shown_path
    from akd.terminal import percent

    def start(name: str, epochs: int) -> None:
        print(f"{name}, again: {many(epochs, 'epoch')}", flush=True)
        print(f"{'epoch':>10}  {'validation':>10}  again", flush=True)

    def line(epoch: Epoch) -> None:
        accuracy = "" if epoch.accuracy is None else f"{percent(epoch.accuracy)} %"
        print(f"{'head ' * epoch.heads + str(epoch.number):>10}  {accuracy:>10}  {epoch.words()}", flush=True)

    found = replay(study, args.trial, keep=args.keep, on_start=start, on_epoch=line)
    for name, (before, after) in found.results.items():
        print(f"{name} was {before}, is {after}")
    then, now = found.weights
    if found.weights_equal is None:
        print("weights: there are none of its last epoch to compare")
    else:
        print(f"weights: SHA-256 {then}{'' if then == now else f', now {now}'}, {_words(found.weights_equal)}")
    if found.folder is not None:
        print(f"kept in {shown_path(found.folder)}")
    if not found.matches:
        raise AkdError(found.sentence())
    print(found.sentence())


def _words(equal: bool) -> str:
    return "every tensor equal" if equal else "not equal"
