"""CRD against its formulas written out in loops: in the batch, and step after step with the memory banks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from akd.config import resolve
from akd.errors import ExperimentError
from akd.methods import Method, Shapes, create_method
from akd.methods.bank import UNKNOWN, UNSEEN, nce_loss, scores
from akd.methods.crd import in_batch_loss
from akd.models import Output
from tests.methods.slow import Vector, dot, draw, make_batch, unit

S, T, W = 5, 7, 4  # widths of student, teacher and of what both are mapped to


def build(images: int = 40, **settings: Any) -> Method:
    config = resolve({"method": {"host": {"name": "crd", "width": W, **settings}}}).method
    return create_method(config, Shapes(3, S, T, images=images)).double()


def outputs(rows: int, seed: int = 0) -> tuple[Output, Output]:
    return tuple(Output(draw(rows, 3, seed=seed + k), draw(rows, d, seed=seed + k + 10)) for k, d in ((0, S), (1, T)))


def embedded(method: Any, student: Output, teacher: Output) -> tuple[list[Vector], list[Vector]]:
    """Both networks' rows through their linear layers, at length 1."""
    found = []
    for layer, x in ((method.student, student.embedding), (method.teacher, teacher.embedding)):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        found.append([unit([dot(w, row) + b for w, b in zip(weight, bias, strict=True)]) for row in x.tolist()])
    return found[0], found[1]


def slow_in_batch(u: list[Vector], v: list[Vector], labels: list[int], t: float) -> float:
    total = 0.0
    for a, b in ((u, v), (v, u)):
        for i in range(len(u)):
            row = [dot(a[i], b[j]) / t for j in range(len(u)) if j == i or labels[j] != labels[i]]
            total += math.log(sum(math.exp(s) for s in row)) - dot(a[i], b[i]) / t
    return total / len(u)


class SlowBanks:
    """The memory banks in dictionaries and loops."""

    def __init__(self, method: Any, t: float, momentum: float):
        self.banks = [method.banks.teacher.tolist(), method.banks.student.tolist()]  # what u, what v is compared with
        self.t, self.momentum = t, momentum
        self.order: list[int] = []
        self.labels: dict[int, int] = {}
        self.z: list[float] = []

    def step(self, u: list[Vector], v: list[Vector], index: list[int], labels: list[int], uniform: Tensor) -> float:
        for i, label in zip(index, labels, strict=True):
            if i not in self.labels:
                self.order.append(i)
            self.labels[i] = label
        k, total = uniform.shape[1], 0.0
        first = not self.z
        for side, queries in enumerate((u, v)):
            bank, rows = self.banks[side], []
            for q, i, label, numbers in zip(queries, index, labels, uniform.tolist(), strict=True):
                drawn = [self.order[int(x * len(self.order))] for x in numbers]
                others = [dot(q, bank[j]) / self.t for j in drawn if self.labels[j] != label]
                rows.append((dot(q, bank[i]) / self.t, others))
            if first:
                every = [math.exp(s) for positive, others in rows for s in (positive, *others)]
                self.z.append(sum(every) / len(every))
            z = self.z[side]
            for positive, others in rows:
                value = math.log(math.exp(positive) / (math.exp(positive) + k * z))
                if others:
                    value += k / len(others) * sum(math.log(k * z / (math.exp(s) + k * z)) for s in others)
                total -= value / len(index)
        for bank, new in ((self.banks[1], u), (self.banks[0], v)):
            for i, row in zip(index, new, strict=True):
                mixed = [self.momentum * a + (1 - self.momentum) * b for a, b in zip(bank[i], row, strict=True)]
                bank[i] = unit(mixed)
        return total


