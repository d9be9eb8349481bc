"""Rank correlations of rungs: what counts as knowledge, which weights are scored, the command on a tiny budget."""

from __future__ import annotations

import re
from pathlib import Path

import fidelity
import numpy as np
import pytest
from fidelity import correlation, interval, spearman
from scipy.stats import spearmanr

from akd.data import load as load_data
from akd.data import split
from akd.fit import fit
from akd.teacher.cache import Store
from akd.teacher.cached import CachedTeacher
from akd.teacher.keep import load_teacher, obtain


class TestCorrelation:
    def test_is_spearmans_with_ties_and_without(self) -> None:
        draw = np.random.default_rng(0)
        for values in (draw.normal(size=(2, 30)), draw.integers(0, 5, size=(2, 30))):
            assert spearman(*values) == pytest.approx(float(spearmanr(*values).statistic))
        assert spearman(np.zeros(4), np.arange(4)) == 0.0

    def test_luck_of_a_run_is_no_knowledge(self) -> None:
        """A rung that knows nothing but its own run's luck foretells nothing of the others."""
        draw = np.random.default_rng(1)
        luck = draw.normal(size=(3, 400))
        scores = np.stack([luck, luck], axis=2)  # [seeds, configurations, epochs]: the end is as at the rung
        everyone = np.arange(400)
        assert abs(correlation(scores, 0, everyone)) < 0.1
        worth = draw.normal(size=400)
        known = np.stack([worth + 0.0 * luck, worth + 0.5 * luck], axis=2)
        assert correlation(known, 0, everyone) > 0.9
        assert correlation(-known, 0, everyone) > 0.9
        assert correlation(np.stack([-worth + 0 * luck, worth + 0 * luck], axis=2), 0, everyone) == pytest.approx(-1)

    def test_interval_narrows_with_configurations(self) -> None:
        draw = np.random.default_rng(2)
        widths = []
        for count in (10, 200):
            worth = draw.normal(size=count)
            scores = worth[None, :, None] + draw.normal(size=(3, count, 2))
            value, low, high = interval(lambda chosen, s=scores: correlation(s, 0, chosen), count)
            assert low <= value <= high
            widths.append(high - low)
        assert widths[1] < widths[0] / 2


def test_both_kinds_of_weights_of_one_run(tmp_path: Path) -> None:
    """What is scored is what a run with and without averaging reports."""
    tree = fidelity.setup("digits", 3, 200)
    tree["teacher"]["train"]["epochs"] = 1
    bench = fidelity.Bench(tree, 1, 2, ("restarts",), tmp_path)
    bench.train((0, 1), float("inf"))
    _, _, _, run, _ = next(bench.runs())
    data = split(run.data, load_data(run.data))
    net = load_teacher(obtain(run, data, tmp_path / "teachers").folder)
    found = bench.scores()["restarts"][:, 0, 0]
    for name, ema in zip(fidelity.SCORES, (0.0, "auto"), strict=True):
        store = Store(tmp_path / "cache", 10**9)
        source = CachedTeacher(net, run.method.needs, store, keep=frozenset(run.method.needs))
        history = fit(run.with_values({"train.ema": ema}), data, source).history
        told = [h["val/accuracy"] for h in history if h["epoch"] in bench.at]
        assert told == found[fidelity.SCORES.index(name)].tolist()


def test_command_keeps_what_it_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fidelity.SETUPS["digits"]["teacher"], "train", {"epochs": 1, "threads": 1})
    arguments = f"--epochs 3 --configurations 3 --seeds 2 --subset 200 --output {tmp_path}".split()
    fidelity.main([*arguments, "--part", "1/2", "--minutes", "0"])
    assert "0 configurations" in capsys.readouterr().out
    fidelity.main([*arguments, "--part", "1/2"])  # the first and the third
    fidelity.main([*arguments, "--part", "2/2"])
    printed = capsys.readouterr().out.splitlines()
    first, header, *rows, last = printed[-2 - 2 * len(fidelity.SCORES) - 1 :]
    assert first == "digits, 3 configurations, 2 seeds, 3 epochs; rungs [1]"
    assert re.fullmatch(r"schedule +scored +rung 1 +mean of rungs +seeds, 3 +final, best quarter", header)
    assert [tuple(re.split(r"\s{2,}|(?<=cosine) |(?<=restarts) ", row)[:2]) for row in rows] == [
        (schedule, name) for schedule in fidelity.SCHEDULES for name in fidelity.SCORES
    ]
    assert last.endswith("with the others'")
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "digits").glob("*.json")}
    assert len(files) == 12
    fidelity.main(arguments)
    assert capsys.readouterr().out.splitlines() == [first, header, *rows, last]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "digits").glob("*.json")} == files


def test_a_seed_alone_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fidelity.main(["--seeds", "1", "--output", str(tmp_path)])
