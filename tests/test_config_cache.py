"""The settings of the kept teacher: ``teacher.cache``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from akd.config import load, resolve
from akd.errors import ExperimentError
from akd.summary import teacher_words
from akd.teacher.keep import as_experiment


@pytest.mark.parametrize(
    ("given", "use"), [("off", "off"), ("on", "on"), ("true", "on"), ("false", "off"), ("auto", "auto")]
)
@pytest.mark.parametrize("form", ["cache: {use: %s}", "cache: %s"])
def test_on_and_off_as_yaml_reads_them(given: str, use: str, form: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("teacher: {" + form % given + "}\n", encoding="utf-8")
    assert load(tmp_path / "s.yaml", {}).teacher.cache.use == use


def test_defaults_and_the_file_akd_writes(tmp_path: Path) -> None:
    first = resolve({"teacher": {"cache": {"budget": "1.5 GB", "epochs": 3}}})
    assert (first.teacher.cache.bytes, first.teacher.cache.dtype, first.teacher.cache.dir) == (1.5e9, "float16", None)
    assert resolve({}).teacher.cache.bytes == 20e9
    (tmp_path / "s.yaml").write_text(first.to_yaml(), encoding="utf-8")
    assert load(tmp_path / "s.yaml", {}) == first
    assert load(tmp_path / "s.yaml", {"teacher.cache.epochs": 5}).teacher.cache.epochs == 5
    assert resolve({"teacher": {"cache": None}}) == resolve({})


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ({"budget": "much"}, "teacher.cache.budget = 'much': must be a size like"),
        ({"budget": 5}, "teacher.cache.budget = 5: must be a string"),
        ({"use": "off", "budget": "1 GB"}, "teacher.cache.budget = '1 GB': has no effect while use is 'off'"),
        ({"use": "off", "dir": "x"}, "has no effect while use is 'off'"),
        ({"epochs": 1.5}, "teacher.cache.epochs = 1.5: must be a whole number >= 1"),
        (["on"], "must hold keys and values"),
    ],
)
def test_mistakes(cache: Any, says: str) -> None:
    with pytest.raises(ExperimentError) as error:
        resolve({"teacher": {"cache": cache}})
    assert says in str(error.value)


def test_images_that_repeat_do_so_for_controls_too_and_not_for_the_teacher() -> None:
    e = resolve({"teacher": {"cache": {"use": "off", "epochs": 4}}})
    assert e.with_values({"method.host.name": "dkd"}).teacher.cache.epochs == 4
    assert as_experiment(e).teacher.cache.epochs is None


def test_words_at_the_end_of_a_search() -> None:
    told = {"made": 17244, "saved": 40100, "bytes": 620_000, "keys": 2}
    assert teacher_words(told) == "run on 17,244 images instead of 57,344 (0.6 MB, 2 keys)"
    assert "1 key)" in teacher_words({**told, "keys": 1})
