"""Splits: stratified, repeatable, and no business of a trial."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from akd.config import resolve
from akd.data import DataConfig, Dataset, TrainData, data_dir, load, readers, split
from akd.data.augment import Augment
from akd.data.dataset import stratified
from akd.errors import ExperimentError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load(DataConfig())


def parts(config: DataConfig, dataset: Dataset) -> TrainData:
    return split(config, dataset)


class TestStratified:
    @settings(max_examples=80, deadline=None)
    @given(
        counts=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda c: sum(c) > 0),
        share=st.floats(0, 1),
        seed=st.integers(0, 10**6),
    )
    def test_properties(self, counts: list[int], share: float, seed: int) -> None:
        labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
        rows, count = torch.arange(len(labels)), round(share * len(labels))
        chosen = stratified(labels, rows, count, "test", seed)
        assert len(chosen) == count
        assert torch.equal(chosen, chosen.unique())  # sorted and without repetition
        for c, n in enumerate(counts):
            exact = n * count / len(labels)
            assert abs(int((labels[chosen] == c).sum()) - exact) < 1
        assert torch.equal(chosen, stratified(labels, rows, count, "test", seed))

    def test_only_from_the_rows_given(self) -> None:
        labels, rows = torch.arange(100) % 4, torch.arange(1, 100, 3)
        chosen = stratified(labels, rows, 10, 0)
        assert torch.isin(chosen, rows).all()

    def test_seed_matters(self) -> None:
        labels, rows = torch.arange(100) % 4, torch.arange(100)
        assert not torch.equal(stratified(labels, rows, 20, "a", 0), stratified(labels, rows, 20, "a", 1))
        assert not torch.equal(stratified(labels, rows, 20, "a", 0), stratified(labels, rows, 20, "b", 0))

    def test_draws_within_a_class(self) -> None:
        """Not the first images of each class: every row has its chance."""
        labels, rows = torch.zeros(10, dtype=torch.long), torch.arange(10)
        hits = sum(torch.isin(rows, stratified(labels, rows, 5, seed)).long() for seed in range(200))
        assert 70 < int(hits.min()) <= int(hits.max()) < 130  # 100 expected, 7 the standard deviation


class TestSplit:
    def test_whole(self, digits: Dataset) -> None:
        got = parts(DataConfig(), digits)
        assert (len(got.train), len(got.val)) == (1437 - 144, 144)
        assert torch.cat([got.train, got.val]).sort().values.tolist() == list(range(1437))
        assert torch.equal(got.train, got.train.sort().values)
        for c in range(10):
            share = float((digits.labels[got.val] == c).double().mean())
            assert share == pytest.approx(float((digits.labels == c).double().mean()), abs=0.01)

    def test_golden(self, digits: Dataset) -> None:
        """The split decides every validation accuracy ever recorded: it must not drift."""
        got = parts(DataConfig(), digits)
        assert got.hash == "82bfaabcbb1199d2"
        assert parts(DataConfig(subset=300), digits).val[:5].tolist() == [6, 17, 148, 163, 177]

    def test_subset(self, digits: Dataset) -> None:
        got = parts(DataConfig(subset=300, validation=0.2), digits)
        assert (len(got.train), len(got.val)) == (240, 60)
        assert not torch.isin(got.train, got.val).any()
        both = torch.cat([got.train, got.val])
        assert digits.labels[both].bincount(minlength=10).min() >= 28
        again = parts(DataConfig(subset=300, validation=0.5), digits)
        assert set(torch.cat([again.train, again.val]).tolist()) == set(both.tolist())  # validation moves no subset

    def test_split_seed(self, digits: Dataset) -> None:
        a, b, again = (parts(DataConfig(split_seed=s), digits) for s in (0, 1, 0))
        assert not torch.equal(a.val, b.val)
        assert torch.equal(a.val, again.val)
        assert a.hash == again.hash != b.hash

    def test_independent_of_the_trial(self, digits: Dataset) -> None:
        """What a search may change (seeds, method, optimisation) changes nothing here."""
        base = resolve({"data": {"subset": 500}})
        other = base.with_values({"train.seed": 9, "train.plan_seed": 3, "method.host": "none", "train.batch_size": 16})
        torch.manual_seed(1)
        a = parts(base.data, digits)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        b = parts(other.data, digits)
        assert a.hash == b.hash
        assert torch.equal(torch.get_rng_state(), before)

    def test_joined(self, digits: Dataset) -> None:
        got = parts(DataConfig(subset=300), digits)
        joined = got.with_validation_joined()
        assert joined.train.tolist() == sorted(got.train.tolist() + got.val.tolist())
        assert len(joined.val) == 0
        assert joined.val.dtype == torch.long
        assert joined.augment == got.augment

    def test_views(self, digits: Dataset) -> None:
        assert parts(DataConfig(), digits).augment == Augment(padding=1)
        assert parts(DataConfig(augment="none"), digits).augment == Augment()
        assert parts(DataConfig(augment="crop_flip"), digits).augment == Augment(padding=4, flip=True)
        assert parts(DataConfig(crop_padding=3), digits).augment == Augment(padding=3)
        assert parts(DataConfig(augment="crop_flip", crop_padding=2), digits).augment == Augment(padding=2, flip=True)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (DataConfig(subset=1438), "data.subset = 1438: must be at most 1437, the number of training images"),
            (DataConfig(subset=2), "data.validation = 0.1: leaves 0 of 2 images for validation; both parts need some"),
            (
                DataConfig(subset=3, validation=0.9),
                "data.validation = 0.9: leaves 3 of 3 images for validation; both parts need some",
            ),
            (
                DataConfig(augment="none", crop_padding=2),
                "data.crop_padding = 2: has no effect: the standard view takes no crop",
            ),
        ],
    )
    def test_mistakes(self, digits: Dataset, config: DataConfig, message: str) -> None:
        with pytest.raises(ExperimentError) as caught:
            split(config, digits)
        assert str(caught.value) == message


class TestHash:
    def test_of_the_files(self, digits: Dataset) -> None:
        images = digits.images.clone()
        images[3, 0, 4, 4] ^= 1
        labels = digits.labels.roll(1)
        hashes = {digits.hash, replace(digits, images=images).hash, replace(digits, labels=labels).hash}
        assert len(hashes) == 3
        assert replace(digits, name="other").hash == digits.hash
        assert replace(digits, images=digits.images.flatten(2)[..., None]).hash != digits.hash

    def test_of_the_split(self, digits: Dataset) -> None:
        got = parts(DataConfig(subset=100), digits)
        moved = replace(got, train=torch.cat([got.train, got.val[:1]]), val=got.val[1:])
        assert moved.hash != got.hash
        assert replace(got, augment=Augment(flip=True)).hash == got.hash  # the view is no part of the data


class TestDoor:
    def test_names(self) -> None:
        assert {"digits", "cifar10", "cifar100"} <= set(readers.names())

    def test_unknown(self) -> None:
        with pytest.raises(ExperimentError, match=r"data\.name = 'digit': .* did you mean 'digits'"):
            load(replace(DataConfig(), name="digit"))

    def test_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.delenv("AKD_DATA_DIR", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert data_dir(DataConfig()) == tmp_path / ".cache/akd/data"
        monkeypatch.setenv("AKD_DATA_DIR", str(tmp_path / "env"))
        assert data_dir(DataConfig()) == tmp_path / "env"
        assert data_dir(DataConfig(dir="~/named")) == tmp_path / "named"
        monkeypatch.chdir(tmp_path)
        assert data_dir(DataConfig(dir="here")) == tmp_path / "here"
