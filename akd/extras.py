"""``method.extra``: further hosts beside the first, as they are written and as they are checked.

    extra: amd                                     # one, with its defaults
    extra: [amd, {name: crd, weight: 0.5}]         # several
    extra: {amd: {weight: 100}, crd: {name: none}} # by name; "none" leaves one out, so that a space can

Inside it is always a mapping from names, so that each has a dotted key, ``method.extra.amd.weight``, on the command
line and in a space. A key below a name that is not there brings it in.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from akd.errors import ExperimentError
from akd.methods import hosts
from akd.methods.base import needs_of
from akd.settings import Origins


def expand(given: Any, origins: Origins) -> Any:
    """``amd``, ``[amd, {name: crd, weight: 0.5}]`` and ``{amd: null}`` as name -> settings."""
    if isinstance(given, Mapping):
        return {n: {"name": s} if isinstance(s, str) else ({} if s is None else s) for n, s in given.items()}
    found: dict[str, Any] = {}
    for item in [given] if isinstance(given, str) else given or []:
        name, values = (item.get("name"), dict(item)) if isinstance(item, Mapping) else (item, {})
        where = origins.of("method.extra")
        if not isinstance(name, str):
            problem = "must be names of hosts, or settings with a name"
            raise ExperimentError(problem, key="method.extra", value=item, where=where)
        if name in found:
            raise ExperimentError("names a host twice", key="method.extra", value=name, where=where)
        found[name] = values
    return found


def restart(tree: dict[str, Any], mine: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Extras that ``values`` bring in or leave out start from their own defaults.

    Args:
        tree: name -> settings, changed in place.
        mine: the extras there are.
        values: dotted keys of the whole experiment.
    """
    for key, name in values.items():
        found = re.fullmatch(r"method\.extra\.([^.]+)\.name", key)
        if found and (name == found[1]) != (found[1] in mine):
            tree[found[1]] = {"name": name}


def needs(*members: Any) -> frozenset[str]:
    """What hosts, given by their config objects, ask of the teacher together."""
    return frozenset[str]().union(*(needs_of(hosts, member) for member in members))


def read(
    given: Mapping[str, Any], host: Any, member: Callable[..., Any], origins: Origins, strict: bool
) -> dict[str, Any]:
    """The config objects of ``method.extra``, by name.

    Args:
        given: name -> settings, as :func:`expand` gives them.
        host: config object of the host they stand beside.
        member: builds the config object of a host from its place under ``method`` and its settings.
    """
    found: dict[str, Any] = {}
    for name, settings in given.items():
        key, where = f"method.extra.{name}", origins.of(f"method.extra.{name}")
        if not isinstance(settings, Mapping):
            raise ExperimentError("must hold keys and values", key=key, value=settings, where=where)
        values = {"name": name, **settings}
        called = values["name"]
        if called == "none" and name != "none":
            if strict and len(values) > 1:
                raise ExperimentError("has no effect beside name: none", key=f"{key}.{[*values][1]}", where=where)
            continue
        if called != name:
            raise ExperimentError(f"must be {name} or none", key=f"{key}.name", value=called, where=where)
        built = member(f"extra.{name}", values, name, origins, strict)
        if reason := _no_extra(built, host):
            raise ExperimentError(reason, key="method.extra", value=name, where=where)
        hard = next((f.default for f in dataclasses.fields(built) if f.name == "ce_weight"), None)
        if hard is not None and built.ce_weight != hard:
            problem = "has no effect: hard labels are the host's, method.host.ce_weight"
            raise ExperimentError(problem, key=f"{key}.ce_weight", value=built.ce_weight, where=where)
        found[name] = built
    return found


def _no_extra(built: Any, host: Any) -> str:
    """Why this host cannot stand beside ``host``; empty if it can."""
    if built.name == host.name:
        return "is the host already: its weights are under method.host"
    if not needs(built):
        return "learns from no teacher, so it has nothing to add"
    if not needs(host):
        return f"has no effect over {host.name}, which learns from no teacher; write method.host: {built.name}"
    return ""
