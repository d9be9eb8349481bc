"""Hosts beside each other, and terms by their own size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from akd.config import resolve
from akd.data import Batch, DataConfig, TrainData, load, split
from akd.fit import EpochRecord, fit, metrics_equal
from akd.methods import Method, Shapes, WithViews, create_method, hosts, soft_weight
from akd.methods.extra import WithExtra
from akd.methods.normalise import DECAY, Normalised
from akd.models import Output, seeded_model
from akd.teacher import LiveTeacher

C = 6


def logits(seed: int, rows: int = 5) -> Tensor:
    return 3 * torch.randn(rows, C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def output(seed: int) -> Output:
    return Output(logits(seed), logits(seed + 50))


def batch(epoch: int = 1) -> Batch:
    target, zeros = torch.tensor([0, 5, 2, 3, 1]), torch.zeros(5, dtype=torch.long)
    ones = torch.ones(5, dtype=torch.float64)
    return Batch(torch.arange(5), target, target, ones, zeros, epoch, 0, torch.Generator().manual_seed(0))


def build(method: Any, **kw: Any) -> Method:
    return create_method(resolve({"method": method}).method, Shapes(C, C, C), **kw).double()


class TestExtra:
    def test_terms_and_weights_are_the_parts_without_their_hard_labels(self) -> None:
        both = build({"host": "kd", "extra": [{"name": "dkd", "alpha": 3}, "dist"]})
        assert isinstance(both, WithExtra)
        given = output(1), output(2), batch()
        terms, want = both(*given), build("kd")(*given)
        weights = build("kd").weights()
        for name, method in {"dkd": {"host": {"name": "dkd", "alpha": 3}}, "dist": "dist"}.items():
            part = build(method)
            want |= {f"extra/{name}/{k}": v for k, v in part(*given).items() if k != "ce"}
            weights |= {f"extra/{name}/{k}": v for k, v in part.weights().items() if k != "ce"}
        assert list(terms) == [
            "ce",
            "kd",
            "extra/dkd/target",
            "extra/dkd/others",
            "extra/dist/classes",
            "extra/dist/samples",
        ]
        assert {k: v.item() for k, v in terms.items()} == {k: v.item() for k, v in want.items()}
        assert both.weights() == weights
        assert both.ramps(5) == {"extra/dkd/target": 0.25, "extra/dkd/others": 0.25}

    def test_is_relational_if_one_part_is(self) -> None:
        assert not build({"host": "kd", "extra": "dkd"}).relational
        assert build({"host": "kd", "extra": "dist"}).relational
        assert build({"host": "dist", "extra": "kd"}).relational

    def test_soft_weights_add_up(self) -> None:
        config = resolve({"method": {"host": "kd", "views": "angular_kd", "extra": ["dkd"]}}).method
        want = 0.9 * 16 + 9 * 16
        assert create_method(config, Shapes(C, 8, 8)).soft_weight() == pytest.approx(want)
        assert soft_weight(config, C) == pytest.approx(want)
        assert soft_weight(resolve({"method": {"host": "dkd", "normalise": True}}).method, C) == pytest.approx(144)

    def test_every_part_sees_the_ensemble(self) -> None:
        method = build({"host": "kd", "views": "angular_kd", "extra": "dist"})
        assert isinstance(method, WithViews)
        given = output(1), output(2), batch()
        plain = float(build("dist")(*given)["classes"])
        method.views.eval()
        seen, _ = method.views(*given[1:])
        got = float(method(*given)["extra/dist/classes"])
        assert got == pytest.approx(float(build("dist")(given[0], seen, batch())["classes"]), rel=1e-12)
        assert got != plain

    def test_parameters_measures_and_draws_of_the_parts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A part's initial weights depend on its name and the seed alone; its learning-rate groups are kept."""
        from akd.methods.dist import DISTConfig

        class Learned(Method):
            needs = frozenset({"logits"})

            def __init__(self, config: Any, *, shapes: Shapes, label_smoothing: float = 0.0):
                super().__init__()
                self.scale = nn.Parameter(torch.randn(()))

            def forward(self, student: Output, teacher: Output | None, batch: Batch) -> dict[str, Tensor]:
                return {"ce": student.logits.mean(), "learned": self.scale * student.logits.square().mean()}

            def weights(self) -> dict[str, float]:
                return {"ce": 1.0, "learned": 2.0}

            def measures(self) -> dict[str, Tensor]:
                return {"size": self.scale.detach()}

            def groups(self) -> list[tuple[list[nn.Parameter], float]]:
                return [([self.scale], 0.5)]

        monkeypatch.setitem(hosts._factories, "dist", Learned)
        assert hosts.info("dist")["config"] is DISTConfig
        one, two = (
            build({"host": "kd", "extra": "dist"}, seed=3),
            build({"host": "dkd", "extra": ["kd", "dist"]}, seed=3),
        )
        assert dict(one.named_parameters()).keys() == {"extra.dist.scale"}
        assert torch.equal(*(p for m in (one, two) for p in m.parameters()))
        assert not torch.equal(
            next(one.parameters()), next(build({"host": "kd", "extra": "dist"}, seed=4).parameters())
        )
        assert [(len(p), f) for p, f in one.groups() if p] == [(1, 0.5)]
        assert one.measures().keys() == {"extra/dist/size"}
        assert build({"host": "kd", "extra": "dist", "normalise": True}).groups()[-1][1] == 0.5


