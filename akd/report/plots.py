"""The report's figures as PNG files, for MLflow's pages, slides and papers: drawn from the page's own SVG.

The font travels with matplotlib, so that a picture looks the same on a machine without fonts.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from html import escape
from importlib.util import find_spec
from pathlib import Path

from akd.report import figures, fronts
from akd.report.charts import STYLE
from akd.report.facts import Facts
from akd.report.figures import Figure

#: Pixels of a chart's unit: readable on a slide.
ZOOM = 3.0
#: Of the same units: around a chart, and for its title.
_EDGE, _TITLE = 12, 26


def write(facts: Facts, folder: Path) -> list[Path]:
    """Draw all figures of a study into a folder, which is replaced; its files in the order of the page.

    Raises:
        OSError: it cannot be written.
    """
    side = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(side, ignore_errors=True)
    side.mkdir(parents=True)
    try:
        names = []
        for number, figure in enumerate(every(facts), start=1):
            names.append(f"{number:02d}-{_plain(figure.title)}.png")
            (side / names[-1]).write_bytes(png(figure))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(side, folder)
    finally:
        shutil.rmtree(side, ignore_errors=True)
    return [folder / name for name in names]


def every(facts: Facts) -> Iterator[Figure]:
    """All figures of the page, in its order."""
    yield from figures.results(facts)
    yield from fronts.figures(facts)
    yield from (f for f in (figures.curves(facts), figures.history(facts), figures.importance(facts)) if f)
    yield from figures.slices(facts)
    yield from (f for f in (figures.parallel(facts),) if f)
    yield from figures.views(facts)


def others(folder: Path) -> list[str]:
    """What lies in a folder besides pictures of :func:`write`, which would go with them."""
    return sorted(p.name for p in folder.iterdir() if not re.fullmatch(r"\d\d-[a-z0-9-]+\.png", p.name))


def png(figure: Figure) -> bytes:
    """A chart under its title, as a picture on white."""
    import resvg_py

    head = re.match(r'<svg viewBox="0 0 (\d+) (\d+)"', figure.svg)
    assert head is not None
    width, height = int(head[1]) + 2 * _EDGE, int(head[2]) + 2 * _EDGE + _TITLE
    outside = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-size="14" '
        f'viewBox="{-_EDGE} {-_EDGE - _TITLE} {width} {height}" font-family="DejaVu Sans">'
        f'<text x="4" y="{-_TITLE + 12}" font-size="16">{escape(figure.title)}</text><g'
    )
    return bytes(
        resvg_py.svg_to_bytes(
            svg_string=outside + figure.svg[head.end() :].removesuffix("</svg>") + "</g></svg>",
            style_sheet=_style(),
            background="#ffffff",
            zoom=ZOOM,
            skip_system_fonts=True,
            font_files=[_font()],
            font_family="DejaVu Sans",
        )
    )


def _style() -> str:
    """The charts' style in the light colours, without what only browsers know."""
    style = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", STYLE)
    colours = dict(re.findall(r"--(\w+):\s*([^;]+);", style))
    style = re.sub(r":root \{[^}]*\}|svg \{[^}]*\}", "", style)
    return re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], style) + f"svg text {{ fill: {colours['ink']}; }}"


def _font() -> str:
    found = find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf")


def _plain(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60]
