from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from akd.errors import ExperimentError
from akd.yamlfile import parse_value, read


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "e.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-3", 1e-3),
            ("1E3", 1000.0),
            ("-2e+1", -20.0),
            ("1.5e3", 1500.0),
            (".5e1", 5.0),
            ("3", 3),
            ("0.1", 0.1),
            ("true", True),
            ("cosine", "cosine"),
            ("[60, 80]", [60, 80]),
            ("null", None),
            ("", None),
            ("1e", "1e"),
            ("e3", "e3"),
            ("resnet8x4", "resnet8x4"),
            ("2020-13-45", "2020-13-45"),
            ("[1, ", "[1, "),
            ("a: b: c", "a: b: c"),
            ("*x", "*x"),
            ("!!python/name:os.system", "!!python/name:os.system"),
            ("[" * 2000, "[" * 2000),
        ],
    )
    def test_on_the_command_line(self, text: str, value: Any) -> None:
        got = parse_value(text)
        assert got == value
        assert type(got) is type(value)

    def test_in_a_file(self, tmp_path: Path) -> None:
        values, _ = read(write(tmp_path, "a: 1e-3\nb: [1e3, .inf]\n"))
        assert values == {"a": 1e-3, "b": [1000.0, math.inf]}

    def test_the_plain_loader_is_not_changed(self) -> None:
        assert yaml.safe_load("1e-3") == "1e-3"


#: Nine levels of nine: 400 million values if aliases are followed.
BOMB = "a: &a [1, 1]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{p}'] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


class TestPlaces:
    def test_every_key_knows_its_line(self, tmp_path: Path) -> None:
        path = write(tmp_path, "# head\ntrain:\n  lr: 1\n\n  epochs: 2\nspace:\n  train.lr: {low: 1}\n")
        values, origins = read(path)
        assert values == {"train": {"lr": 1, "epochs": 2}, "space": {"train.lr": {"low": 1}}}
        lines = {"train": 2, "train.lr": 3, "train.epochs": 5, "space": 6, "space.train.lr": 7, "space.train.lr.low": 7}
        assert origins == {key: f"{path}:{line}" for key, line in lines.items()}

    @pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
    def test_an_empty_file(self, tmp_path: Path, text: str) -> None:
        if text == "---\n":  # an explicit empty document is null, which holds no keys
            with pytest.raises(ExperimentError, match=":1: must hold keys and values"):
                read(write(tmp_path, text))
        else:
            assert read(write(tmp_path, text)) == ({}, {})

    def test_anchors_and_merges_that_are_used_plainly(self, tmp_path: Path) -> None:
        values, _ = read(write(tmp_path, "a: &x {k: 1}\nb: *x\nc: {<<: *x, m: 2}\n"))
        assert values == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "m": 2}}


class TestMistakes:
    @pytest.mark.parametrize(
        ("text", "place", "message"),
        [
            ("a: 1\nb: 2\na: 3\n", ":3", "a: is given twice, first in line 1"),
            ("t:\n  lr: 1\n  lr: 1\n", ":3", "t.lr: is given twice, first in line 2"),
            ("- 1\n", ":1", "must hold keys and values, like 'data: digits'"),
            ("just text", ":1", "must hold keys and values, like 'data: digits'"),
            ("a: 1\n? [b]\n: 2\n", ":2", "a key must be plain text"),
            ("a: 1\nb: [1, 2\n", ":3", "is not plain YAML: "),
            ("a: 1\n\tb: 2\n", ":2", "is not plain YAML: "),
            ("a: *nobody\n", ":1", "is not plain YAML: found undefined alias"),
            ("a: 1\n---\nb: 2\n", ":2", "is not plain YAML: but found another document"),
            ("x: 1\na: &a\n  b: *a\n", ":3", "a.b: holds itself (a recursive anchor)"),
            ("a: &a\n  b: {c: *a}\n", ":2", "a.b.c: holds itself (a recursive anchor)"),
            ("x: 1\na: &a [1, *a]\n", ":2", "a: holds itself (a recursive anchor)"),
            ("s: &s\n  choices: [{x: *s}]\n", ":2", "s.choices.x: holds itself (a recursive anchor)"),
            ("s: [{a: 1, a: 2}]\n", ":1", "s.a: is given twice, first in line 1"),
            ("a: " + "[" * 3000, "", "is nested too deeply"),
            ("a: !!timestamp 2020-13-45\n", "", "holds a value that cannot be read: month must be in 1..12"),
            ("a: !!int 0x_\n", "", "holds a value that cannot be read: "),
            ("a: 1\n\tb: 2\n", ":2", "is not plain YAML: a tab stands where YAML allows spaces only (column 1)"),
            ("a: 1\nno: 2\n", ":2", "a key must be plain text, and 'no' is read as bool"),
            ("a: 1\n~: 2\n", ":2", "a key must be plain text, and '~' is read as null"),
            ("a: " + "x" * 300_000, "", "is larger than 256 KB: no experiment file"),
            ("a: [" + "1, " * 20_000 + "1]\n", ":1", "holds more than 10,000 values: no experiment"),
            (BOMB, ":1", "holds more than 10,000 values: no experiment"),
            (b"a: \x07\n", "", "is not YAML: unacceptable character #x0007"),
            (b"a: \xff\n", "", "cannot be read: is not UTF-8 text"),
        ],
    )
    def test_one_line_with_its_place(self, tmp_path: Path, text: str | bytes, place: str, message: str) -> None:
        path = write(tmp_path, text)
        with pytest.raises(ExperimentError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}{place}: {message}")
        assert "\n" not in str(caught.value)

    def test_not_there_or_a_folder(self, tmp_path: Path) -> None:
        for path, reason in ((tmp_path / "no.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
            with pytest.raises(ExperimentError) as caught:
                read(path)
            assert str(caught.value) == f"{path}: cannot be read: {reason}"

    @pytest.mark.parametrize(
        "tag", ["!!python/object/apply:pathlib.Path.touch [{}]", "!!python/object/apply:os.mkdir [{}]", "!touch {}"]
    )
    def test_tags_are_refused_and_run_nothing(self, tmp_path: Path, tag: str) -> None:
        trace = tmp_path / "ran"
        path = write(tmp_path, "ok: 1\na: " + tag.format(trace) + "\n")
        with pytest.raises(ExperimentError, match=r"e\.yaml:2: is not plain YAML: the tag .* is not read"):
            read(path)
        parse_value(tag.format(trace))
        assert not trace.exists()
