"""What akd warns of in a run, kept in its folder and given once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from akd import notices
from akd.errors import AkdWarning


def test_one_line_each_and_others_pass(tmp_path: Path) -> None:
    def work() -> None:
        with notices.kept(tmp_path):
            for _ in range(2):
                warnings.warn("a file\nis damaged", AkdWarning, stacklevel=1)
            warnings.warn("somebody else's", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="somebody else's") as told:
        work()
    assert len(told) == 1
    assert notices.of(tmp_path) == ["a file is damaged", "a file is damaged"]


def test_of_several_workers_one_tells(tmp_path: Path) -> None:
    with notices.kept(tmp_path, keep=False):
        warnings.warn("a file is damaged", AkdWarning, stacklevel=1)
    assert notices.of(tmp_path) == []


def test_each_is_given_once_and_old_ones_are_not(tmp_path: Path) -> None:
    def warn(text: str) -> None:
        with notices.kept(tmp_path):
            warnings.warn(text, AkdWarning, stacklevel=1)

    warn("of an earlier session")
    reader = notices.Reader(iter([tmp_path]))
    assert reader.new(tmp_path) == []
    warn("one")
    warn("two")
    assert reader.new(tmp_path) == ["one", "two"]
    assert reader.new(tmp_path) == []
    assert reader.new(tmp_path / "gone") == []
