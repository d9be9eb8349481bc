"""A whole search through Tune that its budget ends: real teacher and final runs, simulated trials at a known cost."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import simulated
from rich.console import Console

import akd
from akd.folder import COMPLETE, PRUNED, Run
from akd.report import verify
from akd.terminal import Display

pytestmark = pytest.mark.ray


def test_a_budget_ends_the_search_and_the_winner_is_trained(tmp_path: Path) -> None:
    """Two at a time, median stopping, CMA-ES: nothing is lost, and the account is told."""
    fixed = {k: v for k, v in simulated.OPTIMUM.items() if "rank" not in k} | {"method.views.head": "full"}
    numbers = fixed | {"method.host.weight": {"type": "float", "low": 0.5, "high": 4.0}}
    # An epoch takes a minute: controls, confirmation, final runs (by what trials took, 7 in 6 images), and ten minutes.
    budget = (2 * 4 + 3 * 2 * 4 + 3 * 4 * 1.4 + 10) / 60
    e = simulated.experiment(
        40, 4, sampler="cmaes", scheduler="median", concurrent=2, device_hours=budget, price=2.5, seed=1
    )
    e = e.__class__(**{**e.__dict__, "space": numbers})
    console = Console(file=io.StringIO(), width=100, highlight=False)
    with simulated.instead_of_training():
        result = akd.search(e, name="s", output=tmp_path, display=Display(4, 40, ["method.host.weight"], console))
    runs = [run for p in sorted(tmp_path.glob("s/trials/*/run.json")) if (run := Run.read(p.parent))]
    assert 2 <= len(runs) < 40
    assert {run.state for run in runs} <= {COMPLETE, PRUNED}
    # What was set aside was for epochs of a minute; the real ones of the final runs take less than a second.
    assert result.device_hours < budget
    assert result.budget["device_hours"] == {"limit": budget, "spent": result.device_hours}
    assert result.budget["cost"] == {"spent": result.device_hours * 2.5, "price": 2.5}
    assert set(result.champion["test"]["accuracy"]) == {"2"}
    assert json.loads((tmp_path / "s" / "result.json").read_text(encoding="utf-8"))["budget"] == result.budget
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "set aside for confirmation and final runs" in said
    assert "no more trials: " in said
    assert "budget    " in said
    assert [c.line() for c in verify.verify(tmp_path / "s", f"sqlite:///{tmp_path}/mlflow.db") if not c.good] == []
