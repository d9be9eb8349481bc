"""YAML as people write it: ``1e-3`` is a number, a key given twice is an error, and every key knows its line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from akd.errors import ExperimentError
from akd.settings import Origins


class _Loader(yaml.SafeLoader):
    """A SafeLoader (no object tags, so no code) that reads ``1e-3`` as YAML 1.2 does and refuses duplicate keys."""


_TAG = "tag:yaml.org,2002:"
# Numbers as in YAML 1.2: in YAML 1.1 a trial count of 1:30 is ninety and one of 010 is eight. No setting is a date.
# A copy first: add_implicit_resolver would otherwise still share SafeLoader's lists.
_Loader.yaml_implicit_resolvers = {
    k: [(tag, pattern) for tag, pattern in v if tag not in {f"{_TAG}{n}" for n in ("int", "float", "timestamp")}]
    for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_TAG}int", re.compile(r"^[-+]?(0|[1-9]\d*(_\d+)*|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    f"{_TAG}float",
    re.compile(
        r"^[-+]?(\d+\.\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(inf|Inf|INF))$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)

#: An experiment has a few hundred values; a file that is larger, or becomes so by its anchors, is none.
MOST_BYTES, MOST_VALUES = 256 * 1024, 10_000


def parse_value(text: str, flag: str | None = None) -> Any:
    """One value as given on the command line: ``3``, ``1e-3``, ``true``, ``[60, 80]``, ``cosine``.

    Args:
        flag: that it was given with, for messages.

    Raises:
        ExperimentError: a key twice, or more values than an experiment has.
    """
    if len(text) > MOST_BYTES:
        raise ExperimentError("is too long for a value", key=flag, value=text)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _walk(node, "", lambda line: flag, Origins(), (), [0])
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError):
        return text
    except ExperimentError:
        raise
    except ValueError:  # a whole number of more digits than Python reads
        return text
    finally:
        if loader is not None:
            loader.dispose()


def read(path: Path) -> tuple[dict[str, Any], Origins]:
    """The mapping in a YAML file and the place (``name:line``) of each dotted key.

    Raises:
        ExperimentError: not there, not YAML, not a mapping, a key twice, a tag that would run code.
    """
    text = _text(path)
    origins = Origins()
    origins.file = str(path)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, origins
        if not isinstance(node, yaml.MappingNode):
            raise ExperimentError("must hold keys and values, like 'data: digits'", where=f"{path}:1")
        _walk(node, "", lambda line: f"{path}:{line}", origins, (), [0])
        value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ExperimentError(f"is not plain YAML: {_reason(error, mark)}", where=where) from None
    except yaml.YAMLError as error:
        raise ExperimentError(f"is not YAML: {str(error).splitlines()[0]}", where=str(path)) from None
    except RecursionError:
        raise ExperimentError("is nested too deeply", where=str(path)) from None
    except ExperimentError:
        raise
    except ValueError as error:  # PyYAML lets these through: the 13th month, 0x_
        raise ExperimentError(f"holds a value that cannot be read: {error}", where=str(path)) from None
    finally:
        if loader is not None:
            loader.dispose()
    return value, origins


def _text(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ExperimentError(f"is larger than {MOST_BYTES // 1024} KB: no experiment file", where=str(path))
        return content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise ExperimentError(f"cannot be read: {reason}", where=str(path)) from None


def _reason(error: yaml.MarkedYAMLError, mark: yaml.Mark | None) -> str:
    """What PyYAML found, in words for who has not read its source."""
    problem, column = error.problem or str(error.context), f" (column {mark.column + 1})" if mark else ""
    if "'\\t'" in problem:
        return f"a tab stands where YAML allows spaces only{column}"
    if tag := re.search(r"constructor for the tag '(.*)'", problem):
        shown = tag[1].replace(_TAG, "!!", 1)
        return f"the tag {shown!r} is not read, tags can run code; write plain values"
    return f"{problem}{column}"


def _walk(
    node: yaml.Node,
    prefix: str,
    place: Callable[[int], str | None],
    origins: Origins,
    above: tuple[yaml.Node, ...],
    seen_values: list[int],
) -> None:
    """Refuse what a mapping cannot be, and note the line of each key.

    Args:
        place: a line's place in words.
        above: the nodes that hold this one.
        seen_values: how many nodes were met so far, those an alias repeats counted each time.
    """
    seen_values[0] += 1
    if seen_values[0] > MOST_VALUES:
        raise ExperimentError(f"holds more than {MOST_VALUES:,} values: no experiment", where=place(1))
    if any(node is other for other in above):
        raise ExperimentError("holds itself (a recursive anchor)", key=prefix, where=origins.of(prefix) or place(1))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _walk(item, prefix, place, origins, (*above, node), seen_values)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ExperimentError("a key must be plain text", where=place(line))
        name = key_node.value
        if key_node.tag not in (f"{_TAG}str", f"{_TAG}merge"):
            kind = key_node.tag.removeprefix(_TAG)
            raise ExperimentError(f"a key must be plain text, and {name!r} is read as {kind}", where=place(line))
        key = f"{prefix}.{name}" if prefix else name
        if name in seen:
            raise ExperimentError(f"is given twice, first in line {seen[name]}", key=key, where=place(line))
        seen[name] = line
        if (where := place(line)) is not None:
            origins[key] = where
        _walk(value_node, key, place, origins, (*above, node), seen_values)
