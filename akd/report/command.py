"""``akd report`` on the command line: a study as a page or a table, and whether its records agree."""

from __future__ import annotations

import argparse
from pathlib import Path

from akd.errors import AkdError, ExperimentError, near
from akd.folder import Run
from akd.logged import address_of

DESCRIPTION = (
    "Write what a study found, ended or still running, from its folder alone: a page without network access, Markdown, "
    "JSON, a table of all trials, or its figures as pictures. With --verify, compare run folders, Optuna's study and "
    "MLflow instead."
)
FORMATS = ("html", "md", "json", "parquet", "png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    add = parser.add_argument
    add("study", metavar="STUDY", help="name of a study")
    add("--output", default="runs", metavar="DIR", help="folder of all runs (default: runs)")
    add("--format", choices=FORMATS, help="default html")
    add("--out", metavar="FILE", help="default report.FORMAT in the study's folder; of png a folder, plots")
    add("--verify", action="store_true", help="compare run folders, Optuna's study and MLflow; exit 1 if they differ")
    add("--tracking-uri", metavar="URI", help="MLflow; default $MLFLOW_TRACKING_URI, else where the study is")


def find_study(output: Path, name: str) -> Path:
    """The folder of a study, of its name or its path.

    Raises:
        ExperimentError: there is none of this name.
    """
    known = {p.parent.name: p.parent for p in output.glob("*/run.json")}
    if name not in known and (Path(name) / "run.json").is_file():
        known[name] = Path(name).absolute()
    if name not in known:
        hint = near(name, known) or (f", there are {', '.join(sorted(known))}" if known else "")
        raise ExperimentError(f"there is no study of this name in {output}{hint}", key="study", value=name)
    try:
        run = Run.read(known[name])
        assert run is not None
    except (ValueError, TypeError):
        raise ExperimentError(f"{known[name] / 'run.json'} is damaged", key="study", value=name) from None
    if run.kind != "study":
        raise ExperimentError(f"is a {run.kind} run: only studies have reports", key="study", value=name)
    return known[name]


def tracked_at(study: Path, given: str | None) -> str:
    """The MLflow address of a study: given, of the environment, or where its search wrote."""
    run = Run.read(study)
    return address_of(run.tags.get("tracking") if run else None, study.parent, given)


def run(args: argparse.Namespace) -> None:
    """Do what the command asks."""
    for flag in ("format", "out") if args.verify else ("tracking_uri",):
        if (value := getattr(args, flag)) is not None:
            problem = f"has no effect with{'' if args.verify else 'out'} --verify"
            raise ExperimentError(problem, key=f"--{flag.replace('_', '-')}", value=value)
    study = find_study(Path(args.output).absolute(), args.study)
    if args.verify:
        _verify(study, tracked_at(study, args.tracking_uri))
        return
    from akd.report import formats
    from akd.summary import shown_path

    form, out = args.format or "html", Path(args.out).expanduser().absolute() if args.out else None
    if form == "png" and out is not None:
        _check_folder(out, args.out)
    elif out is not None and (out.is_dir() or not out.parent.is_dir()):
        problem = "is a folder, not a file" if out.is_dir() else f"cannot be written: there is no folder {out.parent}"
        raise ExperimentError(problem, key="--out", value=args.out)
    print(shown_path(formats.write(study, out, form)))


def _check_folder(out: Path, given: str) -> None:
    """Refuse a folder for pictures that cannot be one, or that holds anything else: it is replaced."""
    from akd.report import plots

    if out.exists() and not out.is_dir():
        raise ExperimentError("is a file: pictures go into a folder", key="--out", value=given)
    if not out.parent.is_dir():
        raise ExperimentError(f"cannot be written: there is no folder {out.parent}", key="--out", value=given)
    if out.is_dir() and (left := plots.others(out)):
        problem = f"holds more than pictures of a report ({left[0]}); name a new folder"
        raise ExperimentError(problem, key="--out", value=given)


def _verify(study: Path, uri: str) -> None:
    from akd.report import verify

    checks = verify.verify(study, uri)
    for check in checks:
        print(check.line())
    own = Run.read(study)
    assert own is not None
    last = verify.verdict(checks, own.state)
    if any(not check.good for check in checks):
        raise AkdError(last)
    print(last)
