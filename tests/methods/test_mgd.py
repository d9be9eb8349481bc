"""MGD: branches and losses against literal networks and loops, the target, and what trains what when."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd import checkpoint
from akd.config import Experiment, resolve
from akd.data import Batch, DataConfig, TrainData, load, split
from akd.errors import ExperimentError
from akd.fit import HeadRecord, fit, metrics_equal
from akd.methods import Shapes, WithViews, create_method
from akd.methods.mgd import MGD, granularity_loss, spread
from akd.methods.stacked import StackedMLP
from akd.models import Output, seeded_model
from akd.teacher import LiveTeacher

B, C, D, D_S = 5, 6, 7, 4
SMALL = {"count": 3, "width_low": 2, "width_high": 18}  # widths 2, 6, 18


def make(host: Any = "kd", seed: int = 0, **settings: Any) -> WithViews:
    config = resolve({"method": {"host": host, "views": {"name": "mgd", **SMALL, **settings}}}).method
    method = create_method(config, Shapes(C, D_S, D), seed=seed)
    assert isinstance(method, WithViews)
    return method.double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def outputs(rows: int = B) -> tuple[Output, Output]:
    student = Output(draw(rows, C, seed=3).requires_grad_(), draw(rows, D_S, seed=4).requires_grad_())
    return student, Output(3 * draw(rows, C, seed=1), draw(rows, D, seed=2).abs())


def batch(rows: int = B, **changes: Any) -> Batch:
    target = torch.arange(rows) % C
    fields = {"target2": target, "lam": torch.ones(rows), "view": torch.zeros(rows, dtype=torch.long)} | changes
    return Batch(torch.arange(rows), target, **fields, epoch=1, step=0, generator=torch.Generator().manual_seed(5))


def apart(stack: StackedMLP, inputs: list[int], outs: list[int]) -> list[nn.Sequential]:
    """The networks of a stack as they are written in the paper, one by one."""
    nets = []
    for k, (i, o) in enumerate(zip(inputs, outs, strict=True)):
        hidden = stack.bias.shape[1]
        net = nn.Sequential(nn.Linear(i, hidden), nn.ReLU(), nn.Linear(hidden, o)).double()
        net[0].weight.data, net[0].bias.data = stack.weight[k, :, :i].data, stack.bias[k].data
        net[2].weight.data, net[2].bias.data = stack.out_weight[k, :o].data, stack.out_bias[k, :o].data
        nets.append(net)
    return nets


def literal_kl(q: Tensor, p: Tensor, tau: float) -> float:
    """tau^2 mean_b sum_c q log(q / p) of logits [B, K], term by term."""
    total = 0.0
    for row_q, row_p in zip(q.tolist(), p.tolist(), strict=True):
        a, b = ([math.exp(v / tau) for v in row] for row in (row_q, row_p))
        for x, y in zip(a, b, strict=True):
            total += x / sum(a) * math.log(x / sum(a) / (y / sum(b)))
    return tau**2 * total / len(q)


class TestStack:
    def test_is_the_networks_one_by_one(self) -> None:
        torch.manual_seed(0)
        stack = StackedMLP([3, 1, 5], 4, [2, 6, 1]).double()
        x = draw(B, 3, 5, seed=1)
        got = stack(x)
        for k, net in enumerate(apart(stack, [3, 1, 5], [2, 6, 1])):
            want = net(x[:, k, : net[0].in_features])
            width = want.shape[1]
            assert torch.allclose(got[:, k, :width], want, rtol=1e-12)
            assert (got[:, k, width:] == 0).all()

    def test_starts_as_linear_layers_do(self) -> None:
        torch.manual_seed(0)
        stack = StackedMLP([64, 400], 300, [100, 30])
        for k, (fan_in, out) in enumerate([(64, 100), (400, 30)]):
            for part, n in ((stack.weight[k, :, :fan_in], fan_in), (stack.out_weight[k, :out], 300)):
                assert part.abs().max().item() <= n**-0.5
                assert part.std().item() == pytest.approx((3 * n) ** -0.5, rel=0.05)
        assert (stack.weight[0, :, 64:] == 0).all()
        assert (stack.out_weight[1, 30:] == 0).all()

    def test_padding_stays_zero_in_training(self) -> None:
        method = make(head_warmup_epochs=0)
        optimizer = torch.optim.SGD(method.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            torch.stack(list(method(*outputs(), batch()).values())).sum().backward()
            optimizer.step()
        views = method.views
        for stack, inputs, outs in (
            (views.encoder, [D] * 3, [2, 6, 18]),
            (views.decoder, [2, 6, 18], [C] * 3),
            (views.student_encoder, [D_S] * 3, [2, 6, 18]),
        ):
            used = [sum(p.numel() for p in net.parameters()) for net in apart(stack, inputs, outs)]
            assert sum(int((p != 0).sum()) for p in stack.parameters()) == sum(used)


class TestSettings:
    def test_published_branches(self) -> None:
        views = make(count=2, width_low=64, width_high=256).views
        assert views.widths == [64, 256]
        assert views.temperatures.tolist() == [2.0, 8.0]

    def test_spread(self) -> None:
        assert spread(2, 8, 1) == pytest.approx([4])
        assert spread(16, 1024, 4) == pytest.approx([16, 64, 256, 1024])
        assert spread(5, 5, 3) == pytest.approx([5, 5, 5])

    def test_weights(self) -> None:
        own = {f"views/granularity_{k}": w for k, w in ((1, 1.0), (2, 1.5), (3, 2.0))}
        assert make(weight_high=2.0).weights() == {
            "ce": 0.1,
            "kd": 0.9,
            "views/branch_kd": 1.0,
            "views/branch_ce": 1.0,
            **own,
        }
        none = make(weight_low=0.0, weight_high=0.0, supervision=0.0)
        assert set(none.weights()) == {"ce", "kd", "views/branch_kd"}
        assert none.views.student_encoder is None
        assert set(none(*outputs(), batch())) == {"ce", "kd"}
        first = make(weight_low=0.0)  # the ends are linear, so that one may be 0
        assert [n for n in first(*outputs(), batch()) if "granularity" in n] == [
            "views/granularity_2",
            "views/granularity_3",
        ]

    def test_one_branch(self) -> None:
        method = make(count=1)
        assert method.views.widths == [6]
        assert method.views.temperatures.tolist() == pytest.approx([4.0])
        assert method(*outputs(), batch())["views/granularity_1"].item() > 0


class TestStageOne:
    def test_against_the_literal_sum(self) -> None:
        method, (_, teacher) = make(), outputs()
        views, second = method.views, (torch.arange(B) + 2) % C
        lam, view = torch.linspace(0, 1, B), (torch.arange(B) == 1).long()
        mixed = batch(target2=second, lam=lam, view=view)
        terms = method.warmup(teacher, mixed)
        kd = ce = 0.0
        encoders, decoders = apart(views.encoder, [D] * 3, views.widths), apart(views.decoder, views.widths, [C] * 3)
        for encode, decode, tau in zip(encoders, decoders, [2.0, 4.0, 8.0], strict=True):
            z = decode(encode(teacher.embedding))
            kd += literal_kl(teacher.logits, z, tau)
            log_p = z.log_softmax(1)
            for b in range(B):
                if not view[b]:
                    one, two = log_p[b, mixed.target[b]].item(), log_p[b, second[b]].item()
                    ce -= (float(lam[b]) * one + (1 - float(lam[b])) * two) / (B - 1)
        assert terms["views/branch_kd"].item() == pytest.approx(kd, rel=1e-9)
        assert terms["views/branch_ce"].item() == pytest.approx(ce, rel=1e-7)  # lam is float32

    def test_branches_are_trained_each_by_itself(self) -> None:
        """The gradient of one branch does not hang on how many there are beside it."""
        method, (_, teacher) = make(), outputs()
        torch.stack(list(method.warmup(teacher, batch()).values())).sum().backward()
        views = method.views
        encode, decode = apart(views.encoder, [D] * 3, views.widths)[1], apart(views.decoder, views.widths, [C] * 3)[1]
        z = decode(encode(teacher.embedding))
        kl = F.kl_div((z / 4).log_softmax(1), (teacher.logits / 4).softmax(1), reduction="batchmean") * 16
        (kl + F.cross_entropy(z, batch().target)).backward()
        assert torch.allclose(views.encoder.weight.grad[1], encode[0].weight.grad, rtol=1e-9, atol=1e-12)
        assert torch.allclose(views.decoder.out_weight.grad[1], decode[2].weight.grad, rtol=1e-9, atol=1e-12)

    def test_no_student_encoder_is_trained(self) -> None:
        method = make()
        torch.stack(list(method.warmup(outputs()[1], batch()).values())).sum().backward()
        assert all(p.grad is None for p in method.views.student_encoder.parameters())
        assert set(method.measures()) == {"views/accuracy", "views/target_accuracy"}


class TestStageTwo:
    def test_granularity_against_literal_loops(self) -> None:
        method, (student, teacher) = make(), outputs()
        terms, views = method(student, teacher, batch()), method.views
        theirs = apart(views.encoder, [D] * 3, views.widths)
        mine = apart(views.student_encoder, [D_S] * 3, views.widths)
        for k, tau in enumerate([2.0, 4.0, 8.0]):
            want = literal_kl(theirs[k](teacher.embedding), mine[k](student.embedding), tau)
            assert terms[f"views/granularity_{k + 1}"].item() == pytest.approx(want, rel=1e-9)

    @pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
    def test_host_learns_from_the_mean_of_logits(self, weight: float) -> None:
        method, (student, teacher) = make(branch_weight=weight), outputs()
        views = method.views
        total = teacher.logits.clone()
        for encode, decode in zip(
            apart(views.encoder, [D] * 3, views.widths), apart(views.decoder, views.widths, [C] * 3), strict=True
        ):
            total += weight * decode(encode(teacher.embedding))
        want = literal_kl(total / (1 + 3 * weight), student.logits, 4.0)
        assert method(student, teacher, batch())["kd"].item() == pytest.approx(want, rel=1e-9)
        seen, _ = views(teacher, batch())
        assert seen.view_logits is None
        assert torch.equal(seen.embedding, teacher.embedding)

    @pytest.mark.parametrize("name", ["at", "sp", "fitnet", "vid"])
    def test_over_a_host_of_maps_with_the_divergence_beside_it(self, name: str) -> None:
        """CE + host + tau^2 KL to the mean of logits + granularity, as the paper has it over such hosts."""
        how = {"host": name, "extra": {"kd": {"weight": 1.0}}, "views": {"name": "mgd", **SMALL}}
        maps = [
            tuple(draw(B, c, 4, 4, seed=seed + c).relu().requires_grad_(seed == 20) for c in (2, 3, 4))
            for seed in (20, 30)
        ]
        shapes = Shapes(C, D_S, D, (2, 3, 4), (2, 3, 4))
        both = create_method(resolve({"method": how}).method, shapes).double()
        alone = create_method(resolve({"method": name}).method, shapes).double()
        student, teacher = (o._replace(maps=m) for o, m in zip(outputs(), maps, strict=True))
        found, weights = both(student, teacher, batch()), both.weights()
        seen = both.views(teacher, batch())[0].logits  # type: ignore[operator]
        want = alone(student, teacher, batch())
        assert {k: found[k].item() for k in want} == pytest.approx({k: t.item() for k, t in want.items()})
        assert found["extra/kd/kd"].item() == pytest.approx(literal_kl(seen, student.logits, 4.0), rel=1e-9)
        assert not torch.allclose(seen, teacher.logits)
        assert list(found) == ["ce", name, "extra/kd/kd", *(f"views/granularity_{k}" for k in (1, 2, 3))]
        assert [weights[k] for k in found][2:] == [1.0] * 4
        with pytest.raises(ExperimentError, match=rf"over {name}, which learns from no logits .*may, extra: \[kd\]$"):
            resolve({"method": {"host": name, "views": "mgd"}})

    def test_native_target_leaves_the_host_its_teacher(self) -> None:
        student, teacher = outputs()
        alone = create_method(resolve({"method": "kd"}).method, Shapes(C))
        for warmup in (0, 5):
            terms = make(target="native", head_warmup_epochs=warmup)(student, teacher, batch())
            assert terms["kd"].item() == alone(student, teacher, batch())["kd"].item()

    def test_branches_rest_after_head_epochs(self) -> None:
        method = make()
        torch.stack(list(method(*outputs(), batch()).values())).sum().backward()
        trained = {name.split(".")[1] for name, p in method.named_parameters() if p.grad is not None}
        assert trained == {"student_encoder"}

    def test_without_head_epochs_they_learn_from_stage_one_alone(self) -> None:
        method, (student, teacher) = make(head_warmup_epochs=0), outputs()
        terms = method(student, teacher, batch())
        assert list(terms) == list(method.weights())
        branches = [*method.views.encoder.parameters(), *method.views.decoder.parameters()]
        for name, term in terms.items():
            grads = torch.autograd.grad(term, branches, allow_unused=True, retain_graph=True)
            reached = any(g is not None and float(g.abs().sum()) > 0 for g in grads)
            assert reached == name.startswith("views/branch"), name

    def test_learning_rates(self) -> None:
        method = make(head_lr=0.3)
        (_, host), (branches, slow), (own, fast) = method.groups()
        assert (host, slow, fast) == (1.0, 0.3, 1.0)
        assert {id(p) for p in own} == {id(p) for p in method.views.student_encoder.parameters()}
        assert len(branches) + len(own) == len(list(method.parameters()))

    def test_gradcheck(self) -> None:
        target, mask = draw(B, 2, 5, seed=6), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
        tau = torch.tensor([2.0, 5.0], dtype=torch.float64)
        x = draw(B, 2, 5, seed=7).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: granularity_loss(x, target, tau, mask), x)
        assert torch.autograd.grad(granularity_loss(x, target, tau, mask).sum(), x)[0][:, 1, 3:].abs().max() == 0

    def test_golden(self) -> None:
        student = torch.tensor([[[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]]], dtype=torch.float64)
        target = torch.tensor([[[2.0, 0.0, 1.0], [0.5, 0.5, 0.0]]], dtype=torch.float64)
        mask = torch.tensor([[False] * 3, [False, False, True]])
        got = granularity_loss(student, target, torch.tensor([1.0, 2.0]), mask)
        # Log ratios 2, -1, -1; and of two units at tau 2: 4 (log cosh(1/2)), the target being even.
        q = [math.exp(x) / (math.e**2 + 1 + math.e) for x in (2, 0, 1)]
        assert got.tolist() == pytest.approx([2 * q[0] - q[1] - q[2], 4 * math.log(math.cosh(0.5))], rel=1e-12)

    def test_batch_of_one_and_bfloat16(self) -> None:
        assert all(t.isfinite() for t in make()(*outputs(1), batch(1)).values())
        student, teacher = outputs()
        narrow = [Output(o.logits.bfloat16(), o.embedding.bfloat16()) for o in (student, teacher)]
        assert all(t.isfinite() for t in make()(*narrow, batch()).values())
        seen, _ = make().float().views(narrow[1], batch())
        assert seen.logits.dtype == torch.float32

    def test_effective_weight_of_soft_targets(self) -> None:
        method = make()
        assert method.soft_weight() == pytest.approx(0.9 * 16)
        assert MGD.mass(method.views.config) == 1


EPOCHS, HEADS = 2, 2


@pytest.fixture(scope="module")
def data() -> TrainData:
    config = DataConfig(subset=200)
    return split(config, load(config))


def experiment(heads: int = HEADS, **train: Any) -> Experiment:
    views = {"name": "mgd", "width_low": 4, "width_high": 20, "head_warmup_epochs": heads, "head_lr": 1.0}
    settings = {"epochs": EPOCHS, "lr": 0.1, "precision": "float32", "weight_decay": 0.1, "ema": 0.9, **train}
    return resolve({"method": {"host": "kd", "views": views}, "train": settings})


class TestInTraining:
    """The loop on a hundred digits: momentum, weight decay and averaging on."""

    def test_frozen_after_head_epochs_to_the_bit_also_after_resuming_anywhere(
        self, data: TrainData, tmp_path: Path
    ) -> None:
        net = seeded_model("resnet8", 10, seed=3, in_channels=1)
        states: dict[str, dict[str, Tensor]] = {}

        def keep(record: Any) -> None:
            name = f"h{record.head_epoch}" if isinstance(record, HeadRecord) else f"e{record.epoch}"
            states[name] = copy.deepcopy(record.state.method.state_dict())
            record.state.save(tmp_path, keep=9)

        whole = fit(experiment(), data, LiveTeacher(net), report=keep, report_heads=keep)
        assert list(states) == ["h1", "h2", "e1", "e2"]
        branches = [k for k in states["h1"] if k.startswith(("views.encoder.", "views.decoder."))]
        own = [k for k in states["h1"] if k.startswith("views.student_encoder.")]
        assert len(branches) == 8
        assert len(own) == 4
        for k in branches:
            assert not torch.equal(states["h1"][k], states["h2"][k]), k
            assert torch.equal(states["h2"][k], states["e1"][k]), k
            assert torch.equal(states["h2"][k], states["e2"][k]), k
        for k in own:
            assert torch.equal(states["h1"][k], states["h2"][k]), k
            assert not torch.equal(states["h2"][k], states["e1"][k]), k
        final = states["e2"]
        for path in checkpoint.all_checkpoints(tmp_path):
            last: dict[str, Tensor] = {}
            again = fit(
                experiment(),
                data,
                LiveTeacher(net),
                start=path,
                report=lambda r, last=last: last.update(copy.deepcopy(r.state.method.state_dict())),
            )
            assert all(torch.equal(last[k], final[k]) for k in final), path.name
            assert all(map(metrics_equal, again.history, whole.history))

    def test_stage_one_teaches_the_branches(self, data: TrainData) -> None:
        """Of a network trained on the digits the branches learn what it says."""
        small = {"batch_size": 16, "weight_decay": 5e-4}
        none = resolve({"method": "none", "train": {"epochs": 8, "lr": 0.1, "precision": "float32", **small}})
        net = fit(none, data, None).student
        heads: list[dict[str, float]] = []
        e = experiment(8, epochs=1, **small)
        result = fit(e, data, LiveTeacher(net), report_heads=lambda record: heads.append(record.metrics))
        assert heads[-1]["loss/views/branch_kd"] < heads[0]["loss/views/branch_kd"]
        assert heads[-1]["views/accuracy"] > 0.3 > 0.2 > heads[0]["views/accuracy"]  # of ten classes
        assert {"views/accuracy", "views/target_accuracy", "loss/views/granularity_1"} <= result.history[0].keys()
        assert "loss/views/branch_kd" not in result.history[0]

    @pytest.mark.parametrize("precision", ["bfloat16", "float64"])
    @pytest.mark.parametrize("heads", [0, 1])
    def test_other_precisions_than_the_teachers(self, data: TrainData, precision: str, heads: int) -> None:
        net = seeded_model("resnet8", 10, seed=3, in_channels=1)
        # A small rate: after two epochs the runs are still close.
        kw = {"lr": 0.002, "weight_decay": 5e-4}
        result, wide = (
            fit(experiment(heads, precision=p, **kw), data, LiveTeacher(net)) for p in (precision, "float32")
        )
        for name in ("loss/kd", "loss/views/granularity_1", "loss/views/granularity_2"):
            assert result.history[-1][name] == pytest.approx(wide.history[-1][name], rel=0.05, abs=1e-4), name
