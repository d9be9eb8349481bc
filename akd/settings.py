"""Settings: frozen dataclasses whose fields say what they accept, and the builder that holds them to it.

A component keeps its own config class beside its code (``methods/kd.py`` has ``KDConfig``); this file turns a plain
mapping, as read from YAML or from flags, into such a class and answers every mistake with one line.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from akd.errors import ExperimentError, near, one_of

T = TypeVar("T")


def setting(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Sequence[str] | None = None,
    word: str | None = None,
    when: tuple[str, Any] | None = None,
    help: str = "",
) -> Any:
    """A dataclass field with a range.

    Args:
        default: the value when nothing is given.
        low, high: smallest and largest allowed value.
        above, below: open bounds.
        choices: allowed strings.
        word: a string that may stand in a number's place.
        when: ``(other field, value)``: the setting has an effect only if the other field has this value (one of
            these, for a tuple); setting it otherwise is an error.
        help: one line for ``akd list`` and the documentation.
    """
    bounds = {"low": low, "high": high, "above": above, "below": below}
    meta = {**bounds, "choices": choices, "word": word, "when": when, "help": help}
    return dataclasses.field(default=default, metadata=meta)


class Origins(dict[str, str]):
    """Dotted key -> where the user wrote it (``file:line`` or ``--flag``).

    Attributes:
        file: the experiment file, for what no key of it stands for.
    """

    file: str | None = None

    def of(self, key: str) -> str | None:
        """The place of ``key``, of the nearest parent that has one, or of the first key below it."""
        above = key
        while above:
            if above in self:
                return self[above]
            above = above.rpartition(".")[0]
        return next((place for other, place in self.items() if other.startswith(f"{key}.")), None)


def allowed(field: dataclasses.Field[Any]) -> str:
    """What a field accepts, in words: ``a number > 0``, ``one of cosine, step``."""
    meta = field.metadata
    if meta.get("choices"):
        return one_of(meta["choices"])
    kind, _ = _kind(field)
    named: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    named |= {"numbers": "a list of numbers", "strings": "a list of strings"}
    words = named.get(kind, "a list of whole numbers")
    bounds = [("low", ">="), ("above", ">"), ("high", "<="), ("below", "<")]
    limits = [f"{sign} {meta[name]:g}" for name, sign in bounds if meta.get(name) is not None]
    return " ".join([words, " and ".join(limits)]).strip() + (f" or {meta['word']}" if meta.get("word") else "")


def _kind(field: dataclasses.Field[Any]) -> tuple[Any, bool]:
    """The plain type of a field and whether None is allowed. Annotations are strings: read them once."""
    annotation = field.type
    if isinstance(annotation, str):
        text = annotation.replace(" ", "")
        optional = "None" in text.split("|")
        base = "|".join(p for p in text.split("|") if p != "None").removesuffix("|str")  # a word in a number's place
        known: dict[str, Any] = {"int": int, "float": float, "bool": bool, "str": str}
        known |= {"tuple[float,...]": "numbers", "tuple[str,...]": "strings"}
        return known.get(base, tuple if base.startswith("tuple") else base), optional
    args = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return next(a for a in args if a is not type(None)), type(None) in args
    return typing.get_origin(annotation) or annotation, False


def _convert(kind: Any, value: Any) -> Any:
    """``value`` as ``kind``; ValueError if that would change its meaning."""
    if kind is bool:
        if isinstance(value, bool):
            return value
    elif kind is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif kind is str:
        if isinstance(value, str):
            return value
    elif kind in ("numbers", "strings") and isinstance(value, (list, tuple)):
        return tuple(_convert(float if kind == "numbers" else str, v) for v in value)
    elif kind is tuple and isinstance(value, (list, tuple)) and all(type(v) is int for v in value):
        return tuple(value)
    raise ValueError


_BYTES = {"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_BYTES |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def byte_count(text: str) -> int:
    """``20 GB``, ``500MB`` or ``1.5 TiB`` as a number of bytes.

    Raises:
        ValueError: it is no such size; says what is allowed.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _BYTES:
        raise ValueError("must be a size like 500 MB, 20 GB or 1.5 TB")
    return int(float(found[1]) * _BYTES[found[2].upper()])


def check_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """``value`` converted to the field's type, or ValueError with what is allowed."""
    kind, optional = _kind(field)
    if value is None:
        if optional:
            return None
        raise ValueError(f"must be {allowed(field)}")
    meta = field.metadata
    if meta.get("word") and value == meta["word"]:
        return value
    try:
        value = _convert(kind, value)
    except (ValueError, OverflowError):  # a whole number may be too large for a float
        hint = near(value, meta["choices"]) if meta.get("choices") else ""
        raise ValueError(f"must be {allowed(field)}{' or null' if optional else ''}{hint}") from None
    low, high, above, below = (meta.get(k) for k in ("low", "high", "above", "below"))
    for v in value if isinstance(value, tuple) else (value,):
        outside = (
            (low is not None and v < low)
            or (high is not None and v > high)
            or (above is not None and v <= above)
            or (below is not None and v >= below)
        )
        if outside or (meta.get("choices") and v not in meta["choices"]):
            hint = near(v, meta["choices"]) if meta.get("choices") else ""
            raise ValueError(f"must be {allowed(field)}{hint}")
    return value


def build(
    cls: type[T],
    values: Mapping[str, Any],
    *,
    prefix: str = "",
    origins: Origins | None = None,
    strict: bool = True,
    ready: Mapping[str, Any] | None = None,
) -> T:
    """An instance of the config class ``cls`` from a plain mapping.

    Args:
        values: field name -> value.
        prefix: dotted key of this node, for messages.
        origins: where each key was written.
        strict: also refuse keys that have no effect next to the others (``when`` of :func:`setting`).
        ready: fields that are built already (nested configs).

    Raises:
        ExperimentError: unknown key, wrong type, value out of range, key without effect.
    """
    origins = origins or Origins()
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    done: dict[str, Any] = dict(ready or {})
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if name in done:
            continue
        if name not in fields:
            names = sorted(fields)
            hint = near(name, names) or (f", allowed are {', '.join(names)}" if names else ", nothing can be set here")
            raise ExperimentError(f"unknown key{hint}", key=key, where=origins.of(key))
        try:
            done[name] = check_value(fields[name], value)
        except ValueError as error:
            raise ExperimentError(str(error), key=key, value=value, where=origins.of(key)) from None
    result = cls(**done)
    if strict:
        for name in values:
            when = fields[name].metadata.get("when")
            if not when:
                continue
            effective = when[1] if isinstance(when[1], tuple) else (when[1],)
            if getattr(result, when[0]) not in effective and getattr(result, name) != fields[name].default:
                key = f"{prefix}.{name}" if prefix else name
                needed = " or ".join(str(v).lower() if isinstance(v, bool) else str(v) for v in effective)
                raise ExperimentError(
                    f"has no effect while {when[0]} is {getattr(result, when[0])!r}; it needs {when[0]}: {needed}",
                    key=key,
                    value=values[name],
                    where=origins.of(key),
                )
    return result


def mapping(value: Any, key: str, origins: Origins, *, or_name: bool = False) -> dict[str, Any]:
    """A section's keys and values; none of a section with nothing under it.

    Args:
        or_name: a name may stand in the section's place.

    Raises:
        ExperimentError: it is anything else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        usual = "be a name, or " if or_name else ""
        raise ExperimentError(f"must {usual}hold keys and values", key=key, value=value, where=origins.of(key))
    return dict(value)
