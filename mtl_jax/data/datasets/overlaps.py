"""Notices about records that are in two splits, or twice in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.datasets.text_checks import text_key
from mtl_jax.data.distinct_values import is_among
from mtl_jax.data.files import parse_cache
from mtl_jax.data.notices import INFORMATION, SPLITS, Notice
from mtl_jax.data.pictures.image_store import picture_key
from mtl_jax.data.record_sequences import Places, Records, arrays_of_chunks, places
from mtl_jax.data.records import Record, field, where
from mtl_jax.data.splits import duplicates
from mtl_jax.unicode import nfc


def content_keys(
    records: Records, entry: Mapping[str, Any], texts: tuple[str, ...], words: str, pictures: bool = False
) -> np.ndarray:
    """uint64[M], a key that duplicates share: of a record's text, without text of its picture.

    `pictures`: the picture counts as well as the text.
    """
    common = (entry.get("image") or "", texts, words, pictures)
    key = {"content": common, "code": parse_cache.code_digest()}
    return arrays_of_chunks("keys", content_keys_of_chunk, records, common, key).arrays["key"]


def content_keys_of_chunk(
    records: Sequence[Record], image: str, texts: tuple[str, ...], words: str, pictures: bool
) -> tuple[dict[str, np.ndarray], None]:
    """As `content_keys`."""

    def digest(record: Record) -> bytes:
        parts = text_key(record, texts, words) if texts or words else ()
        if image and (pictures or not parts):
            parts = (*parts, picture_key(field(record, image)))
        return duplicates.text_digest([nfc(part) for part in parts])

    return {"key": np.frombuffer(b"".join(map(digest, records)), np.uint64)}, None


def equal_content(
    splits: Mapping[str, Records], entry: Mapping[str, Any], texts: tuple[str, ...], words: str
) -> list[str]:
    """Notices about records with the same text and picture in two splits, or in one."""
    keys = {split: content_keys(records, entry, texts, words, pictures=True) for split, records in splits.items()}
    between, inside = duplicates.count_duplicates(keys)
    what = "texts" if texts or words else "pictures"
    sizes = {split: len(records) for split, records in splits.items()}
    notices = []
    if between:
        counts = ", ".join(f"{n} of {sizes[split]} of {split} in {other}" for (split, other), n in between.items())
        ways = 'drop_duplicates="train" takes them out of train, "test" out of test'
        count, split = max((n, split) for (split, _), n in between.items())
        notices.append(Notice(f"{what} that are in two splits: {counts} ({ways})", SPLITS, count, sizes[split]))
    if inside:
        counts = ", ".join(f"{n} of {sizes[split]} of {split}" for split, n in inside.items())
        text = f"records that repeat the {what[:-1]} of an earlier one of their split: {counts}"
        notices.append(Notice(text, INFORMATION, sum(inside.values()), sum(sizes.values())))
    return notices


def equal_places(splits: Mapping[str, Records]) -> list[str]:
    """Notices about records of the same file and line in two splits."""
    notices = []
    found = {split: places(records) for split, records in splits.items()}
    for split, other in (("dev", "train"), ("test", "train"), ("test", "dev")):
        if split not in found or other not in found or not set(found[split].names) & set(found[other].names):
            continue
        shared = _shared_places(found[split], found[other])
        if count := int(shared.sum()):
            text = f"{split}: {count} of {len(splits[split])} records are also records of {other}, from the "
            text += f"same place; first {where(splits[split][int(shared.argmax())])}"
            notices.append(Notice(text, SPLITS, count, len(splits[split])))
    return notices


def _shared_places(some: Places, others: Places) -> np.ndarray:
    """bool[M], which of `some` are among `others`."""
    shared = np.zeros(len(some.line), bool)
    for name in set(some.names) & set(others.names):
        mine = some.file == some.names.index(name)
        theirs = others.line[others.file == others.names.index(name)]
        shared[mine] = is_among(some.line[mine], np.sort(theirs))
    return shared
