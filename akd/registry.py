"""Names -> factories for methods, models and data: the only door to a component.

Ways to name one: a name registered here, a name another package offers through an entry point of the group
``akd.<kind>`` (for example ``akd.models``), ``module:factory`` for a function of the user's own, and ``family:name``
for the names of another library that a kind knows (``torchvision:resnet18``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from typing import Any, TypeVar

from akd.errors import ExperimentError, near, reason

F = TypeVar("F", bound=Callable[..., Any])


class Registry:
    """The names of one kind of component.

    Args:
        kind: singular word for messages, for example ``model``.
        group: entry-point group that other packages use.
    """

    def __init__(self, kind: str, group: str):
        self.kind, self.group = kind, group
        self._factories: dict[str, Callable[..., Any]] = {}
        self._info: dict[str, dict[str, Any]] = {}
        self._families: dict[str, Callable[[str], Callable[..., Any]]] = {}

    def register(self, name: str, **info: Any) -> Callable[[F], F]:
        """Decorator that enters a factory under ``name``; ``info`` is kept for :meth:`info`."""

        def enter(factory: F) -> F:
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._factories[name] = factory
            self._info[name] = info
            return factory

        return enter

    def family(self, prefix: str) -> Callable[[F], F]:
        """Decorator for a function that gives the factory of ``prefix:name`` from the name, or ExperimentError."""

        def enter(find: F) -> F:
            self._families[prefix] = find
            return find

        return enter

    def registered(self, name: str) -> bool:
        """True for a name entered here, false for one that is looked up elsewhere."""
        return name in self._factories

    def names(self) -> list[str]:
        """All registered names, sorted; names of other packages included."""
        return sorted({*self._factories, *(e.name for e in entry_points(group=self.group))})

    def __contains__(self, name: object) -> bool:
        """True for a registered name; packages are only looked through for one that is not."""
        return name in self._factories or any(e.name == name for e in entry_points(group=self.group))

    def info(self, name: str) -> dict[str, Any]:
        """What was said at registration (config class, paper, ...); empty for foreign names."""
        return self._info.get(name, {})

    def get(
        self, name: str, *, key: str | None = None, where: str | None = None, also: Iterable[str] = ()
    ) -> Callable[..., Any]:
        """The factory called ``name``.

        Args:
            key, where: of the setting that names it, for messages.
            also: other names the user may have meant.

        Raises:
            ExperimentError: no such name; the message lists the nearest.
        """
        if name in self._factories:
            return self._factories[name]
        for entry in entry_points(group=self.group):
            if entry.name == name:
                return entry.load()
        if ":" in name:
            return self._elsewhere(name, key or self.kind, where)
        names = self.names()
        hint = near(name, [*names, *also]) or f", known are {', '.join(names)}"
        raise ExperimentError(f"there is no such {self.kind}{hint}", key=key or self.kind, value=name, where=where)

    def _elsewhere(self, name: str, key: str, where: str | None) -> Callable[..., Any]:
        """The factory of ``family:name`` or ``module:factory``."""
        module, _, attribute = name.partition(":")
        try:
            if module in self._families:
                return self._families[module](attribute)
            found = getattr(importlib.import_module(module), attribute)
        except ExperimentError as error:
            raise ExperimentError(error.problem, key=key, value=name, where=where) from None
        except (Exception, SystemExit) as error:  # a user's module may fail in any way, a script may even end
            known = isinstance(error, (ImportError, AttributeError, ValueError, TypeError))
            why = reason(error) if known else f"{type(error).__name__}: {reason(error)}"
            raise ExperimentError(f"cannot be imported: {why}", key=key, value=name, where=where) from None
        if not callable(found):
            raise ExperimentError("is not something to call", key=key, value=name, where=where)
        return found
