"""``akd list methods``: one table for all, one page for each, a line for a name that is none."""

from __future__ import annotations

import dataclasses
import re

import pytest

from akd import cli, listing, spaces
from akd.config import load
from akd.data.policies import augments
from akd.methods import hosts, views
from akd.space import parse

KINDS = {"host": hosts, "views": views, "augment": augments}
NAMES = [name for registry in KINDS.values() for name in registry.names()]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["list", "methods", *words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 100
    return out


class TestTable:
    def test_a_row_for_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = run(capsys).splitlines()
        rows = [line for line in lines[1:] if not line.startswith(" ")]  # the others go on with the row above
        assert [row.split()[0] for row in rows[:-3]] == NAMES
        assert rows[-3:] == list(listing.FOOTER)
        assert lines[0].split() == ["method", "kind", "does", "teacher", "gives", "paper"]
        kd = next(row for row in rows if row.startswith("kd "))
        assert all(word in kd for word in ("host", "match softened class", "logits", "arXiv:1503.02531"))
        assert "nothing" in next(row for row in rows if row.startswith("none "))
        angular = lines.index(next(row for row in rows if row.startswith("angular_kd ")))
        assert "views" in lines[angular]
        assert "embedding, logits" in " ".join("".join(lines[angular : angular + 3]).split())


class TestPage:
    @pytest.mark.parametrize("name", NAMES)
    def test_says_everything(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        kind, registry = next((k, r) for k, r in KINDS.items() if name in r)
        text = " ".join(run(capsys, name).split())
        info = registry.info(name)
        assert text.startswith(f"{name} {kind}: ")
        assert info["paper"] in text
        for field in dataclasses.fields(info["config"]):
            if field.name != "name":
                assert f"{field.name} {listing.plain(field.default)[:6]}" in text
        # words and not whole texts: columns are folded beside each other
        helps = " ".join(f.metadata["help"] for f in listing.settings(info["config"]))
        assert {w for w in helps.split() if len(w) < 8} <= set(text.replace(",", ", ").split()) | set(text.split())

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("at", "attention maps -3, -2, -1 (stages, 0 the stem, negative from the deep end)"),
            ("fitnet", "maps -2 (stages,"),
            ("reviewkd", "embedding, maps before their ReLU -3, -2, -1 (stages,"),
            ("tekap", "embedding, logits written"),
        ],
    )
    def test_needs_of_the_teacher_in_words(self, name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert f"teacher has to give {words}" in " ".join(run(capsys, name).split())

    @pytest.mark.parametrize("name", sorted({*NAMES} - {"none"}))
    def test_ranges_are_those_of_the_shipped_space(self, name: str) -> None:
        """What a page says is searched, and what the space of this method searches."""
        part, registry = next((k, r) for k, r in KINDS.items() if name in r)
        space = parse(load(spaces.find("augmentation" if part == "augment" else name), {}))
        own = {p.key.rpartition(".")[2]: p for p in space.searched if p.key.startswith(f"method.{part}.")}
        for field in listing.settings(registry.info(name)["config"]):
            p = own.get(field.name)
            if p is None or p.kind == "choice" or name not in dict(p.when).get("method.augment.name", (name,)):
                continue
            low, high = ("1e-4" if v == 1e-4 else f"{v:g}" for v in (p.low, p.high))
            found = re.search(rf"\b{low} to {high}(, log)?", field.metadata["help"])
            assert found, (field.name, field.metadata["help"])
            assert bool(found[1]) == p.log, field.name

    def test_of_dkd(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = [" ".join(line.split()) for line in run(capsys, "dkd").splitlines()]
        assert lines[:2] == ["dkd host: target class and other classes matched apart", "paper arXiv:2203.08679"]
        assert lines[2] == "teacher has to give logits"
        assert "written method: {host: dkd}, or beside another host, method: {host: kd, extra: [dkd]}" in lines
        assert "setting default allowed meaning" in lines
        assert any(line.startswith("beta 8 a number >= 0") for line in lines)
        assert any(line.startswith("standardise false true or false") for line in lines)

    def test_choices_conditions_lists_and_batches(self, capsys: pytest.CaptureFixture[str]) -> None:
        angular = " ".join(run(capsys, "angular_kd").split())
        assert "one of full" in angular
        assert "low_rank" in angular
        assert "logit_margin null" in angular
        mlkd = " ".join(run(capsys, "mlkd").split())
        assert "batch compares its samples with each other" in mlkd
        assert "temperatures [2, 3, 4, 5, 6]" in mlkd
        kd = run(capsys, "kd")
        assert "compares" not in kd
        assert "method: {host: dkd, extra: [kd]}" in kd  # and not beside itself

    def test_of_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = run(capsys, "none")
        assert "nothing" in text
        assert "setting" not in text


class TestMistakes:
    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["methods", "dkdd"], "akd: method = 'dkdd': there is no such method, did you mean 'dkd'?"),
            (
                ["methods", "angularkd"],
                "akd: method = 'angularkd': there is no such method, did you mean 'angular_kd'?",
            ),
            (["methods", "zzzz"], f"akd: method = 'zzzz': there is no such method, known are {', '.join(NAMES)}"),
            (["models", "resnet8"], "akd: resnet8: is one argument too many: only methods have pages of their own"),
        ],
    )
    def test_one_line(self, words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["list", *words]) == 2
        out, err = capsys.readouterr()
        assert (out, err) == ("", line + "\n")
