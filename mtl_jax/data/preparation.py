"""One data set from its inputs to packed rows: labels, tokens, capacities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import packing, sampler, statistics, stored_splits
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding import answers_in_rows, marked_spans
from mtl_jax.data.encoding import encode as encoding
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.record_inputs import RecordInputs, extract_inputs
from mtl_jax.data.files import array_cache, array_shards
from mtl_jax.data.labels import encoded_labels, task_labels
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.vocabulary import LabelVocabulary, TaskLabels
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

    rows                packed rows
    encoded             examples in the order of the rows
    vocabularies        of the tasks that are trained
    dataset_statistics  {"capacities": ..., split: numbers of `statistics.length_statistics`}
    task_statistics     {task: {split: counts}}
    notes               what was changed or looks wrong, with counts
    keys                what identifies the rows of the splits that are on disk
    """

    rows: dict[str, PackedRows]
    encoded: dict[str, EncodedSplit]
    vocabularies: dict[str, LabelVocabulary]
    dataset_statistics: dict[str, Any]
    task_statistics: dict[str, Any]
    notes: list[str]
    keys: dict[str, str]


def prepare_dataset(
    name: str,
    inputs: Mapping[str, RecordInputs],
    specs: Sequence[LabelSpec],
    trained: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
) -> PreparedDataset:
    """One data set from its inputs by split.

    Args:
      name: of the data set.
      inputs: by split.
      specs: all tasks of the config on this data set; they shape the rows.
      trained: those of them that are trained, whose labels are in the rows.
      tokenizer, settings: how the inputs are encoded.

    Raises:
      UserError: see `labels`, `vocabulary`, `encoding`.
    """
    row_length, pack = settings.row_length, settings.pack
    settings = settings._replace(max_length=text_length(settings.max_length, specs, tokenizer))
    encoded = {split: _cached_encoding(i, tokenizer, settings) for split, i in inputs.items()}
    stored = [split for split, split_inputs in inputs.items() if split_inputs.options is not None]
    notes: list[str] = [note for split, e in encoded.items() if (note := encoding.overlong_note(f"{name}/{split}", e))]
    if any(spec.level == "pair" for spec in specs):
        lost = {split: int((e.is_first_example & (e.mark_token < 0).any(1)).sum()) for split, e in encoded.items()}
        what = "marked spans are cut off, they are not learned from"
        notes += [Notice(f"{name}/{s}: {n} {what}", LENGTH, n, len(encoded[s].words)) for s, n in lost.items() if n]
    labels, longest = _labels(inputs, encoded, specs, trained, tokenizer, settings)
    notes += [note for task in labels.values() for note in task.notes]
    key = _key(name, inputs, specs, labels, tokenizer, settings) if stored else None
    for split, e in encoded.items():
        gold = {task: prepared.gold[split] for task, prepared in labels.items()}
        targets = longest[split]
        if split in stored:
            gold = {task: stored_splits.saved_gold(g, [key, split, task]) for task, g in gold.items()}
            targets = array_shards.save("gold", [key, split, "targets"], targets)
        encoded[split] = with_answers(e._replace(labels=gold, targets=targets), trained, tokenizer)
    levels = sorted({spec.level for spec in specs})
    if "predicate" in levels:
        limit = row_capacities.predicate_limit(list(encoded.values()), row_length, pack)
        encoded = {
            split: stored_splits.copy_for_predicates(e, limit, [key, split])
            if split in stored
            else encoding.copy_for_predicates(e, limit)
            for split, e in encoded.items()
        }
        copies = {split: int(e.copy.sum()) for split, e in encoded.items()}
        what = "copies of sentences with many predicates"
        notes += [Notice(f"{name}/{s}: {n} {what}", INFORMATION, n) for s, n in copies.items() if n]
    # Files are often sorted by class or by source; a row should mix them.
    orders = {s: _shuffled(e, f"pieces {name}/{s}") for s, e in encoded.items()}
    encoded = {s: e if s in stored else encoding.select_examples(e, orders[s]) for s, e in encoded.items()}
    sample = _sample(encoded["train"], orders["train"]) if "train" in stored else None
    capacities = row_capacities.choose_capacities(list(encoded.values()), levels, row_length, pack, sample)
    classes = {task: len(prepared.vocabulary.names) for task, prepared in labels.items()}
    pack_settings = stored_splits.PackSettings(tuple(trained), classes, capacities, pack, tokenizer)
    rows, keys = {}, {}
    for split, e in encoded.items():
        if split in stored:
            keys[split] = array_shards.digest([key, split, capacities])
            rows[split], encoded[split] = stored_splits.pack_in_shards(e, orders.pop(split), pack_settings, keys[split])
        else:
            packed = packing.pack(e, trained, classes, capacities, pack)
            rows[split] = packed_labels.with_maskable(packed, trained, tokenizer)
    text = f"{name}: {packing.fill_ratio(rows['train']):.1%} of the token positions of train hold real tokens "
    text += f"({len(encoded['train'].record)} examples in {len(rows['train'].tokens)} rows of {row_length})"
    notes.append(Notice(text, INFORMATION))
    lengths = {split: statistics.length_statistics(e, rows[split]) for split, e in encoded.items()}
    counts = {
        spec.task: {split: task_labels.label_counts(labels[spec.task], spec, split) for split in inputs}
        for spec in trained
    }
    vocabularies = {task: prepared.vocabulary for task, prepared in labels.items()}
    numbers = {"capacities": capacities._asdict()} | lengths
    return PreparedDataset(rows, encoded, vocabularies, numbers, counts, notes, keys)