class TestInBatch:
    def test_against_the_literal_sum(self) -> None:
        method, pair = build(form="batch", temperature=0.2), outputs(8)
        got = method(*pair, make_batch(8))["crd"]
        want = slow_in_batch(*embedded(method, *pair), [i % 3 for i in range(8)], 0.2)
        assert float(got) == pytest.approx(want, rel=1e-9)

    def test_golden(self) -> None:
        """Two images of different classes at right angles: log(1 + e^(-1 / t)) each, in both directions."""
        eye = torch.eye(2, dtype=torch.float64)
        got = in_batch_loss(eye, eye, ~eye.bool(), 0.5)
        assert float(got) == pytest.approx(2 * math.log(1 + math.exp(-2)), rel=1e-12)

    def test_gradient(self) -> None:
        u, v, apart = draw(4, 3, seed=1).requires_grad_(), draw(4, 3, seed=2).requires_grad_(), make_batch(4).target
        negatives = apart[:, None] != apart
        assert torch.autograd.gradcheck(lambda a, b: in_batch_loss(a, b, negatives, 0.3), (u, v))

    def test_without_negatives_it_is_zero(self) -> None:
        """One image, or images of one class: allowed, and nothing to learn."""
        method = build(form="batch")
        for rows in (1, 4):
            assert float(method(*outputs(rows), make_batch(rows, classes=1))["crd"]) == 0

    def test_two_views_of_an_image_are_no_negatives(self) -> None:
        """Rows 0 to 2 are the standard, rows 3 to 5 the strong view of the same images, whose class is not told."""
        method, pair = build(form="batch", temperature=0.2), outputs(6)
        index, view = torch.arange(6) % 3, (torch.arange(6) >= 3).long()
        got = method(*pair, make_batch(6, index=index, view=view, views=2))["crd"]
        u, v = embedded(method, *pair)
        assert float(got) == pytest.approx(slow_in_batch(u, v, index.tolist(), 0.2), rel=1e-9)

    def test_has_no_bank_and_refuses_its_settings(self) -> None:
        assert "banks" not in {name.split(".")[0] for name in build(images=0, form="batch").state_dict()}
        with pytest.raises(ExperimentError, match="has no effect while form is 'batch'"):
            resolve({"method": {"host": {"name": "crd", "form": "batch", "negatives": 100}}})


