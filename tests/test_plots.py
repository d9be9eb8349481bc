"""The report's figures as pictures: every one, drawn with text, and nobody's files lost."""

from __future__ import annotations

import io
import re
from pathlib import Path

import made_study
import pytest
from PIL import Image

from akd.cli import main
from akd.report import charts, formats, plots
from akd.report.facts import gather
from akd.report.figures import Figure


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study.make(tmp_path_factory.mktemp("runs") / "s", made_study.VIEWS, 12)


def test_every_figure_of_the_page_is_there(study: Path) -> None:
    page = formats.write(study).read_text(encoding="utf-8")
    folder = formats.write(study, form="png")
    assert folder == study / "plots"
    pictures = sorted(folder.iterdir())
    assert len(pictures) == len(re.findall("<svg ", page)) == 12
    assert [p.name[:3] for p in pictures] == [f"{n:02d}-" for n in range(1, 13)]
    assert "03-learning-curves.png" in [p.name for p in pictures]
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width == plots.ZOOM * (charts.WIDTH + 24)
            assert picture.height > 300
            assert len(picture.convert("L").getcolors(256) or []) > 20
    assert plots.others(folder) == []


def test_colours_and_words_are_drawn(study: Path) -> None:
    figure = next(f for f in plots.every(gather(study)) if f.title == "Learning curves")
    with Image.open(io.BytesIO(plots.png(figure))) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {(0xFF, 0xFF, 0xFF), (0x00, 0x67, 0xA6), (0xB3, 0x47, 0x00), (0x1C, 0x23, 0x30)} <= colours  # page a b ink
    assert "var(" not in plots._style()
    assert "@media" not in plots._style()

    def dark(title: str) -> int:
        svg = charts.drawing("x", "x", "x", 20, [])
        with Image.open(io.BytesIO(plots.png(Figure(title, svg, "")))) as picture:
            return sum(n for n, colour in picture.convert("L").getcolors() or [] if colour < 128)

    assert dark("") == 0
    assert dark("Accuracy by lr") > 200


def test_a_name_is_text_and_no_markup() -> None:
    svg = charts.drawing("x", "a", "b", 20, [])
    assert plots.png(Figure('<script>&"', svg, ""))[:4] == b"\x89PNG"


class TestCommand:
    def test_into_a_folder_of_one_s_own(self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "figures"
        line = ["report", study.name, "--output", str(study.parent), "--format", "png", "--out", str(out)]
        for _ in range(2):  # its own pictures are replaced
            assert main(line) == 0
        assert len(list(out.iterdir())) == 12
        (out / "thesis.tex").write_text("of years")
        capsys.readouterr()
        assert main(line) == 2
        assert "--out" in (said := capsys.readouterr().err)
        assert "holds more than pictures of a report (thesis.tex)" in said
        assert (out / "thesis.tex").read_text() == "of years"

    def test_mistakes(self, study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        line = ["report", study.name, "--output", str(study.parent), "--format", "png", "--out"]
        (tmp_path / "file").write_text("x")
        for out, words in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "where", "there is no folder")):
            assert main([*line, str(out)]) == 2
            said = capsys.readouterr().err
            assert words in said
            assert len(said.strip().splitlines()) == 1