class TestNormalised:
    def test_against_a_literal_running_mean(self) -> None:
        method, plain = (
            build({"host": "kd", "extra": "dist", "normalise": True}),
            build({"host": "kd", "extra": "dist"}),
        )
        assert isinstance(method, Normalised)
        assert method.weights() == plain.weights()
        means: dict[str, float] = {}
        for step in range(5):
            given = output(10 + step), output(20 + step), batch()
            terms, raw = method(*given), plain(*given)
            for name, term in raw.items():
                if name == "ce":
                    assert terms[name].item() == term.item()
                    continue
                size = abs(term.item())
                means[name] = means[name] * 0.99 + 0.01 * size if step else size
                assert terms[name].item() == pytest.approx(term.item() / means[name], rel=1e-9)
                assert method.measures()[f"scale/{name}"].item() == pytest.approx(means[name], rel=1e-9)
        assert DECAY == 0.99

    def test_the_mean_has_no_gradient(self) -> None:
        method = build({"host": "kd", "normalise": True})
        student = output(1)
        z = student.logits.clone().requires_grad_()
        terms = method(student._replace(logits=z), output(2), batch())
        (got,) = torch.autograd.grad(terms["kd"], z)
        raw = build("kd")(student._replace(logits=z), output(2), batch())["kd"]
        (want,) = torch.autograd.grad(raw, z)
        assert terms["kd"].item() == pytest.approx(1.0)
        assert torch.allclose(got, want / raw.item(), rtol=1e-9)

    def test_a_ramp_is_not_divided_away(self) -> None:
        """Ten epochs of the same batch: the mean stays the whole term's, so what rises is the ramp."""
        method = build({"host": {"name": "dkd", "ramp_epochs": 10}, "normalise": True})
        for epoch in range(1, 13):
            terms = method(output(1), output(2), batch(epoch))
            assert terms["others"].item() == pytest.approx(min(epoch / 10, 1.0), rel=1e-9)

    def test_a_term_that_is_0_waits_for_its_first_value(self) -> None:
        method = build({"host": "kd", "normalise": True})
        same = output(2)
        assert method(same, same, batch())["kd"].item() == pytest.approx(0, abs=1e-9)
        method.means.zero_()  # exactly 0, as a gate gives it
        assert method(output(1), same, batch())["kd"].item() == pytest.approx(1.0)
        method.means.zero_()
        method.method.forward = lambda *given: {"ce": torch.ones(()), "kd": torch.zeros(())}  # type: ignore[method-assign]
        assert method(output(1), same, batch())["kd"].item() == 0

    def test_a_signed_term_is_divided_by_its_first_size_for_good(self) -> None:
        """A log-likelihood that falls through 0: its gradient is a constant times its own, on either side of it."""
        method = build({"host": "kd", "normalise": True})
        method.method.signed = lambda: frozenset({"kd"})  # type: ignore[method-assign]
        signed = Normalised(method.method)
        values = [4.0, 2.0, 0.5, 1e-6, -1e-6, -0.5, -3.0]
        for value in values:
            x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            signed.method.forward = lambda *given, x=x: {"ce": torch.ones(()), "kd": x}  # type: ignore[method-assign]
            term = signed(output(1), output(2), batch())["kd"]
            (slope,) = torch.autograd.grad(term, x)
            assert term.item() == pytest.approx(value / 4, rel=1e-9)
            assert slope.item() == pytest.approx(1 / 4, rel=1e-9)
        # The same values as a term that is not signed: the slope goes up with every step.
        slopes = []
        for value in [4.0] + [1e-6] * 300:
            x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            method.method.forward = lambda *given, x=x: {"ce": torch.ones(()), "kd": x}  # type: ignore[method-assign]
            slopes.append(torch.autograd.grad(method(output(1), output(2), batch())["kd"], x)[0].item())
        assert slopes[-1] > 10 * slopes[0]

    def test_signed_terms_of_extras_are_known_by_their_names(self) -> None:
        method = build({"host": "dkd", "extra": ["kd"], "views": "tekap"})
        assert method.signed() == frozenset()
        shapes = Shapes(C, C, C, (2, 3, 4), (2, 3, 4))
        for how, signed in [
            ("vid", "vid"),
            ({"host": "vid", "extra": ["kd"]}, "vid"),
            ({"host": "kd", "extra": ["vid", "dist"], "views": "tekap", "normalise": True}, "extra/vid/vid"),
        ]:
            assert create_method(resolve({"method": how}).method, shapes).signed() == {signed}

    def test_evaluation_leaves_the_mean(self) -> None:
        method = build({"host": "kd", "normalise": True})
        method(output(1), output(2), batch())
        before = method.state_dict()["means"].clone()
        method.eval()
        method(output(3), output(4), batch())
        assert torch.equal(method.state_dict()["means"], before)

    def test_counts_as_relational_and_leaves_views_terms_alone(self) -> None:
        method = build({"host": "kd", "views": "angular_kd", "normalise": True})
        assert isinstance(method, WithViews)
        assert build({"host": "kd", "normalise": True}).relational
        terms = method(output(1), output(2), batch())
        raw = build({"host": "kd", "views": "angular_kd"})(output(1), output(2), batch())
        assert terms["kd"].item() == pytest.approx(1.0)
        for name in (n for n in terms if n.startswith("views/")):
            assert terms[name].item() == pytest.approx(raw[name].item(), rel=1e-9)


