"""From text or words to token ids: published sub-word tokenizers, or a word vocabulary of the training data."""

from __future__ import annotations

import json
import pathlib

from mtl_jax.data.tokenizers.base import Template, Tokenizer
from mtl_jax.data.tokenizers.pretrained import PretrainedTokenizer
from mtl_jax.data.tokenizers.words import FILE, WordTokenizer, WordVocabulary
from mtl_jax.errors import UserError

__all__ = ["PretrainedTokenizer", "Template", "Tokenizer", "WordTokenizer", "WordVocabulary", "load"]


def load(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError where there is none, or a damaged one."""
    file = folder / FILE
    if not file.is_file():
        return PretrainedTokenizer(str(folder))
    try:
        source = json.loads(file.read_text(encoding="utf-8"))
        return WordTokenizer(source["words"], source["lower"], source["cls"], source.get("extra", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a saved word vocabulary: {error!r}") from None
