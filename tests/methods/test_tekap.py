"""TeKAP: noisy views against literal sums, their weights, and what plain KD of the same weight makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from akd import checkpoint
from akd.config import resolve
from akd.data import Batch, DataConfig, load, split
from akd.data.batch import rand
from akd.errors import ExperimentError
from akd.fit import fit, metrics_equal
from akd.methods import Shapes, WithViews, create_method, soft_weight
from akd.methods.tekap import perturb
from akd.models import Output, seeded_model
from akd.teacher import LiveTeacher

B, C, D, N = 5, 6, 4, 3


def make(**settings: Any) -> WithViews:
    config = resolve({"method": {"host": "kd", "views": {"name": "tekap", **settings}}}).method
    method = create_method(config, Shapes(C, 3, D))
    assert isinstance(method, WithViews)
    return method.double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(rows: int = B) -> tuple[Output, Output]:
    student = Output(draw(rows, C, seed=3).requires_grad_(), draw(rows, 3, seed=4))
    return student, Output(3 * draw(rows, C, seed=1), draw(rows, D, seed=2).abs())


def batch(rows: int = B, **changes: Any) -> Batch:
    target = torch.arange(rows) % C
    view = torch.zeros(rows, dtype=torch.long)
    draws = torch.Generator().manual_seed(5)
    return Batch(torch.arange(rows), target, target, torch.ones(rows), view, 1, 0, draws, **changes)


class TestViews:
    def test_against_literal_loops(self) -> None:
        _, teacher = outputs()
        seen, terms = make(noisy="both", noise=0.3, embedding_noise=0.5).views(teacher, batch())
        again = batch()
        e, f = rand(again, N, C, normal=True), rand(again, N, D, normal=True)
        for b in range(B):
            for i in range(N):
                for c in range(C):
                    want = 0.7 * teacher.logits[b, c].item() + 0.3 * e[b, i, c].item()
                    assert seen.view_logits[b, i, c].item() == pytest.approx(want, rel=1e-9)
                for d in range(D):
                    want = 0.7 * teacher.embedding[b, d].item() + 0.3 * 0.5 * f[b, i, d].item()
                    assert seen.view_embeddings[b, i, d].item() == pytest.approx(want, rel=1e-9)
        assert terms == {}
        assert torch.equal(seen.logits, teacher.logits)

    def test_released_embedding_noise_is_a_tenth_of_that_of_logits(self) -> None:
        zero = torch.zeros(2, 50, dtype=torch.float64)
        noise = draw(2, 4000, 50, seed=8)
        assert perturb(zero, noise, 0.1).std().item() == pytest.approx(0.1, rel=0.01)
        teacher = Output(draw(2000, C, seed=1), torch.zeros(2000, D))
        seen, _ = make(noisy="embedding").views(teacher, batch(2000))
        assert seen.view_embeddings.std().item() == pytest.approx(0.01, rel=0.02)

    @pytest.mark.parametrize(("noisy", "filled"), [("logits", (1, 0)), ("embedding", (0, 1)), ("both", (1, 1))])
    def test_what_has_views(self, noisy: str, filled: tuple[int, int]) -> None:
        seen, _ = make(noisy=noisy).views(outputs()[1], batch())
        assert (seen.view_logits is not None, seen.view_embeddings is not None) == filled
        assert seen.view_weights.tolist() == [1.0, 0.8, 0.8, 0.8]

    def test_fresh_in_each_step_and_the_same_for_a_sample_on_every_worker(self) -> None:
        _, teacher = outputs()
        views, whole = make().views, batch(total=B)
        first, second = (views(teacher, whole)[0].view_logits for _ in range(2))
        assert not torch.equal(first, second)
        part = views(teacher._replace(logits=teacher.logits[2:4]), batch(2, offset=2, total=B))[0].view_logits
        assert torch.equal(part, first[2:4])

    def test_no_gradient_and_no_parameters(self) -> None:
        method = make(noisy="both")
        _, teacher = outputs()
        teacher = Output(teacher.logits.requires_grad_(), teacher.embedding.requires_grad_())
        seen, _ = method.views(teacher, batch())
        assert not seen.view_logits.requires_grad
        assert not seen.view_embeddings.requires_grad
        assert list(method.parameters()) == []
        assert method.warmup_epochs == 0

    def test_bfloat16_teacher_gives_float32_views(self) -> None:
        _, teacher = outputs()
        seen, _ = make().views(teacher._replace(logits=teacher.logits.bfloat16()), batch())
        assert seen.view_logits.dtype == torch.float32

    def test_share_of_views_that_agree_with_the_teacher(self) -> None:
        method = make(noise=0.0)
        method(*outputs(), batch())
        assert method.measures()["views/agreement"].item() == 1
        loud = make(noise=1.0, count=64)  # nothing of the teacher is left
        loud(*outputs(200), batch(200))
        assert loud.measures()["views/agreement"].item() == pytest.approx(1 / C, abs=0.02)


class TestLoss:
    @pytest.mark.parametrize("normalise", [False, True])
    def test_gradient_is_that_of_the_published_sum_of_kls(self, normalise: bool) -> None:
        """tau^2 [ KL(p_t || p_s) + 0.8 sum_i KL(p_i || p_s) ] / B, over its weights' sum if normalised."""
        student, teacher = outputs()
        method = make(normalise=normalise)
        mine = method(student, teacher, batch())["kd"]
        noise, tau = rand(batch(), N, C, normal=True), 4.0
        log_p, published = (student.logits / tau).log_softmax(1), 0.0
        for weight, z in [(1.0, teacher.logits)] + [
            (0.8, 0.9 * teacher.logits + 0.1 * noise[:, i].double()) for i in range(N)
        ]:
            q = (z / tau).softmax(1)
            for b in range(B):
                for c in range(C):
                    published = published + weight * tau**2 / B * q[b, c] * (q[b, c].log() - log_p[b, c])
        published = published / 3.4 if normalise else published
        got, want = (torch.autograd.grad(loss, student.logits, retain_graph=True)[0] for loss in (mine, published))
        assert torch.allclose(got, want, rtol=1e-9, atol=1e-12)
        assert published.item() > mine.item() > 0  # they differ by what the student cannot change

    def test_little_noise_is_kd_of_a_larger_weight(self) -> None:
        student, teacher = outputs()
        alone = create_method(resolve({"method": "kd"}).method, Shapes(C))
        got = make(noise=0.0)(student, teacher, batch())["kd"].item()
        assert got == pytest.approx(3.4 * alone(student, teacher, batch())["kd"].item(), rel=1e-9)

    def test_golden(self) -> None:
        assert make()(*outputs(), batch())["kd"].item() == pytest.approx(5.177570404300611, rel=1e-6)  # float32 draws

    def test_gradcheck(self) -> None:
        method = make()
        _, teacher = outputs()
        z = draw(B, C, seed=6).requires_grad_()
        assert torch.autograd.gradcheck(lambda z: method(Output(z, z), teacher, batch())["kd"], z)

    def test_batch_of_one(self) -> None:
        assert make(noisy="both")(*outputs(1), batch(1))["kd"].isfinite()


