"""From text or words to token ids: published sub-word tokenizers, or a word vocabulary of the training data."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from mtl_jax.errors import UserError

# Enough texts for the tokenizer's threads, few enough that their Python objects do not fill the memory.
CHUNK = 1024
_WORDS_FILE = "word_vocabulary.json"


class Template(NamedTuple):
    """The special tokens around a text A, or a pair A, B: `before A between B after`, each as (id, token type).

    `types` are the token types of A and of B.
    """

    before: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, int], ...]
    after: tuple[tuple[int, int], ...]
    types: tuple[int, int]

    @property
    def specials(self) -> int:
        """How many tokens the template adds."""
        return len(self.before) + len(self.between) + len(self.after)


class Tokenizer(Protocol):
    """What encoding needs of a tokenizer. Id 0 also stands in the padding, where `segment` hides it."""

    single: Template
    pair: Template
    size: int  # one more than the largest id: the rows of an embedding table
    fingerprint: str  # changes where any id would

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, at least one."""

    def words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of each word of each sentence, without special tokens, at least one a word."""

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """Where each token of `texts` stands in its text: (first character, one behind the last), nowhere (0, 0)."""

    def token(self, index: int) -> str:
        """The token of an id, for people."""

    def tokens(self, units: Sequence[str | Sequence[str]]) -> list[list[str]]:
        """The tokens of each text or sentence of words, without special tokens, at least one."""

    def join(self, tokens: Sequence[str]) -> str:
        """The text that tokens make."""

    def find(self, token: str) -> int | None:
        """The id of a token by its name, special ones too; None where there is none."""

    @property
    def mask(self) -> int | None:
        """The id of the token that stands for a hidden word; None where there is none."""

    @property
    def specials(self) -> frozenset[int]:
        """The ids of tokens that are no words: special ones, and the unknown one."""

    def save(self, folder: pathlib.Path) -> None:
        """Writes files into a folder, from which `load` makes the same tokenizer."""


class WordTokenizer:
    """A closed vocabulary of words: [PAD] 0, [UNK] 1, [SEP] 2 (between the texts of a pair), [CLS] 3, then words.

    Plain text is cut into runs of word characters and single punctuation marks; words that are given stay whole.
    `cls` puts [CLS] before each example, for heads that read the first token. `extra` are further special tokens, from
    id 4; of them only [MASK] is read off texts.
    """

    SPECIALS = ("[PAD]", "[UNK]", "[SEP]", "[CLS]")
    MASK = "[MASK]"
    _pattern = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
    _pattern_with_mask = re.compile(r"(?i:\[mask\])|" + _pattern.pattern)

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
        self.fingerprint = _digest(["words", lower, cls, self.vocabulary])
        self._known = {word: i for word, i in self.index.items() if i >= len(specials)}
        if self.mask is not None:
            self._known[self.MASK.lower() if lower else self.MASK] = self.mask
            self._pattern = self._pattern_with_mask

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
        """From training texts (str) and sentences (lists of words): the words seen `min_count` times or more.

        At most `max_size` of them, the most frequent first, equal counts in alphabetical order.
        With `min_count=1` training never sees [UNK], whose vector then stays as it was initialised. Without any text,
        where all data are pictures, the special tokens alone.
        """
        counts: collections.Counter[str] = collections.Counter()
        read = 0
        for unit in units:
            read += 1
            counts.update(cls._split(unit, lower) if isinstance(unit, str) else _lowered(unit, lower))
        for special in (*cls.SPECIALS, *extra, *_lowered(extra, lower)):
            counts.pop(special, None)
        ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        if read and not ranked:
            raise UserError(f"no word of the training data occurs {min_count} times or more (tokenizer.min_count)")
        return cls([word for _, word in ranked[:max_size]], lower, cls_token, extra)

    @classmethod
    def _split(cls, text: str, lower: bool) -> list[str]:
        return cls._pattern.findall(_lowered_text(text, lower))

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        split = self._pattern.findall
        return [[self._known.get(word, 1) for word in split(_lowered_text(t, self.lower))] or [1] for t in texts]

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        result = []
        for text in texts:
            lowered = _lowered_text(text, self.lower)
            found = [match.span() for match in self._pattern.finditer(lowered)] or [(0, 0)]
            if len(lowered) != len(text):  # a few capitals have two characters in lower case
                origin = [i for i, character in enumerate(text) for _ in character.lower()]
                found = [(origin[a], origin[b - 1] + 1) if b else (0, 0) for a, b in found]
            result.append(found)
        return result

    def words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        return [[[self._known.get(word, 1)] for word in _lowered(words, self.lower)] for words in sentences]

    def token(self, index: int) -> str:
        return self.vocabulary[index]

    @classmethod
    def cut(cls, units: Iterable[str | Sequence[str]], lower: bool) -> list[list[str]]:
        """The words of each text or sentence, those outside of any vocabulary too."""
        return [cls._split(unit, lower) if isinstance(unit, str) else list(_lowered(unit, lower)) for unit in units]

    def tokens(self, units: Sequence[str | Sequence[str]]) -> list[list[str]]:
        return [words or [self.SPECIALS[1]] for words in self.cut(units, self.lower)]

    def join(self, tokens: Sequence[str]) -> str:
        return " ".join(tokens)

    def find(self, token: str) -> int | None:
        return self.index.get(token)

    @property
    def mask(self) -> int | None:
        return self.index[self.MASK] if self.MASK in self.extra else None

    @property
    def specials(self) -> frozenset[int]:
        return frozenset(range(len(self.SPECIALS) + len(self.extra)))

    def save(self, folder: pathlib.Path) -> None:
        words = self.vocabulary[len(self.SPECIALS) + len(self.extra) :]
        source = {"words": words, "lower": self.lower, "cls": self.cls, "extra": self.extra}
        (folder / _WORDS_FILE).write_text(json.dumps(source, ensure_ascii=False), encoding="utf-8")


class PretrainedTokenizer:
    """A published sub-word tokenizer: a folder with `tokenizer.json`, or anything that `AutoTokenizer` loads.

    Truncation and padding of the file are turned off. Special tokens follow the tokenizer's own template. Words that
    are given are tokenized each as after a space (byte-level BPE; RoBERTa calls this `add_prefix_space`).
    """

    def __init__(self, path: str):
        """`path` is a local folder or a name on the Hugging Face Hub. Raises UserError where none is found."""
        from tokenizers import Tokenizer as Backend

        self.path = str(path)
        source = self._source = _backend_json(self.path)
        self.fingerprint = _digest(["pretrained", source])
        self._text = Backend.from_str(json.dumps(source))
        self._word = Backend.from_str(json.dumps(source | {"pre_tokenizer": _spaced(source.get("pre_tokenizer"))}))
        vocabulary = self._text.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self._unknown = _unknown_id(self.path, source, vocabulary)
        self.single = self._template(None)
        self.pair = self._template("a")

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        result = []
        for first in range(0, len(texts), CHUNK):
            encodings = self._text.encode_batch(list(texts[first : first + CHUNK]), add_special_tokens=False)
            result.extend(encoding.ids or [self.unknown] for encoding in encodings)
        return result

    def words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        result = []
        for first in range(0, len(sentences), CHUNK):
            chunk = [list(words) for words in sentences[first : first + CHUNK]]
            encodings = self._word.encode_batch(chunk, is_pretokenized=True, add_special_tokens=False)
            for words, encoding in zip(chunk, encodings, strict=True):
                pieces: list[list[int]] = [[] for _ in words]
                for index, word in zip(encoding.ids, encoding.word_ids, strict=True):
                    pieces[word].append(index)
                result.append([piece or [self.unknown] for piece in pieces])
        return result

    def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        result = []
        for first in range(0, len(texts), CHUNK):
            chunk = list(texts[first : first + CHUNK])
            encodings = self._text.encode_batch(chunk, add_special_tokens=False)
            for text, encoding in zip(chunk, encodings, strict=True):
                result.append([_trimmed(text, *span) for span in encoding.offsets] or [(0, 0)])
        return result

    def token(self, index: int) -> str:
        return self._text.id_to_token(index) or f"<{index}>"

    def tokens(self, units: Sequence[str | Sequence[str]]) -> list[list[str]]:
        texts = iter(self.texts([unit for unit in units if isinstance(unit, str)]))
        sentences = iter(self.words([unit for unit in units if not isinstance(unit, str)]))
        found = (next(texts) if isinstance(u, str) else [i for word in next(sentences) for i in word] for u in units)
        return [[self.token(i) for i in ids] for ids in found]

    def join(self, tokens: Sequence[str]) -> str:
        decoder = self._text.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    def find(self, token: str) -> int | None:
        return self._text.token_to_id(token)

    @functools.cached_property
    def mask(self) -> int | None:
        """Id of the mask token by the files beside the tokenizer, or its usual names."""
        return _named_id(self.path, "mask_token", ("[MASK]", "<mask>"), self._text.token_to_id)

    @property
    def specials(self) -> frozenset[int]:
        around = (*self.pair.before, *self.pair.between, *self.pair.after)
        added = [token["id"] for token in self._source.get("added_tokens", ()) if token.get("special")]
        return frozenset([*added, *(index for index, _ in around), *([self._unknown] * (self._unknown is not None))])

    def save(self, folder: pathlib.Path) -> None:
        (folder / "tokenizer.json").write_text(json.dumps(self._source, ensure_ascii=False), encoding="utf-8")
        ids = {"unk_token": self._unknown, "mask_token": self.mask}
        named = {name: self.token(index) for name, index in ids.items() if index is not None}
        (folder / "special_tokens_map.json").write_text(json.dumps(named, ensure_ascii=False), encoding="utf-8")

    @functools.cached_property
    def unknown(self) -> int:
        """Id of the unknown token; it also stands for a word that has no sub-word (a zero-width space, say)."""
        if self._unknown is None:
            raise UserError(f"{self.path}: a word has no sub-word and this tokenizer has no unknown token for it")
        return self._unknown

    def _template(self, second: str | None) -> Template:
        """Read the template off an encoded probe: what it adds to the texts stands outside of both."""
        encoding = self._text.encode("a", second)
        whole = list(zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True))
        first = [i for i, (_, _, text) in enumerate(whole) if text == 0]
        other = [i for i, (_, _, text) in enumerate(whole) if text == 1]
        if not first or (second and not other):
            raise UserError(f"{self.path}: the tokenizer drops the text 'a'; is its vocabulary complete?")
        a_type = whole[first[0]][1]
        b_type = whole[other[0]][1] if other else 1
        last = other[-1] if other else first[-1]

        def special(begin: int, end: int) -> tuple[tuple[int, int], ...]:
            return tuple((index, kind) for index, kind, _ in whole[begin:end])

        between = special(first[-1] + 1, other[0]) if other else ()
        return Template(special(0, first[0]), between, special(last + 1, len(whole)), (a_type, b_type))


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
        return WordTokenizer.build(units, self.min_count, self.max_size, self.lower, self.cls_token, self.extra)


def load(folder: pathlib.Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`. Raises UserError where there is none, or a damaged one."""
    file = folder / _WORDS_FILE
    if not file.is_file():
        return PretrainedTokenizer(str(folder))
    try:
        source = json.loads(file.read_text(encoding="utf-8"))
        return WordTokenizer(source["words"], source["lower"], source["cls"], source.get("extra", ()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not a saved word vocabulary: {error!r}") from None


def _lowered(words: Sequence[str], lower: bool) -> Sequence[str]:
    return [word.lower() for word in words] if lower else words


def _lowered_text(text: str, lower: bool) -> str:
    return text.lower() if lower else text


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """The same characters without blanks around them: byte-level tokens begin with theirs."""
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    return (begin, end) if begin < end else (0, 0)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _backend_json(path: str) -> dict[str, Any]:
    """The tokenizer as the JSON object of the `tokenizers` library, without truncation and padding."""
    file = pathlib.Path(path).expanduser() / "tokenizer.json"
    if file.is_file():
        try:
            source = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: not a tokenizer.json: {error}") from None
    else:
        from transformers import AutoTokenizer  # seconds to import

        try:
            backend = getattr(AutoTokenizer.from_pretrained(path), "backend_tokenizer", None)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"no tokenizer at {path} (a folder with tokenizer.json, or a Hub name): {reason}") from None
        if backend is None:
            raise UserError(f"the tokenizer of {path} has no fast version, which aligns words with sub-words")
        source = json.loads(backend.to_str())
    if not isinstance(source, dict) or "model" not in source:
        raise UserError(f"{file}: not a tokenizer.json: it holds no model")
    return source | {"truncation": None, "padding": None}


def _spaced(pre_tokenizer: Any) -> Any:
    """The pre-tokenizer with a space before each word where it is byte-level; any other unchanged."""
    if isinstance(pre_tokenizer, dict):
        if pre_tokenizer.get("type") == "ByteLevel":
            return pre_tokenizer | {"add_prefix_space": True}
        if pre_tokenizer.get("type") == "Sequence":
            parts = [_spaced(part) for part in pre_tokenizer["pretokenizers"]]
            return pre_tokenizer | {"pretokenizers": parts}
    return pre_tokenizer


def _unknown_id(path: str, source: dict[str, Any], vocabulary: dict[str, int]) -> int | None:
    """Id of the unknown token by the model, the files beside it, or its usual names."""
    if source["model"].get("unk_token") in vocabulary:
        return vocabulary[source["model"]["unk_token"]]
    found = _named_id(path, "unk_token", ("[UNK]", "<unk>", "<|endoftext|>"), vocabulary.get)
    return source["model"].get("unk_id") if found is None else found


def _named_id(path: str, role: str, usual: Sequence[str], find: Callable[[str], int | None]) -> int | None:
    """Id of the token that the files beside a tokenizer give a role ("unk_token"), else of the first usual name."""
    names = []
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            named = json.loads((pathlib.Path(path).expanduser() / file).read_text(encoding="utf-8")).get(role)
        except (OSError, ValueError, AttributeError):
            continue
        names.append(named.get("content") if isinstance(named, dict) else named)
    for name in [*names, *usual]:
        if isinstance(name, str) and find(name) is not None:
            return find(name)
    return None
