"""The fields of a data-set entry that decide how records are read, checked by name and type."""

from __future__ import annotations

from typing import Any

from mtl_jax.data.datasets import list_parsing
from mtl_jax.data.datasets.split_locations import SPLITS
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.origins import hub
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import COMMON_OPTIONS, check_options, declared_options, select_options
from mtl_jax.data.records import suggestion
from mtl_jax.errors import UserError


def plain(value: Any) -> Any:
    """Config values as plain dicts, lists and tuples (a ConfigDict is no `Mapping`)."""
    if hasattr(value, "items"):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def with_hub_name(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, for the reader "hub" with the name and the revision of its origin "hf://…" in their places: `path`,
    which with an origin names the configuration, and options.
    """
    origin = entry.get("origin")
    if entry.get("reader") != "hub" or not isinstance(origin, str) or not origin.startswith("hf:"):
        return entry
    found, options = hub.parse(origin), dict(entry.get("options") or {})
    for option, value in (
        ("name", entry.get("path")),
        ("revision", "" if found.revision == "main" else found.revision),
    ):
        if value and options.get(option, value) != value:
            raise UserError(f"options.{option}: {options[option]!r}, but origin and path say {value!r}")
        options |= {option: value} if value else {}
    return {**entry, "origin": "", "path": found.name, "options": options}


def check_mappings(entry: dict[str, Any]) -> None:
    """Raises UserError for a field that should be a mapping and is not."""
    for name in ("splits", "wheel", "options"):
        if not isinstance(entry.get(name) or {}, dict):
            raise UserError(f"{name} has to be a mapping, found {entry[name]!r}")


def reader_name(entry: dict[str, Any]) -> str:
    """The key of `READERS`. Raises UserError for an unknown one."""
    name = entry.get("reader")
    if name not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"reader: {name!r} is not one of {known}.{suggestion(str(name), READERS)}")
    return name


def reader_options(reader: str, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(options of the reader, "error" or "drop": what to do with an empty text)."""
    read = READERS[reader]
    check_options(read, options, further=COMMON_OPTIONS)
    _check_schemes(options)
    if "lists" not in declared_options(read):
        list_parsing.check_separators(options.get("lists") or {})
    empty = options.get("empty", "error")
    if empty not in ("error", "drop"):
        raise UserError(f'options.empty has to be "error" or "drop", not {empty!r}')
    return select_options(read, options), empty


def text_fields(entry: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """(names of one or two text fields, "") or ((), name of the field of words); ((), "") where an image suffices."""
    text, words = entry.get("text") or (), entry.get("words") or ""
    texts = (text,) if isinstance(text, str) else tuple(text)
    if bool(texts) == bool(words) and not (entry.get("image") and not words):
        given = "both are given" if words else "none is given"
        raise UserError(f"exactly one of text (names of fields with plain text) and words is needed; {given}")
    if len(texts) > 2 or not all(isinstance(name, str) for name in (*texts, words)):
        raise UserError(f"text has to be one or two names of fields, words one name; found {text or words!r}")
    return texts, words


def limits(given: Any) -> dict[str, int]:
    """{split: the largest number of records} from the field `max_examples`. Raises UserError for any other form."""
    if not isinstance(given, dict):
        raise UserError(f'max_examples has to be {{}} or such as {{"train": 1000}}, found {given!r}')
    given = {split: limit for split, limit in given.items() if limit is not None}
    for split, limit in given.items():
        if split not in SPLITS:
            raise UserError(f"max_examples.{split}: splits are called {', '.join(SPLITS)}.{suggestion(split, SPLITS)}")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise UserError(f"max_examples.{split}: has to be a whole number from 1, found {limit!r}")
    return given


def drop_duplicates(entry: dict[str, Any]) -> str:
    """The split that duplicates are dropped from, "train", "test" or "" (none). Raises UserError for any other."""
    choice = entry.get("drop_duplicates") or ""
    if choice not in ("", "train", "test"):
        raise UserError(
            f'drop_duplicates has to be "" (keep all), "train" or "test" (where they are left out): {choice!r}'
        )
    return choice


def _check_schemes(options: dict[str, Any]) -> None:
    """Raises UserError for an unknown scheme in options.scheme or options.schemes."""
    if options.get("scheme", "iob2") not in tag_schemes.TARGET_SCHEMES:
        raise UserError(f'options.scheme has to be "iob2" or "bioes", not {options["scheme"]!r}')
    given, known = options.get("schemes") or {}, (*tag_schemes.SCHEMES, "none")
    if not isinstance(given, dict):
        raise UserError(f"options.schemes has to be a mapping of fields to schemes, found {given!r}")
    for name, source in given.items():
        if source not in known:
            raise UserError(
                f"options.schemes[{name!r}]: {source!r} is not one of {', '.join(known)}."
                f"{suggestion(str(source), known)}"
            )
