"""Pieces of plain text: single texts and pairs, with marked spans or tokens that are aligned, and choices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.records import Record, where
from mtl_jax.data.tokenizers import Template, Tokenizer
from mtl_jax.errors import UserError


def encode_texts(
    units: RecordInputs, tokenizer: Tokenizer, template: Template, room: int, overflow: str, stride: int = 0
) -> dict[str, np.ndarray]:
    """A piece for each text or pair, or for each window of it, of at most `room` tokens beside the special ones: fields
    of `EncodedSplit`.
    """
    sides = [
        tokenizer.encode_texts([text[i] for text in units.texts]) for i in range(max(map(len, units.texts), default=0))
    ]
    offsets = None
    if units.aligned or units.marks:
        offsets = tokenizer.offsets([text[-1] for text in units.texts])
    markers = marker_ids(units, tokenizer)
    pieces = _Pieces(template)
    patches = units.patches
    word_token: list[int] = []
    kept, first = [], []
    for m in range(len(units.texts)):
        ids = [side[m] for side in sides]
        before = [0] * len(ids[-1])
        if units.marks:
            spans = marked_spans.token_spans(units.records[m], units.marks[m], offsets[m])
            chunks, before = marked_spans.insert_markers([[i] for i in ids[0]], spans)
            starts = np.cumsum([0, *map(len, chunks)])[:-1] + before
            ids = [[i for chunk in chunks for i in chunk]]
        else:
            starts = np.arange(len(ids[-1]))
        if overflow == "windows":
            parts = pieces.windows(ids, room - patches[m], stride)
        else:
            parts = [(0, pieces.fitted(ids, room, overflow, units.records[m], patches[m]))]
        for at, part in parts:
            begin = pieces.add(m, part, markers)
            here = starts[(starts >= at) & (starts < at + len(part[-1]))] if units.aligned else starts[:0]
            word_token.extend((begin + here - at).tolist())
            kept.append(len(here))
            first.append(at)
    count = len(units.texts)
    words = np.zeros(count, np.int32)
    places = np.zeros((0, 2), np.int32)
    if units.aligned and count:
        words = np.asarray(list(map(len, offsets)), np.int32)
        places = np.asarray([span for spans in offsets for span in spans], np.int32).reshape(-1, 2)
    return pieces.fields(words, np.asarray(kept, np.int32), word_token, places) | {
        "first_word": np.asarray(first, np.int32)
    }


def encode_without_text(units: RecordInputs, template: Template) -> dict[str, np.ndarray]:
    """A piece for each record without text: what stands before a text. Fields of `EncodedSplit`."""
    pieces = _Pieces(template)
    for m in range(len(units.records)):
        pieces.add(m, [])
    return pieces.fields(np.zeros(len(units.records), np.int32))


def encode_choices(
    units: RecordInputs, tokenizer: Tokenizer, template: Template, max_length: int, overflow: str
) -> dict[str, np.ndarray]:
    """A piece for each choice: the first text in pairs with the choice; a second text stands before the choice."""
    firsts = tokenizer.encode_texts([text[0] for text in units.texts])
    offered = [" ".join((*t[1:], c)) for t, own in zip(units.texts, units.choices, strict=True) for c in own]
    seconds = iter(tokenizer.encode_texts(offered))
    pieces = _Pieces(template)
    patches = units.patches
    for m, own in enumerate(units.choices):
        room = max_length // len(own) - template.special_count
        if room - patches[m] < 2:
            beside = f"{template.special_count} special tokens" + (f" and {patches[m]} patches" if patches[m] else "")
            raise UserError(
                f"{where(units.records[m])}: {len(own)} choices share max_length {max_length}, which leaves no room "
                f"for text beside {beside} each; raise row_length"
            )
        earlier = pieces.cut[0]
        for number in range(len(own)):
            ids = pieces.fitted([firsts[m], next(seconds)], room, overflow, units.records[m], patches[m])
            pieces.add(m, ids, choice=number)
        pieces.cut[0] = min(pieces.cut[0], earlier + 1)
    return pieces.fields(np.zeros(len(units.texts), np.int32))


class _Pieces:
    """Pieces of plain text, one after the other."""

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
        """The texts, cut where they and the patches of pictures have more than `room` tokens."""
        excess = sum(map(len, ids)) + patches - room
        if excess <= 0:
            return ids
        if overflow == "error":
            raise too_long_error(
                record, excess + room + self.template.special_count, room + self.template.special_count
            )
        self.cut += (1, excess, 0)
        return [side[:n] for side, n in zip(ids, _shares(list(map(len, ids)), room - patches), strict=True)]

    def windows(self, ids: list[list[int]], room: int, stride: int) -> list[tuple[int, list[list[int]]]]:
        """(first token, texts) of each window over the last text; the first text takes half the room at most."""
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
        """Adds a piece; the position in it of the last text's first token."""
        begin = len(self.tokens)
        append_piece(self.tokens, self.types, ids, self.template)
        self.ends.append(len(self.tokens))
        self.record.append(record)
        self.choice.append(choice)
        self.marks.append(marked_spans.place_markers(self.tokens, begin, markers) if markers else [-1] * 4)
        return len(self.tokens) - begin - len(self.template.after) - len(ids[-1]) if ids else 0

    def fields(self, words, kept=None, word_token=(), char_offsets=None) -> dict[str, np.ndarray]:
        """Fields of `EncodedSplit`: `words` of the M records, words `kept` of each piece, where these stand."""
        count = len(self.record)
        none, zeros, offsets = np.zeros(0, np.int32), np.zeros(count, np.int32), np.zeros(count + 1, np.int64)
        ends = offsets if kept is None else np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
        return {
            "words": words,
            "predicate_offsets": np.zeros(len(words) + 1, np.int64),
            "predicate": none,
            "record": np.asarray(self.record, np.int32),
            "first_word": zeros,
            "piece_words": zeros if kept is None else kept,
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
    """Where windows of `size` over `length` tokens begin, `stride` apart (Devlin et al. 2019); 0 = half a window."""
    step = max(min(stride or size // 2, size), 1)
    begins = [0]
    while begins[-1] + size < length:
        begins.append(begins[-1] + step)
    return begins


def marker_ids(units: RecordInputs, tokenizer: Tokenizer) -> list[int]:
    """The ids of the markers; tokens of a published vocabulary that no text uses stand for those it lacks."""
    if not units.marks:
        return []
    ids = [tokenizer.token_to_id(name) for name in units.markers]
    if None in ids and tuple(units.markers) == marked_spans.MARKERS:
        ids = [tokenizer.token_to_id(f"[unused{n}]") for n in range(4)]
    if None in ids:
        raise UserError(
            f"markers: {units.markers[ids.index(None)]!r} is no token of the vocabulary; name four tokens of it in "
            "`markers` of the data set, e.g. ('@', '@', '#', '#')"
        )
    return ids


def append_piece(tokens: list[int], types: list[int], ids: list[list[int]], template: Template) -> None:
    """Adds one piece: the texts in their template; where there is none, what stands before a text."""
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


def _shares(lengths: list[int], room: int) -> list[int]:
    """How many tokens each text keeps when the longer one loses tokens first."""
    if len(lengths) == 1:
        return [room]
    shorter = min(lengths)
    if shorter <= room // 2:
        return [shorter, room - shorter] if lengths[0] == shorter else [room - shorter, shorter]
    return [room - room // 2, room // 2]


def too_long_error(record: Record, found: int, most: int) -> UserError:
    """The error of a record that does not fit."""
    mend = 'raise row_length, or set overflow to "truncate" or "split"'
    return UserError(f"{where(record)}: {found} tokens, at most {most} fit; {mend}")
