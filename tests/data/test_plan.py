"""EpochPlan is a contract: caches and published runs hang on these exact numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from akd.data import EpochPlan, training_order
from akd.seeds import derive, generator

COLUMNS = ("crop", "flip", "mix", "box", "strong", "resized_crop")


class TestColumns:
    def test_golden_first_rows(self) -> None:
        """If this fails, every teacher cache and every recorded run stops being repeatable: do not update lightly."""
        plan = EpochPlan(plan_seed=0, epoch=1, size=5)
        assert plan.crop[0].tolist() == pytest.approx([0.2762372494, 0.4201636314], abs=1e-9)
        assert plan.crop[1].tolist() == pytest.approx([0.8218596578, 0.2513658404], abs=1e-9)
        assert plan.flip.tolist() == [False, False, False, True, True]
        assert plan.mix[:2].tolist() == pytest.approx([0.0457736850, 0.8203555346], abs=1e-9)
        assert plan.box[0].tolist() == pytest.approx([0.0845361948, 0.0755060315], abs=1e-9)
        assert plan.strong[0, :3].tolist() == pytest.approx([0.3705313802, 0.6182689667, 0.8174972534], abs=1e-9)
        assert plan.resized_crop[0].tolist() == pytest.approx([0.2116935253, 0.3743518591, 0.8567849398, 0.5562933087])
        assert EpochPlan(0, 1, 8).partner(torch.arange(8)).tolist() == [6, 2, 0, 7, 5, 3, 4, 1]
        assert EpochPlan(3, 2, 8).partner(torch.tensor([1, 2, 5, 7])).tolist() == [-1, 7, 1, -1, -1, 2, -1, 5]
        assert training_order(0, 1, torch.arange(10)).tolist() == [2, 3, 6, 7, 9, 0, 4, 1, 5, 8]

    def test_shapes_and_range(self) -> None:
        plan = EpochPlan(1, 1, 1000)
        shapes = [(1000, 2), (1000,), (1000,), (1000, 2), (1000, 8), (1000, 4)]
        assert [tuple(getattr(plan, c).shape) for c in COLUMNS] == shapes
        assert plan.flip.dtype == torch.bool
        for name in ("crop", "mix", "box", "strong", "resized_crop"):
            column = getattr(plan, name)
            assert column.dtype == torch.float32
            assert 0 <= column.min() < 0.02 < 0.98 < column.max() < 1
        assert 400 < int(plan.flip.sum()) < 600

    def test_pure_function_of_plan_seed_epoch_and_position(self) -> None:
        torch.manual_seed(9)
        one = EpochPlan(4, 7, 50)
        torch.rand(17)
        two = EpochPlan(4, 7, 50)
        for name in reversed(COLUMNS):  # the order in which columns are asked for must not matter
            getattr(two, name)
        assert all(torch.equal(getattr(one, c), getattr(two, c)) for c in COLUMNS)

    def test_leaves_the_global_generator_alone(self) -> None:
        before = torch.get_rng_state()
        plan = EpochPlan(0, 1, 20)
        for name in COLUMNS:
            getattr(plan, name)
        plan.partner(torch.arange(20))
        training_order(0, 1, torch.arange(20))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("other", [(5, 7), (4, 8), (7, 4)])
    def test_plan_seed_and_epoch_each_matter(self, other: tuple[int, int]) -> None:
        one, two = EpochPlan(4, 7, 50), EpochPlan(*other, 50)
        assert not any(torch.equal(getattr(one, c), getattr(two, c)) for c in COLUMNS)

    def test_columns_are_independent_draws(self) -> None:
        plan = EpochPlan(0, 1, 4000)
        columns = torch.cat(
            [plan.crop, plan.uniform("flip"), plan.mix[:, None], plan.box, plan.strong, plan.resized_crop], dim=1
        )
        off = torch.corrcoef(columns.double().T) - torch.eye(columns.shape[1])
        assert off.abs().max() < 0.08  # five standard deviations of a correlation over 4,000 rows

    def test_a_new_column_changes_no_other(self) -> None:
        plain, asked = EpochPlan(0, 1, 30), EpochPlan(0, 1, 30)
        asked.uniform("something new", 5)
        assert all(torch.equal(getattr(plain, c), getattr(asked, c)) for c in COLUMNS)


class TestPartner:
    @settings(max_examples=60, deadline=None)
    @given(data=st.data(), size=st.integers(2, 60), seed=st.integers(0, 2**31), epoch=st.integers(1, 300))
    def test_one_cycle_over_the_split(self, data: st.DataObject, size: int, seed: int, epoch: int) -> None:
        rows = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=size, unique=True))
        plan = EpochPlan(seed, epoch, size)
        partner = plan.partner(torch.tensor(rows))
        inside = torch.zeros(size, dtype=torch.bool)
        inside[rows] = True
        assert (partner[~inside] == -1).all()
        assert sorted(partner[inside].tolist()) == sorted(rows)
        at, steps = rows[0], 0
        while True:  # following partners visits everybody before it returns, so nobody is its own partner
            at, steps = int(partner[at]), steps + 1
            if at == rows[0]:
                break
        assert steps == len(rows)
        assert torch.equal(partner, plan.partner(torch.tensor(sorted(rows, reverse=True))))

    @pytest.mark.parametrize("rows", [[], [3]])
    def test_needs_two_images(self, rows: list[int]) -> None:
        with pytest.raises(ValueError, match="at least two"):
            EpochPlan(0, 1, 5).partner(torch.tensor(rows, dtype=torch.long))

    def test_changes_with_the_epoch_and_does_not_touch_its_argument(self) -> None:
        rows = torch.tensor([9, 3, 7, 1, 5, 0])
        one, two = (EpochPlan(0, e, 10).partner(rows) for e in (1, 2))
        assert not torch.equal(one, two)
        assert rows.tolist() == [9, 3, 7, 1, 5, 0]


class TestOrder:
    def test_is_a_permutation_of_the_split_drawn_from_seed_and_epoch(self) -> None:
        rows = torch.tensor([2, 30, 4, 50, 6, 70, 8])
        orders = {(s, e): training_order(s, e, rows).tolist() for s in (0, 1) for e in (1, 2)}
        assert all(sorted(order) == sorted(rows.tolist()) for order in orders.values())
        assert len({tuple(order) for order in orders.values()}) == 4
        assert training_order(1, 2, rows).tolist() == orders[1, 2]

    def test_says_nothing_about_augmentation(self) -> None:
        """Equal numbers for plan seed and order seed must not give related draws."""
        n = 2000
        order = training_order(0, 1, torch.arange(n)).double()
        crop = EpochPlan(0, 1, n).crop[:, 0].double()
        assert torch.corrcoef(torch.stack([order, crop]))[0, 1].abs() < 0.11


class TestSeeds:
    def test_golden(self) -> None:
        assert derive("plan", 0, 1, "crop") == 4267672929541268972
        assert 0 <= derive() < 2**63

    def test_parts_matter_in_their_order(self) -> None:
        seen = {derive(*parts) for parts in [("a", 1), (1, "a"), ("a", 2), ("a", 1, 0), ("a",), ("a", "11"), ("a1", 1)]}
        assert len(seen) == 7

    def test_generator_is_fresh(self) -> None:
        one, two = generator("x", 1), generator("x", 1)
        torch.rand(3, generator=one)
        assert torch.equal(torch.rand(2, generator=generator("x", 1)), torch.rand(2, generator=two))
