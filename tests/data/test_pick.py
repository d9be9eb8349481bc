"""Scores of candidates, and what scoring must leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from akd.data.batch import Batch
from akd.data.pick import CRITERIA, Scorer, best, divergence, entropy
from akd.models import seeded_model
from akd.teacher import LiveTeacher

B, C = 7, 5
_N = torch.arange(9)
#: What no network looks at.
BATCH = Batch(_N, _N, _N, _N.float(), _N, 1, 0, torch.Generator())


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(B, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(row: Tensor, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row.tolist()]
    return [p / sum(powers) for p in powers]


def test_entropy_one_by_one() -> None:
    got = entropy(logits(0))
    for row, value in zip(logits(0), got.tolist(), strict=True):
        assert value == pytest.approx(-sum(p * math.log(p) for p in probabilities(row)), rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_divergence_one_by_one(temperature: float) -> None:
    got = divergence(logits(0), logits(1), temperature)
    for t, s, value in zip(logits(0), logits(1), got.tolist(), strict=True):
        q, p = probabilities(t, temperature), probabilities(s, temperature)
        assert value == pytest.approx(sum(a * math.log(a / b) for a, b in zip(q, p, strict=True)), rel=1e-9)
    assert divergence(logits(0), logits(0), temperature).abs().max() < 1e-12


def test_extreme_logits_are_finite_in_bfloat16() -> None:
    far, near = (1000 * logits(0)).bfloat16(), logits(1).bfloat16()
    assert entropy(far).isfinite().all()
    assert divergence(far, near, 4.0).isfinite().all()
    assert divergence(near, far, 1.0).dtype == torch.float32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_best_as_a_sorted_list(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
    assert best(torch.tensor(values, dtype=torch.float64), count).tolist() == sorted(ranked[:count])


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_everything_as_it_was(criterion: str, training: bool, images: Tensor) -> None:
    student, teacher = (
        seeded_model("resnet8", 10, seed=0, in_channels=1),
        seeded_model("wrn_16_1", 10, 1, in_channels=1),
    )
    student.train(training)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    state = torch.get_rng_state()
    scores = Scorer(criterion, 4.0, student, LiveTeacher(teacher))(images, BATCH)
    assert scores.shape == (9,)
    assert not scores.requires_grad
    assert student.training == training
    assert all(m.training == training for m in student.modules())
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        z_s, z_t = student.eval()(images).logits, teacher.eval()(images).logits
    want = {"teacher_entropy": entropy(z_t), "student_entropy": entropy(z_s), "kl": divergence(z_t, z_s, 4.0)}
    assert torch.equal(scores, want[criterion])


def test_a_score_does_not_hang_on_the_other_images(images: Tensor) -> None:
    student, teacher = (
        seeded_model("resnet8", 10, seed=0, in_channels=1),
        seeded_model("wrn_16_1", 10, 1, in_channels=1),
    )
    scorer = Scorer("kl", 4.0, student.double().train(), LiveTeacher(teacher.double()))
    whole = scorer(images.double(), BATCH)
    assert torch.allclose(torch.cat([scorer(part, BATCH) for part in images.double().split(2)]), whole, rtol=1e-9)


def test_needs_a_teacher_only_if_it_asks_one(images: Tensor) -> None:
    student = seeded_model("resnet8", 10, seed=0, in_channels=1)
    assert Scorer("student_entropy", 1.0, student, None)(images, BATCH).shape == (9,)
    for criterion in ("teacher_entropy", "kl"):
        with pytest.raises(ValueError, match="needs a teacher"):
            Scorer(criterion, 1.0, student, None)


def test_bfloat16_scores(images: Tensor) -> None:
    student = seeded_model("resnet8", 10, seed=0, in_channels=1)
    teacher = LiveTeacher(seeded_model("wrn_16_1", 10, 1, in_channels=1))
    low, high = (Scorer("kl", 4.0, student, teacher, amp)(images, BATCH) for amp in (True, False))
    assert low.dtype == torch.float32
    assert torch.allclose(low, high, atol=0.1)
    assert not torch.equal(low, high)
