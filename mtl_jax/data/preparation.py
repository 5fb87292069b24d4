"""One data set from its inputs to packed rows: labels, tokens, capacities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import packing, sampler, statistics
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding import encode as encoding
from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs, extract_inputs
from mtl_jax.data.files import array_cache
from mtl_jax.data.labels import encoded_labels as golds
from mtl_jax.data.labels import label_notes, raw_labels, tag_columns, target_sequences, vocabulary
from mtl_jax.data.labels.raw_labels import LabelSpec, RawLabels
from mtl_jax.data.labels.vocabulary import LabelVocabulary
from mtl_jax.data.notices import INFORMATION, LENGTH, Notice
from mtl_jax.data.packing import capacities as row_capacities
from mtl_jax.data.packing import packed_labels
from mtl_jax.data.pictures import patches
from mtl_jax.data.records import Record
from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.errors import UserError


class EncodingSettings(NamedTuple):
    """How a data set is encoded; the fields are those of `corpus.load`, `overflow` without "auto"."""

    row_length: int
    max_length: int
    pack: bool
    overflow: str
    stride: int
    max_unseen_labels: float
    seed: int


class PreparedDataset(NamedTuple):
    """A data set by split; `encoded.labels` has the gold labels of the tasks that are trained.

    rows                packed, for training and evaluation
    encoded             examples in the order of the rows
    vocabularies        of the tasks that are trained
    dataset_statistics  {"capacities": ..., split: numbers of `statistics.length_statistics`}
    task_statistics     {task: {split: counts}}
    notes               sentences about what was odd
    """

    rows: dict[str, PackedRows]
    encoded: dict[str, EncodedSplit]
    vocabularies: dict[str, LabelVocabulary]
    dataset_statistics: dict[str, Any]
    task_statistics: dict[str, Any]
    notes: list[str]


class _Labels(NamedTuple):
    """vocabularies by task, gold labels by split and task, int64[M] tokens of the longest target by split, notes."""

    vocabularies: dict[str, LabelVocabulary]
    gold: dict[str, dict[str, GoldLabels]]
    longest: dict[str, np.ndarray]
    notes: list[str]


def prepare_dataset(
    name: str,
    inputs: Mapping[str, RecordInputs],
    own: Sequence[LabelSpec],
    kept: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
) -> PreparedDataset:
    """One data set from its inputs by split: the tasks `own` shape its rows, those in `kept` get labels.

    Raises:
      UserError: see `labels`, `vocabulary`, `encoding`.
    """
    row_length, pack = settings.row_length, settings.pack
    encoded = {split: _cached(u, tokenizer, settings) for split, u in inputs.items()}
    notes = [note for split, e in encoded.items() if (note := encoding.overlong_note(f"{name}/{split}", e))]
    if any(spec.level == "pair" for spec in own):
        lost = {split: int((e.is_first_example & (e.mark_token < 0).any(1)).sum()) for split, e in encoded.items()}
        cut = "marked spans are cut off, they are not learned from"
        notes += [Notice(f"{name}/{s}: {n} {cut}", LENGTH, n, len(encoded[s].words)) for s, n in lost.items() if n]
    found = _labels(inputs, encoded, own, kept, tokenizer, settings)
    notes += found.notes
    encoded = {s: e._replace(labels=found.gold[s], targets=found.longest[s]) for s, e in encoded.items()}
    wanted = sorted({spec.level for spec in own})
    if "predicate" in wanted:
        limit = row_capacities.predicate_limit(list(encoded.values()), row_length, pack)
        encoded = {split: encoding.copy_for_predicates(e, limit) for split, e in encoded.items()}
        copies = {split: int(e.copy.sum()) for split, e in encoded.items()}
        what = "copies of sentences with many predicates"
        notes += [Notice(f"{name}/{s}: {n} {what}", INFORMATION, n) for s, n in copies.items() if n]
    # Files are often sorted, by class or by source: a row should not be all of one kind.
    orders = {s: _shuffled(e, f"pieces {name}/{s}") for s, e in encoded.items()}
    encoded = {split: encoding.select_examples(e, orders[split]) for split, e in encoded.items()}
    capacities = row_capacities.choose_capacities(list(encoded.values()), wanted, row_length, pack)
    classes = {task: len(v.names) for task, v in found.vocabularies.items()}
    rows = {split: packing.pack(e, kept, classes, capacities, pack) for split, e in encoded.items()}
    for spec in (s for s in kept if s.level == "token"):
        rows = {
            s: r._replace(labels=r.labels | {spec.task: packed_labels.maskable_tokens(r, tokenizer)})
            for s, r in rows.items()
        }
    notes.append(
        Notice(
            f"{name}: {packing.fill_ratio(rows['train']):.1%} of the token positions of train hold real tokens "
            f"({len(encoded['train'].record)} examples in {len(rows['train'].tokens)} rows of {row_length})",
            INFORMATION,
        )
    )
    lengths = {split: statistics.length_statistics(e, rows[split]) for split, e in encoded.items()}
    counts = {spec.task: {s: _counts(found, spec, s) for s in inputs} for spec in kept}
    numbers = {"capacities": capacities._asdict()} | lengths
    return PreparedDataset(rows, encoded, found.vocabularies, numbers, counts, notes)


def _labels(
    inputs: Mapping[str, RecordInputs],
    encoded: Mapping[str, EncodedSplit],
    own: Sequence[LabelSpec],
    kept: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
) -> _Labels:
    vocabularies: dict[str, LabelVocabulary] = {}
    notes: list[str] = []
    gold: dict[str, dict[str, GoldLabels]] = {split: {} for split in inputs}
    longest = {split: np.zeros(len(u.records), np.int64) for split, u in inputs.items()}
    for spec in own:
        if spec.level == "sequence":  # of every task, since the longest target decides how rows are packed
            names, found, odd = _targets(spec, inputs, encoded, tokenizer)
            longest = {split: np.maximum(longest[split], np.diff(g.offsets)) for split, g in found.items()}
        elif spec not in kept:
            continue
        elif spec.kind in golds.ENCODED_LABEL_TYPES:
            names, found, odd = golds.build(spec, inputs, encoded, tokenizer)
        else:
            raw = {
                s: raw_labels.collect_labels(u.records, spec, u.word_counts, u.predicates) for s, u in inputs.items()
            }
            names, found, odd = _classes(spec, raw, inputs, settings)
        if spec not in kept:
            continue
        if spec.labelled:
            found = {**found, "train": golds.limit_labels(found["train"], spec, settings.seed)}
        vocabularies[spec.task] = names
        notes += odd
        for split, values in found.items():
            gold[split][spec.task] = values
    return _Labels(vocabularies, gold, longest, notes)


def _classes(
    spec: LabelSpec, raw: Mapping[str, RawLabels], inputs: Mapping[str, RecordInputs], settings: EncodingSettings
):
    """(vocabulary, {split: Gold}, notes) of a task with classes, sets or numbers; tags of spans in one scheme."""
    notes, spans = [], None
    if spec.level in ("word", "predicate"):
        spec, raw, spans, notes = tag_columns.unify_tags(spec, raw, {s: u.word_counts for s, u in inputs.items()})
    names, odd = vocabulary.build_vocabulary(spec, raw, settings.max_unseen_labels)
    gold = {split: vocabulary.encode_labels(values, spec, names) for split, values in raw.items()}
    notes += [*odd, *label_notes.contradictions(spec, raw, inputs)]
    return dataclasses.replace(names, spans=spans), gold, notes


def _counts(found: _Labels, spec: LabelSpec, split: str) -> dict[str, Any]:
    gold = found.gold[split][spec.task]
    if spec.kind in golds.ENCODED_LABEL_TYPES:
        return golds.label_statistics(gold, spec)
    return statistics.label_counts(gold, spec, found.vocabularies[spec.task])


def _targets(
    spec: LabelSpec, inputs: Mapping[str, RecordInputs], encoded: Mapping[str, EncodedSplit], tokenizer: Tokenizer
):
    """(vocabulary, {split: Gold}, notes) of a task that writes sequences."""
    train = inputs["train"].records
    with_blanks = target_sequences.targets_have_blanks(train, spec, tokenizer)
    raw = {
        split: target_sequences.collect_targets(u.records, spec, tokenizer, with_blanks) for split, u in inputs.items()
    }
    names = target_sequences.build_vocabulary(spec, raw, train, with_blanks)
    gold: dict[str, GoldLabels] = {}
    notes: list[str] = []
    for split, values in raw.items():
        given = copy_sources(spec, inputs[split], encoded[split], tokenizer)
        gold[split], cut, unknown = target_sequences.encode_targets(values, spec, names, given)
        notes += target_sequences.target_notes(spec, split, values, gold[split], cut, unknown)
    return names, gold, notes


def copy_sources(
    spec: LabelSpec, inputs: RecordInputs, encoded: EncodedSplit, tokenizer: Tokenizer
) -> Sequence[Sequence[str]]:
    """What a task may copy of each record; () where it does not."""
    return target_sequences.source_tokens(inputs, encoded, tokenizer) if spec.target.copy else ()


def inputs_for_tasks(
    records: Sequence[Record], what: str, entry: Mapping[str, Any], specs: Sequence[LabelSpec]
) -> RecordInputs:
    """The inputs of records, as the data set's entry and its tasks want them; `what` stands in messages."""
    fields = {spec.predicates for spec in specs if spec.level == "predicate"}
    if len(fields) > 1:
        raise UserError(f"{what}: its tasks name different fields of predicates: {', '.join(sorted(fields))}")
    text, words = entry.get("text") or (), entry.get("words") or ""
    marked = tuple(entry.get("marked") or ())
    if any(spec.level == "pair" for spec in specs) and not marked:
        raise UserError(f"{what}: a task on it reads two marked spans; name them as `marked` of the data set")
    return extract_inputs(
        records,
        text=text,
        words=words,
        predicates="".join(fields),
        choices=tuple(entry.get("choices") or ()),
        marked=marked,
        markers=tuple(entry.get("markers") or marked_spans.MARKERS),
        marked_ends=entry.get("marked_ends") or "",
        aligned=bool(text) and any(spec.level == "span" for spec in specs),
        pictured=bool(entry.get("image")),
    )