class TestBanks:
    @pytest.mark.parametrize("images", [40, 400], ids=["all products", "entries fetched"])
    def test_three_steps_against_loops(self, images: int) -> None:
        """400 images are more than 16 * K, where entries are fetched instead of multiplied with the whole bank."""
        method = build(images, negatives=6, temperature=0.3, momentum=0.6)
        slow, generator = SlowBanks(method, 0.3, 0.6), torch.Generator().manual_seed(5)
        for step, index in enumerate(([3, 8, 20, 11, 0], [8, 30, 1, 3, 39], [20, 5, 8, 7, 2])):
            pair = outputs(5, seed=20 * step)
            batch = make_batch(5, index=torch.tensor(index), step=step)
            batch = batch._replace(generator=generator, target=torch.tensor(index) % 3)
            uniform = torch.rand(5, 6, generator=copy_of(generator))
            want = slow.step(*embedded(method, *pair), index, [i % 3 for i in index], uniform)
            got = method(*pair, batch)["crd"]
            got.backward()  # after the update of the banks, which must not disturb it
            assert float(got) == pytest.approx(want, rel=1e-9)
        assert method.banks.order[: len(slow.order)].tolist() == slow.order
        assert int(method.banks.count) == len(slow.order) == 11
        assert method.banks.log_z.exp().tolist() == pytest.approx(slow.z, rel=1e-9)
        for bank, rows in zip((method.banks.teacher, method.banks.student), slow.banks, strict=True):
            assert torch.allclose(bank, torch.tensor(rows, dtype=torch.float64), rtol=1e-9)

    @pytest.mark.parametrize("images", [20, 400])
    def test_gradient_of_the_embeddings(self, images: int) -> None:
        bank, own = draw(images, W), torch.tensor([3, 1, 2])
        drawn = torch.randint(images, (3, 6), generator=torch.Generator().manual_seed(0))
        counted, query = drawn % 3 != 0, draw(3, W, seed=1).requires_grad_()

        def loss(q: Tensor) -> Tensor:
            return nce_loss(*scores(q, bank, own, drawn), counted, torch.tensor(0.3, dtype=torch.float64))

        assert torch.autograd.gradcheck(loss, (query,))

    def test_golden(self) -> None:
        """One negative with Z = 1, all scores 0: h is 1/2 on both sides."""
        zero = torch.zeros(2, 1, dtype=torch.float64)
        got = nce_loss(zero[:, 0], zero, torch.ones(2, 1, dtype=torch.bool), torch.zeros((), dtype=torch.float64))
        assert float(got) == pytest.approx(2 * math.log(2), rel=1e-12)

    def test_evaluation_changes_and_draws_nothing(self) -> None:
        method = build(negatives=6)
        method(*outputs(5), make_batch(5))
        method.eval()
        before = copy.deepcopy(method.state_dict())
        batch = make_batch(5)
        state = batch.generator.get_state()
        one, two = (method(*outputs(5, seed=3), batch)["crd"] for _ in range(2))
        assert float(one) == float(two) > 0
        assert torch.equal(batch.generator.get_state(), state)
        assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())

    def test_negatives_are_seen_images_of_other_classes(self) -> None:
        method = build(images=1000, negatives=300)
        seen = torch.arange(6) * 50
        method(*outputs(6), make_batch(6, index=seen))
        drawn = method.banks._draw(make_batch(6, index=seen), 300)
        assert set(drawn.flatten().tolist()) == set(seen.tolist())
        assert (method.banks.labels != UNSEEN).sum() == 6
        alone = build(negatives=8)
        one_class = alone(*outputs(4), make_batch(4, classes=1))["crd"]
        assert one_class.isfinite()  # positives only

    def test_the_second_view_of_an_image_neither_counts_twice_nor_tells_its_class(self) -> None:
        method = build(negatives=4)
        index, view = torch.tensor([4, 9, 4, 9]), torch.tensor([0, 0, 1, 1])
        pair = outputs(4)
        method(*pair, make_batch(4, index=index, view=view, views=2))
        assert int(method.banks.count) == 2
        assert method.banks.labels[index[:2]].tolist() == [0, 1]
        before = build(negatives=4).banks.student[4]
        mixed = 0.5 * before + 0.5 * torch.tensor(embedded(method, *pair)[0][0], dtype=before.dtype)
        assert torch.allclose(method.banks.student[4], mixed / mixed.norm(), rtol=1e-9)
        method(*outputs(2), make_batch(2, index=torch.tensor([4, 7]), view=torch.ones(2, dtype=torch.long)))
        assert method.banks.labels[[4, 7]].tolist() == [0, UNKNOWN]

    def test_an_image_in_several_rows_is_entered_once_with_the_first(self) -> None:
        """Augmentations that pick candidates may show one image twice in the first view."""
        method, whole = build(negatives=4), build(negatives=4)
        index, (student, teacher) = torch.tensor([6, 2, 6, 6, 9]), outputs(5)
        method(student, teacher, make_batch(5, index=index))
        assert int(method.banks.count) == 3
        assert method.banks.order[:4].tolist() == [6, 2, 9, 0]
        assert method.banks.labels[[6, 2, 9]].tolist() == [0, 1, 1]
        once = torch.tensor([0, 1, 4])
        some = (Output(o.logits[once], o.embedding[once]) for o in (student, teacher))
        whole(*some, make_batch(3, index=index[once]))
        assert torch.equal(method.banks.student, whole.banks.student)
        assert torch.equal(method.banks.teacher, whole.banks.teacher)

    def test_goes_on_from_a_checkpoint(self) -> None:
        """Banks, what has been seen and Z survive the file format of checkpoints."""
        one, two = build(negatives=6), build(negatives=6)
        one(*outputs(5), make_batch(5))
        two.load_state_dict(load(save({k: v.contiguous() for k, v in one.state_dict().items()})))
        batch = make_batch(5, index=torch.arange(5) + 3)
        a, b = (m(*outputs(5, seed=9), batch._replace(generator=torch.Generator().manual_seed(1))) for m in (one, two))
        assert float(a["crd"]) == float(b["crd"])
        assert all(torch.equal(v, two.state_dict()[k]) for k, v in one.state_dict().items())

    def test_needs_the_number_of_images(self) -> None:
        with pytest.raises(ValueError, match=r"Shapes\.images"):
            build(images=0)


@pytest.mark.parametrize("form", ["bank", "batch"])
def test_the_teacher_side_is_the_mean_of_the_ensemble(form: str) -> None:
    settings: dict[str, Any] = {"form": form} | ({"negatives": 6} if form == "bank" else {})
    student, teacher = outputs(5)
    views, weights = draw(5, 2, T, seed=4), torch.tensor([1.0, 0.5, 0.25])
    seen = teacher._replace(view_embeddings=views, view_weights=weights)
    mean = (teacher.embedding + 0.5 * views[:, 0] + 0.25 * views[:, 1]) / 1.75
    got, want = (build(**settings)(student, t, make_batch(5))["crd"] for t in (seen, teacher._replace(embedding=mean)))
    assert float(got) == pytest.approx(float(want), rel=1e-12)


def copy_of(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().set_state(generator.get_state())
