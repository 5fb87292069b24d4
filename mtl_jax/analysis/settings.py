"""Configs for readers of a report: what differs from the defaults, and the command that trains one lane alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.analysis import html
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.runtime.flags import entry_point

MAX_LINE = 160  # characters of a value that are shown


def changed_settings(config: Mapping[str, Any]) -> list[str]:
    """Lines "field = value" for what differs from the defaults.

    Args:
      config: a plain config, as config.json has it.
    """
    base = to_plain(default.get_config())
    for place, kind in default.ENTRIES.items():
        path = place.split(".")
        _get(base, path).update({name: to_plain(default.defaults(kind)) for name in _get(config, path)})
    defaults = dict(_leaves(base))
    missing = object()
    return [_line(field, value) for field, value in _leaves(config) if value != defaults.get(field, missing)]


def _get(config, path):
    for key in path:
        config = config.get(key, {})
    return config


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        field = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, field)
        elif not isinstance(value, Mapping):
            yield field, value


def _line(field, value):
    text = repr(tuple(value) if isinstance(value, list) else value)
    return f"{field} = {text if len(text) <= MAX_LINE else text[:MAX_LINE] + ' …'}"


def command(
    grid: Grid, config: Mapping[str, Any], choices: Mapping[str, str], values: Mapping[str, float], seed: int
) -> str:
    """The command that trains one point of the sweeps as a run of its own.

    Args:
      grid: the ablation.
      config: its plain config; {} where it is not known: choices are then named in a comment.
      choices, values, seed: of the lane.
    """
    flags, comments = [], []
    for name, alternative in choices.items():
        entry = _get(config, ("ablation", "choices", name))
        named = {f"{v:g}" if isinstance(v, float) else str(v): v for v in entry.get("alternatives", ())}
        if alternative in named:
            fields = [(field, named[alternative]) for field in _fields(entry["field"], config)]
        elif alternative in entry.get("settings", {}):
            fields = _leaves({k: v for k, v in entry["settings"][alternative].items() if k != "ablation"})
        else:
            comments.append(f"# with the settings of {name} = {alternative}")
            continue
        for field, value in fields:
            if _has(config, field):
                flags.append(_flag(field, value))
            else:  # the command line cannot add a field
                comments.append(f"# with, in CONFIG.py, {_line(f'config.{field}', value)}")
    for name, value in values.items():
        if name in grid.sweeps:
            flags += [_flag(field, value) for field in _fields(grid.sweeps[name]["field"], config)]
        else:  # of the settings of a choice
            comments.append(f"# with {name} = {value:g}")
    flags.append(_flag("seed", seed))
    return " \\\n    ".join([f"{entry_point()} --config=CONFIG.py --workdir=runs/lane", *flags]) + "".join(
        f"\n{comment}" for comment in comments
    )


def _has(config, field):
    *parents, last = field.split(".")
    return last in _get(config, parents)


def _flag(field, value):
    text = repr(tuple(value)) if isinstance(value, list) else value if isinstance(value, str) else repr(value)
    return f"--config.{field}={shlex.quote(text)}"


def _fields(field: str, config: Mapping[str, Any]) -> list[str]:
    """A field in which "*" stands for every name there."""
    found = [("", config)]
    for key in field.split("."):
        found = [
            (f"{prefix}.{name}" if prefix else name, node.get(name, {}) if isinstance(node, Mapping) else {})
            for prefix, node in found
            for name in (node if key == "*" and node else [key])
        ]
    return [prefix for prefix, _ in found]


def configuration(config: Mapping[str, Any]) -> list[html.Html]:
    """A config as a folded part of a page: where it differs from the defaults, or whole without them."""
    if not config:
        return [html.paragraph("There is no config.json in the folder.")]
    lines = "\n".join(changed_settings(config)) or "(nothing)"
    return [html.details("Config, where it differs from the defaults", html.code(lines))]
