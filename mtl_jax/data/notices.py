"""Notices about data with their kind and counts, so that reports of results can repeat the serious ones."""

from __future__ import annotations

INFORMATION = "information"  # nothing is lost, or only what the config asks to leave out
RECORDS = "records"  # a reader left out or changed records
LABELS = "labels"  # labels are unseen in train, missing, or not in the vocabulary
LENGTH = "length"  # text or targets are truncated
SPLITS = "splits"  # the same records, or records that belong together, are in two splits
OTHER = "other"


class Notice(str):
    """A sentence about data. A plain string counts as a notice of kind `OTHER`.

    kind   one of the constants above
    count  number of cases that the sentence is about; None where they are not counted
    total  number of cases that there are; None where it is not known
    """

    kind: str
    count: int | None
    total: int | None

    def __new__(cls, text: str, kind: str = OTHER, count: int | None = None, total: int | None = None) -> Notice:
        notice = super().__new__(cls, text)
        notice.kind, notice.count, notice.total = kind, count, total
        return notice

    def prefixed(self, name: str) -> Notice:
        """ "name: sentence" with the same kind and counts."""
        return Notice(f"{name}: {self}", self.kind, self.count, self.total)


def notice(note: str) -> Notice:
    """The note as a `Notice`: a plain string becomes one of kind `OTHER`."""
    return note if isinstance(note, Notice) else Notice(note)
