"""Gold labels that depend on the encoded inputs: spans of tokens, numbers of choices, the tokens themselves; and
labels limited to some of the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.distinct_values import distinct, is_among
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels import answer_spans, choices
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.raw_labels import RawLabels
from mtl_jax.data.labels.vocabulary import LabelVocabulary, TaskLabels, no_labels_error
from mtl_jax.data.notices import LABELS, LENGTH, Notice
from mtl_jax.data.records import summarize_notes
from mtl_jax.data.splits import subsets
from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.errors import UserError

ENCODED_LABEL_TYPES = ("choice", "span", "hidden")


def build(
    spec: LabelSpec, inputs: Mapping[str, RecordInputs], encoded: Mapping[str, EncodedSplit], tokenizer: Tokenizer
) -> TaskLabels:
    """The labels of a task of one of these types.

    Type "choice" has no classes; "span" has `answer_spans.CLASS_NAMES`, the second where train has unanswerable
    questions, replaced by `answer_spans.ELSEWHERE` where it has windows without the answer; "hidden" has the
    tokenizer's tokens, in the order of their ids.

    Raises:
      UserError: train has no label; see `answer_spans` and `choices`; a tokenizer without [MASK].
    """
    if spec.kind == "hidden":
        if tokenizer.mask_id is None:
            raise UserError(f"task {spec.task}: the tokenizer has no token for hidden words, [MASK] or <mask>")
        names = tuple(map(tokenizer.id_to_token, range(tokenizer.size)))
        return TaskLabels(LabelVocabulary(names), {s: unknown_labels(spec, i) for s, i in inputs.items()}, [])
    if spec.kind == "choice":
        gold = {split: _choice_numbers(choices.collect_choices(i, spec)) for split, i in inputs.items()}
        labels = TaskLabels(LabelVocabulary(()), gold, [])
    else:
        labels = _spans(spec, inputs, encoded)
    if not labels.gold["train"].known.any():
        raise no_labels_error(spec, inputs["train"].records)
    return labels


def _spans(spec: LabelSpec, inputs: Mapping[str, RecordInputs], encoded: Mapping[str, EncodedSplit]) -> TaskLabels:
    """The labels of type "span"."""
    notes: list[str] = []
    raw: dict[str, RawLabels] = {}
    gold: dict[str, GoldLabels] = {}
    for split, split_inputs in inputs.items():
        raw[split], raw_notes = answer_spans.collect_answers(split_inputs, spec)
        gold[split], token_notes = answer_spans.encode_answers(raw[split], encoded[split])
        gold[split] = gold[split]._replace(complete=answer_spans.complete_answers(encoded[split], gold[split])[1])
        notes += [n.prefixed(f"task {spec.task}") for n in summarize_notes(split, [*raw_notes, *token_notes])]
        if lost := answer_spans.count_truncated(encoded[split], gold[split]):
            count = int(gold[split].known.sum())
            text = f"task {spec.task}: {split}: {lost} of {count} answers are cut off with a part of their text; "
            text += "they are not learned from, and count as missed in evaluation"
            notes.append(Notice(text, LENGTH, lost, count))
    names = answer_spans.CLASS_NAMES[: 1 + (() in raw["train"].values)]
    if len(names) == 1 and answer_spans.has_windows_without_answer(encoded["train"], gold["train"]):
        names = (*names, answer_spans.ELSEWHERE)
    if names != answer_spans.CLASS_NAMES and any(() in labels.values for labels in raw.values()):
        text = f"task {spec.task}: train has no unanswerable question, so every question will get an answer"
        notes.append(Notice(text, LABELS))
    return TaskLabels(LabelVocabulary(names), gold, notes)


def unknown_labels(spec: LabelSpec, inputs: RecordInputs) -> GoldLabels:
    """Gold labels of records without labels; those of type "hidden" need none."""
    count = len(inputs.records)
    shape = (count, 2) if spec.kind == "span" else (count,)
    value = np.full(shape, answer_spans.UNKNOWN if spec.kind == "span" else 0, np.int32)
    complete = np.zeros(count, bool) if spec.kind == "span" else None
    offsets = np.arange(count + 1, dtype=np.int64)
    return GoldLabels(value, np.full(count, spec.kind == "hidden"), offsets, complete=complete)


def limit_labels(gold: GoldLabels, spec: LabelSpec, seed: int) -> GoldLabels:
    """The labels of `spec.labelled` records, drawn from those that have one; others lose theirs."""
    record = np.repeat(np.arange(len(gold.offsets) - 1), np.diff(gold.offsets))
    labelled = distinct(record[gold.known])
    chosen = labelled[subsets.subset(len(labelled), spec.labelled, f"{spec.task}/labelled", seed)]
    known = gold.known & is_among(record, np.sort(chosen))
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


def _choice_numbers(raw: RawLabels) -> GoldLabels:
    known = np.fromiter((value is not None for value in raw.values), bool, len(raw.values))
    value = np.fromiter((0 if v is None else v for v in raw.values), np.int32, len(raw.values))
    return GoldLabels(value, known, raw.offsets)