class TestInTheLoop:
    @pytest.fixture(scope="class")
    def data(self) -> TrainData:
        config = DataConfig(subset=300)
        return split(config, load(config))

    @pytest.mark.parametrize(
        "method",
        [
            {"host": "dkd", "extra": ["dist", "mlkd"], "normalise": True},
            {"host": "kd", "views": "angular_kd", "extra": ["skd"], "normalise": True},
        ],
        ids=["hosts", "views"],
    )
    def test_same_bits_and_resume(self, method: dict[str, Any], data: TrainData, tmp_path: Path) -> None:
        experiment = resolve({"method": method, "train": {"epochs": 2, "lr": 0.1, "precision": "float32"}})
        experiment = replace(experiment, method=experiment.method.without_warmup())
        source = LiveTeacher(seeded_model("wrn_16_1", 10, seed=77, in_channels=1), experiment.method.needs)
        saved: list[Path] = []

        def keep(record: EpochRecord) -> None:
            saved.append(record.state.save(tmp_path))

        whole = fit(experiment, data, source, report=keep)
        again = fit(experiment, data, source, start=saved[0])
        assert all(map(metrics_equal, whole.history, again.history))
        for a, b in zip(whole.student.state_dict().values(), again.student.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        name = "scale/kd" if "views" in method else "scale/extra/mlkd/batch"
        assert whole.history[-1][name] > 0
