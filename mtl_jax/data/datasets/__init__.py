"""From a data-set entry of the config to the records of its splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data import record_sequences
from mtl_jax.data.datasets import entry as entries
from mtl_jax.data.datasets import list_parsing, overlaps, record_filters, split_locations
from mtl_jax.data.datasets.part_reader import PartReader
from mtl_jax.data.datasets.split_locations import SPLITS
from mtl_jax.data.datasets.text_checks import check_texts
from mtl_jax.data.files.location import Location
from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import declared_options
from mtl_jax.data.record_sequences import Records
from mtl_jax.data.records import summarize_notes
from mtl_jax.data.splits import carving, duplicates, groups, subsets
from mtl_jax.errors import UserError

# Fields of an entry that decide which records are read, in addition to the content of the files.
_DECISIVE = (
    "reader",
    "splits",
    "encoding",
    "options",
    "text",
    "words",
    "image",
    "filter",
    "dev_fraction",
    "test_fraction",
    "group_by",
    "max_examples",
    "drop_duplicates",
)


class ReadData(NamedTuple):
    """A data set as read.

    splits       {"train" | "dev" | "test": records}; only splits that exist, none of them empty
    available    number of records of each split before `limit`
    notes        what was left out or changed, with counts
    fingerprint  sha256 over the bytes of the files, the entry (without the place of the files) and, where it decides
                 which records are chosen, the seed; hexadecimal
    folder       the folder that relative paths in the records start from; None for a reader that generates records
    """

    splits: dict[str, Records]
    available: dict[str, int]
    notes: list[str]
    fingerprint: str
    folder: Location | None = None


def read_dataset(name: str, entry: Mapping[str, Any], seed: int) -> ReadData:
    """Reads all splits of the data set `name`.

    Args:
      name: its name in the config; with `seed` it decides which records are carved out or chosen by a limit, so that
        this does not depend on other data sets.
      entry: any mapping with the fields
        reader         key of `READERS`
        path           file or folder, with `wheel` inside the wheel; TFDS: the name of a data set; none for a reader
                       that generates records. "{split}" in it, as in "data/{split}-*.csv", is replaced by the names in
                       `splits`; by default by those of train, dev (val, valid, validation, …) and test that exist
        wheel          {} or {"name", "version", "sha256"}
        splits         {"train" | "dev" | "test": file, folder, glob, key (json_splits) or expression (tfds) relative
                       to `path`, or a sequence of them}; without any, `path` itself is the training split (all three
                       for a reader that makes records). A slice may follow, see `splits.slices`: "train.csv[:-200]",
                       "[80%:]" (of `path` itself), "all.csv[fold=test]". A name that exists is no slice
        encoding       "utf-8"; "utf-8|cp1252": for each file the first one that decodes all of it
        options        of the reader; and, for every reader, empty = "error" | "drop": what to do with an empty text
                       ("drop" also drops "nan" and the like, see `literals.MISSING`); lists = {field: separator}: the
                       field is split there into a list, " ": at any blanks (words and tags that are one string each);
                       schemes = {field: scheme of its tags in the files}, see `labels.tag_schemes`, or "none" for a
                       field whose values do not mark spans; and scheme = "iob2" | "bioes", which they are converted
                       to. Both apply to the tasks on these fields
        text | words   one or two names of fields with plain text | the name of a field with a list of words
        image          name of a field with pictures, see `mtl_jax.data.pictures`; then text and words are optional
        where          {field: value or values}: only records with these values; applied before everything below
        dev_fraction, test_fraction   0 to 1, carved out of train where no such split is given
        group          records that stay together then, see `groups.find_groups`; by default "auto"
        limit          {split: largest number of records}, a fixed random subset in the order of the file
        drop_duplicates  "" | "train" | "test": the split from which records are dropped whose text (without text:
                       picture) is in another split, see `duplicates.find_duplicates`

    Raises UserError beginning with the data set's name.
    """
    try:
        return _read(name, entries.with_hub_name(entries.plain(entry)), seed)
    except UserError as error:
        raise UserError(f"data set {name!r}: {error}") from error


def folder_of(entry: Mapping[str, Any]) -> Location | None:
    """The folder that relative paths in the records of an entry start from; None where the reader makes them."""
    plain_entry = entries.with_hub_name(entries.plain(entry))
    location, _ = split_locations.locate_splits(plain_entry["reader"], plain_entry)
    return location and location.folder()


def duplicate_notices(splits: Mapping[str, Records], entry: Mapping[str, Any]) -> list[str]:
    """Notices about records that are in two splits, or twice in one; `entry` as for `read_dataset`."""
    plain_entry = entries.plain(entry)
    content = overlaps.equal_content(splits, plain_entry, *entries.text_fields(plain_entry))
    return [*overlaps.equal_places(splits), *content]


def _read(name: str, entry: dict[str, Any], seed: int) -> ReadData:
    entries.check_mappings(entry)
    reader_name = entries.reader_name(entry)
    options, empty = entries.reader_options(reader_name, entry.get("options") or {})
    texts, words = entries.text_fields(entry)
    if "fields" in declared_options(READERS[reader_name]):
        options["fields"] = texts or tuple(name for name in (words, entry.get("image")) if name)
    location, template = split_locations.locate_splits(reader_name, entry)
    parts = split_locations.wanted_splits(reader_name, entry, location, template)
    fractions = subsets.carved_fractions(entry.get("dev_fraction"), entry.get("test_fraction"), tuple(parts))
    limits = entries.limits(entry.get("max_examples") or {})
    conditions = record_filters.parse_conditions(entry.get("filter") or {})
    drop_from = entries.drop_duplicates(entry)

    reader = PartReader(reader_name, location, entry.get("encoding") or "utf-8", options, bool(entry.get("image")))
    splits, contents, notes = _read_splits(reader, parts, entry)
    notes += overlaps.equal_places(splits)
    splits, filter_notes = record_filters.filter_records(splits, conditions)
    notes += filter_notes
    for split, records in splits.items():
        splits[split], dropped = check_texts(records, texts, words, empty)
        notes += summarize_notes(split, dropped)
    record_groups = groups.find_groups(splits, entry.get("group_by", groups.AUTO), reader_name, options)
    splits, carving_notes = carving.carve_splits(splits, fractions, name, seed, record_groups, texts)
    notes += carving_notes
    if drop_from:
        splits, duplicate_notes = _without_duplicates(splits, entry, drop_from)
        notes += duplicate_notes
    available = {split: len(records) for split, records in splits.items()}
    splits, limit_notes = _limited(splits, limits, name, seed)
    notes += limit_notes
    for split, records in splits.items():
        if not len(records):
            raise UserError(f"split {split!r} has no records left")
    notes += overlaps.equal_content(splits, entry, texts, words)
    decisive = {key: entry[key] for key in _DECISIVE if entry.get(key)}
    decisive_seed = seed if any(fractions.values()) or limits else None
    content = json.dumps([name, decisive, decisive_seed, contents], sort_keys=True, default=str)
    return ReadData(
        splits={split: splits[split] for split in SPLITS if split in splits},
        available=available,
        notes=notes,
        fingerprint=hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest(),
        folder=location and location.folder(),
    )


def _read_splits(
    reader: PartReader, parts: Mapping[str, Sequence[str]], entry: dict[str, Any]
) -> tuple[dict[str, Records], dict[str, list[str]], list[str]]:
    """(records by split, hashes of the contents by split, notes) of the parts of each split."""
    notes: list[str] = []
    splits: dict[str, Records] = {}
    contents: dict[str, list[str]] = {}
    for split, names in parts.items():
        read = [reader.read(part) for part in names]
        contents[split] = [part.content for part in read]
        records = record_sequences.joined([part.items.records for part in read], [split, names, contents[split]])
        splits[split], changed = list_parsing.parse_list_cells(records, entry)
        notes += summarize_notes(split, [note for part in read for _, note in part.items.notes])
        if changed:
            text = f"{split}: {changed} records have lists that are written as strings"
            notes.append(Notice(text, INFORMATION, changed))
    if "lists" not in reader.options:  # otherwise it is the reader's own option
        separators = (entry.get("options") or {}).get("lists") or {}
        list_parsing.check_fields(separators, list(splits.values()))
    return splits, contents, notes


def _without_duplicates(
    splits: dict[str, Records], entry: dict[str, Any], drop_from: str
) -> tuple[dict[str, Records], list[str]]:
    """The splits without records of the same content in two of them, and notes with their numbers."""
    texts, words = entries.text_fields(entry)
    keys = {split: overlaps.content_keys(records, entry, texts, words) for split, records in splits.items()}
    stays, removed = duplicates.find_duplicates(keys, drop_from)
    splits = {split: record_sequences.selected(records, stays[split]) for split, records in splits.items()}
    what = "text" if texts or words else "picture"
    notes: list[str] = [
        Notice(f"{split}: {count} records removed, their {what} is in {other}", INFORMATION, count)
        for split, other, count in removed
        if count
    ]
    return splits, notes


def _limited(
    splits: dict[str, Records], limits: Mapping[str, int], name: str, seed: int
) -> tuple[dict[str, Records], list[str]]:
    """The splits with at most as many records as `limits` says, and notes with their numbers."""
    notes: list[str] = []
    for split, limit in limits.items():
        if split not in splits:
            raise UserError(f"max_examples.{split}: there is no split {split!r}; there are: {', '.join(splits)}")
        count = len(splits[split])
        if count > limit:
            index = subsets.subset(count, limit, f"{name}/{split}", seed)
            splits[split] = record_sequences.selected(splits[split], index)
            notes.append(Notice(f"{split}: {limit} of {count} records (max_examples)", INFORMATION, limit, count))
    return splits, notes
