"""The splits of a data set that are on disk: encoded, rearranged and packed in shards by several processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import packing
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding import encode as encoding
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.files import array_shards
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing import packed_labels
from mtl_jax.data.packing.capacities import Capacities
from mtl_jax.data.packing.first_fit import first_fit
from mtl_jax.data.tokenizers import Tokenizer

_ROWS = tuple(name for name in PackedRows._fields if name not in ("labels", "hidden", "patch", "pixels"))


def encode_inputs(
    inputs: RecordInputs, tokenizer: Tokenizer, settings: tuple[int, str, int], key: Mapping[str, Any]
) -> EncodedSplit:
    """The examples of records on disk; `settings` as for `encoding.encode_chunk`, `key` (JSON values) names all."""
    common = (inputs.options, tokenizer, settings)
    job = array_shards.Job("encoded", key, encoding.encode_chunk, common, encoding.CUMULATIVE)
    tasks = [(inputs.records[begin:end], begin) for begin, end in array_shards.ranges(len(inputs.records))]
    made = array_shards.make(job, tasks, True)
    return EncodedSplit(**made.arrays, overlong=np.sum(made.info, axis=0, dtype=np.int64))


def copy_for_predicates(split: EncodedSplit, limit: int, key: Any) -> EncodedSplit:
    """As `encoding.copy_for_predicates`."""
    job = array_shards.Job("copies", {"copies": key, "limit": limit}, copied_examples, (split, limit), encoding.OFFSETS)
    made = array_shards.make(job, encoding.example_ranges(split.choice, array_shards.CHUNK), True)
    return split._replace(**made.arrays)


def copied_examples(begin: int, end: int, split: EncodedSplit, limit: int) -> tuple[dict[str, np.ndarray], None]:
    """A shard of `copy_for_predicates`."""
    part = encoding.example_range(split, begin, end)
    return encoding.example_arrays(encoding.copy_for_predicates(part, limit)), None


def saved_gold(gold: GoldLabels, key: Any) -> GoldLabels:
    """The same labels with mapped arrays, which workers open by name."""
    arrays = {
        "value": array_shards.save("gold", [key, "value"], gold.value),
        "known": array_shards.save("gold", [key, "known"], gold.known),
        "offsets": array_shards.save("gold", [key, "offsets"], gold.offsets[1:], cumulative=True),
    }
    if gold.complete is not None:
        arrays["complete"] = array_shards.save("gold", [key, "complete"], gold.complete)
    return gold._replace(**arrays)


class PackSettings(NamedTuple):
    """How rows are packed: the arguments of `packing.pack`, and the tokenizer for what may be hidden."""

    specs: tuple[LabelSpec, ...]
    classes: Mapping[str, int]
    capacities: Capacities
    pack: bool
    tokenizer: Tokenizer


def pack_in_shards(
    split: EncodedSplit, order: np.ndarray, settings: PackSettings, key: Any
) -> tuple[PackedRows, EncodedSplit]:
    """(rows, the examples in the order of the rows) of a split, whose examples are taken in `order`.

    The examples of a shard are packed among themselves. `key` (JSON values) names all arguments.
    """
    ends = tuple(f"encoded/{name}" for name in encoding.OFFSETS)
    bare = {task: gold._replace(texts=(), sources=()) for task, gold in split.labels.items()}
    common = (split._replace(labels=bare, char_offsets=split.char_offsets[:0]), settings)
    job = array_shards.Job("rows", {"rows": key}, pack_chunk, common, ends)
    ranges = encoding.example_ranges(split.choice[order], array_shards.CHUNK)
    made = array_shards.make(job, [(order[begin:end], begin) for begin, end in ranges], True)
    groups: dict[str, dict[str, np.ndarray]] = {"rows": {}, "labels": {}, "encoded": {}}
    for name, array in made.arrays.items():
        group, _, inner = name.partition("/")
        groups[group][inner] = array
    labels: dict[str, dict[str, np.ndarray]] = {spec.task: {} for spec in settings.specs}
    for name, array in groups["labels"].items():
        number, _, inner = name.partition("/")
        labels[settings.specs[int(number)].task][inner] = array
    return PackedRows(**groups["rows"], labels=labels), split._replace(**groups["encoded"])


def pack_chunk(
    index: np.ndarray, begin: int, split: EncodedSplit, settings: PackSettings
) -> tuple[dict[str, np.ndarray], None]:
    """A shard of `pack_in_shards`: of the examples `index`, the first of which has the number `begin`."""
    part = encoding.select_examples(split, index)
    specs, classes, capacities, pack, tokenizer = settings
    rows = packing.pack(part, specs, classes, capacities, pack, first_fit)
    rows = packed_labels.with_maskable(rows, specs, tokenizer)
    arrays = {f"rows/{name}": getattr(rows, name) for name in _ROWS}
    arrays["rows/example"] = np.where(rows.example < 0, np.int32(-1), rows.example + np.int32(begin))
    for number, spec in enumerate(specs):
        arrays |= {f"labels/{number}/{name}": array for name, array in rows.labels[spec.task].items()}
    return arrays | {f"encoded/{name}": array for name, array in encoding.example_arrays(part).items()}, None
