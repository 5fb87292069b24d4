"""A config as plain data: to and from config.json, and where two of them differ."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def from_plain(plain: Any) -> Any:
    """The config that config.json holds: its fields in order, tuples for lists."""
    if isinstance(plain, dict):
        config = ConfigDict(sort_keys=False)
        for key, value in plain.items():
            config[key] = from_plain(value)
        return config
    return tuple(from_plain(item) for item in plain) if isinstance(plain, list) else plain


# Fields that may differ when a run is resumed: they change what is logged, stored or scored, not what is trained.
FREE_FIELDS = (
    "training.log_every",
    "training.minutes",
    "training.trackers",
    "training.tracker_options",
    "training.checkpoint_every",
    "training.max_to_keep",
    "training.max_nonfinite_steps",
    "training.platform",
    "training.placement",
    "training.mesh",
    "training.offload_optimizer",
    "model.remat_policy",
    "evaluation",
)


def to_plain(value: Any) -> Any:
    """A config as JSON has it: dicts, lists, numbers, strings."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Where two plain configs differ: "field: value in the first, value in the second"."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        field = f"{prefix}.{key}" if prefix else key
        if field in FREE_FIELDS:
            continue
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += differences(a, b, field)
        elif a != b:
            lines.append(f"config.{field}: {a!r} there, {b!r} here")
    return lines
