"""What pages read from the code: the reference of the config, and the tables of the registries.

A line `<!-- config -->` is replaced by all fields of the config with their comments, `<!-- registry: NAME -->` by the
names in a registry and the first sentence of what each is documented as.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import typing
from collections.abc import Iterator

from mtl_jax.config import default
from mtl_jax.config.sections import Config
from mtl_jax.tasks.metrics import Metric

REGISTRIES = {
    "penalties": ("mtl_jax.sharing", "PENALTIES"),
    "proximal operators": ("mtl_jax.sharing", "PROXIMAL"),
    "loss weights": ("mtl_jax.balancing", "LOSS_WEIGHTS"),
    "aggregation": ("mtl_jax.balancing", "AGGREGATION"),
    "merging": ("mtl_jax.sharing.merging", "MERGING"),
    "origins": ("mtl_jax.data.origins", "ORIGINS"),
    "readers": ("mtl_jax.data.readers", "READERS"),
    "metrics": ("mtl_jax.tasks.metrics", "METRICS"),
    "mixers": ("mtl_jax.models.mixers", "MIXERS"),
    "adapters": ("mtl_jax.models.adapters", "ADAPTERS"),
    "readouts": ("mtl_jax.models.readouts", "READOUTS"),
    "optimizers": ("mtl_jax.training.optimizer", "OPTIMIZERS"),
    "schedules": ("mtl_jax.training.schedules", "SCHEDULES"),
    "layers": ("mtl_jax.models.layers", "LAYERS"),
    "families": ("mtl_jax.models.families", "FAMILIES"),
    "kinds of task": ("mtl_jax.tasks", "TASK_KINDS"),
    "suites": ("mtl_jax.config.suites", "SUITES"),
    "trackers": ("mtl_jax.storage.trackers", "TRACKERS"),
    "measures": ("mtl_jax.analysis.relatedness.registry", "MEASURES"),
}


def on_page_markdown(markdown: str, **_) -> str:
    """The page with its markers replaced. Called by mkdocs."""
    markdown = re.sub(r"^<!-- config -->$", lambda _: config_reference(), markdown, flags=re.M)
    return re.sub(r"^<!-- registry: ([\w ]+) -->$", lambda match: registry_table(match[1]), markdown, flags=re.M)


def registry_table(name: str) -> str:
    """A table of the names in a registry; what has no docstring of its own stands without a description."""
    module, attribute = REGISTRIES[name]
    entries = getattr(importlib.import_module(module), attribute)
    rows = [f"| `{key}` | {_summary(entries[key]) if hasattr(entries, 'items') else ''} |" for key in entries]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _summary(entry: object) -> str:
    entry = entry[0] if isinstance(entry, tuple) and type(entry) is tuple else entry
    while hasattr(entry, "func"):
        entry = entry.func
    if isinstance(entry, Metric):
        doc = f"of {', '.join(sorted(entry.predictions))}; {'more' if entry.increasing else 'less'} is better"
    else:
        doc = inspect.getdoc(entry) if callable(entry) else getattr(entry, "title", None)
    return _escaped((doc or "").split("\n\n")[0].replace("\n", " "))


def _escaped(text: str) -> str:
    """Text of a table's cell, outside of code: no end of the cell, no link, no tag in it."""
    parts = text.replace("``", "`").split("`")
    for sign in "[]<>*_":
        parts[::2] = [part.replace(sign, f"\\{sign}") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def config_reference() -> str:
    """Every field of a config with its type, default and comment, a table for each section and kind of entry."""
    return "\n\n".join(f"## {place}\n\n{_table(section)}" for place, section in _sections("config", Config))


def _sections(place: str, section: type) -> Iterator[tuple[str, type]]:
    """The section, then those within it; `place` is what a config calls it."""
    yield place, section
    for field, kind in typing.get_type_hints(section).items():
        if hasattr(section, field):
            continue
        if isinstance(kind, type):
            yield from _sections(f"{place}.{field}", kind)
        elif (entry := typing.get_args(kind)[1]) in default.ENTRIES.values():
            yield from _sections(f"{place}.{field}.NAME", entry)


def _table(section: type) -> str:
    """What a section is for, and a table of its fields except those that are sections."""
    kinds = typing.get_type_hints(section)
    rows = [
        f"| `{field}` | `{_code(kind)}` | `{_code(value)}` | {_escaped(comment)} |"
        for field, kind, value, comment in fields(section)
        if not isinstance(kinds[field], type) or hasattr(section, field)
    ]
    return "\n".join(
        [inspect.getdoc(section) or "", "", "| field | type | default | meaning |", "|---|---|---|---|", *rows]
    )


def fields(section: type) -> list[tuple[str, str, str, str]]:
    """(field, type, default, comment above it) of each field, as the source has them."""
    source = inspect.getsource(section)
    lines = source.splitlines()
    rows = []
    for node in ast.parse(source).body[0].body:
        if isinstance(node, ast.AnnAssign):
            first = node.lineno - 1
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            comment = " ".join(line.lstrip(" #") for line in lines[first : node.lineno - 1])
            value = ast.unparse(node.value) if node.value else "{}"
            rows.append((node.target.id, ast.unparse(node.annotation), value, comment))
    return rows


def _code(text: str) -> str:
    return text.replace("|", "\\|")
