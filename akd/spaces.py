"""The named search spaces: in the wheel beside the code, in a checkout at the top."""

from __future__ import annotations

from pathlib import Path

from akd.errors import ExperimentError, near


def folder() -> Path:
    """Where the named spaces lie."""
    here = Path(__file__).resolve().parent
    inside = here / "search_spaces"
    return inside if inside.is_dir() else here.parent / "search_spaces"


def names() -> list[str]:
    """Names of the shipped spaces, sorted."""
    return sorted(p.stem for p in folder().glob("*.yaml"))


def find(name: str) -> Path:
    """The file called ``name``: a path, or the name of a shipped space with or without its folder and ending.

    Raises:
        ExperimentError: neither.
    """
    path = Path(name).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir() and path.stem not in names():
            raise ExperimentError("is a folder, not an experiment file", key="space file", value=name)
    except OSError as error:  # a name longer than the system takes
        raise ExperimentError(f"cannot be read: {error.strerror}", key="space file", value=name) from None
    if path.stem in names() and path.suffix in ("", ".yaml") and path.parent.name in ("", "search_spaces"):
        return folder() / f"{path.stem}.yaml"
    hint = near(path.stem, names()) or f", shipped are {', '.join(names())}"
    raise ExperimentError(f"there is no such file or search space{hint}", key="space file", value=name)


def headline(path: Path) -> str:
    """The first comment line of a space: what it asks."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ")