def _shuffled(split: EncodedSplit, name: str) -> Any:
    """A permutation of the examples that keeps the choices of a record together."""
    first = np.flatnonzero(split.choice == 0)
    sizes = np.diff(np.append(first, len(split.choice)))
    order = sampler.permutation(len(first), 0, name, 0)
    return encoding.concatenated_ranges(first[order], sizes[order])[1]


def resolve_overflow(overflow: str, inputs: RecordInputs, specs: Sequence[LabelSpec]) -> str:
    """What "auto" means for a data set with the tasks `specs`: split where words are labelled, or hidden; windows where
    answers are looked for.
    """
    if overflow != "auto":
        return overflow
    levels_ = {spec.level for spec in specs}
    if inputs.words is not None and levels_ & {"word", "predicate", "token"}:
        return "split"
    return "windows" if "span" in levels_ and inputs.marks is None else "truncate"


def _cached(inputs: RecordInputs, tokenizer: Tokenizer, settings: EncodingSettings) -> EncodedSplit:
    key = {
        "inputs": inputs.fingerprint(),
        "tokenizer": tokenizer.fingerprint,
        "max_length": settings.max_length,
        "overflow": settings.overflow,
        "stride": settings.stride,
    }

    def make():
        arrays = encode_with_patches(
            inputs, tokenizer, settings.max_length, settings.overflow, settings.stride
        )._asdict()
        del arrays["labels"], arrays["targets"]
        return {name: array for name, array in arrays.items() if array is not None}

    return EncodedSplit(**array_cache.load_or_make(key, make))


def encode_with_patches(
    inputs: RecordInputs, tokenizer: Tokenizer, max_length: int, overflow: str, stride: int
) -> EncodedSplit:
    """`encoding.encode_with_patches`, with the patches of pictures where the inputs have some."""
    encoded = encoding.encode(inputs, tokenizer, max_length, overflow, stride)
    return (
        encoded
        if inputs.pictures is None
        else patches.insert_patches(encoded, inputs, encoding.leading_special_tokens(inputs, tokenizer))
    )
