"""What hosts on maps and embeddings share: the teacher's embedding with views, alignment, negatives, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from akd.config import resolve
from akd.data import DataConfig, load, split
from akd.errors import ExperimentError
from akd.fit import fit, metrics_equal
from akd.methods import embedding_target, soft_weight
from akd.methods.base import MethodConfig, hosts
from akd.methods.feature import energy, needs_batch, same_size, unlike
from akd.methods.precision import wide
from akd.models import Output, seeded_model
from akd.teacher import LiveTeacher
from tests.methods.slow import draw, make_batch, pooled


class TestEmbeddingTarget:
    def test_teacher_alone(self) -> None:
        teacher = draw(4, 5)
        assert torch.equal(embedding_target(Output(teacher, teacher)), teacher)
        assert embedding_target(Output(teacher, teacher.bfloat16())).dtype == torch.float32

    @pytest.mark.parametrize("weights", [[1.0, 0.8, 0.8], [0.2, 0.0, 0.6], None])
    def test_weighted_mean_against_loops(self, weights: list[float] | None) -> None:
        teacher, views = draw(4, 5, seed=1), draw(4, 2, 5, seed=2)
        given = None if weights is None else torch.tensor(weights)
        got = embedding_target(Output(teacher, teacher, view_embeddings=views, view_weights=given))
        w = weights or [1 / 3] * 3
        for b in range(4):
            for k in range(5):
                members = [float(teacher[b, k]), float(views[b, 0, k]), float(views[b, 1, k])]
                want = sum(x * m for x, m in zip(w, members, strict=True)) / sum(w)
                assert float(got[b, k]) == pytest.approx(want, rel=1e-6)

    def test_gradient_reaches_the_views(self) -> None:
        teacher, views = draw(4, 5), draw(4, 2, 5).requires_grad_()
        embedding_target(Output(teacher, teacher, view_embeddings=views)).sum().backward()
        assert float(views.grad.abs().min()) > 0


class TestAlignment:
    def test_the_larger_is_pooled_in_each_direction(self) -> None:
        a, b = same_size(draw(2, 7, 4, seed=1), draw(2, 3, 6, seed=2))
        assert a.shape == b.shape == (2, 3, 4)
        for i in range(2):
            want = pooled(draw(2, 7, 4, seed=1)[i].tolist(), (3, 4))
            assert torch.allclose(a[i], torch.tensor(want, dtype=torch.float64), rtol=1e-12)
            want = pooled(draw(2, 3, 6, seed=2)[i].tolist(), (3, 4))
            assert torch.allclose(b[i], torch.tensor(want, dtype=torch.float64), rtol=1e-12)

    def test_energy_of_a_map_and_of_its_attention(self) -> None:
        x = draw(2, 3, 4, 4)
        assert torch.allclose(energy(x), energy(x.square().sum(1, keepdim=True).sqrt()), rtol=1e-12)
        assert energy(x.bfloat16()).dtype == torch.float32


def test_negatives_are_other_images_not_known_to_be_of_the_same_class() -> None:
    batch = make_batch(4, classes=2, index=torch.tensor([5, 6, 7, 5]), view=torch.tensor([0, 0, 0, 1]))
    want = [[0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0]]  # classes 0 1 0 (1, unknown)
    assert unlike(batch).int().tolist() == want


def test_wide_is_at_least_float32_also_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16), wide(draw(2, 2).bfloat16(), draw(2, 2).float()) as (a, b):
        assert (a @ b).dtype == torch.float32
    with wide(draw(2, 2), draw(2, 2).float()) as (a, b):
        assert a.dtype == b.dtype == torch.float64


def test_a_batch_too_small_is_refused_in_one_line() -> None:
    needs_batch(3, 3, "rkd")
    with pytest.raises(ExperimentError, match=r"train\.batch_size = 2: must be at least 3 for rkd"):
        needs_batch(2, 3, "rkd")


def test_needs_of_a_host_that_is_a_plain_function_are_read_from_it() -> None:
    """A user's host may be a factory: no class, no ``needs_of``."""

    def factory(config: object, **kw: object) -> None: ...

    factory.needs = frozenset({"maps:2"})
    hosts._factories["plain"] = factory
    try:
        config = resolve({"method": "kd"}).method.host
        plain = MethodConfig(host=type("Config", (), {"name": "plain"})())
        assert plain.needs == {"maps:2"}
        assert MethodConfig(host=config).needs == {"logits"}
    finally:
        del hosts._factories["plain"]


def test_hosts_without_soft_targets_have_no_soft_weight_before_the_widths_are_known() -> None:
    assert soft_weight(resolve({"method": "amd"}).method, 10) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "host", [{"name": "crd", "negatives": 64}, {"name": "fitnet"}, {"name": "reviewkd"}], ids=lambda h: h["name"]
)
def test_what_a_method_keeps_survives_an_interruption(host: dict[str, Any], precision: str, tmp_path: Path) -> None:
    """Memory banks and batch statistics: a run that goes on after its first epoch has the bits of a whole one."""
    config = DataConfig(subset=160)
    data = split(config, load(config))
    settings = {"method": {"host": host}, "train": {"epochs": 2, "batch_size": 32, "precision": precision}}
    experiment = resolve(settings)

    def run(**kw: Any) -> list[dict[str, float]]:
        source = LiveTeacher(seeded_model("wrn_16_1", 10, seed=7, in_channels=1), experiment.method.needs)
        return fit(experiment, data, source, **kw).history

    whole = run(report=lambda record: record.state.save(tmp_path, keep=9) and None)
    resumed = run(start=tmp_path / "epoch_000001")
    assert len(whole) == len(resumed) == 2
    assert all(map(metrics_equal, whole, resumed))
    assert whole[0][f"loss/{host['name']}"] != whole[1][f"loss/{host['name']}"]
