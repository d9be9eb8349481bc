"""The heads computed at once against one head at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from akd.data import Batch
from akd.errors import ExperimentError
from akd.methods.heads import ViewHeads, initial_weights, orthonormal

B, D, C, N = 10, 12, 7, 4


def make(count: int = N, features: int = D, **kw: object) -> ViewHeads:
    torch.manual_seed(0)
    return ViewHeads(features, C, count, **kw)


def batch(rows: slice = slice(0, B)) -> Batch:
    index = torch.arange(B)[rows]
    zeros = torch.zeros(len(index), dtype=torch.long)
    source = torch.Generator().manual_seed(9)
    return Batch(index, zeros, zeros, torch.ones(len(index)), zeros, 1, 0, source, rows.start or 0, B)


def feature(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(B, D, generator=torch.Generator().manual_seed(1)).to(dtype)


def one_head(heads: ViewHeads, i: int, x: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Head i on masked inputs [B, K], with torch's own layers."""
    with torch.no_grad():
        norm.weight.copy_(heads.scale[i])
        norm.bias.copy_(heads.shift[i])
    w = (
        torch.eye(x.shape[1], dtype=x.dtype) + heads.up[i] @ heads.down[i]
        if heads.head == "low_rank"
        else heads.weight[i]
    )
    view = norm(x @ w.T + heads.bias[i])
    return view, view @ heads.classifier[i].T + heads.classifier_bias[i]


KINDS = [{"head": "full"}, {"head": "low_rank", "width": 3}, {"head": "projected", "width": 5}]


@pytest.mark.parametrize("kw", KINDS, ids=lambda kw: kw["head"])
@pytest.mark.parametrize("count", [1, 8])
class TestAgainstOneHeadAtATime:
    def test_training_and_evaluation(self, kw: dict, count: int) -> None:
        heads = make(count, **kw).double()
        with torch.no_grad():
            for p in heads.parameters():
                p.add_(0.1 * torch.randn_like(p))
        x = feature()
        inner = x @ heads.projection.T if kw["head"] == "projected" else x
        norms = [nn.BatchNorm1d(inner.shape[1]).double() for _ in range(count)]
        rates = (
            torch.linspace(0.2, 0.4, count, dtype=torch.float64)
            if count > 1
            else torch.tensor([0.3], dtype=torch.float64)
        )
        for step in range(3):
            source = torch.Generator().manual_seed(step)
            masks = (torch.rand(B, count, inner.shape[1], generator=source) >= rates[:, None]) / (1 - rates[:, None])
            views, anchor, logits = heads(x, batch()._replace(generator=torch.Generator().manual_seed(step)))
            assert torch.equal(anchor, inner)
            for i in range(count):
                view, z = one_head(heads, i, masks[:, i] * inner, norms[i])
                assert torch.allclose(views[:, i], view, rtol=1e-9, atol=1e-12)
                assert torch.allclose(logits[:, i], z, rtol=1e-9, atol=1e-12)
        heads.eval()
        views, _, logits = heads(x, batch())
        for i in range(count):
            view, z = one_head(heads, i, inner, norms[i].eval())
            assert torch.allclose(views[:, i], view, rtol=1e-9, atol=1e-12)
            assert torch.allclose(logits[:, i], z, rtol=1e-9, atol=1e-12)

    def test_gradients(self, kw: dict, count: int) -> None:
        heads = make(count, **kw, dropout=(0.0, 0.0)).double()
        x = feature()[:3].requires_grad_()
        names, values = zip(*heads.named_parameters(), strict=True)

        def outputs(embedding: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
            given = dict(zip(names, parameters, strict=True))
            return torch.func.functional_call(heads, given, (embedding, batch(slice(0, 3))))

        # Eight heads have thousands of values: a random direction of them all instead of one after the other.
        assert torch.autograd.gradcheck(outputs, (x, *values), fast_mode=count > 1)


class TestParameters:
    @pytest.mark.parametrize(("features", "classes", "want"), [(256, 100, 92_004), (128, 100, 29_668)])
    def test_published_count_of_a_full_head(self, features: int, classes: int, want: int) -> None:
        assert want == features**2 + features + 2 * features + features * classes + classes
        heads = ViewHeads(features, classes, 5)
        assert sum(p.numel() for p in heads.parameters()) == 5 * want

    def test_of_the_smaller_forms(self) -> None:
        low = sum(p.numel() for p in ViewHeads(256, 100, 2, head="low_rank", width=16).parameters())
        assert low == 2 * (2 * 16 * 256 + 3 * 256 + 256 * 100 + 100)
        projected = sum(p.numel() for p in ViewHeads(256, 100, 2, head="projected", width=16).parameters())
        assert projected == 2 * (16**2 + 3 * 16 + 16 * 100 + 100)

    def test_a_width_beyond_the_features_is_the_features(self) -> None:
        assert make(head="low_rank", width=500).down.shape == (N, D, D)
        assert make(head="projected", width=500).weight.shape == (N, D, D)


class TestInitialWeights:
    def test_each(self) -> None:
        for w in initial_weights(N, D, "each"):
            assert torch.allclose(w @ w.T, torch.eye(D), atol=1e-5)

    def test_across(self) -> None:
        weights = initial_weights(N, D, "across")
        for d in range(D):
            rows = weights[:, d]
            assert torch.allclose(rows @ rows.T, torch.eye(N), atol=1e-5)
        values = torch.linalg.svdvals(weights[0])
        assert float(values.max()) > 1.5  # rows of one view are unit vectors, no more
        assert float(values.min()) < 0.5

    def test_across_needs_as_many_features_as_views(self) -> None:
        assert initial_weights(4, 4, "across").shape == (4, 4, 4)
        with pytest.raises(ExperimentError, match=r"head_init = 'across': needs as many features as views.* 4 and 5"):
            initial_weights(5, 4, "across")

    def test_stacked(self) -> None:
        stack = initial_weights(N, D, "stacked").reshape(N * D, D)
        assert torch.allclose(stack.T @ stack, torch.eye(D), atol=1e-5)

    @pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
    def test_orthonormal(self, shape: tuple[int, int]) -> None:
        q = orthonormal(2, *shape)
        assert q.shape == (2, *shape)
        gram = q @ q.mT if shape[0] <= shape[1] else q.mT @ q
        assert torch.allclose(gram, torch.eye(min(shape)).expand(2, -1, -1), atol=1e-5)
        assert not torch.allclose(q[0], q[1])


class TestDropout:
    def test_rates_are_spread_over_the_views(self) -> None:
        assert make(5, dropout=(0.2, 0.4)).rates.flatten().tolist() == pytest.approx([0.2, 0.25, 0.3, 0.35, 0.4])
        assert make(1, dropout=(0.2, 0.4)).rates.flatten().tolist() == pytest.approx([0.3])

    def test_share_and_size_of_what_is_kept(self) -> None:
        heads = ViewHeads(400, C, 3, dropout=(0.1, 0.5))
        n = 50
        many = batch()._replace(index=torch.arange(n), offset=0, total=n)
        masked = heads._drop(torch.ones(n, 400), many)
        for i, rate in enumerate((0.1, 0.3, 0.5)):
            assert float((masked[:, i] == 0).float().mean()) == pytest.approx(rate, abs=0.01)
            assert masked[:, i].unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)])

    def test_a_share_of_a_batch_gets_the_masks_of_its_samples(self) -> None:
        heads, x = make().double(), feature()
        whole = heads._drop(x, batch())
        parts = [heads._drop(x[rows], batch(rows)) for rows in (slice(0, 3), slice(3, B))]
        assert torch.equal(torch.cat(parts), whole)

    def test_none_in_evaluation_and_nothing_from_the_global_generator(self) -> None:
        heads, x = make(), feature(torch.float32)
        before = torch.get_rng_state()
        heads(x, batch())
        assert torch.equal(torch.get_rng_state(), before)
        heads.eval()
        assert torch.equal(heads(x, batch())[0], heads(x, batch()._replace(generator=torch.Generator()))[0])


