"""Angular-KD as a whole: terms, weights, what trains what, and the released form."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from akd.config import resolve
from akd.data import Batch
from akd.methods import Shapes, WithViews, angular, create_method, hard_target_loss, soft_target, soft_weight
from akd.models import Output

B, C, D, N = 9, 6, 10, 5


def make(host: Any = "kd", seed: int = 0, **settings: Any) -> WithViews:
    config = resolve({"method": {"host": host, "views": {"name": "angular_kd", **settings}}}).method
    method = create_method(config, Shapes(C, 4, D), seed=seed)
    assert isinstance(method, WithViews)
    return method.double()


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def teacher() -> Output:
    return Output(3 * draw(B, C, seed=1), draw(B, D, seed=2).abs())


def student(requires_grad: bool = True) -> Output:
    return Output(draw(B, C, seed=3).requires_grad_(requires_grad), draw(B, 4, seed=4))


def batch(**changes: Any) -> Batch:
    target = torch.arange(B) % C
    fields = {"target2": target, "lam": torch.ones(B), "view": torch.zeros(B, dtype=torch.long)} | changes
    return Batch(torch.arange(B), target, **fields, epoch=1, step=0, generator=torch.Generator().manual_seed(5))


def heads_gradient(method: WithViews, terms: dict[str, Tensor], names: list[str]) -> float:
    loss = torch.stack([terms[n] for n in names]).sum()
    if not loss.requires_grad:
        return 0.0
    grads = torch.autograd.grad(loss, list(method.views.parameters()), allow_unused=True, retain_graph=True)
    return sum(float(g.abs().sum()) for g in grads if g is not None)


class TestTerms:
    def test_each_is_the_published_function_of_the_heads_outputs(self) -> None:
        method = make(margin=0.9, tau_angle=2.0, contrast_temperature=0.3)
        terms = method(student(), teacher(), batch())
        again = make(margin=0.9).views.heads
        features, anchor, z = again(teacher().embedding, batch())
        p, q = (z / 2).softmax(-1), (teacher().logits / 2).softmax(-1)
        want = {
            "embedding_constraint": angular.constraint_loss(features, anchor, 0.9, 0.3),
            "embedding_diversity": angular.diversity_loss(features, anchor, 0.9),
            "embedding_intra": angular.intra_angle_loss(features, anchor),
            "logit_constraint": angular.constraint_loss(p, q, 0.9, 0.3),
            "logit_diversity": angular.diversity_loss(p, q, 0.9),
            "logit_intra": angular.intra_angle_loss(p, q),
            "supervision": torch.stack([F.cross_entropy(z[:, i], batch().target) for i in range(N)]).mean(),
        }
        for name, value in want.items():
            assert terms[f"views/{name}"].item() == pytest.approx(value.item(), rel=1e-9), name
        ensemble = angular.ensemble((teacher().logits / 4).softmax(-1), (z / 4).softmax(-1), 0.8)
        kl = (ensemble * (ensemble.log() - (student().logits / 4).log_softmax(-1))).sum(-1).mean()
        assert terms["kd"].item() == pytest.approx(16 * kl.item(), rel=1e-9)
        assert terms["ce"].item() == pytest.approx(hard_target_loss(student().logits, batch()).item(), rel=1e-12)

    def test_probabilities_may_have_a_margin_of_their_own(self) -> None:
        terms = make(margin=0.9, logit_margin=0.01)(student(), teacher(), batch())
        both, tight = (make(margin=m)(student(), teacher(), batch()) for m in (0.9, 0.01))
        for name, term in terms.items():
            if name.startswith("views/"):
                want = tight if name.startswith("views/logit") else both
                assert term.item() == want[name].item(), name
        assert both["views/logit_constraint"].item() != tight["views/logit_constraint"].item()

    def test_supervision_mixes_labels_and_leaves_out_strong_rows(self) -> None:
        lam, view = torch.linspace(0, 1, B), (torch.arange(B) % 3 == 0).long()
        second = (torch.arange(B) + 2) % C
        method = make(count=2)
        got = method(student(), teacher(), batch(target2=second, lam=lam, view=view))["views/supervision"].item()
        _, _, z = make(count=2).views.heads(teacher().embedding, batch())
        want, first = 0.0, batch().target
        for b in range(B):
            for i in range(2):
                log_p = z[b, i].log_softmax(-1)
                mixed = lam[b] * log_p[first[b]] + (1 - lam[b]) * log_p[second[b]]
                want -= 0.0 if view[b] else mixed.item() / (2 * int((view == 0).sum()))
        assert got == pytest.approx(want, rel=1e-9)

    def test_defaults_are_the_published_effective_weights_at_five_views(self) -> None:
        """Released: 0.8 a view summed over five, and a constraint divided by five once more."""
        assert make().weights() == {
            "ce": 0.1,
            "kd": 0.9,
            "views/embedding_constraint": 0.2,
            "views/embedding_diversity": 1.0,
            "views/embedding_intra": 1.0,
            "views/logit_constraint": 0.2,
            "views/logit_diversity": 1.0,
            "views/logit_intra": 1.0,
            "views/supervision": 4.0,
        }

    def test_weights_follow_the_settings_and_a_weight_of_0_is_no_term(self) -> None:
        settings = {"embedding_inter": 0.5, "constraint": 0.4, "diversity": 2.0, "logit_inter": 0, "logit_intra": 0}
        method = make(**settings, embedding_intra=3.0, supervision=0.0)
        own = {k: v for k, v in method.weights().items() if k.startswith("views/")}
        assert own == {
            "views/embedding_constraint": 0.2,
            "views/embedding_diversity": 1.0,
            "views/embedding_intra": 3.0,
        }
        assert set(method(student(), teacher(), batch())) == {"ce", "kd", *own}

    def test_one_view_has_no_pairs(self) -> None:
        names = make(count=1)(student(), teacher(), batch()).keys()
        assert set(names) == {"ce", "kd", *(f"views/{n}" for n in ("embedding_constraint", "logit_constraint"))} | {
            "views/supervision"
        }

    def test_a_host_without_views_sees_the_same_teacher(self) -> None:
        """Views that weigh nothing leave plain distillation."""
        method = make(view_weight=0.0)
        alone = create_method(resolve({"method": "kd"}).method, Shapes(C))
        got, want = method(student(), teacher(), batch()), alone(student(), teacher(), batch())
        assert {k: got[k].item() for k in want} == pytest.approx({k: v.item() for k, v in want.items()}, rel=1e-9)


class TestRouting:
    @pytest.mark.parametrize("detach", [True, False])
    def test_whether_the_host_trains_the_heads_is_a_setting(self, detach: bool) -> None:
        method = make(detach=detach)
        terms = method(student(), teacher(), batch())
        assert (heads_gradient(method, terms, ["kd"]) > 0) is not detach
        own = [n for n in terms if n.startswith("views/")]
        assert heads_gradient(method, terms, own) > 0

    @pytest.mark.parametrize("detach", [True, False])
    def test_the_views_terms_never_train_the_student(self, detach: bool) -> None:
        method, mine = make(detach=detach), student()
        terms = method(mine, teacher(), batch())
        own = torch.stack([t for n, t in terms.items() if n.startswith("views/")]).sum()
        assert torch.autograd.grad(own, mine.logits, allow_unused=True) == (None,)
        assert float(torch.autograd.grad(terms["kd"], mine.logits)[0].abs().sum()) > 0

    def test_each_term_trains_the_heads(self) -> None:
        method = make(margin=2.0)  # everything is inside, so that diversity counts
        terms = method(student(), teacher(), batch())
        for name in terms:
            if name.startswith("views/"):
                assert heads_gradient(method, terms, [name]) > 0, name

    def test_what_a_host_is_given(self) -> None:
        for detach in (True, False):
            seen, _ = make(detach=detach).views(teacher(), batch())
            assert seen.view_logits.shape == (B, N, C)
            assert seen.view_embeddings.shape == (B, N, D)
            assert seen.view_weights.tolist() == pytest.approx([0.2] + [0.16] * N)
            assert seen.view_logits.requires_grad is seen.view_embeddings.requires_grad is not detach
            assert torch.equal(seen.logits, teacher().logits)
            assert float(soft_target(seen, 4.0)[1]) == pytest.approx(1.0)

    def test_projected_views_have_the_teachers_width_for_a_host(self) -> None:
        seen, _ = make(head="projected", head_width=3).views(teacher(), batch())
        assert seen.view_embeddings.shape == (B, N, D)

    def test_heads_do_not_depend_on_the_host(self) -> None:
        one, two = make("kd"), make({"name": "kd", "temperature": 9.0})
        assert all(torch.equal(a, b) for a, b in zip(one.views.parameters(), two.views.parameters(), strict=True))
        other = make(seed=1)
        assert not torch.equal(one.views.heads.weight, other.views.heads.weight)


class TestSoftWeight:
    def test_of_the_released_ensemble(self) -> None:
        host = {"name": "kd", "temperature": 4.0, "weight": 1.0}
        mass = (1 + 0.8 * 5) / math.sqrt(1 + 0.64 * 5)
        for settings, want in (({}, 16.0), ({"ensemble_norm": 2}, 16 * mass), ({"as_released": True}, 16 * mass)):
            method = make(host, **settings)
            assert method.soft_weight() == pytest.approx(want)
            config = resolve({"method": {"host": host, "views": {"name": "angular_kd", **settings}}}).method
            assert soft_weight(config, C) == method.soft_weight()
            method(student(), teacher(), batch())
            assert method.measures()["views/soft_weight"].item() == pytest.approx(want, rel=1e-6)

    def test_norm_two_multiplies_the_hosts_loss(self) -> None:
        one, two = (make(ensemble_norm=n)(student(), teacher(), batch()) for n in (1, 2))
        mass = (1 + 0.8 * 5) / math.sqrt(1 + 0.64 * 5)
        assert two["kd"].item() == pytest.approx(mass * one["kd"].item(), rel=1e-6)
        assert two["ce"].item() == one["ce"].item()

    def test_of_a_host_alone(self) -> None:
        assert soft_weight(resolve({"method": "none"}).method, C) == 0
        assert soft_weight(resolve({"method": {"host": {"name": "kd", "weight": 3.0}}}).method, C) == 48


class TestAsReleased:
    @pytest.mark.parametrize("margin", [0.2, 1.9])
    def test_total_against_the_released_sum(self, margin: float) -> None:
        """0.1 inter_F + intra_F + inter_Z + intra_Z + 0.8 sum_i CE, the contrast divided by N once more, tau 4."""
        method = make(as_released=True, embedding_inter=0.1, tau_angle=4.0, margin=margin)
        terms, weights = method(student(), teacher(), batch()), method.weights()
        got = sum(weights[n] * t.item() for n, t in terms.items() if n.startswith("views/"))
        features, anchor, z = make(as_released=True).views.heads(teacher().embedding, batch())
        p, q = (z / 4).softmax(-1), (teacher().logits / 4).softmax(-1)
        total = 0.0
        for views, r, inter_weight, feature in ((features, anchor, 0.1, True), (p, q, 1.0, False)):
            contrast = diversity = 0.0
            unit = F.normalize if feature else lambda x, dim: x
            a, own = unit(views, dim=2), unit(r, dim=1)
            across = views / views.square().sum(1, keepdim=True).sqrt() if feature else views
            for b in range(B):
                for i in range(N):
                    s = torch.stack([a[b, i] @ own[other] for other in range(B)])
                    if s[b] >= 1 - margin:
                        s = torch.cat([s[:b], s.new_ones(1), s[b + 1 :]])
                    contrast -= (s / 0.07).log_softmax(0)[b].item() / (B * N)
                if all(across[b, i] @ own[b] > 1 - margin for i in range(N)):
                    pairs = [(i, j) for i in range(N) for j in range(N) if i != j]
                    diversity += sum(F.softplus(across[b, i] @ across[b, j]).item() for i, j in pairs) / (
                        N * (N - 1) * B
                    )
            offsets = F.normalize(r[:, None] - views, dim=2)
            intra = 0.0
            for i in range(N):
                for j in range(N):
                    if i != j:
                        intra += F.softplus((offsets[:, i] * offsets[:, j]).sum(1).mean()).item() / (N * (N - 1))
            total += inter_weight * (contrast / N + diversity) + intra
        total += 0.8 * sum(F.cross_entropy(z[:, i], batch().target).item() for i in range(N))
        assert got == pytest.approx(total, rel=1e-9)

    def test_differs_from_the_mended_form(self) -> None:
        forms = make(margin=1.9), make(margin=1.9, as_released=True)
        mended, released = (form(student(), teacher(), batch()) for form in forms)
        for name in ("embedding_diversity", "embedding_intra", "logit_constraint", "logit_intra"):
            assert mended[f"views/{name}"].item() != pytest.approx(released[f"views/{name}"].item(), rel=1e-3), name


class TestMeasures:
    def test_against_literal_loops(self) -> None:
        method = make(count=3, margin=0.9, view_weight=0.5)
        view = (torch.arange(B) % 4 == 0).long()
        method(student(), teacher(), batch(view=view))
        got = {k: v.item() for k, v in method.measures().items()}
        features, anchor, z = make(count=3).views.heads(teacher().embedding, batch())
        rows = [b for b in range(B) if not view[b]]

        def degrees(a: Tensor, b: Tensor) -> float:
            return math.degrees(math.acos((a @ b / a.norm() / b.norm()).item()))

        to_teacher = [degrees(features[b, i], anchor[b]) for b in range(B) for i in range(3)]
        between = [degrees(features[b, i], features[b, j]) for b in range(B) for i in range(3) for j in range(i)]
        members = torch.cat([teacher().logits[:, None], z], 1).softmax(-1)
        whole = torch.einsum("k,bkc->bc", torch.tensor([0.4, 0.2, 0.2, 0.2], dtype=torch.float64), members)
        y = batch().target
        share = [0.4, 0.2, 0.2, 0.2]
        p = [[members[b, k, y[b]].item() for k in range(4)] for b in range(B)]
        mean = [sum(w * x for w, x in zip(share, row, strict=True)) for row in p]
        spread = [
            sum(w * (x - m) ** 2 for w, x in zip(share, row, strict=True)) / (2 * max(row) ** 2)
            for row, m in zip(p, mean, strict=True)
        ]
        member_loss = [-sum(w * math.log(x) for w, x in zip(share, row, strict=True)) for row in p]
        own = [float(z[b, i].argmax() == y[b]) for b in rows for i in range(3)]
        want = {
            "views/angle_to_teacher": sum(to_teacher) / len(to_teacher),
            "views/angle_between": sum(between) / len(between),
            "views/inside": sum(math.cos(math.radians(x)) >= 0.1 for x in to_teacher) / len(to_teacher),
            "views/accuracy": sum(own) / len(own),
            "views/ensemble_accuracy": sum(float(whole[b].argmax() == y[b]) for b in rows) / len(rows),
            "views/ensemble_loss": -sum(math.log(mean[b]) for b in rows) / len(rows),
            "views/diversity": sum(spread[b] for b in rows) / len(rows),
            "views/bound": sum(member_loss[b] - spread[b] for b in rows) / len(rows),
            "views/soft_weight": 0.9 * 16,
        }
        assert got == pytest.approx(want, rel=1e-6)
        assert got["views/ensemble_loss"] < got["views/bound"]

    def test_carry_no_gradient_and_one_view_has_no_angle_between(self) -> None:
        method = make(count=1, detach=False)
        method(student(), teacher(), batch())
        assert not any(v.requires_grad for v in method.measures().values())
        assert "views/angle_between" not in method.measures()

    def test_before_the_first_step_there_is_nothing(self) -> None:
        assert make().measures() == {}


class TestWarmUp:
    def test_terms_are_the_views_own(self) -> None:
        method = make()
        terms = method.warmup(teacher(), batch())
        assert set(terms) == {n for n in method.weights() if n.startswith("views/")}
        assert method.warmup_epochs == 1
        assert make(head_warmup_epochs=7).warmup_epochs == 7

    def test_views_with_no_terms_have_nothing_to_learn(self) -> None:
        weights = dict.fromkeys(("embedding_inter", "embedding_intra", "logit_inter", "logit_intra", "supervision"), 0)
        assert make(**weights).warmup_epochs == 0

    def test_groups_give_the_heads_their_own_rate(self) -> None:
        method = make(head_lr=0.3)
        host, own = method.groups()
        assert host == ([], 1.0)
        assert own[1] == 0.3
        assert {id(p) for p in own[0]} == {id(p) for p in method.parameters()}
