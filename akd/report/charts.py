"""Charts as SVG text: small functions of plain numbers, with no style of their own but the classes of :data:`STYLE`.

Nothing is told by colour alone: finished trials are discs, stopped ones triangles, failed ones crosses, the winner a
diamond, trials on a front squares; series have dashes of their own; accuracy is told by size as well. Every mark
carries its value as a tooltip.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 440, 50, 14, 10, 44

#: Colours are told apart by all common kinds of colour blindness (after Okabe and Ito), light and dark.
STYLE = """
:root { --ink: #1c2330; --soft: #566072; --line: #d5dae2; --page: #ffffff; --card: #f6f8fa; --a: #0067a6; --b: #b34700;
  --c: #00735a; --d: #a03c78; --q0: #b9c2cf; --q1: #8fb3d1; --q2: #5593c4; --q3: #1f6fae; --q4: #0b3d70; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e8ecf2; --soft: #a4afbf; --line: #38414f;
  --page: #12161c; --card: #1a2029; --a: #5bb8f0; --b: #f2a33c; --c: #3fcfa4; --d: #e79ac6; --q0: #4a5565;
  --q1: #39698f; --q2: #3f8cc4; --q3: #72b7ea; --q4: #d2ebff; } }
svg { display: block; width: 100%; max-width: 480px; height: auto;
  font: 14px system-ui, sans-serif; color: var(--ink); }
svg text { fill: var(--ink); } svg .soft { fill: var(--soft); } svg .end { text-anchor: end; }
svg .mid { text-anchor: middle; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .axis { stroke: var(--soft); stroke-width: 1; }
svg .rung { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 4; }
svg .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
svg .s0 { stroke: var(--a); } svg .s1 { stroke: var(--b); stroke-dasharray: 7 4; }
svg .s2 { stroke: var(--c); stroke-dasharray: 2 3; } svg .s3 { stroke: var(--d); stroke-dasharray: 9 3 2 3; }
svg .finished { stroke: var(--a); } svg .stopped { stroke: var(--b); }
svg .best { stroke: var(--ink); stroke-width: 3; }
svg .disc { fill: var(--a); stroke: var(--page); stroke-width: 0.8; }
svg .triangle { fill: var(--page); stroke: var(--b); stroke-width: 1.8; }
svg .cross { fill: none; stroke: var(--d); stroke-width: 2.2; }
svg .diamond { fill: var(--ink); stroke: var(--page); stroke-width: 1.2; }
svg .bar { fill: var(--a); } svg .whisker { stroke: var(--ink); stroke-width: 2; } svg .mean { fill: var(--ink); }
svg .square { fill: var(--page); stroke: var(--ink); stroke-width: 2; }
svg .seed { fill: none; stroke: var(--a); stroke-width: 1.6; }
svg .q0 { fill: var(--q0); } svg .q1 { fill: var(--q1); } svg .q2 { fill: var(--q2); } svg .q3 { fill: var(--q3); }
svg .q4 { fill: var(--q4); } svg .dot { stroke: var(--soft); stroke-width: 0.7; }
svg .p0 { stroke: var(--q0); } svg .p1 { stroke: var(--q1); } svg .p2 { stroke: var(--q2); }
svg .p3 { stroke: var(--q3); } svg .p4 { stroke: var(--q4); } svg .zero { stroke: var(--ink); stroke-width: 1; }
"""


@dataclass(frozen=True)
class Scale:
    """Values to a place between 0 and 1, with ticks: linear, logarithmic, or by the place among ``names``.

    ``whole`` leaves out ticks between whole numbers.
    """

    low: float
    high: float
    log: bool = False
    names: tuple[str, ...] = ()
    whole: bool = False

    def at(self, value: float) -> float:
        if self.names:
            return (value + 0.5) / len(self.names)
        a, b, v = (math.log(x) for x in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return (v - a) / (b - a) if b > a else 0.5

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """At most about ``most`` values with their labels."""
        if self.names:
            every = -(-len(self.names) // 8)
            return [(k, name) for k, name in enumerate(self.names) if k % every == 0]
        if self.log:
            return [(v, f"{v:g}") for v in _log_ticks(self.low, self.high, most)]
        return [(v, f"{v:g}") for v in nice(self.low, self.high, most) if not self.whole or v == round(v)]


@dataclass(frozen=True)
class Mark:
    """A point: its place in values, its ``kind`` (disc, triangle, cross, diamond, square) and its tooltip."""

    x: float
    y: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Curve:
    """A line through points; ``style`` is a class of :data:`STYLE`, ``end`` the mark at its last point."""

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    end: str = ""
    tip: str = ""


def nice(low: float, high: float, most: int = 6) -> list[float]:
    """Round values from ``low`` to ``high``, at most about ``most``."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        within = [round(s * 10.0**p, 12) for p in powers for s in steps if low * 0.999 <= s * 10.0**p <= high * 1.001]
        if len(within) > most and found:
            break
        found = within
        if len(found) >= 3:
            break
    return found or [low, high]


def around(values: Iterable[float], pad: float = 0.06) -> tuple[float, float]:
    """The range of values with some room at both ends."""
    every = list(values)
    low, high = min(every), max(every)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return low - room, high + room


def drawing(ident: str, title: str, words: str, height: float, body: Iterable[str]) -> str:
    """An SVG picture that a screen reader can name and describe."""
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-labelledby="{ident}-t {ident}-d">'
        f'<title id="{ident}-t">{escape(title)}</title><desc id="{ident}-d">{escape(words)}</desc>{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{kind}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _path(points: Iterable[tuple[float, float]], style: str, tip: str = "", extra: str = "") -> str:
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    inside = f"><title>{escape(tip)}</title></polyline>" if tip else "/>"
    return f'<polyline points="{way}" class="curve {style}"{extra}{inside}'


def _shape(x: float, y: float, kind: str, tip: str = "", size: float = 5.0) -> str:
    r = size
    inside = f"><title>{escape(tip)}</title></" if tip else ""
    if kind in ("disc", "seed") or kind.startswith("dot"):
        name = "circle"
        head = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" class="{kind}"'
    else:
        name, ways = "path", {
            "triangle": f"M{x - r:.1f} {y - r * 0.8:.1f}h{2 * r:.1f}l{-r:.1f} {1.8 * r:.1f}z",
            "square": f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z",
            "cross": f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}m0 {-2 * r:.1f}l{-2 * r:.1f} {2 * r:.1f}",
            "diamond": f"M{x:.1f} {y - 1.5 * r:.1f}l{1.4 * r:.1f} {1.5 * r:.1f}l{-1.4 * r:.1f} {1.5 * r:.1f}"
            f"l{-1.4 * r:.1f} {-1.5 * r:.1f}z",
        }  # fmt: skip
        head = f'<path d="{ways[kind]}" class="{kind}"'
    return f"{head}{inside}{name}>" if inside else f"{head}/>"


def legend(items: Sequence[tuple[str, str]], y: float, x: float = 10.0) -> tuple[list[str], float]:
    """Symbols with their words, in as many rows as they take: the pieces, and the height of all rows.

    Args:
        items: a kind of mark (``disc``) or a class of a line (``s0``) with its words.
    """
    body, at, top, left = [], x, y, x
    for kind, words in items:
        width = 44 + 7.4 * len(words)
        if at + width > WIDTH and at > left:
            at, y = left, y + 20
        if kind in ("disc", "triangle", "cross", "diamond", "square", "seed") or kind.startswith("dot"):
            body.append(_shape(at + 9, y + 4, kind, size=4.5))
        elif kind == "rung":
            body.append(_line(at + 9, y - 4, at + 9, y + 11, "rung"))
        else:
            body.append(_path([(at, y + 4), (at + 20, y + 4)], kind))
        body.append(_text(at + 25, y + 8, words))
        at += width
    return body, y - top + 20


class _Plot:
    """A rectangle with two axes to draw into."""

    def __init__(self, x: Scale, y: Scale, height: float, x_name: str, y_name: str, top: float = TOP):
        self.x, self.y, self.height, self.top = x, y, height, top + 16
        self.body: list[str] = [_text(4, top + 6, y_name, "soft")]
        bottom = self.top + height
        for value, name in y.ticks():
            at = self.at(0, value)[1]
            self.body += [_line(LEFT, at, WIDTH - RIGHT, at, "grid"), _text(LEFT - 6, at + 4, name, "end soft")]
        for value, name in x.ticks():
            at = self.at(value, y.low)[0]
            self.body += [_line(at, bottom, at, bottom + 4, "axis"), _text(at, bottom + 18, _cut(name, x), "mid soft")]
        self.body += [_line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")]
        self.body += [_text((LEFT + WIDTH - RIGHT) / 2, bottom + 36, x_name, "mid")]
        self.end = bottom + 44

    def at(self, x: float, y: float) -> tuple[float, float]:
        inner = WIDTH - LEFT - RIGHT
        across = self.x.at(x) if not (self.x.log and x <= 0) else 0.0
        return LEFT + across * inner, self.top + (1 - self.y.at(y)) * self.height


def _cut(name: str, scale: Scale) -> str:
    """A name as long as its place on the axis allows."""
    most = max(4, int(54 / max(1, len(scale.names)))) if scale.names else 12
    return name if len(name) <= most else f"{name[: most - 1]}…"


def lines(
    ident: str,
    title: str,
    words: str,
    curves: Sequence[Curve],
    x_name: str,
    y_name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    rungs: Sequence[int] = (),
    keys: Sequence[tuple[str, str]] = (),
) -> str:
    """Curves over epochs.

    Args:
        low: what is below is cut off; default nothing is.
        high: where the upright axis ends; default above the highest value.
        rungs: epochs marked by an upright line.
        keys: the legend, as for :func:`legend`; default each curve with its name.
    """
    every = [p for c in curves for p in c.points]
    bottom, top = around(v for _, v in every)
    top = top if high is None else high
    xs = [e for e, _ in every]
    plot = _Plot(
        Scale(min(xs), max(max(xs), min(xs) + 1), whole=True),
        Scale(bottom if low is None else low, top),
        200,
        x_name,
        y_name,
    )
    clip = f'<clipPath id="{ident}-c"><rect x="{LEFT - 6}" y="{plot.top - 8}" width="{WIDTH - LEFT - RIGHT + 14}" '
    body = [*plot.body, f'{clip}height="{plot.height + 8}"/></clipPath>', f'<g clip-path="url(#{ident}-c)">']
    for rung in rungs:
        at = plot.at(rung, 0)[0]
        body.append(_line(at, plot.top, at, plot.top + plot.height, "rung"))
    for c in curves:
        way = [plot.at(e, v) for e, v in c.points]
        body.append(_path(way, c.style, c.tip or c.name))
        if c.end:
            body.append(_shape(*way[-1], c.end, c.tip or c.name, 4.5))
        elif len(way) == 1:
            body.append(_shape(*way[0], "disc", c.tip or c.name, 3))
    body.append("</g>")
    items, height = legend(keys or [(c.style, c.name) for c in curves], plot.end + 6)
    return drawing(ident, title, words, plot.end + height + 4, [*body, *items])


def scatter(
    ident: str,
    title: str,
    words: str,
    marks: Sequence[Mark],
    x: Scale,
    x_name: str,
    y_name: str,
    *,
    steps: Sequence[tuple[float, float]] = (),
    keys: Sequence[tuple[str, str]] = (),
    low: float | None = None,
    most: float | None = None,
) -> str:
    """Marks in a plane.

    Args:
        steps: corners of a line of steps behind them.
        low: marks below it stand at the lower end.
        most: what no value can be above.
    """
    bottom, top = around(m.y for m in marks)
    bottom = bottom if low is None else max(low, bottom)
    plot = _Plot(x, Scale(bottom, top if most is None else min(top, most)), 190, x_name, y_name)
    body = list(plot.body)
    if steps:
        way: list[tuple[float, float]] = []
        for at, value in steps:
            way += [(at, way[-1][1])] if way else []
            way.append((at, value))
        body.append(_path([plot.at(a, max(bottom, v)) for a, v in way], "s0"))
    for m in sorted(marks, key=lambda m: {"square": 1, "diamond": 2}.get(m.kind, 0)):  # these above the others
        size = 6 if m.kind == "diamond" else 5 * _size(len(marks))
        body.append(_shape(*plot.at(m.x, max(bottom, m.y)), m.kind, m.tip, size))
    items, more = legend(keys, plot.end + 6) if keys else ([], 0.0)
    return drawing(ident, title, words, plot.end + more + 4, [*body, *items])


def _size(marks: int) -> float:
    """How large marks are, of the size of a few: many smaller ones hide less of each other."""
    return 1.0 if marks <= 200 else 0.6


def classes(values: Sequence[float], number: int = 5) -> Callable[[float], int]:
    """Which fifth of the values, by rank, a value belongs to: 0 the lowest."""
    order = sorted(values)
    return lambda v: min(number - 1, number * bisect_left(order, v) // max(1, len(order)))


def class_keys(values: Sequence[float], kind: Callable[[int], str]) -> list[tuple[str, str]]:
    """The legend of :func:`classes`: each with the values that are in it."""
    which, found = classes(values), []
    for k in range(5):
        inside = [v for v in values if which(v) == k]
        if inside:
            ends = list(dict.fromkeys(f"{v:.2f}" for v in (min(inside), max(inside))))
            found.append((kind(k), f"{' to '.join(ends)} %"))
    return found


def plane(
    ident: str,
    title: str,
    words: str,
    points: Sequence[tuple[float, float, float, str, bool]],
    x: Scale,
    y: Scale,
    x_name: str,
    y_name: str,
) -> str:
    """Two parameters and the accuracy (%) they gave, as colour and size: (x, y, accuracy, tooltip, is the winner)."""
    plot = _Plot(x, y, 230, x_name, y_name)
    values = [p[2] for p in points]
    which = classes(values)
    body = list(plot.body)
    for a, b, value, tip, best in sorted(points, key=lambda p: p[2]):
        k = which(value)
        at = plot.at(a, b)
        body.append(_shape(*at, f"dot q{k}", tip, (4 + 1.3 * k) * _size(len(points))))
        if best:
            body.append(_shape(*at, "diamond", tip, 4))
    items, more = legend([*class_keys(values, lambda k: f"dot q{k}"), ("diamond", "winner")], plot.end + 6)
    return drawing(ident, title, words, plot.end + more + 4, [*body, *items])


def bars(ident: str, title: str, words: str, rows: Sequence[tuple[str, float]]) -> str:
    """Shares of 1, one row each: its name above its bar."""
    body, y, most = [], 14.0, max(v for _, v in rows)
    for name, value in rows:
        width = (WIDTH - 80) * value / most if most > 0 else 0.0
        body.append(_text(4, y, name))
        body.append(f'<rect x="4" y="{y + 6:.1f}" width="{max(1.0, width):.1f}" height="14" rx="2" class="bar"/>')
        body.append(_text(12 + max(1.0, width), y + 17, f"{100 * value:.0f} %", "soft"))
        y += 42
    return drawing(ident, title, words, y - 8, body)


def whiskers(
    ident: str,
    title: str,
    words: str,
    rows: Sequence[tuple[str, Sequence[float], float, float | None, float | None]],
    x_name: str,
    zero: bool = False,
) -> str:
    """Means with their intervals, one row each: (name, single values, mean, low, high).

    Args:
        zero: mark 0, and have it in the picture.
    """
    ends = [v for _, seeds, mean, low, high in rows for v in (*seeds, mean, low, high) if v is not None]
    scale = Scale(*around([*ends, 0.0] if zero else ends))
    left, inner = 12.0, WIDTH - 24.0
    bottom = 44.0 * len(rows) + 4

    def place(value: float) -> float:
        return left + scale.at(value) * inner

    body = []
    for value, name in scale.ticks():
        body += [_line(place(value), 0, place(value), bottom, "grid")]
        body += [_text(place(value), bottom + 16, name, "mid soft")]
    if zero:
        body.append(_line(place(0), 0, place(0), bottom, "zero"))
    for k, (name, seeds, mean, low, high) in enumerate(rows):
        y = 44.0 * k + 32
        body.append(_text(4, y - 16, name))
        if low is not None and high is not None:
            body.append(_line(place(low), y, place(high), y, "whisker"))
            body += [_line(place(v), y - 5, place(v), y + 5, "whisker") for v in (low, high)]
        body += [_shape(place(v), y, "seed", f"{v:.2f}", 4.5) for v in seeds]
        body.append(_shape(place(mean), y, "diamond", f"{name}: {mean:.2f}", 4))
    body.append(_line(left, bottom, left + inner, bottom, "axis"))
    body.append(_text(WIDTH / 2, bottom + 34, x_name, "mid"))
    keys = [("diamond", "mean"), *([("seed", "one seed")] if any(r[1] for r in rows) else [])]
    items, more = legend([*keys, ("whisker", "95 % interval")], bottom + 46)
    return drawing(ident, title, words, bottom + 46 + more, [*body, *items])


def parallel(
    ident: str,
    title: str,
    words: str,
    axes: Sequence[tuple[str, Scale]],
    rows: Sequence[tuple[Sequence[float | None], float, str, bool]],
) -> str:
    """Parallel coordinates, one axis below the other so that they fit a phone.

    Args:
        axes: names and scales.
        rows: of each line its values, accuracy (%), tooltip, and whether it is the winner.
    """
    left, inner, step = 22.0, WIDTH - 44.0, 62.0
    values = [row[1] for row in rows]
    which, body = classes(values), []
    low, high = around(values, 0.03)
    every = [*axes, ("validation accuracy (%)", Scale(low, high))]
    for k, (name, scale) in enumerate(every):
        y = 26 + step * k
        body += [_line(left, y, left + inner, y, "axis"), _text(4, y - 12, name)]
        for value, label in scale.ticks():
            at = left + scale.at(value) * inner
            body += [_line(at, y, at, y + 4, "axis"), _text(at, y + 16, _cut(label, scale), "mid soft")]
    for inside, accuracy, tip, best in sorted(rows, key=lambda row: (row[3], row[1])):
        way = [
            (left + scale.at(v) * inner, 26 + step * k)
            for k, ((_, scale), v) in enumerate(zip(every, [*inside, accuracy], strict=True))
            if v is not None  # a parameter this trial does not have: the line goes past its axis
        ]
        k = which(accuracy)
        body.append(_path(way, "best" if best else f"p{k}", tip, "" if best else f' stroke-opacity="{0.5 + 0.1 * k}"'))
        body += [_shape(x, y, "diamond", tip, 3) for x, y in way] if best else []
    end = 26 + step * len(every) - 20
    items, more = legend([*class_keys(values, lambda k: f"p{k}"), ("best", "winner")], end)
    return drawing(ident, title, words, end + more + 4, [*body, *items])
