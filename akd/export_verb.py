"""``akd export`` on the command line: its arguments, its tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from akd.errors import AkdError

if TYPE_CHECKING:
    from rich.console import Console

    from akd.export import Exported

DESCRIPTION = (
    "Write a student to be taken away: its weights, a torch.export program, an ONNX program, an example and a model "
    "card. The programs take pixels of 0..1 and are compared with the student before they are handed over."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("student", metavar="STUDY", help="a study (its champion) or a run by name or folder, or a student's folder")
    add("--to", metavar="DIR", help="folder to write; default export in the folder of the study or run")
    add("--format", metavar="F,F", help="of safetensors, torch, onnx; default all (onnx: pip install 'akd[onnx]')")
    add("--time", action="store_true", help="measure the time of a forward pass, too")
    add("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")


def run(args: argparse.Namespace) -> None:
    """The verb.

    Raises:
        AkdError: what was asked for could not be made as a whole; the rest was written.
    """
    from akd import export
    from akd.terminal import standard_console

    formats, left_out = export.chosen(args.format)
    origin = export.origin_of(export.find(args.student, Path(args.output).absolute()))
    target = Path(args.to).expanduser().absolute() if args.to else origin.default_target
    console = standard_console()
    done = export.export(origin, target, formats, timed=args.time)
    show(console, done)
    if left_out:
        console.print(left_out, soft_wrap=True, markup=False)
    if done.failed:
        raise AkdError("; ".join(done.failed))
    if left_out and args.format:
        raise AkdError("not all formats that were asked for could be written")


def show(console: Console, done: Exported) -> None:
    """What was written, and how it was checked."""
    from rich.table import Table

    from akd.summary import shown_path

    found, config = done.measured, done.origin.config
    accuracy = f", test accuracy {100 * found.scores['top1']:.2f} %" if found.scores else ""
    console.print(
        f"{config['model']}: {found.parameters:,} parameters, {found.operations / 2e6:,.1f} million multiply-adds an "
        f"image{accuracy}",
        soft_wrap=True,
        markup=False,
    )
    if found.parity:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for head in ("program", "images", "largest difference", "tolerance", "same first class", ""):
            table.add_column(head, justify="left" if head in ("program", "") else "right")
        for p in found.parity:
            same = f"{p.agreeing} of {p.batch}"
            last = "" if p.good else "too far"
            table.add_row(p.program, str(p.batch), f"{p.difference:.1e}", f"{p.tolerance:.0e}", same, last)
        console.print(f"\nlogits against the student in torch, on {found.images}", soft_wrap=True, markup=False)
        console.print(table)
    if found.times:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        batches = sorted({n for _, n in found.times})
        table.add_column("ms a batch")
        for n in batches:
            table.add_column(f"{n} image{'s' * (n > 1)}", justify="right")
        for name in dict.fromkeys(name for name, _ in found.times):
            table.add_row(name, *(f"{1000 * found.times[name, n]:.2f}" for n in batches))
        console.print(f"\nmedian time of a forward pass on {found.hardware}", soft_wrap=True, markup=False)
        console.print(table)
    console.print()
    for name in done.files:
        console.print(
            f"{shown_path(done.folder / name)}  ({(done.folder / name).stat().st_size:,} bytes)",
            soft_wrap=True,
            markup=False,
        )
