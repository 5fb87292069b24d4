"""What of the records is tokenized: one or two texts, or words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple

from mtl_jax.data.records import Record, field, where
from mtl_jax.errors import UserError


class Units(NamedTuple):
    """What is tokenized of M records, checked: either `texts` or `words` is given.

    texts       [M] tuples of one text or two
    words       [M] lists of words
    predicates  [M] lists of word indices, empty where no task reads them
    """

    texts: list[tuple[str, ...]] | None
    words: list[list[str]] | None
    predicates: list[list[int]]
    records: Sequence[Record]

    @property
    def word_counts(self) -> list[int] | None:
        """[M] numbers of words, None for plain texts."""
        return None if self.words is None else [len(words) for words in self.words]

    def fingerprint(self) -> str:
        """Content hash of all that encoding reads."""
        digest = hashlib.sha256()
        for part in (self.texts, self.words, self.predicates):
            digest.update(json.dumps(part).encode())
        return digest.hexdigest()


def units_of(
    records: Sequence[Record], *, text: Sequence[str] | str = (), words: str = "", predicates: str = ""
) -> Units:
    """Takes from the records what is tokenized.

    Args:
      records: M records.
      text: names of the one or two fields that hold plain text; or
      words: name of the field that holds a list of words.
      predicates: name of the field with the word indices of the predicates; records without it have none.

    Raises:
      UserError: by file and line: no such field, an empty text, a wrong type, a predicate outside the sentence.
    """
    text = (text,) if isinstance(text, str) and text else tuple(text)
    if bool(text) == bool(words) or len(text) > 2:
        raise UserError("a data set wants either `text` (one or two field names) or `words` (one field name)")
    if text:
        texts = [tuple(_text(record, name) for name in text) for record in records]
        return Units(texts, None, [[] for _ in records], records)
    sentences = [_words(record, words) for record in records]
    found = [_predicates(r, predicates, len(s)) for r, s in zip(records, sentences, strict=True)]
    return Units(None, sentences, found, records)


def _text(record: Record, name: str) -> str:
    value = field(record, name)
    if not isinstance(value, str):
        raise _at(record, f"field {name!r} should be text, found {value!r}")
    if not value.strip():
        raise _at(record, f"field {name!r}: empty text")
    return value


def _words(record: Record, name: str) -> list[str]:
    value = field(record, name)
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise _at(record, f"field {name!r} should be a list of words, found {value!r}"[:200])
    if not value:
        raise _at(record, f"field {name!r}: empty text")
    return list(value)


def _predicates(record: Record, name: str, words: int) -> list[int]:
    value = record.fields.get(name) if name else None
    if value is None:
        return []
    if not isinstance(value, list | tuple) or not all(isinstance(p, int) and 0 <= p < words for p in value):
        raise _at(record, f"field {name!r} should list word indices from 0 to {words - 1}, found {value!r}"[:200])
    return list(value)


def _at(record: Record, message: str) -> UserError:
    return UserError(f"{where(record)}: {message}")
