"""The section ``method`` of an experiment: host, extra hosts, views and augmentation, each with its own settings."""

from __future__ import annotations

from functools import partial
from typing import Any

from akd import extras
from akd.data.policies import augments
from akd.data.policies import check as check_augment
from akd.errors import ExperimentError
from akd.methods import MethodConfig, hosts, views
from akd.registry import Registry
from akd.settings import Origins, build, mapping

#: Parts that a name alone may stand for, and where another package registers such a part.
_REGISTRIES = {
    "host": "akd.methods.hosts",
    "views": "akd.methods.views",
    "augment": "akd.data.policies.augments",
}


def read(tree: dict[str, Any], origins: Origins, strict: bool) -> MethodConfig:
    """The section ``method``, its shorthands spelled out.

    Args:
        tree: host, extra hosts, views and augmentation by name, with their settings.
        origins: where each key was written, for messages.
        strict: refuse settings that have no effect.

    Raises:
        ExperimentError: an unknown name or key, a value out of range, or parts that do not go together.
    """
    host = _member(hosts, "host", tree.pop("host", {}) or {}, "kd", origins, strict)
    others = mapping(tree.pop("extra", None), "method.extra", origins)
    extra = extras.read(others, host, partial(_member, hosts), origins, strict)
    teacher_views = _views(tree.pop("views", None), [host, *extra.values()], origins, strict)
    augment = _augment(tree.pop("augment", None), host, bool(extras.needs(host, *extra.values())), origins, strict)
    ready = {"host": host, "views": teacher_views, "extra": extra, "augment": augment}
    built = build(MethodConfig, tree, prefix="method", origins=origins, strict=strict, ready=ready)
    if built.normalise and not extras.needs(host):
        problem, where = f"has no effect over {host.name}, which learns from no teacher", origins.of("method.normalise")
        raise ExperimentError(problem, key="method.normalise", value=True, where=where)
    return built


def _views(given: Any, over: list[Any], origins: Origins, strict: bool) -> Any:
    if given is None:
        return None
    values = mapping(given, "method.views", origins, or_name=True)
    where = origins.of("method.views.name") or origins.of("method.views")
    name = values.get("name")
    if name is None:
        raise ExperimentError(
            f"needs a name, known are {', '.join(views.names())}", key="method.views.name", where=where
        )
    if name == "none":
        for key in values.keys() - {"name"}:
            place = origins.of(f"method.views.{key}")
            raise ExperimentError("has no effect without views", key=f"method.views.{key}", where=place)
        return None
    found = _member(views, "views", values, "", origins, strict)
    needs = extras.needs(*over)
    if not needs & {"logits", "embedding"}:  # views stand in for these alone
        reads = "no logits or embeddings; a host beside it may, extra: [kd]" if needs else "no teacher"
        flag = _by_flag("method.host", origins)
        flag = "" if flag == f" ({where})" else flag
        problem = f"have no effect over {over[0].name}{flag}, which learns from {reads}"
        raise ExperimentError(problem, key="method.views", value=name, where=where)
    return found


def _augment(given: Any, host: Any, taught: bool, origins: Origins, strict: bool) -> Any:
    if given is None:
        return None
    key = "method.augment"
    values = mapping(given, key, origins, or_name=True)
    if values.get("name") is None:
        problem = f"needs a name, known are none, {', '.join(augments.names())}"
        raise ExperimentError(problem, key=f"{key}.name", where=origins.of(key))
    if values["name"] == "none":
        for name in values.keys() - {"name"}:
            place = origins.of(f"{key}.{name}")
            raise ExperimentError("has no effect without augmentation", key=f"{key}.{name}", where=place)
        return None
    found = _member(augments, "augment", values, "", origins, strict)
    check_augment(found, host.name, taught, origins.of)
    return found


def _member(registry: Registry, part: str, given: Any, default: str, origins: Origins, strict: bool) -> Any:
    """The config object of ``method.host``, ``method.views``, ``method.augment`` or ``method.extra.NAME``."""
    key = f"method.{part}"
    values = mapping(given, key, origins, or_name=part in _REGISTRIES)
    name, where = values.setdefault("name", default), origins.of(f"{key}.name")
    if not isinstance(name, str):
        raise ExperimentError("must be a string", key=f"{key}.name", value=name, where=where)
    other, other_part = (views, "views") if registry is hosts else (hosts, "host")
    if name not in registry and name in other:
        problem = f"is no {registry.kind}; write method.{other_part}: {name}"
        raise ExperimentError(problem, key=key, value=name, where=where)
    registry.get(name, key=key, where=where, also=other.names() if name not in registry else ())
    cls = registry.info(name).get("config")
    if cls is None:
        raise ExperimentError(
            f"has no config class; register it with {_REGISTRIES.get(part, _REGISTRIES['host'])}"
            ".register(name, config=...)",
            key=key,
            value=name,
            where=where,
        )
    try:
        return build(cls, values, prefix=key, origins=origins, strict=strict)
    except ExperimentError as error:
        raise _of_member(error, key, name, origins) from None


def _of_member(error: ExperimentError, key: str, name: str, origins: Origins) -> ExperimentError:
    """An unknown key, with whose it would be: a flag may have put another host in than the file was written for."""
    words, flag = "unknown key", _by_flag(key, origins)
    called = {"host": "the host is", "views": "the views are", "augment": "the augmentation is"}.get(key[7:])
    if not called or not error.problem.startswith(words) or not (flag or ", allowed are" in error.problem):
        return error
    problem = f"{words}, {called} {name}{flag}{error.problem[len(words) :]}"
    return ExperimentError(problem, key=error.key, where=error.where)


def _by_flag(key: str, origins: Origins) -> str:
    """`` (--method)`` if a flag says which member stands at ``key``, else nothing."""
    where = origins.of(f"{key}.name") or ""
    return f" ({where})" if where.startswith("--") and f"space.{key}.name" not in origins else ""
