"""Rank correlations of rungs: what counts as knowledge, which weights are scored, the command on a tiny budget."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import fidelity
import numpy as np
import pytest
import torch
from fidelity import Averages, correlation, interval, lagging, spearman
from scipy.stats import spearmanr
from torch import nn

from akd.config import resolve
from akd.methods import Shapes, create_method
from akd.models.norm import Statistics
from akd.state import TrainState


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


class TestScored:
    def test_auto_is_that_of_the_package(self) -> None:
        config = resolve({"method": "none", "train": {"ema": "auto"}})
        net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        state = TrainState(config.train, net, create_method(config.method, Shapes(10)), torch.device("cpu"))
        averages, draw = Averages(), torch.Generator().manual_seed(0)
        averages.update(net)
        state.update_average()
        for _ in range(40):
            with torch.no_grad():
                net[0].weight.add_(torch.randn(3, 3, generator=draw))
            state.update_average()
            averages.update(net)
        assert state.average is not None
        ours = averages.models["ema auto"].state_dict()
        assert all(torch.allclose(v, ours[k], atol=1e-6) for k, v in state.average.state_dict().items())
        assert not torch.allclose(ours["0.weight"], averages.models["ema 1/5"].state_dict()["0.weight"])

    @pytest.mark.parametrize("epoch", [1, 2, 5])
    def test_lagging_is_what_torch_would_have(self, epoch: int) -> None:
        plain, draw = nn.Sequential(nn.BatchNorm1d(4)).train(), torch.Generator().manual_seed(0)
        settled = copy.deepcopy(plain)
        started, first = Statistics(settled), settled
        for step in range(6 * epoch):
            batch = 3 + 2 * torch.randn(16, 4, generator=draw)
            plain(batch)
            settled(batch)
            if step == 5:
                started.take_out(settled)
                first = copy.deepcopy(settled)
        theirs, ours = plain.state_dict(), lagging(settled, first, 6, epoch).state_dict()
        assert all(torch.allclose(v.float(), ours[k].float(), rtol=1e-4) for k, v in theirs.items())


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
