"""Answers that follow their prompts in the same examples, for models that continue a text."""

from __future__ import annotations

import numpy as np

from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges, offsets_from_lengths
from mtl_jax.data.encoding.gold_labels import GoldLabels


def append_answers(split: EncodedSplit, before: list[int], gold: GoldLabels) -> EncodedSplit:
    """The split with `before`, then the target of its record, at the end of every first example.

    Args:
      split: without pictures.
      before: token ids between prompt and answer.
      gold: the targets by record; records without one get `before` alone.
    """
    counts, first = np.diff(gold.offsets)[split.record], split.is_first_example
    added = np.where(first, len(before) + counts, 0)
    offsets = offsets_from_lengths(split.lengths + added)
    tokens, types = (np.zeros(offsets[-1], array.dtype) for array in (split.tokens, split.token_type))
    _, place = concatenated_ranges(offsets[:-1], split.lengths)
    tokens[place], types[place] = split.tokens, split.token_type
    ends = (offsets[:-1] + split.lengths)[first]
    for number, token in enumerate(before):
        tokens[ends + number] = token
    _, source = concatenated_ranges(gold.offsets[:-1][split.record[first]], counts[first])
    _, place = concatenated_ranges(ends + len(before), counts[first])
    tokens[place] = gold.value[source]
    return split._replace(token_offsets=offsets, tokens=tokens, token_type=types)
