"""Errors a user can cause or must know about, each one line that says what, where and what is allowed."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

#: What a full disk, or a quota that is used up, is called in an exception's text: by the system, which Ray and Python
#: pass on, by the writer of safetensors, by sqlite.
_FULL = ("No space left on device", "Disk quota exceeded", "(os error 28)", "(os error 122)", "disk is full")


class AkdError(Exception):
    """Base of every error akd raises on purpose."""


class ExperimentError(AkdError, ValueError):
    """A mistake in a file, a flag or an argument. The command line prints it and exits with 2.

    Args:
        problem: what is wrong and what is allowed.
        key: the dotted key, for example ``train.lr``.
        value: the offending value, when there is one to show.
        where: ``file:line`` or ``--flag``; ``None`` when the value came from code.
    """

    _NOTHING = object()

    def __init__(self, problem: str, *, key: str | None = None, value: object = _NOTHING, where: str | None = None):
        self.problem, self.key, self.value, self.where = problem, key, value, where
        parts = [f"{where}: "] if where else []
        if key:
            parts.append(key)
            if value is not self._NOTHING:
                parts.append(f" = {_short(repr(value))}")
            parts.append(": ")
        super().__init__(one_line("".join(parts) + problem))

    def at(self, where: str | None) -> ExperimentError:
        """The same mistake with the place it was written at, if it does not name one yet."""
        if self.where or not where:
            return self
        return ExperimentError(self.problem, key=self.key, value=self.value, where=where)


class DivergedError(AkdError):
    """Training produced a number that is not finite."""


class RunError(AkdError):
    """A run failed by itself: it diverged, ran out of memory, or met a bug in a method."""


class CheckpointError(AkdError):
    """A checkpoint is missing, incomplete or not what its manifest says."""


class Interrupted(AkdError):  # noqa: N818 - an event, not a fault
    """The user or the machine asked akd to stop; state on disk allows going on."""


class AkdWarning(UserWarning):
    """Something was not as it should be, and was mended; the user should know."""


class DiskFull(AkdError):  # noqa: N818 - an event, not a fault
    """Nothing more can be written; what was being done is not at fault and can go on when there is space."""


def is_full(error: BaseException | str | None) -> bool:
    """True if an exception, one that it came from, or the reason it was told as, speaks of a full disk."""
    if isinstance(error, str):
        return any(words in error for words in _FULL)
    if error is None:
        return False
    if isinstance(error, DiskFull) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Ray makes one text of other processes' exceptions.
    return is_full(str(error)) or is_full(error.__cause__) or is_full(error.__context__)


def _short(text: str, most: int = 160) -> str:
    """A value as it is shown: one of a thousand characters says no more than its beginning."""
    return text if len(text) <= most else f"{text[: most - 40]}... ({len(text)} characters)"


def one_line(text: str) -> str:
    """No line ends and no control characters, which could rewrite what a terminal shows."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)


def reason(error: BaseException) -> str:
    """Somebody else's exception in one line: its first sentence, or its kind where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].split(". ")[0].rstrip(".") if lines else type(error).__name__


def near(name: object, names: Iterable[str]) -> str:
    """`` did you mean 'x'?`` for the nearest of ``names``, or an empty string."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def many(count: float, what: str) -> str:
    """``1 epoch``, ``2 epochs``."""
    return f"{count:g} {what}{'s' * (count != 1)}"


def one_of(names: Iterable[str]) -> str:
    """The allowed names, spelled for a message."""
    return "one of " + ", ".join(sorted(names))
