"""What pages read from the code: the reference of the config, and the tables of the registries.

A line `<!-- config -->` is replaced by all fields of the config with their comments, `<!-- registry: NAME -->` by the
names in a registry and the first sentence of what each is documented as.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import pathlib
import re
import textwrap
import tokenize

REGISTRIES = {
    "penalties": ("mtl_jax.sharing", "PENALTIES"),
    "proximal operators": ("mtl_jax.sharing", "PROXIMAL"),
    "loss weights": ("mtl_jax.balancing", "LOSS_WEIGHTS"),
    "aggregation": ("mtl_jax.balancing", "AGGREGATION"),
    "merging": ("mtl_jax.sharing.merging", "MERGING"),
    "readers": ("mtl_jax.data.readers", "READERS"),
    "metrics": ("mtl_jax.tasks.metrics", "METRICS"),
    "mixers": ("mtl_jax.models.mixers", "MIXERS"),
    "adapters": ("mtl_jax.models.adapters", "ADAPTERS"),
    "readouts": ("mtl_jax.models.readouts", "READERS"),
    "layers": ("mtl_jax.models.layers", "LAYERS"),
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
    doc = inspect.getdoc(entry) if callable(entry) else None
    return _escaped((doc or "").split("\n\n")[0].replace("\n", " "))


def _escaped(text: str) -> str:
    """Text of a table's cell, outside of code: no end of the cell, no link, no tag in it."""
    parts = text.split("`")
    for sign in "[]<>*_":
        parts[::2] = [part.replace(sign, f"\\{sign}") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def config_reference() -> str:
    """Every field of `configs/default.py` with its default and comment, a table for each section."""
    source = (pathlib.Path(__file__).parents[1] / "configs" / "default.py").read_text(encoding="utf-8")
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for section, field, value, comment in fields(source):
        if value == "ConfigDict()" and not comment:
            continue  # a section of its own
        sections.setdefault(section, []).append((field, value, comment))
    parts = []
    for section, rows in sections.items():
        lines = [f"| `{field}` | `{value}` | {comment} |" for field, value, comment in rows]
        parts.append("\n".join([f"## {section}", "", "| field | default | meaning |", "|---|---|---|", *lines]))
    return "\n\n".join(parts)


def fields(source: str) -> list[tuple[str, str, str, str]]:
    """(section, field, default, comment) of each assignment in the source of the schema.

    A comment stands behind its field, goes on in the lines after it, or stands in the lines before it.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    rows, section = [], ""
    for node in _assignments(source):
        target, value, first, last = node
        owner, _, field = target.rpartition(".")
        function, owner = owner.split(":", 1)
        section = f"config.{owner}" if function == "get_config" and owner != "config" else function
        section = "config" if (function, owner) == ("get_config", "config") else section
        own = [comments[line] for line in range(first, last + 1) if line in comments]
        line = last + 1
        while line in comments and not _is_code(source, line):
            own.append(comments[line])
            line += 1
        text = _escaped(" ".join(own))
        rows.append((section, field, textwrap.shorten(value, 60).replace("|", "\\|"), text))
    return rows


def _is_code(source: str, line: int) -> bool:
    return not source.splitlines()[line - 1].lstrip().startswith("#")


def _assignments(source: str):
    """("function:owner.field", default, first line, last line) of each field that the schema sets."""
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in function.body:
            if not isinstance(node, ast.Assign):
                continue
            target = next((t for t in node.targets if isinstance(t, ast.Attribute)), None)
            if target is None:
                continue
            owner = ast.unparse(target.value)
            yield f"{function.name}:{owner}.{target.attr}", ast.unparse(node.value), node.lineno, node.end_lineno
