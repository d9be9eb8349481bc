"""``akd ui`` on the command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    parser.add_argument("study", nargs="?", help="study to show; default the newest")
    parser.add_argument("--output", default="runs", metavar="DIR")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--tracking-uri", metavar="URI")


def run(args: argparse.Namespace) -> None:
    """The verb."""
    from akd.ui import serve

    uri = args.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    serve(Path(args.output), args.study, args.port, uri, lambda line: print(line, flush=True))
