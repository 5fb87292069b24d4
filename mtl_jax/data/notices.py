"""Notes about data that a program can weigh: what was lost is repeated where results are reported."""

from __future__ import annotations

INFORMATION = "information"  # nothing is lost, or what the config asks for
RECORDS = "records"  # left out or changed by a reader
LABELS = "labels"  # unseen in train, missing, or without a place in the vocabulary
LENGTH = "length"  # truncated or cut off
SPLITS = "splits"  # the same records, or records that belong together, in two splits
OTHER = "other"


class Notice(str):
    """A sentence about data. A note that is a plain string counts as one of kind `OTHER`.

    kind   one of the constants above
    count  of what the sentence is about; None where it is not counted
    total  of how many; None where that is not known
    """

    kind: str
    count: int | None
    total: int | None

    def __new__(cls, text: str, kind: str = OTHER, count: int | None = None, total: int | None = None):
        notice = super().__new__(cls, text)
        notice.kind, notice.count, notice.total = kind, count, total
        return notice

    def prefixed(self, name: str) -> Notice:
        """ "name: sentence" with the same kind and numbers."""
        return Notice(f"{name}: {self}", self.kind, self.count, self.total)


def notice(note: str) -> Notice:
    """The note itself, or a plain sentence as a `Notice`."""
    return note if isinstance(note, Notice) else Notice(note)
