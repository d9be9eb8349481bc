"""YAML as people write it: ``1e-3`` is a number, a key given twice is an error, and every key knows its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from akd.errors import ExperimentError
from akd.settings import Origins


class _Loader(yaml.SafeLoader):
    """A SafeLoader (no object tags, so no code) that reads ``1e-3`` as YAML 1.2 does and refuses duplicate keys."""


# A copy first: add_implicit_resolver would otherwise still share SafeLoader's lists.
_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_value(text: str) -> Any:
    """One value as given on the command line: ``3``, ``1e-3``, ``true``, ``[60, 80]``, ``cosine``."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: the 13th month, and the like
        return text


def read(path: Path) -> tuple[dict[str, Any], Origins]:
    """The mapping in a YAML file and the place (``name:line``) of each dotted key.

    Raises:
        ExperimentError: not there, not YAML, not a mapping, a key twice, a tag that would run code.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "is not UTF-8 text"
        raise ExperimentError(f"cannot be read: {reason}", where=str(path)) from None
    origins = Origins()
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return {}, origins
        if not isinstance(node, yaml.MappingNode):
            raise ExperimentError("must hold keys and values, like 'data: digits'", where=f"{path}:1")
        _walk(node, "", path, origins, ())
        value = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ExperimentError(f"is not plain YAML: {error.problem}", where=f"{path}:{line}") from None
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


def _walk(node: yaml.Node, prefix: str, path: Path, origins: Origins, above: tuple[yaml.Node, ...]) -> None:
    """Refuse what a mapping cannot be, and note the line of each key; ``above`` are the nodes that hold this one."""
    if any(node is other for other in above):
        raise ExperimentError("holds itself (a recursive anchor)", key=prefix, where=origins.of(prefix))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _walk(item, prefix, path, origins, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ExperimentError("a key must be plain text", where=f"{path}:{line}")
        name = key_node.value
        key = f"{prefix}.{name}" if prefix else name
        if name in seen:
            raise ExperimentError(f"is given twice, first in line {seen[name]}", key=key, where=f"{path}:{line}")
        seen[name] = line
        origins[key] = f"{path}:{line}"
        _walk(value_node, key, path, origins, (*above, node))
