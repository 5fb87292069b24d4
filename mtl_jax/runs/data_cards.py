"""Cards of data sets: where they come from, under which licence, where they are here, and their first records."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from mtl_jax.config.plain import to_plain
from mtl_jax.data import datasets, origins
from mtl_jax.data.files import python_wheels
from mtl_jax.data.notices import INFORMATION, notice
from mtl_jax.data.origins import store
from mtl_jax.data.origins.base import Origin
from mtl_jax.data.records import suggestion
from mtl_jax.errors import UserError
from mtl_jax.runtime import config_file
from mtl_jax.runtime.flags import entry_point

NUM_RECORDS = 10
_VALUE_WIDTH = 300  # characters of a field's value


def print_list() -> None:
    """Prints a line for each known data set."""
    rows = [("name", "size", "licence", "here", "what")]
    for name, origin in origins.ORIGINS.items():
        size = origin.download_size()
        rows.append(
            (name, store.megabytes(size) if size else "", origin.licence, place(name, origin) or "-", origin.title)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))


def place(name: str, origin: Origin) -> str:
    """Where the data set is on this machine; "" where it is not."""
    if origin.wheel:
        wheel = python_wheels.wheel_path(**origin.wheel)
        return str(wheel) if wheel.is_file() else ""
    return str(origins.local_folder(name, origin) or "")


def show(name: str, config_name: str) -> None:
    """Prints the card of a known data set, or of one of a config, and its first records.

    Raises UserError: there is no such data set; its records cannot be read.
    """
    if config_name:
        config = config_file.load(config_name)
        if name not in config.datasets:
            raise UserError(
                f"{config_name} has no data set {name!r}; it has {', '.join(config.datasets)}."
                f"{suggestion(name, config.datasets)}"
            )
        entry = to_plain(config.datasets[name])
    else:
        origins.parse(name)
        known = origins.ORIGINS.get(name)
        entry = {"origin": name, **(known.entry if known else {})}
    print(name)
    if entry.get("origin") in origins.ORIGINS:
        _print_card(entry["origin"], origins.ORIGINS[entry["origin"]])
    else:
        print(f"  origin    {entry.get('origin') or entry.get('wheel') or entry.get('path')}")
    if entry.get("reader"):
        _print_records(name, entry)


def _print_card(name: str, origin: Origin) -> None:
    here = place(name, origin)
    size = origin.download_size()
    count = origin.download_count()
    print(f"  {origin.title}")
    print(f"  licence   {origin.licence}")
    print(f"  homepage  {origin.homepage}")
    if count:
        print(f"  download  {count:,} file{'s' if count > 1 else ''}{f', {store.megabytes(size)}' if size else ''}")
    print(
        f"  here      {here or f'no; `{entry_point()} data fetch {name}` puts it into {store.folder_in_cache(name)}'}"
    )
    for file in origin.files:
        print(f"  file      {file.path}  {file.size:,} bytes  sha256 {file.sha256}\n            {file.url}")
    if origin.git:
        print(f"  git       {origin.git.url} at {origin.git.commit}: {' '.join(origin.git.patterns)}")
    if origin.wheel:
        print("  wheel     {name}=={version}  sha256 {sha256}".format(**origin.wheel))
    named = {file.path for file in origin.files}
    for path, sha256 in origin.contents().items():
        if path not in named:
            print(f"  gives     {path}{f'  sha256 {sha256}' if sha256 else ''}")


def _print_records(name: str, entry: Mapping[str, Any]) -> None:
    """Prints the first records of train, of data that are on this machine."""
    origin = entry.get("origin") or ""
    if origin in origins.ORIGINS and not place(origin, origins.ORIGINS[origin]):
        return
    data = datasets.read_dataset(name, entry, 0)
    sizes = ", ".join(f"{split} {len(records):,}" for split, records in data.splits.items())
    print(f"  records   {sizes}")
    for note in data.notes:
        if notice(note).kind != INFORMATION:
            print(f"  note      {note}")
    for number, record in enumerate(data.splits["train"][:NUM_RECORDS], start=1):
        print(f"\n{number}.")
        for field, value in record.fields.items():
            print(f"  {field}: {textwrap.shorten(_text(value), _VALUE_WIDTH, placeholder=' …')}")


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    shape = getattr(value, "shape", None)
    return f"array of {' × '.join(map(str, shape))}" if shape else str(value)
