"""Notices about records that are in two splits, or twice in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtl_jax.data.datasets.text_checks import text_key
from mtl_jax.data.notices import INFORMATION, SPLITS, Notice
from mtl_jax.data.pictures.image_store import picture_key
from mtl_jax.data.records import Record, field, where
from mtl_jax.data.splits import duplicates
from mtl_jax.unicode import nfc


def content_key(
    entry: Mapping[str, Any], texts: tuple[str, ...], words: str, pictures: bool = False
) -> Callable[[Record], bytes]:
    """A function from a record to a key that duplicates share: of its text, without text of its picture.

    `pictures`: the picture counts as well as the text.
    """

    def key(record: Record) -> bytes:
        parts = text_key(record, texts, words) if texts or words else ()
        if entry.get("image") and (pictures or not parts):
            parts = (*parts, picture_key(field(record, entry["image"])))
        return duplicates.text_digest([nfc(part) for part in parts])

    return key


def equal_content(
    splits: Mapping[str, Sequence[Record]], entry: Mapping[str, Any], texts: tuple[str, ...], words: str
) -> list[str]:
    """Notices about records with the same text and picture in two splits, or in one."""
    between, inside = duplicates.count_duplicates(splits, content_key(entry, texts, words, pictures=True))
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


def equal_places(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Notices about records of the same file and line in two splits."""
    notices = []
    files = {split: {record.file for record in records} for split, records in splits.items()}
    for split, other in (("dev", "train"), ("test", "train"), ("test", "dev")):
        if both := files.get(split, set()) & files.get(other, set()):
            places = {(record.file, record.line) for record in splits[other] if record.file in both}
            shared = [record for record in splits[split] if (record.file, record.line) in places]
            if shared:
                text = f"{split}: {len(shared)} of {len(splits[split])} records are also records of {other}, from the "
                text += f"same place; first {where(shared[0])}"
                notices.append(Notice(text, SPLITS, len(shared), len(splits[split])))
    return notices