class TestProjection:
    def test_is_no_parameter_and_travels_with_the_state(self) -> None:
        heads = make(head="projected", width=5)
        assert "projection" not in dict(heads.named_parameters())
        torch.manual_seed(3)
        other = ViewHeads(D, C, N, head="projected", width=5)
        assert not torch.equal(other.projection, heads.projection)
        other.load_state_dict(heads.state_dict())
        assert torch.equal(other.projection, heads.projection)

    def test_lifted_views_keep_offset_and_rest(self) -> None:
        heads, x = make(head="projected", width=5).double(), feature()
        views, anchor, _ = heads(x, batch())
        lifted = heads.lift(views, x)
        assert lifted.shape == (B, N, D)
        assert torch.allclose(lifted @ heads.projection.T, views, atol=1e-6)
        offsets = (x[:, None] - lifted).norm(dim=-1)
        assert torch.allclose(offsets, (anchor[:, None] - views).norm(dim=-1), rtol=1e-5)

    def test_other_heads_need_no_lift(self) -> None:
        heads, x = make().double(), feature()
        views, _, _ = heads(x, batch())
        assert heads.lift(views, x) is views


def test_a_view_may_run_in_another_precision_than_its_teacher() -> None:
    heads = make().double()
    assert heads(feature(torch.float32), batch())[0].dtype == torch.float64
    low = make().bfloat16()
    before = low.running_mean.clone()
    views, _, logits = low(feature(torch.bfloat16), batch())
    assert views.dtype == logits.dtype == torch.float32
    assert not torch.equal(low.running_mean, before)
    with torch.autocast("cpu", torch.bfloat16):
        views, anchor, logits = make()(feature(torch.float32), batch())
    assert views.dtype == anchor.dtype == logits.dtype == torch.float32