def text_length(max_length: int, specs: Sequence[LabelSpec], tokenizer: Tokenizer) -> int:
    """The tokens that a text may have, where targets follow it in its row.

    Raises:
      UserError: none are left.
    """
    for spec in specs:
        if spec.target is not None and (taken := spec.target.row_tokens(tokenizer)):
            max_length -= taken
            if max_length < 1:
                raise UserError(
                    f"config.tasks.{spec.task}.options.max_length: {taken} tokens of a row are free for the answer, "
                    "which leaves none for the text; take a smaller one, or a larger config.data.row_length"
                )
    return max_length


def with_answers(split: EncodedSplit, specs: Sequence[LabelSpec], tokenizer: Tokenizer) -> EncodedSplit:
    """The examples with the targets of a task whose targets follow the texts."""
    for spec in specs:
        if spec.target is not None and spec.target.in_row:
            split = answers_in_rows.append_answers(split, spec.target.before_ids(tokenizer), split.labels[spec.task])
    return split


def _key(
    name: str,
    inputs: Mapping[str, RecordInputs],
    specs: Sequence[LabelSpec],
    labels: Mapping[str, TaskLabels],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
) -> str:
    """What identifies the examples and the labels of a data set that has splits on disk."""
    split_keys = {split: split_inputs.fingerprint() for split, split_inputs in inputs.items()}
    vocabularies = {task: dataclasses.astuple(prepared.vocabulary) for task, prepared in labels.items()}
    tasks = [dataclasses.astuple(spec) for spec in specs]
    return array_shards.digest([name, split_keys, tasks, vocabularies, tokenizer.fingerprint, settings])


def _sample(train: EncodedSplit, order: np.ndarray) -> EncodedSplit:
    """The first examples of train in `order`, which is random."""
    end = encoding.example_ranges(train.choice[order], row_capacities.SAMPLE)[0][1]
    return encoding.select_examples(train, order[:end])


def _labels(
    inputs: Mapping[str, RecordInputs],
    encoded: Mapping[str, EncodedSplit],
    specs: Sequence[LabelSpec],
    trained: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
) -> tuple[dict[str, TaskLabels], dict[str, np.ndarray]]:
    """({task: labels} of the trained tasks, {split: int64[M], tokens of each record's longest target} of all tasks)."""
    labels: dict[str, TaskLabels] = {}
    longest = {split: np.zeros(len(i.records), np.int64) for split, i in inputs.items()}
    for spec in specs:
        if spec not in trained and spec.level != "sequence":
            continue
        labels_of_task = task_labels.build_labels(spec, inputs, encoded, tokenizer, settings.max_unseen_labels)
        if spec.level == "sequence":  # also of other tasks, since the longest target decides how rows are packed
            lengths = task_labels.longest_targets(labels_of_task)
            longest = {split: np.maximum(longest[split], lengths[split]) for split in longest}
        if spec in trained:
            if spec.labelled:
                train = encoded_labels.limit_labels(labels_of_task.gold["train"], spec, settings.seed)
                labels_of_task = labels_of_task._replace(gold={**labels_of_task.gold, "train": train})
            labels[spec.task] = labels_of_task
    return labels, longest


def inputs_for_tasks(
    records: Sequence[Record], what: str, entry: Mapping[str, Any], specs: Sequence[LabelSpec]
) -> RecordInputs:
    """The inputs of records that the data set's entry and its tasks need; `what` begins the messages of errors."""
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


def _shuffled(split: EncodedSplit, name: str) -> np.ndarray:
    """int64[N], a permutation of the examples keyed by `name` that keeps the choices of a record together."""
    if not split.choice.any():
        return sampler.permutation(len(split.choice), 0, name, 0)
    first = np.flatnonzero(split.choice == 0)
    sizes = np.diff(np.append(first, len(split.choice)))
    order = sampler.permutation(len(first), 0, name, 0)
    return encoding.concatenated_ranges(first[order], sizes[order])[1]


def resolve_overflow(overflow: str, inputs: RecordInputs, specs: Sequence[LabelSpec]) -> str:
    """`overflow`, where "auto" depends on the tasks of a data set: "split" where words are labelled or hidden,
    "windows" where spans are predicted.
    """
    if overflow != "auto":
        return overflow
    levels = {spec.level for spec in specs}
    if inputs.words is not None and levels & {"word", "predicate", "token"}:
        return "split"
    return "windows" if "span" in levels and inputs.marks is None else "truncate"


def _cached_encoding(inputs: RecordInputs, tokenizer: Tokenizer, settings: EncodingSettings) -> EncodedSplit:
    key = {
        "inputs": inputs.fingerprint(),
        "tokenizer": tokenizer.fingerprint,
        "max_length": settings.max_length,
        "overflow": settings.overflow,
        "stride": settings.stride,
    }

    if inputs.options is not None:
        arguments = (settings.max_length, settings.overflow, settings.stride)
        return stored_splits.encode_inputs(inputs, tokenizer, arguments, key)

    def make() -> dict[str, np.ndarray]:
        arrays = encode_with_patches(
            inputs, tokenizer, settings.max_length, settings.overflow, settings.stride
        )._asdict()
        del arrays["labels"], arrays["targets"]
        return {name: array for name, array in arrays.items() if array is not None}

    return EncodedSplit(**array_cache.load_or_make(key, make))


def encode_with_patches(
    inputs: RecordInputs, tokenizer: Tokenizer, max_length: int, overflow: str, stride: int
) -> EncodedSplit:
    """`encoding.encode`, with the patches of pictures where the inputs have some."""
    encoded = encoding.encode(inputs, tokenizer, max_length, overflow, stride)
    if inputs.pictures is None:
        return encoded
    return patches.insert_patches(encoded, inputs, encoding.leading_special_tokens(inputs, tokenizer))
