"""What encoding needs of a tokenizer."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Template(NamedTuple):
    """The special tokens around a text A, or a pair A, B: `before A between B after`, each as (id, token type).

    `types` are the token types of A and of B.
    """

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    types: tuple[int, int]

    @property
    def special_count(self) -> int:
        """How many tokens the template adds."""
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer(Protocol):
    """The interface of tokenizers. Id 0 is also in the padding, which `segment` masks."""

    single: Template
    pair: Template
    size: int  # one more than the largest id: the rows of an embedding table
    fingerprint: str  # changes where any id would

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, at least one."""

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of each word of each sentence, without special tokens, at least one a word."""

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The place of each token in its text: [begin, end) in characters, (0, 0) for none."""

    def id_to_token(self, index: int) -> str:
        """The token of an id, as a string."""

    def tokenize(self, units: Sequence[str | Sequence[str]]) -> list[list[str]]:
        """The tokens of each text or sentence of words, without special tokens, at least one.

        Tokens that the vocabulary lacks are as in the text, not the unknown token.
        """

    def join(self, tokens: Sequence[str]) -> str:
        """The text that tokens make."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token by its name, special ones too; None where there is none."""

    @property
    def unknown_id(self) -> int | None:
        """The id of the unknown token; None where there is none."""

    @property
    def mask_id(self) -> int | None:
        """The id of the mask token; None where there is none."""

    @property
    def end_id(self) -> int | None:
        """The id of the token that ends a text which a model writes; None where there is none."""

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of special tokens, including the unknown one."""

    def save(self, folder: pathlib.Path) -> None:
        """Writes files into a folder, from which `load` makes the same tokenizer."""


def json_digest(value: Any) -> str:
    """sha256 of what JSON makes of a value; hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
