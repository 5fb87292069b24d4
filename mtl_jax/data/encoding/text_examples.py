"""Examples of plain text: single texts and pairs, with marked spans or aligned tokens, and choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.records import Record, where
from mtl_jax.data.tokenizers import Template, Tokenizer
from mtl_jax.errors import UserError


def encode_texts(
    inputs: RecordInputs, tokenizer: Tokenizer, template: Template, room: int, overflow: str, stride: int = 0
) -> dict[str, np.ndarray]:
    """Fields of `EncodedSplit`: an example for each text or pair, or for each window of it, of at most `room` tokens
    without the special ones.
    """
    sides = [
        tokenizer.encode_texts([text[i] for text in inputs.texts])
        for i in range(max(map(len, inputs.texts), default=0))
    ]
    offsets = None
    if inputs.aligned or inputs.marks:
        offsets = tokenizer.offsets([text[-1] for text in inputs.texts])
    markers = marker_ids(inputs, tokenizer)
    examples = _Examples(template)
    patches = inputs.patches
    word_token: list[int] = []
    example_words, first_token = [], []
    for m in range(len(inputs.texts)):
        ids = [side[m] for side in sides]
        before = [0] * len(ids[-1])
        if inputs.marks:
            spans = marked_spans.token_spans(inputs.records[m], inputs.marks[m], offsets[m])
            chunks, before = marked_spans.insert_markers([[i] for i in ids[0]], spans)
            starts = np.cumsum([0, *map(len, chunks)])[:-1] + before
            ids = [[i for chunk in chunks for i in chunk]]
        else:
            starts = np.arange(len(ids[-1]))
        if overflow == "windows":
            parts = examples.windows(ids, room - patches[m], stride)
        else:
            parts = [(0, examples.fitted(ids, room, overflow, inputs.records[m], patches[m]))]
        for at, part in parts:
            begin = examples.add(m, part, markers)
            inside = starts[(starts >= at) & (starts < at + len(part[-1]))] if inputs.aligned else starts[:0]
            word_token.extend((begin + inside - at).tolist())
            example_words.append(len(inside))
            first_token.append(at)
    count = len(inputs.texts)
    words = np.zeros(count, np.int32)
    places = np.zeros((0, 2), np.int32)
    if inputs.aligned and count:
        words = np.asarray(list(map(len, offsets)), np.int32)
        places = np.asarray([span for spans in offsets for span in spans], np.int32).reshape(-1, 2)
    return examples.fields(words, np.asarray(example_words, np.int32), word_token, places) | {
        "first_word": np.asarray(first_token, np.int32)
    }


def encode_without_text(inputs: RecordInputs, template: Template) -> dict[str, np.ndarray]:
    """Fields of `EncodedSplit`: an example for each record without text, the special tokens before a text."""
    examples = _Examples(template)
    for m in range(len(inputs.records)):
        examples.add(m, [])
    return examples.fields(np.zeros(len(inputs.records), np.int32))


def encode_choices(
    inputs: RecordInputs, tokenizer: Tokenizer, template: Template, max_length: int, overflow: str
) -> dict[str, np.ndarray]:
    """Fields of `EncodedSplit`: an example for each choice, pairs of the first text and the second text with the
    choice.
    """
    firsts = tokenizer.encode_texts([text[0] for text in inputs.texts])
    pairs = zip(inputs.texts, inputs.choices, strict=True)
    seconds = iter(
        tokenizer.encode_texts([" ".join((*text[1:], choice)) for text, choices in pairs for choice in choices])
    )
    examples = _Examples(template)
    patches = inputs.patches
    for m, choices in enumerate(inputs.choices):
        room = max_length // len(choices) - template.special_count
        if room - patches[m] < 2:
            fixed = f"{template.special_count} special tokens" + (f" and {patches[m]} patches" if patches[m] else "")
            raise UserError(
                f"{where(inputs.records[m])}: {len(choices)} choices share max_length {max_length}, which leaves no "
                f"room for text in addition to {fixed} each; raise row_length"
            )
        earlier = examples.cut[0]
        for number in range(len(choices)):
            ids = examples.fitted([firsts[m], next(seconds)], room, overflow, inputs.records[m], patches[m])
            examples.add(m, ids, choice=number)
        examples.cut[0] = min(examples.cut[0], earlier + 1)
    return examples.fields(np.zeros(len(inputs.texts), np.int32))


class _Examples:
    """Examples of plain text, collected one after the other."""

    def __init__(self, template: Template):
        self.template = template
        self.tokens: list[int] = []
        self.types: list[int] = []
        self.ends = [0]
        self.record: list[int] = []
        self.choice: list[int] = []
        self.marks: list[list[int]] = []
        self.cut = np.zeros(3, np.int64)

    def fitted(
        self, ids: list[list[int]], room: int, overflow: str, record: Record, patches: int = 0
    ) -> list[list[int]]:
        """The texts, truncated where they and the patches of pictures have more than `room` tokens."""
        excess = sum(map(len, ids)) + patches - room
        if excess <= 0:
            return ids
        if overflow == "error":
            raise too_long_error(
                record, excess + room + self.template.special_count, room + self.template.special_count
            )
        self.cut += (1, excess, 0)
        return [side[:n] for side, n in zip(ids, _truncated_lengths(list(map(len, ids)), room - patches), strict=True)]

    def windows(self, ids: list[list[int]], room: int, stride: int) -> list[tuple[int, list[list[int]]]]:
        """(first token, texts) of each window over the last text; the first text takes at most half the room."""
        *before, last = ids
        length = sum(map(len, before))
        if length + len(last) <= room:
            return [(0, ids)]
        before = [side[: room // 2] for side in before]
        self.cut += (1, length - sum(map(len, before)), 0)
        size = room - sum(map(len, before))
        begins = window_starts(len(last), size, stride)
        return [(begin, [*before, last[begin : begin + size]]) for begin in begins]

    def add(self, record: int, ids: list[list[int]], markers: Sequence[int] = (), choice: int = 0) -> int:
        """Adds an example; returns the position in it of the last text's first token."""
        begin = len(self.tokens)
        append_example(self.tokens, self.types, ids, self.template)
        self.ends.append(len(self.tokens))
        self.record.append(record)
        self.choice.append(choice)
        self.marks.append(marked_spans.place_markers(self.tokens, begin, markers) if markers else [-1] * 4)
        return len(self.tokens) - begin - len(self.template.after) - len(ids[-1]) if ids else 0

    def fields(
        self,
        words: np.ndarray,
        example_words: np.ndarray | None = None,
        word_token: Sequence[int] = (),
        char_offsets: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """Fields of `EncodedSplit`; those of words are empty where the arguments are not given."""
        count = len(self.record)
        none, zeros, offsets = np.zeros(0, np.int32), np.zeros(count, np.int32), np.zeros(count + 1, np.int64)
        ends = offsets if example_words is None else np.concatenate([[0], np.cumsum(example_words, dtype=np.int64)])
        return {
            "words": words,
            "predicate_offsets": np.zeros(len(words) + 1, np.int64),
            "predicate": none,
            "record": np.asarray(self.record, np.int32),
            "first_word": zeros,
            "example_words": zeros if example_words is None else example_words,
            "token_offsets": np.asarray(self.ends, np.int64),
            "tokens": np.asarray(self.tokens, np.int32),
            "token_type": np.asarray(self.types, np.int32),
            "word_offsets": ends,
            "word_token": np.asarray(word_token, np.int32),
            "sequence_offsets": offsets,
            "sequence": none,
            "copy": np.zeros(count, np.bool_),
            "overlong": self.cut,
            "choice": np.asarray(self.choice, np.int32),
            "mark_token": np.asarray(self.marks, np.int32).reshape(-1, 4),
            "char_offsets": np.zeros((0, 2), np.int32) if char_offsets is None else char_offsets,
        }


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows of `size` over `length` tokens begin, at a distance of `stride` (Devlin et al. 2019); 0 = half a
    window.
    """
    step = max(min(stride or size // 2, size), 1)
    begins = [0]
    while begins[-1] + size < length:
        begins.append(begins[-1] + step)
    return begins


def marker_ids(inputs: RecordInputs, tokenizer: Tokenizer) -> list[int]:
    """The ids of the markers; unused tokens of a published vocabulary replace those that it lacks."""
    if not inputs.marks:
        return []
    ids = [tokenizer.token_to_id(name) for name in inputs.markers]
    if None in ids and tuple(inputs.markers) == marked_spans.MARKERS:
        ids = [tokenizer.token_to_id(f"[unused{n}]") for n in range(4)]
    if None in ids:
        raise UserError(
            f"markers: {inputs.markers[ids.index(None)]!r} is not in the vocabulary; name four of its tokens in "
            "`markers` of the data set, e.g. ('@', '@', '#', '#')"
        )
    return ids


def append_example(tokens: list[int], types: list[int], ids: list[list[int]], template: Template) -> None:
    """Appends one example: the texts in their template; without texts, the special tokens before a text."""
    if not ids:
        tokens.extend(index for index, _ in template.before)
        types.extend(k for _, k in template.before)
        return
    for special, text, kind in zip((template.before, template.between), ids, template.types, strict=False):
        tokens.extend(index for index, _ in special)
        types.extend(k for _, k in special)
        tokens.extend(text)
        types.extend([kind] * len(text))
    tokens.extend(index for index, _ in template.after)
    types.extend(k for _, k in template.after)


def _truncated_lengths(lengths: list[int], room: int) -> list[int]:
    """How many tokens each text keeps when the longer one is truncated first."""
    if len(lengths) == 1:
        return [room]
    shorter = min(lengths)
    if shorter <= room // 2:
        return [shorter, room - shorter] if lengths[0] == shorter else [room - shorter, shorter]
    return [room - room // 2, room // 2]


def too_long_error(record: Record, length: int, limit: int) -> UserError:
    """The error for a record of `length` tokens where `limit` fit."""
    remedy = 'raise row_length, or set overflow to "truncate" or "split"'
    return UserError(f"{where(record)}: {length} tokens, at most {limit} fit; {remedy}")