@pytest.mark.parametrize(
    ("settings", "mass"),
    [
        ({}, 3.4),
        ({"normalise": True}, 1.0),
        ({"count": 8, "view_weight": 0.5}, 5.0),
        ({"noisy": "embedding"}, 1.0),
        ({"noisy": "both"}, 3.4),
    ],
)
def test_effective_weight_of_soft_targets(settings: dict[str, Any], mass: float) -> None:
    config = resolve({"method": {"host": "kd", "views": {"name": "tekap", **settings}}}).method
    assert soft_weight(config, C) == pytest.approx(0.9 * 16 * mass, rel=1e-12)
    method = create_method(config, Shapes(C, 3, D))
    assert method.soft_weight() == pytest.approx(0.9 * 16 * mass, rel=1e-12)
    method(*outputs(), batch())
    logged = method.measures().get("views/soft_weight")
    assert (0.9 * 16 if logged is None else logged.item()) == pytest.approx(0.9 * 16 * mass, rel=1e-6)


def test_a_setting_without_effect() -> None:
    with pytest.raises(ExperimentError, match=r"embedding_noise.*needs noisy: embedding or both"):
        make(embedding_noise=0.5)


@pytest.mark.parametrize("precision", ["bfloat16", "float64", "float32"])
def test_in_training(precision: str, tmp_path: Path) -> None:
    """The loop's other precisions, and resuming: the noise hangs on seed, epoch and step."""
    config = DataConfig(subset=200)
    data, net = split(config, load(config)), seeded_model("resnet8", 10, seed=3, in_channels=1)
    e = resolve({"method": "tekap", "train": {"epochs": 2, "lr": 0.05, "precision": precision}})
    whole = fit(e, data, LiveTeacher(net), report=lambda record: record.state.save(tmp_path, keep=9) and None)
    assert whole.history[-1]["views/agreement"] > 0
    assert whole.history[-1]["views/soft_weight"] == pytest.approx(0.9 * 16 * 3.4, rel=1e-6)
    resumed = fit(e, data, LiveTeacher(net), start=checkpoint.all_checkpoints(tmp_path)[0])
    assert all(map(metrics_equal, resumed.history, whole.history))
    assert len(resumed.history) == 2
