"""The table of tuned accuracies: what each row searches, and the command itself on a tiny budget."""

from __future__ import annotations

import re

import method_accuracy
import optuna
import pytest
from method_accuracy import Budget, entry, fitted, names, table

TINY = Budget(trials=2, epochs=1, seeds=2, teacher_epochs=1)


@pytest.mark.parametrize("name", names())
def test_rows_differ_in_the_method_alone(name: str) -> None:
    budget = Budget(trials=20, epochs=12, seeds=3, teacher_epochs=30)
    experiment, space, scale = entry(name, budget)
    reference, _, _ = entry("none", budget)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        values = space(study.ask())
        run = fitted(experiment.with_values(values), scale)
        lr = values.pop("train.lr")
        assert 0.02 <= lr <= 0.5
        assert run.with_values({"train.lr": 0.05}).train == reference.with_values({"train.lr": 0.05}).train
        assert (run.data, run.teacher, run.student) == (reference.data, reference.teacher, reference.student)
        assert name in (run.method.host_name, run.method.views_name, run.method.augment_name)
        if run.method.views_name or run.method.augment_name:
            assert run.method.host_name == "kd"
        if run.method.augment:
            assert run.method.augment.form == "second"
        ramp, heads = getattr(run.method.host, "ramp_epochs", 0), run.method.warmup_epochs
        assert ramp <= 8  # 40 of 60 epochs
        assert heads <= 2  # 10 of 60
    assert (heads > 0) == (name in ("angular_kd", "mgd"))
    tuned = {p.key for p in space.searched} - {"train.lr"}
    assert bool(tuned) == (name != "none")


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed; and another process gives what this one gives."""
    arguments = "--trials 2 --epochs 1 --seeds 2 --teacher-epochs 1 --processes 1 --methods kd none"
    method_accuracy.main(arguments.split())
    first, header, *lines, last = capsys.readouterr().out.splitlines()
    assert first.startswith("300 training and 700 validation images of digits, resnet8 of wrn_16_2")
    assert header == method_accuracy.HEADER
    assert last.endswith("s on 1 processes")
    rows = [without_seconds(line) for line in lines]
    assert [row[0] for row in rows] == ["kd", "none"]
    assert re.fullmatch(r"temperature \S+, weight \S+, ce_weight \S+, lr \S+", rows[0][4])
    assert re.fullmatch(r"lr \S+", rows[1][4])
    assert all(0 < float(score) < 100 for row in rows for score in row[1:3])
    (elsewhere,) = table(["kd"], TINY, processes=2)
    assert without_seconds(str(elsewhere)) == rows[0]
    assert len(elsewhere.again) == 2


def without_seconds(line: str) -> list[str]:
    """The fields of a row but the two that are time."""
    found = re.match(r"(\S+) +(\S+) +(\S+) +(\S+) +\S+ +\S+  (.*)", line)
    assert found, line
    return list(found.groups())
