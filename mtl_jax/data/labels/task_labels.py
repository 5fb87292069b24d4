"""The vocabulary and the gold labels of a task, for labels of every type."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data import statistics
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels import encoded_labels, raw_labels, suspicious_labels, tag_columns, target_sequences, vocabulary
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.vocabulary import LabelVocabulary, TaskLabels
from mtl_jax.data.tokenizers import Tokenizer


def build_labels(
    spec: LabelSpec,
    inputs: Mapping[str, RecordInputs],
    encoded: Mapping[str, EncodedSplit],
    tokenizer: Tokenizer,
    max_unseen_labels: float,
) -> TaskLabels:
    """The labels of a task from the inputs and examples of its data set, by split."""
    if spec.level == "sequence":
        return _targets(spec, inputs, encoded, tokenizer)
    if spec.kind in encoded_labels.ENCODED_LABEL_TYPES:
        return encoded_labels.build(spec, inputs, encoded, tokenizer)
    return _classes(spec, inputs, encoded, max_unseen_labels)


def unknown_labels(
    spec: LabelSpec,
    inputs: RecordInputs,
    encoded: EncodedSplit,
    names: LabelVocabulary,
    tokenizer: Tokenizer,
) -> GoldLabels:
    """Gold labels of records whose labels are to be predicted: none is known."""
    if spec.kind in encoded_labels.ENCODED_LABEL_TYPES:
        return encoded_labels.unknown_labels(spec, inputs)
    if spec.level == "sequence":
        sources = copy_sources(spec, inputs, encoded, tokenizer)
        return target_sequences.missing_targets(len(inputs.records), sources)
    raw = raw_labels.missing_labels(inputs.records, spec, inputs.word_counts, inputs.predicates)
    return vocabulary.encode_labels(raw, spec, names)


def longest_targets(labels: TaskLabels) -> dict[str, np.ndarray]:
    """{split: int64[M], tokens of each record's target} of a task of level "sequence"."""
    return {split: np.diff(gold.offsets) for split, gold in labels.gold.items()}


def label_counts(labels: TaskLabels, spec: LabelSpec, split: str) -> dict[str, Any]:
    """Counts of the labels of a split, ready for JSON."""
    if spec.kind in encoded_labels.ENCODED_LABEL_TYPES:
        return encoded_labels.label_statistics(labels.gold[split], spec)
    return statistics.label_counts(labels.gold[split], spec, labels.vocabulary)


def copy_sources(
    spec: LabelSpec, inputs: RecordInputs, encoded: EncodedSplit, tokenizer: Tokenizer
) -> Sequence[Sequence[str]]:
    """The tokens that a task may copy from each record; () where it copies none."""
    return target_sequences.source_tokens(inputs, encoded, tokenizer) if spec.target.copy else ()


def _classes(
    spec: LabelSpec,
    inputs: Mapping[str, RecordInputs],
    encoded: Mapping[str, EncodedSplit],
    max_unseen_labels: float,
) -> TaskLabels:
    """Labels that are classes, sets or numbers; tags of spans are converted to one scheme."""
    raw = {split: raw_labels.labels_of_inputs(i, spec) for split, i in inputs.items()}
    notes: list[str] = []
    spans = None
    if spec.level in ("word", "predicate"):
        spec, raw, spans, notes = tag_columns.unify_tags(spec, raw, {s: e.words for s, e in encoded.items()})
    names, vocabulary_notes = vocabulary.build_vocabulary(spec, raw, max_unseen_labels)
    gold = {split: vocabulary.encode_labels(values, spec, names) for split, values in raw.items()}
    notes += [*vocabulary_notes, *suspicious_labels.contradictions(spec, raw, inputs)]
    return TaskLabels(dataclasses.replace(names, spans=spans), gold, notes)


def _targets(
    spec: LabelSpec, inputs: Mapping[str, RecordInputs], encoded: Mapping[str, EncodedSplit], tokenizer: Tokenizer
) -> TaskLabels:
    """Target sequences."""
    gold: dict[str, GoldLabels]
    notes: list[str]
    train = inputs["train"].records
    if spec.target.in_row:
        gold, notes = {}, []
        for split, split_inputs in inputs.items():
            gold[split], more = target_sequences.encode_answers(split_inputs.records, spec, tokenizer, split)
            notes += more
        if not len(gold["train"].value):
            raise vocabulary.no_labels_error(spec, train)
        return TaskLabels(LabelVocabulary(tuple(map(tokenizer.id_to_token, range(tokenizer.size)))), gold, notes)
    with_blanks = target_sequences.targets_have_blanks(train, spec, tokenizer)
    raw = {
        split: target_sequences.collect_targets(i.records, spec, tokenizer, with_blanks) for split, i in inputs.items()
    }
    names = target_sequences.build_vocabulary(spec, raw, train, with_blanks)
    gold = {}
    notes = []
    for split, targets in raw.items():
        sources = copy_sources(spec, inputs[split], encoded[split], tokenizer)
        gold[split], cut, unknown = target_sequences.encode_targets(targets, spec, names, sources)
        notes += target_sequences.target_notes(spec, split, targets, gold[split], cut, unknown)
    return TaskLabels(names, gold, notes)
