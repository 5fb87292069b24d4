"""Published sub-word tokenizers."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from mtl_jax.data.tokenizers.base import Template, json_digest
from mtl_jax.errors import UserError

# Texts of one call: enough for the tokenizer's threads, few enough for the memory of their Python objects.
CHUNK = 1024


class PretrainedTokenizer:
    """A published sub-word tokenizer: a folder with `tokenizer.json`, or anything that `AutoTokenizer` loads.

    Truncation and padding are turned off. Special tokens follow the tokenizer's template. Given words are tokenized as
    if a space preceded each (byte-level BPE; `add_prefix_space` in RoBERTa).
    """

    def __init__(self, path: str):
        """`path` is a local folder or a name on the Hugging Face Hub. Raises UserError where none is found."""
        from tokenizers import Tokenizer as Backend

        self.path = str(path)
        source = self._source = _backend_json(self.path)
        self.fingerprint = json_digest(["pretrained", source])
        self._text = Backend.from_str(json.dumps(source))
        self._word = Backend.from_str(json.dumps(source | {"pre_tokenizer": _spaced(source.get("pre_tokenizer"))}))
        vocabulary = self._text.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        self._unknown = _unknown_id(self.path, source, vocabulary)
        self.single = self._template(None)
        self.pair = self._template("a")

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        result = []
        for first in range(0, len(texts), CHUNK):
            encodings = self._text.encode_batch(list(texts[first : first + CHUNK]), add_special_tokens=False)
            result.extend(encoding.ids or [self.unknown] for encoding in encodings)
        return result

    def encode_words(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
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

    def id_to_token(self, index: int) -> str:
        return self._text.id_to_token(index) or f"<{index}>"

    def tokenize(self, units: Sequence[str | Sequence[str]]) -> list[list[str]]:
        result = []
        for first in range(0, len(units), CHUNK):
            chunk = units[first : first + CHUNK]
            texts = iter(self._text.encode_batch([u for u in chunk if isinstance(u, str)], add_special_tokens=False))
            sentences = iter(
                self._word.encode_batch(
                    [list(u) for u in chunk if not isinstance(u, str)], is_pretokenized=True, add_special_tokens=False
                )
            )
            result += [self._as_written(u, next(texts if isinstance(u, str) else sentences)) for u in chunk]
        return result

    def _as_written(self, unit: str | Sequence[str], encoding: Any) -> list[str]:
        """The tokens of an encoded text or sentence, unknown ones as in the text."""
        tokens = []
        for index, word, (begin, end) in zip(encoding.ids, encoding.word_ids, encoding.offsets, strict=True):
            text = unit if isinstance(unit, str) else unit[word]
            tokens.append((text[begin:end] if index == self._unknown else "") or self.id_to_token(index))
        return tokens or ["".join(unit)]

    def join(self, tokens: Sequence[str]) -> str:
        decoder = self._text.decoder
        return (" ".join(tokens) if decoder is None else decoder.decode(list(tokens))).strip()

    def token_to_id(self, token: str) -> int | None:
        return self._text.token_to_id(token)

    @functools.cached_property
    def mask_id(self) -> int | None:
        """Id of the mask token according to the files next to the tokenizer, or its usual names."""
        return _named_id(self.path, "mask_token", ("[MASK]", "<mask>"), self._text.token_to_id)

    @functools.cached_property
    def end_id(self) -> int | None:
        """Id of the token that ends a text according to the files next to the tokenizer, or its usual names."""
        usual = ("</s>", "<|endoftext|>", "<|im_end|>", "<eos>")
        return _named_id(self.path, "eos_token", usual, self._text.token_to_id)

    @property
    def special_ids(self) -> frozenset[int]:
        around = (*self.pair.before, *self.pair.between, *self.pair.after)
        added = [token["id"] for token in self._source.get("added_tokens", ()) if token.get("special")]
        return frozenset([*added, *(index for index, _ in around), *([self._unknown] * (self._unknown is not None))])

    def save(self, folder: pathlib.Path) -> None:
        (folder / "tokenizer.json").write_text(json.dumps(self._source, ensure_ascii=False), encoding="utf-8")
        ids = {"unk_token": self._unknown, "mask_token": self.mask_id, "eos_token": self.end_id}
        named = {name: self.id_to_token(index) for name, index in ids.items() if index is not None}
        (folder / "special_tokens_map.json").write_text(json.dumps(named, ensure_ascii=False), encoding="utf-8")

    @property
    def unknown_id(self) -> int | None:
        """Id of the unknown token, None without one."""
        return self._unknown

    @functools.cached_property
    def unknown(self) -> int:
        """Id of the unknown token, also used for a word without sub-words (such as a zero-width space)."""
        if self._unknown is None:
            raise UserError(f"{self.path}: a word has no sub-word and this tokenizer has no unknown token for it")
        return self._unknown

    def _template(self, second: str | None) -> Template:
        """The template, derived from an encoded probe: the special tokens are outside both texts."""
        encoding = self._text.encode("a", second)
        probe = list(zip(encoding.ids, encoding.type_ids, encoding.sequence_ids, strict=True))
        first = [i for i, (_, _, text) in enumerate(probe) if text == 0]
        other = [i for i, (_, _, text) in enumerate(probe) if text == 1]
        if not first or (second and not other):
            raise UserError(f"{self.path}: the tokenizer drops the text 'a'; is its vocabulary complete?")
        a_type = probe[first[0]][1]
        b_type = probe[other[0]][1] if other else 1
        last = other[-1] if other else first[-1]

        def special(begin: int, end: int) -> tuple[tuple[int, int], ...]:
            return tuple((index, kind) for index, kind, _ in probe[begin:end])

        between = special(first[-1] + 1, other[0]) if other else ()
        return Template(special(0, first[0]), between, special(last + 1, len(probe)), (a_type, b_type))


def _trimmed(text: str, begin: int, end: int) -> tuple[int, int]:
    """The same characters without blanks around them: byte-level tokens begin with theirs."""
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    return (begin, end) if begin < end else (0, 0)


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
    """Id of the unknown token according to the model, the files next to it, or its usual names."""
    if source["model"].get("unk_token") in vocabulary:
        return vocabulary[source["model"]["unk_token"]]
    named = _named_id(path, "unk_token", ("[UNK]", "<unk>", "<|endoftext|>"), vocabulary.get)
    return source["model"].get("unk_id") if named is None else named


def _named_id(path: str, role: str, usual: Sequence[str], find: Callable[[str], int | None]) -> int | None:
    """Id of the token with a role ("unk_token") in the files next to a tokenizer, else of the first usual name."""
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
