"""Gold labels that depend on the encoded texts: answers among tokens, numbers of choices, the tokens themselves; and
labels of a part of the records alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels import answer_spans, choices
from mtl_jax.data.labels.raw_labels import LabelSpec
from mtl_jax.data.labels.vocabulary import LabelVocabulary, no_labels_error
from mtl_jax.data.notices import LABELS, LENGTH, Notice
from mtl_jax.data.records import summarize_notes
from mtl_jax.data.splits import subsets
from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.errors import UserError

ENCODED_LABEL_TYPES = ("choice", "span", "hidden")


def build(
    spec: LabelSpec, inputs: Mapping[str, RecordInputs], encoded: Mapping[str, EncodedSplit], tokenizer: Tokenizer
) -> tuple[LabelVocabulary, dict[str, GoldLabels], list[str]]:
    """The classes of a task of these kinds, its gold labels by split, and sentences about what is odd.

    Kind "choice" has no classes; "span" has `answers.CLASS_NAMES`, the second where train has unanswerable questions,
    in its
    place `answers.ELSEWHERE` where it has windows without the answer; "hidden" has the tokenizer's tokens, in the order
    of their ids.

    Raises:
      UserError: train has no label; see `answers` and `choices`; a tokenizer without [MASK].
    """
    if spec.kind == "hidden":
        if tokenizer.mask_id is None:
            raise UserError(f"task {spec.task}: the tokenizer has no token for hidden words, [MASK] or <mask>")
        names = tuple(map(tokenizer.id_to_token, range(tokenizer.size)))
        return LabelVocabulary(names), {split: unknown_labels(spec, u) for split, u in inputs.items()}, []
    notes: list[str] = []
    if spec.kind == "choice":
        raw = {split: choices.collect_choices(u, spec) for split, u in inputs.items()}
        gold = {split: _numbers(r) for split, r in raw.items()}
        vocabulary = LabelVocabulary(())
    else:
        raw, gold = {}, {}
        for split, u in inputs.items():
            raw[split], read = answer_spans.collect_answers(u, spec)
            gold[split], fitted = answer_spans.encode_answers(raw[split], encoded[split])
            notes += [line.prefixed(f"task {spec.task}") for line in summarize_notes(split, [*read, *fitted])]
            if lost := answer_spans.count_truncated(encoded[split], gold[split]):
                count = int(gold[split].known.sum())
                text = f"task {spec.task}: {split}: {lost} of {count} answers are cut off with a part of their text; "
                text += "they are not learned from, and count as missed in evaluation"
                notes.append(Notice(text, LENGTH, lost, count))
        names = answer_spans.CLASS_NAMES[: 1 + (() in raw["train"].values)]
        if len(names) == 1 and answer_spans.has_windows_without_answer(encoded["train"], gold["train"]):
            names = (*names, answer_spans.ELSEWHERE)
        vocabulary = LabelVocabulary(names)
        if names != answer_spans.CLASS_NAMES and any(() in r.values for r in raw.values()):
            text = f"task {spec.task}: train has no unanswerable question, so every question will get an answer"
            notes.append(Notice(text, LABELS))
    if not gold["train"].known.any():
        raise no_labels_error(spec, inputs["train"].records)
    return vocabulary, gold, notes


def unknown_labels(spec: LabelSpec, inputs: RecordInputs) -> GoldLabels:
    """Gold of records whose labels nobody knows; tokens need none."""
    count = len(inputs.records)
    shape = (count, 2) if spec.kind == "span" else (count,)
    value = np.full(shape, answer_spans.UNKNOWN if spec.kind == "span" else 0, np.int32)
    return GoldLabels(value, np.full(count, spec.kind == "hidden"), np.arange(count + 1, dtype=np.int64))


def limit_labels(gold: GoldLabels, spec: LabelSpec, seed: int) -> GoldLabels:
    """The labels of `spec.labelled` records, drawn from those that have one; the others become unlabelled."""
    record = np.repeat(np.arange(len(gold.offsets) - 1), np.diff(gold.offsets))
    chosen = subsets.subset(np.unique(record[gold.known]).tolist(), spec.labelled, f"{spec.task}/labelled", seed)
    known = gold.known & np.isin(record, chosen)
    value = gold.value.copy()
    value[~known] = answer_spans.UNKNOWN if spec.kind == "span" else 0
    return gold._replace(value=value, known=known)


def label_statistics(gold: GoldLabels, spec: LabelSpec) -> dict[str, Any]:
    """Plain numbers, as `label_statistics.label_counts`."""
    result: dict[str, Any] = {"known": int(gold.known.sum()), "missing": int((~gold.known).sum())}
    if spec.kind == "span":
        none = int((gold.known & (gold.value[:, 0] == answer_spans.NONE)).sum())
        result["counts"] = dict(zip(answer_spans.CLASS_NAMES, (result["known"] - none, none), strict=True))
    return result


def _numbers(raw) -> GoldLabels:
    known = np.fromiter((value is not None for value in raw.values), bool, len(raw.values))
    value = np.fromiter((0 if v is None else v for v in raw.values), np.int32, len(raw.values))
    return GoldLabels(value, known, raw.offsets)
