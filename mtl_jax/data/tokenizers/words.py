"""A vocabulary of the words of the training data."""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

from mtl_jax import unicode
from mtl_jax.data.tokenizers.base import Template, json_digest
from mtl_jax.errors import UserError

FILE = "word_vocabulary.json"


class WordTokenizer:
    """A closed vocabulary of words: [PAD] 0, [UNK] 1, [SEP] 2 (between the texts of a pair), [CLS] 3, then words.

    Plain text is split into words and single punctuation marks, see `mtl_jax.unicode`; given words are not split. All
    are normalised to NFC. `cls` puts [CLS] before each example, for heads that read the first token. `extra` are
    further special tokens, from id 4; of them only [MASK] is recognised in texts.
    """

    SPECIALS = ("[PAD]", "[UNK]", "[SEP]", "[CLS]")
    MASK = "[MASK]"
    _before = ""  # a regular expression of tokens that are matched before words

    def __init__(self, vocabulary: Sequence[str], lower: bool = True, cls: bool = False, extra: Sequence[str] = ()):
        """`vocabulary` are the words without the special tokens, all different."""
        self.extra = tuple(extra)
        specials = self.SPECIALS + self.extra
        self.vocabulary = specials + tuple(vocabulary)
        self.index = {word: i for i, word in enumerate(self.vocabulary)}
        if len(self.index) != len(self.vocabulary):
            raise UserError("a word vocabulary names a word twice, or one of " + " ".join(specials))
        self.lower = lower
        self.cls = cls
        self.size = len(self.vocabulary)
        before = ((3, 0),) if cls else ()
        self.single = Template(before, (), (), (0, 1))
        self.pair = Template(before, ((2, 0),), (), (0, 1))
        self.fingerprint = json_digest(["words", lower, cls, self.vocabulary])
        self._known = {word: i for word, i in self.index.items() if i >= len(specials)}
        if self.mask_id is not None:
            self._known[self.MASK.lower() if lower else self.MASK] = self.mask_id
            self._before = r"(?i:\[mask\])"

    @classmethod
    def build(
        cls,
        units: Iterable[str | Sequence[str]],
        min_count: int = 1,
        max_size: int | None = None,
        lower: bool = True,
        cls_token: bool = False,
        extra: Sequence[str] = (),
    ) -> WordTokenizer:
        """From training texts (str) and sentences (lists of words): the words that occur `min_count` times or more.

        At most `max_size` of them, the most frequent first, equal counts in alphabetical order. With `min_count=1`
        training never sees [UNK], whose vector keeps its initial value. Without any text, where all data are pictures,
        the special tokens alone.
        """
        vocabulary = WordVocabulary(min_count, max_size, lower, cls_token, extra)
        return cls(vocabulary.ranked(vocabulary.count(units)), lower, cls_token, extra)

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._known.get(word, 1) for word in _split(t, self.lower, self._before)] or [1] for t in texts]

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[match.span() for match in _pattern(text, self._before).finditer(text)] or [(0, 0)] for text in texts]

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        return [[[self._known.get(word, 1)] for word in _normal(words, self.lower)] for words in sentences]

    def id_to_token(self, index: int) -> str:
        return self.vocabulary[index]

    @staticmethod
    def split_words(units: Iterable[str | Sequence[str]], lower: bool) -> list[list[str]]:
        """The words of each text or sentence, those outside of any vocabulary too."""
        return [_split(unit, lower) if isinstance(unit, str) else _normal(unit, lower) for unit in units]

    @staticmethod
    def split_with_blanks(text: str, lower: bool) -> tuple[list[str], list[bool]]:
        """The words of a text, and whether a blank is before each."""
        matches = list(_pattern(text, "").finditer(text))
        ends = [0, *(match.end() for match in matches)]
        blanks = [match.start() > end for match, end in zip(matches, ends, strict=False)]
        return _normal([match[0] for match in matches], lower), [False, *blanks[1:]][: len(matches)]

    def tokenize(self, units: Sequence[str | Sequence[str]]) -> list[list[str]]:
        cut = (
            _split(unit, self.lower, self._before) if isinstance(unit, str) else _normal(unit, self.lower)
            for unit in units
        )
        return [words or [self.SPECIALS[1]] for words in cut]

    def join(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens)

    def token_to_id(self, token: str) -> int | None:
        return self.index.get(token)

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown token."""
        return 1

    @property
    def mask_id(self) -> int | None:
        return self.index[self.MASK] if self.MASK in self.extra else None

    @property
    def end_id(self) -> int:
        return 2

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(range(len(self.SPECIALS) + len(self.extra)))

    def save(self, folder: pathlib.Path) -> None:
        words = self.vocabulary[len(self.SPECIALS) + len(self.extra) :]
        source = {"words": words, "lower": self.lower, "cls": self.cls, "extra": self.extra}
        (folder / FILE).write_text(json.dumps(source, ensure_ascii=False), encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class WordVocabulary:
    """How to build a `WordTokenizer` from the training data; see `WordTokenizer.build`."""

    min_count: int = 1
    max_size: int | None = None
    lower: bool = True
    cls_token: bool = False
    extra: tuple[str, ...] = ()

    def __call__(self, units: Iterable[str | Sequence[str]]) -> WordTokenizer:
        """The tokenizer over `units`, training texts (str) and sentences (lists of words)."""
        return self.make(self.ranked(self.count(units)))

    def count(self, units: Iterable[str | Sequence[str]]) -> collections.Counter[str]:
        """How often each word occurs; "" is counted for each unit."""
        counts: collections.Counter[str] = collections.Counter()
        read = 0
        for unit in units:
            read += 1
            counts.update(_split(unit, self.lower) if isinstance(unit, str) else _normal(unit, self.lower))
        counts[""] += read
        return counts

    def ranked(self, counts: collections.Counter[str]) -> list[str]:
        """The words of the vocabulary. Raises UserError where units were counted, but no word is frequent enough."""
        specials = {"", *WordTokenizer.SPECIALS, *self.extra, *_normal(self.extra, self.lower)}
        ranked = sorted((-n, word) for word, n in counts.items() if n >= self.min_count and word not in specials)
        if counts[""] and not ranked:
            raise UserError(f"no word of the training data occurs {self.min_count} times or more (tokenizer.min_count)")
        return [word for _, word in ranked[: self.max_size]]

    def make(self, words: Sequence[str]) -> WordTokenizer:
        """The tokenizer of the words that `ranked` gives."""
        return WordTokenizer(words, self.lower, self.cls_token, self.extra)


def _pattern(text: str, before: str) -> re.Pattern[str]:
    return unicode.pattern(True, text.isascii(), before)


def _split(text: str, lower: bool, before: str = "") -> list[str]:
    words = _pattern(text, before).findall(text.lower() if lower and text.isascii() else text)
    return words if text.isascii() else _normal(words, lower)


def _normal(words: Sequence[str], lower: bool) -> list[str]:
    return [unicode.nfc(word.lower() if lower else word) for word in words]
