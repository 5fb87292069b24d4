"""Configs in a report: the differences from the defaults, and the command that trains one lane as a run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.analysis import html
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.runtime.flags import entry_point

MAX_CHARACTERS = 160  # of a value


def changed_settings(config: Mapping[str, Any]) -> list[str]:
    """Lines "field = value" for the fields that differ from the defaults.

    Args:
      config: plain, as in config.json.
    """
    base = to_plain(default.get_config())
    for place, kind in default.ENTRIES.items():
        path = place.split(".")
        _get(base, path).update({name: to_plain(default.defaults(kind)) for name in _get(config, path)})
    defaults = dict(_leaves(base))
    missing = object()
    return [_line(field, value) for field, value in _leaves(config) if value != defaults.get(field, missing)]


def _get(config: Mapping[str, Any], path: Sequence[str]) -> Any:
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


def _line(field: str, value: Any) -> str:
    text = repr(tuple(value) if isinstance(value, list) else value)
    return f"{field} = {text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + ' …'}"


def command(
    grid: Grid, config: Mapping[str, Any], choices: Mapping[str, str], values: Mapping[str, float], seed: int
) -> str:
    """The command that trains one point of the sweeps as a run of its own.

    Args:
      grid: the ablation.
      config: its plain config; {} where it is unknown: choices are then named in a comment.
      choices, values, seed: of the lane.
    """
    flags, comments = [], []
    for name, alternative in choices.items():
        entry = _get(config, ("ablation", "choices", name))
        values_by_name = {f"{v:g}" if isinstance(v, float) else str(v): v for v in entry.get("alternatives", ())}
        if alternative in values_by_name:
            fields = [(field, values_by_name[alternative]) for field in _fields(entry["field"], config)]
        elif alternative in entry.get("settings", {}):
            fields = _leaves({k: v for k, v in entry["settings"][alternative].items() if k != "ablation"})
        else:
            comments.append(f"# with the settings of {name} = {alternative}")
            continue
        for field, value in fields:
            if _has_field(config, field):
                flags.append(_flag(field, value))
            else:  # the command line cannot add a field
                comments.append(f"# with, in CONFIG.py, {_line(f'config.{field}', value)}")
    for name, value in values.items():
        if name in grid.sweeps:
            flags += [_flag(field, value) for field in _fields(grid.sweeps[name]["field"], config)]
        else:  # a sweep that a choice adds
            comments.append(f"# with {name} = {value:g}")
    flags.append(_flag("seed", seed))
    return " \\\n    ".join([f"{entry_point()} --config=CONFIG.py --workdir=runs/lane", *flags]) + "".join(
        f"\n{comment}" for comment in comments
    )


def _has_field(config: Mapping[str, Any], field: str) -> bool:
    *parents, last = field.split(".")
    return last in _get(config, parents)


def _flag(field: str, value: Any) -> str:
    text = repr(tuple(value)) if isinstance(value, list) else value if isinstance(value, str) else repr(value)
    return f"--config.{field}={shlex.quote(text)}"


def _fields(field: str, config: Mapping[str, Any]) -> list[str]:
    """The fields that match a name with "*"."""
    matches = [("", config)]
    for key in field.split("."):
        matches = [
            (f"{prefix}.{name}" if prefix else name, node.get(name, {}) if isinstance(node, Mapping) else {})
            for prefix, node in matches
            for name in (node if key == "*" and node else [key])
        ]
    return [prefix for prefix, _ in matches]


def configuration(config: Mapping[str, Any]) -> list[html.Html]:
    """A config as a folded part of a page: its differences from the defaults."""
    if not config:
        return [html.paragraph("There is no config.json in the folder.")]
    lines = "\n".join(changed_settings(config)) or "(nothing)"
    return [html.details("Config: differences from the defaults", html.code(lines))]
