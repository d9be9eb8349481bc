"""``akd list methods [NAME]``: all methods in one table, or one with its settings."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from akd.data.policies import augments
from akd.errors import ExperimentError, near
from akd.methods import hosts, views
from akd.methods.base import needs_of
from akd.registry import Registry
from akd.settings import allowed

#: Kind -> its registry, and how an experiment names a member.
KINDS: dict[str, tuple[Registry, str]] = {
    "host": (hosts, "method: {{host: {name}}}, or beside another host, method: {{host: {other}, extra: [{name}]}}"),
    "views": (views, "method: {{host: kd, views: {name}}}, over any host of logits or embeddings"),
    "augment": (augments, "method: {{host: kd, augment: {name}}}, with any host and any views"),
}

FOOTER = (
    "together: method: {host: dkd, views: angular_kd, extra: [dist], normalise: true}; normalised terms",
    "start at 1, and weights of 0.1 to 10 (logarithmic) suit them all",
    "the settings of one, with ranges: akd list methods NAME",
)


def show(console: Console, name: str | None = None) -> None:
    """Print every method, or the page of one.

    Raises:
        ExperimentError: there is none of this name.
    """
    if name is None:
        console.print(overview())
        for line in FOOTER:
            console.print(Text(line))
        return
    kind = next((kind for kind, (registry, _) in KINDS.items() if name in registry), None)
    if kind is None:
        names = [n for registry, _ in KINDS.values() for n in registry.names()]
        hint = near(name, names) or f", known are {', '.join(names)}"
        raise ExperimentError(f"there is no such method{hint}", key="method", value=name)
    registry, form = KINDS[kind]
    info, config = registry.info(name), registry.info(name).get("config")
    other = "dkd" if name == "kd" else "kd"
    facts = {
        name: f"{kind}: {info.get('summary', '')}",
        "paper": info.get("paper", ""),
        "teacher": _gives(kind, name),
        "batch": "compares its samples with each other" if getattr(registry.get(name), "relational", False) else "",
        "written": form.format(name=name, other=other) if name != "none" else "method: none",
    }
    head = _table("", "")
    for word, fact in facts.items():
        if fact:
            head.add_row(Text(word, style="bold"), Text(fact))
    head.show_header = False
    console.print(head)
    if config is not None and settings(config):
        console.print()
        console.print(_settings_table(config))


def _gives(kind: str, name: str) -> str:
    needs = teacher_needs(kind, name)
    stages = " (stages, 0 the stem, negative from the deep end)" if "maps" in needs else ""
    return f"has to give {needs}{stages}"


def overview() -> Table:
    """Every method: name, kind, what it does, what it needs, its paper."""
    table = _table("method", "kind", "does", "teacher gives", "paper")
    table.columns[0].no_wrap = table.columns[1].no_wrap = table.columns[4].no_wrap = True
    for kind, (registry, _) in KINDS.items():
        for name in registry.names():
            info = registry.info(name)
            row = (name, kind, info.get("summary", ""), teacher_needs(kind, name), info.get("paper", ""))
            table.add_row(*map(Text, row))
    return table


#: What a need of stages is called.
MAPS = {"maps": "maps", "maps_preact": "maps before their ReLU", "attention": "attention maps"}


def teacher_needs(kind: str, name: str) -> str:
    """What a method with its default settings asks of the teacher, in words: ``embedding, maps -3, -2, -1``."""
    registry, _ = KINDS[kind]
    config = registry.info(name).get("config")
    if config is None:  # a name of another package that says nothing of itself
        found: frozenset[str] = getattr(registry.get(name), "needs", frozenset())
    else:
        found = needs_of(registry, config())
    words = sorted(need for need in found if ":" not in need)
    for need, called in MAPS.items():
        stages = sorted(int(n.partition(":")[2]) for n in found if n.partition(":")[0] == need and ":" in n)
        words += [f"{called} {', '.join(map(str, stages))}"] if stages else []
    return ", ".join(words) or "nothing"


def settings(config: type[Any]) -> list[dataclasses.Field[Any]]:
    """The settings of a config class; the name is none of them."""
    return [field for field in dataclasses.fields(config) if field.name != "name"]


def _settings_table(config: type[Any]) -> Table:
    table = _table("setting", "default", "allowed", "meaning")
    table.columns[0].no_wrap = True
    for field in settings(config):
        when = field.metadata.get("when")
        meaning = field.metadata.get("help", "")
        if when:
            values = when[1] if isinstance(when[1], tuple) else (when[1],)
            meaning += f"{'; ' * bool(meaning)}only with {when[0]} {' or '.join(map(plain, values))}"
        table.add_row(*map(Text, (field.name, plain(field.default), allowed(field), meaning)))
    return table


def plain(value: Any) -> str:
    """A value as an experiment file spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
