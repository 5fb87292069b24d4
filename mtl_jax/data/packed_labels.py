"""Label arrays of the levels "pair", "choice", "span" and "token" in packed rows, see `batch`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.tokenizers import Tokenizer

START, END = 1, 2  # bits of a span label


def pair_labels(split: EncodedSplit, shape, row: np.ndarray, slot: np.ndarray, token: np.ndarray):
    """({"mark": int32[N, E, 4]}, bool[pieces] whether all four markers are there)."""
    there = (split.mark_token >= 0).all(1)
    mark = np.zeros((*shape, 4), np.int32)
    mark[row, slot] = np.where(there[:, None], token[:, None] + split.mark_token, 0)
    return {"mark": mark}, there


def choice_labels(
    split: EncodedSplit, gold: GoldLabels, shape, row: np.ndarray, slot: np.ndarray
) -> dict[str, np.ndarray]:
    """The arrays of level "choice". `row`, `slot` int64[pieces]."""
    group = slot - split.choice + 1  # the slot of the record's first choice, from 1: its pieces follow each other
    source = gold.offsets[split.record]
    found = {
        "value": gold.value[source] == split.choice,
        "mask": gold.known[source],
        "group": group,
        "choice": split.choice,
    }
    result = {}
    for name, values in found.items():
        result[name] = np.zeros(shape, np.bool_ if name == "mask" else np.int32)
        result[name][row, slot] = values
    return result


def span_labels(
    split: EncodedSplit,
    gold: GoldLabels,
    shape,
    row: np.ndarray,
    slot: np.ndarray,
    token: np.ndarray,
    begin: np.ndarray,
) -> dict[str, np.ndarray]:
    """The arrays of level "span"; positions of a piece are its first token, then its words.

    A piece without the answer, which another one holds, has none.

    Args:
      split, gold: as packed.
      shape: (N, Q).
      row, slot, token, begin: int64[pieces], the piece's row, slot, and where it begins on T and Q.
    """
    piece = np.flatnonzero(~split.copy)
    words = split.piece_words[piece].astype(np.int64)
    number, at = concatenated_ranges(np.zeros_like(words), words + 1)
    owner = piece[number]
    where = (row[owner], begin[owner] + at)
    inside, kept = answer_spans.complete_answers(split, gold)
    none = gold.value[:, 0] == answer_spans.NONE
    known = (gold.known & (kept | none))[split.record[piece]]
    value = gold.value[split.record] - split.first_word[:, None]
    value = np.where(inside[:, None], value, -1)[piece]
    bits = START * (at == value[number, 0] + 1) + END * (at == value[number, 1] + 1)
    places = split.word_offsets[owner] + np.maximum(at - 1, 0)
    position = np.where(at > 0, split.word_token[np.minimum(places, max(len(split.word_token) - 1, 0))], 0)
    order = np.argsort(row[piece], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.searchsorted(row[piece][order], row[piece][order])
    found = {
        "value": np.where(known[number], bits, 0),
        "mask": known[number],
        "token": token[owner] + position,
        "segment": rank[number] + 1,
        "slot": slot[owner],
        "word": np.where(at > 0, at - 1 + split.first_word[owner], -1),
    }
    result = {}
    for name, values in found.items():
        result[name] = np.zeros(shape, np.bool_ if name == "mask" else np.int32)
        result[name][where] = values
    return result


def maskable_tokens(rows: PackedRows, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """{"maskable": bool[N, T]}: the tokens that may be hidden, all but special and unknown ones and patches."""
    special = np.isin(rows.tokens, np.asarray(sorted(tokenizer.special_ids), np.int32))
    if rows.patch is not None:
        special |= rows.patch > 0
    return {"maskable": (rows.segment > 0) & ~special}


def masked_positions(
    rows: PackedRows, split: EncodedSplit, tokenizer: Tokenizer, least: int = 1
) -> dict[str, np.ndarray]:
    """The arrays of level "token" where texts have [MASK] themselves: one position for each, of unknown value.

    Q is `least`, or what the row with the most of them takes.
    """
    row, at = np.nonzero((rows.tokens == tokenizer.mask_id) & (rows.segment > 0))
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    shape = (len(rows.tokens), max(int(rank.max(initial=0)) + 1, least))
    found: Mapping[str, np.ndarray] = {"token": at, "segment": rows.segment[row, at], "slot": rows.segment[row, at] - 1}
    result = {"value": np.zeros(shape, np.int32), "mask": np.zeros(shape, np.bool_)}
    for name, values in found.items():
        result[name] = np.zeros(shape, np.int32)
        result[name][row, rank] = values
    return result
