"""``akd list`` on the command line: what can be named in an experiment."""

from __future__ import annotations

import argparse

from akd.errors import ExperimentError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is listed."""
    parser.add_argument("what", choices=["models", "methods", "data", "spaces"])
    parser.add_argument("name", nargs="?", help="methods: the settings of this one")


def run(args: argparse.Namespace) -> None:
    """The verb."""
    what, name = args.what, args.name
    from rich.table import Table

    from akd.terminal import standard_console

    if what == "methods":
        from akd import listing

        listing.show(standard_console(), name)
        return
    if name is not None:
        raise ExperimentError("is one argument too many: only methods have pages of their own", key=name)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    if what == "models":
        from akd.models import create_model, list_models, parameter_count

        table.add_column("model")
        table.add_column("parameters (100 classes)", justify="right")
        for name in list_models():
            table.add_row(name, f"{parameter_count(create_model(name, 100)):,}")
        table.caption = "also module:factory, torchvision:name, timm:name"
        table.caption_justify = "left"
    elif what == "data":
        from akd.data import readers

        for column in ("data set", "images", "files"):
            table.add_column(column)
        for name in readers.names():
            table.add_row(name, readers.info(name).get("images", ""), readers.info(name).get("files", ""))
    else:
        from akd import spaces

        table.add_column("space")
        table.add_column("question")
        for name in spaces.names():
            table.add_row(name, spaces.headline(spaces.find(name)))
    standard_console().print(table)
