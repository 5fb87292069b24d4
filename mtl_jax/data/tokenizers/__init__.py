"""From text or words to token ids: published sub-word tokenizers, or a word vocabulary of the training data.

A new kind is a `TokenizerKind` and a line in `TOKENIZERS`.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.tokenizers.base import Template, Tokenizer
from mtl_jax.data.tokenizers.pretrained import PretrainedTokenizer
from mtl_jax.data.tokenizers.words import FILE, WordTokenizer, WordVocabulary
from mtl_jax.errors import UserError

__all__ = [
    "TOKENIZERS",
    "PretrainedTokenizer",
    "Template",
    "Tokenizer",
    "TokenizerKind",
    "WordTokenizer",
    "WordVocabulary",
    "load",
]


class TokenizerKind(NamedTuple):
    """What `config.tokenizer.kind` names.

    make    (config.tokenizer, folder of the pretrained encoder or None, special tokens that the data need) -> a
            tokenizer, or a function that makes one of the training texts (str) and sentences (lists of words)
    load    (folder) -> the tokenizer that its `save` wrote there
    file    the file in that folder that only this kind writes; "" for the kind that is tried last
    fields  of `config.tokenizer` that it reads, besides `kind`
    words   whether tokens are words, so that published word vectors can be theirs
    """

    make: Callable[[Mapping[str, Any], pathlib.Path | None, Sequence[str]], Any]
    load: Callable[[pathlib.Path], Tokenizer]
    file: str = ""
    fields: tuple[str, ...] = ()
    words: bool = False


def load(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError where there is none, or a damaged one."""
    kinds = sorted(TOKENIZERS.values(), key=lambda kind: not kind.file)
    return next(kind for kind in kinds if not kind.file or (folder / kind.file).is_file()).load(folder)


def _make_pretrained(
    settings: Mapping[str, Any], encoder: pathlib.Path | None, extra: Sequence[str]
) -> PretrainedTokenizer:
    return PretrainedTokenizer(settings["path"] or str(encoder))


def _make_words(settings: Mapping[str, Any], encoder: pathlib.Path | None, extra: Sequence[str]) -> WordVocabulary:
    return WordVocabulary(
        settings["min_count"], settings["max_vocab_size"] or None, settings["lowercase"], extra=tuple(extra)
    )


def _load_words(folder: pathlib.Path) -> WordTokenizer:
    file = folder / FILE
    try:
        source = json.loads(file.read_text(encoding="utf-8"))
        return WordTokenizer(source["words"], source["lower"], source["cls"], source.get("extra", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a saved word vocabulary: {error!r}") from None


TOKENIZERS: dict[str, TokenizerKind] = {
    "pretrained": TokenizerKind(_make_pretrained, lambda folder: PretrainedTokenizer(str(folder)), fields=("path",)),
    "words": TokenizerKind(_make_words, _load_words, FILE, ("lowercase", "min_count", "max_vocab_size"), words=True),
}
