"""The simulated objective keeps what it promises, and a real search of it leaves all records in agreement."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import simulated
from scipy.stats import spearmanr

import akd
from akd import folder as run_folder
from akd.config import resolve
from akd.folder import Run
from akd.report import verify
from akd.space import parse

DEFAULTS: dict[str, Any] = simulated.OPTIMUM | {"method.views.head": "full"}
EPOCHS = 18


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, Any]]:
    """Configurations drawn from the space at random."""
    space, draw = parse(simulated.experiment(1, EPOCHS)), random.Random(0)
    return [space.draw({}, draw) for _ in range(4000)]


class TestValue:
    def test_published_figures_come_out(self) -> None:
        def host(name: str, weight: float) -> float:
            values = DEFAULTS | {"method.host.name": name, "method.host.weight": weight}
            return simulated.true_value(values) - 0.8 * simulated.VIEWS  # full heads

        assert host("kd", 0.9) == pytest.approx(73.33)
        assert host("dkd", 1.0) == pytest.approx(76.32)
        assert host("kd", simulated.best_weight("kd")) == pytest.approx(76.62)
        assert host("dkd", simulated.best_weight("dkd")) == pytest.approx(77.01)
        released = DEFAULTS | {"method.host.name": "kd", "method.host.weight": 0.9 * 2.44}
        assert simulated.true_value(released) == pytest.approx(76.08, abs=0.3)  # Angular-KD on KD

    def test_the_optimum_is_known(self, drawn: list[dict[str, Any]]) -> None:
        best = simulated.true_value(simulated.OPTIMUM)
        assert best == pytest.approx(simulated.BEST)
        values = [simulated.true_value(v) for v in drawn]
        assert best - 1.0 < max(values) < best
        for p in parse(simulated.experiment(1, EPOCHS)).searched:  # nor does any single step lead up
            for value in [*p.all_values(), simulated.OPTIMUM[p.key]]:
                assert simulated.true_value(simulated.OPTIMUM | {p.key: value}) <= best + 1e-9

    def test_the_spread_of_configurations(self, drawn: list[dict[str, Any]]) -> None:
        """Constants stay where they were set: these figures are what samplers are compared on."""
        values = [simulated.true_value(v) for v in drawn]
        assert statistics.fmean(values) == pytest.approx(74.70, abs=0.1)
        assert statistics.stdev(values) == pytest.approx(1.35, abs=0.1)
        assert statistics.fmean(map(simulated.diverges, drawn)) == pytest.approx(0.04, abs=0.01)

    def test_the_space_is_one_of_the_package(self) -> None:
        experiment = simulated.experiment(1, EPOCHS)
        for value in ("kd", "dkd"):
            made = experiment.with_values(simulated.OPTIMUM | {"method.host.name": value})
            assert made.method.title == f"angular_kd over {value}"
        kinds = {p.kind for p in parse(experiment).searched}
        assert kinds == {"choice", "int", "float"}
        assert [p.key for p in parse(experiment).searched if p.when] == ["method.views.head_rank"]


class TestCurve:
    def test_ends_at_the_true_value_and_rises(self, drawn: list[dict[str, Any]]) -> None:
        for values in drawn[:200]:
            curve = simulated.curve(values, EPOCHS)
            assert curve[-1] == pytest.approx(simulated.true_value(values))
            assert curve == sorted(curve)
        three = simulated.curve(simulated.OPTIMUM, 3)  # the number of epochs changes the steps, not the end
        assert three[-1] == pytest.approx(simulated.BEST)

    def test_early_rungs_rank_fairly_and_curves_cross(self, drawn: list[dict[str, Any]]) -> None:
        curves = [simulated.curve(v, EPOCHS) for v in drawn]
        final = [c[-1] for c in curves]
        found = [float(spearmanr([c[e - 1] for c in curves], final).statistic) for e in (2, 6, 12)]
        assert found == pytest.approx([0.43, 0.79, 0.985], abs=0.05)
        best = sorted(curves, key=lambda c: -c[-1])[:40]
        third = sorted(c[1] for c in curves)[2 * len(curves) // 3]  # what the first rung lets pass
        assert 0.05 <= statistics.fmean(c[1] < third for c in best) <= 0.2  # some of the best start too slowly

    def test_noise_is_of_configuration_seed_and_epoch_alone(self) -> None:
        values = simulated.OPTIMUM
        other_order = dict(reversed(values.items()))
        assert simulated.accuracy(values, 1, 3, EPOCHS) == simulated.accuracy(other_order, 1, 3, EPOCHS)
        ends = [100 * simulated.accuracy(values, seed, EPOCHS, EPOCHS) for seed in range(400)]
        assert statistics.fmean(ends) == pytest.approx(simulated.BEST, abs=0.05)
        assert statistics.stdev(ends) == pytest.approx(math.hypot(0.20, 0.14), abs=0.03)
        assert simulated.accuracy(values, 1, 3, EPOCHS) != simulated.accuracy(values, 2, 3, EPOCHS)
        others = [100 * simulated.control("none", seed, EPOCHS, EPOCHS) for seed in range(400)]
        assert statistics.fmean(others) == pytest.approx(simulated.ALONE, abs=0.05)

    def test_cost(self) -> None:
        assert simulated.cost(simulated.OPTIMUM, 10) == pytest.approx(10.2)


@pytest.mark.ray
def test_a_search_through_tune_leaves_all_records_in_agreement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real Tune, Optuna, ASHA, tracker; 30 trials, some stopped and some failed, on two workers.

    A worker dies between two trials: the second goes on in another.
    """
    import ray
    from ray.tune.execution.experiment_state import _ExperimentCheckpointManager as Snapshots
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial

    experiment = simulated.experiment(30, 9, concurrent=2, seed=1)
    real, taken = Snapshots.sync_up_experiment_state, [0]

    def every_time(self: Snapshots, *args: Any, **kw: Any) -> Any:
        if self.auto_checkpoint_enabled:  # Ray's own: every ten seconds, more than this search lasts
            self._checkpoint_period = 0.0
        before = self._last_save_time
        real(self, *args, **kw)
        taken[0] += self._last_save_time != before

    monkeypatch.setattr(Snapshots, "sync_up_experiment_state", every_time)
    real_reset, lost = TuneController._schedule_trial_reset, []

    def to_a_dead_process(self: TuneController, trial: Trial, *args: Any) -> None:
        if len(lost) < 1 and trial.config["folder"].endswith("00011"):
            lost.append(trial.trial_id)
            ray.kill(self._actor_manager._live_actors_to_ray_actors_resources[self._trial_to_actor[trial]][0])
        real_reset(self, trial, *args)

    monkeypatch.setattr(TuneController, "_schedule_trial_reset", to_a_dead_process)
    with simulated.instead_of_training():
        result = akd.search(experiment, name="s", output=tmp_path)
    assert lost
    assert "trial 11: its process died; it goes on from its beginning" in capsys.readouterr().out
    assert taken == [2]  # of all trials, which nobody reads: at the start and at the end
    study = tmp_path / "s"
    checks = verify.verify(study, f"sqlite:///{tmp_path}/mlflow.db")
    assert [c.line() for c in checks if not c.good] == []
    states = result.trials
    assert sum(states.values()) == 30
    assert states["PRUNED"] > 5
    assert states["COMPLETE"] > 1
    for path in study.glob("trials/*/run.json"):
        run, entries = Run.read(path.parent), run_folder.history(path.parent)
        assert run is not None
        assert run.reason is None or run.reason.startswith("diverged")
        seed = resolve(experiment.to_dict(), strict=False).train.seed
        wanted = [simulated.accuracy(run.parameters, seed, e, 9) for e in range(1, len(entries) + 1)]
        assert [e["val/accuracy"] for e in entries] == wanted
    best = result.best_trial
    assert simulated.true_value(best["parameters"]) == pytest.approx(100 * best["validation_accuracy"], abs=1.0)
