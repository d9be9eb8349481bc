"""What a search shows: a live table on a terminal, a line per event in a log file."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from akd.errors import many
from akd.folder import COMPLETE, FAILED, PRUNED, RUNNING, Run

_STYLES = {RUNNING: "cyan", COMPLETE: "green", PRUNED: "yellow", FAILED: "red"}
_WORDS = {RUNNING: "running", COMPLETE: "done", PRUNED: "stopped", FAILED: "failed"}


@dataclass
class _Row:
    run: Run
    epoch: int = 0
    accuracy: float | None = None

    @property
    def seconds(self) -> float:
        return (self.run.ended or time.time()) - self.run.started


def short_names(keys: list[str]) -> dict[str, str]:
    """Dotted keys -> the shortest endings that tell them apart: ``method.host.weight`` -> ``weight``.

    A name goes by what it names: ``method.views.name`` -> ``views``.
    """
    named = {key: key.removesuffix(".name") for key in keys}
    return dict(zip(keys, _endings([named[k] if named[k] not in keys else k for k in keys]), strict=True))


def _endings(keys: list[str]) -> list[str]:
    names: list[str] = []
    for key in keys:
        parts = key.split(".")
        for take in range(1, len(parts) + 1):
            name = ".".join(parts[-take:])
            if not any(other != key and f".{other}".endswith(f".{name}") for other in keys):
                break
        names.append(name)
    return names


def show_value(value: Any) -> str:
    """A searched value in at most about six characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def percent(value: float | None) -> str:
    """An accuracy of 0..1 as per cent with two digits."""
    return "" if value is None or value != value else f"{100 * value:.2f}"


def standard_console() -> Console:
    """Standard output; a log file, which has no width of its own, gets 100 columns."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


class Display:
    """The screen of a study.

    Args:
        epochs: of a trial, for the progress column.
        trials: how many are asked for.
        keys: searched keys, which become columns' contents.
        console: where to draw; the width is taken from it.
    """

    def __init__(self, epochs: int, trials: int, keys: list[str], console: Console | None = None, rows: int = 24):
        self.epochs, self.trials, self.visible = epochs, trials, rows
        self.console = console or standard_console()
        self.names = short_names(keys)
        self.rows: dict[str, _Row] = {}
        self._live: Live | None = None

    # -- plain lines -------------------------------------------------------------------------------

    def say(self, text: str = "", style: str = "") -> None:
        """One line, above the live table if there is one."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    # -- the table of trials -----------------------------------------------------------------------

    @contextmanager
    def table(self) -> Iterator[None]:
        """Draw the table while the block runs; in a log file nothing is drawn."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self._draw, console=self.console, refresh_per_second=2, transient=True) as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None
        self.console.print(self._draw(every=True))

    def update(self, run: Run, epoch: int | None = None, accuracy: float | None = None) -> None:
        """A run started, finished an epoch or ended."""
        row = self.rows.get(run.name)
        fresh = row is None
        if row is None:
            row = self.rows[run.name] = _Row(run)
        ended = run.state != RUNNING and (fresh or row.run.state == RUNNING)
        row.run = run
        if epoch is not None:
            row.epoch, row.accuracy = epoch, accuracy
        if self._live is None and not self.console.is_terminal:
            if ended:
                self._log(self._line(row))
            elif fresh:
                self._log(f"{run.name:<14} started   {self._values(run)}")

    def _log(self, text: str) -> None:
        """A line of a log file; one too long goes on in the next, indented."""
        self.say(textwrap.fill(text, self.console.width, subsequent_indent=" " * 25, break_on_hyphens=False))

    def _line(self, row: _Row) -> str:
        state = _WORDS[row.run.state]
        text = f"{row.run.name:<14} {state:<9} epoch {row.epoch}/{self.epochs}"
        if row.accuracy is not None:
            text += f"  validation {percent(row.accuracy)} %"
        if row.run.reason:
            text += f"  {row.run.reason}"
        return f"{text}  {row.seconds:.0f} s"

    def _values(self, run: Run) -> str:
        return " ".join(f"{self.names.get(k, k)}={show_value(v)}" for k, v in run.parameters.items() if k in self.names)

    def _draw(self, every: bool = False) -> Group:
        rows = list(self.rows.values())
        done = sum(r.run.kind == "trial" and r.run.state != RUNNING for r in rows)
        best = max((r.accuracy or 0 for r in rows if r.run.kind == "trial" and r.run.state == COMPLETE), default=None)
        hidden = 0
        room = max(5, min(self.visible, self.console.height - 8))
        if not every and len(rows) > room:
            running = [r for r in rows if r.run.state == RUNNING]
            ended = sorted((r for r in rows if r.run.state != RUNNING), key=lambda r: -(r.accuracy or 0))
            keep = {id(r) for r in (running + ended)[:room]}
            hidden = len(rows) - len(keep)
            rows = [r for r in rows if id(r) in keep]
        table = Table(box=None, padding=(0, 1), header_style="bold", expand=False)
        table.add_column("run", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("epoch", justify="right", no_wrap=True)
        table.add_column("val %", justify="right", no_wrap=True)
        table.add_column("s", justify="right", no_wrap=True)
        table.add_column("values", overflow="fold")
        for row in rows:
            state = Text(_WORDS[row.run.state], style=_STYLES[row.run.state])
            star = row.run.kind == "trial" and row.run.state == COMPLETE and row.accuracy == best
            value = Text(percent(row.accuracy), style="bold green" if star else "")
            # While it is drawn again and again a row is one line, or the table would outgrow the screen.
            what = Text(
                row.run.reason or self._values(row.run), no_wrap=not every, overflow="fold" if every else "ellipsis"
            )
            table.add_row(row.run.name, state, f"{row.epoch}/{self.epochs}", value, f"{row.seconds:.0f}", what)
        head = f"{done} of {many(self.trials, 'trial')} done" + (f", {hidden} rows not shown" if hidden else "")
        return Group(Text(head, style="dim"), table)

    # -- bars --------------------------------------------------------------------------------------

    @contextmanager
    def bar(self, title: str, epochs: int) -> Iterator[Any]:
        """A bar over epochs; yields ``advance(epoch, note)``. In a log file: a line at the start and at the end."""
        if not self.console.is_terminal:
            self.say(f"{title}: {many(epochs, 'epoch')}")
            last = [""]
            yield lambda epoch, note="": last.__setitem__(0, note)
            self.say(f"{title}: done{', ' + last[0] if last[0] else ''}")
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(24),
            TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} epoch{'s' * (epochs != 1)} {{task.fields[note]}}"),
            TimeRemainingColumn(compact=True),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(title, total=epochs, note="")
            yield lambda epoch, note="": progress.update(task, completed=epoch, note=note)

    def panel(self, title: str, lines: list[str]) -> None:
        """The closing box."""
        self.console.print(Panel(Text("\n".join(lines)), title=title, title_align="left", border_style="green"))
