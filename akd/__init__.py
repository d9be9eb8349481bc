"""akd: find the best way to distil a teacher network into a student, on the machines you have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from akd.single import distil
    from akd.study import search
    from akd.teacher.keep import load_student

__all__ = ["__version__", "distil", "load_student", "search"]


def __getattr__(name: str) -> Any:
    # ray, optuna and mlflow take seconds to import: only who searches pays for them.
    if name == "search":
        from akd.study import search

        return search
    if name == "distil":
        from akd.single import distil

        return distil
    if name == "load_student":
        from akd.teacher.keep import load_student

        return load_student
    raise AttributeError(f"module 'akd' has no attribute {name!r}")
