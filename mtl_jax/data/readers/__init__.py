"""One file per format. `READERS` maps the `reader` of a data-set entry to its function.

A reader is `reader(location, encoding, **options) -> Iterator[Record | Note]`: `location` is a file (or a folder, where
the format is one), the keyword-only parameters after `encoding` are its options, and a `Note` stands for what it left
out or changed. A reader with a parameter `split` finds the splits inside one location, one with `fields` gets the names
of the fields that are read as texts. Bad input raises UserError naming file and line. A reader in `GENERATED` makes its
records from its options alone: it is given None for a location. One in `BINARY` decodes no text: an encoding is nothing
to it. What one in `SLOW` makes of a file is kept, see `mtl_jax.data.files.parse_cache`: it looks at nothing but that
file and its options, and its records hold strings, whole numbers, None and lists or dicts of these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.annotated import read_conllu_endings, read_srl_pairs, read_srl_questions
from mtl_jax.data.readers.conll import read_conll
from mtl_jax.data.readers.conllu import read_conllu
from mtl_jax.data.readers.csv import read_csv
from mtl_jax.data.readers.derived import read_derived
from mtl_jax.data.readers.dialogue import read_dialogue
from mtl_jax.data.readers.folders import read_folders
from mtl_jax.data.readers.idx import read_idx
from mtl_jax.data.readers.jsonl import files_of_splits, read_json_splits, read_jsonl
from mtl_jax.data.readers.lines import read_lines
from mtl_jax.data.readers.nlvr import read_nlvr
from mtl_jax.data.readers.parallel import parallel_files, read_parallel
from mtl_jax.data.readers.parquet import read_parquet
from mtl_jax.data.readers.squad import read_squad
from mtl_jax.data.readers.srl import read_srl
from mtl_jax.data.readers.standoff import read_brat, read_spans
from mtl_jax.data.readers.synthetic import read_synthetic
from mtl_jax.data.readers.tfds import read_tfds
from mtl_jax.data.readers.xml import read_xml
from mtl_jax.data.records import Note, Record

READERS: dict[str, Callable[..., Iterator[Record | Note]]] = {
    "jsonl": read_jsonl,
    "csv": read_csv,
    "lines": read_lines,
    "xml": read_xml,
    "parquet": read_parquet,
    "conll": read_conll,
    "conllu": read_conllu,
    "spans": read_spans,
    "brat": read_brat,
    "parallel": read_parallel,
    "folders": read_folders,
    "srl": read_srl,
    "json_splits": read_json_splits,
    "tfds": read_tfds,
    "dialogue": read_dialogue,
    "squad": read_squad,
    "srl_questions": read_srl_questions,
    "srl_pairs": read_srl_pairs,
    "conllu_endings": read_conllu_endings,
    "nlvr": read_nlvr,
    "idx": read_idx,
    "synthetic": read_synthetic,
}
READERS["derived"] = functools.partial(read_derived, READERS)  # it reads through another of them
# (location, split, options) -> the files that are read, for readers that find these by themselves
FILE_LISTERS: dict[str, Callable[[Location, str, Mapping[str, Any]], list[Location]]] = {
    "json_splits": lambda location, split, options: files_of_splits(location, split),
    "parallel": lambda location, split, options: list(parallel_files(location, options.get("files")).values()),
}
GENERATED = frozenset({"synthetic"})
BINARY = frozenset({"idx", "parquet", "synthetic"})
SLOW = frozenset({"conll", "conllu", "conllu_endings", "srl", "srl_pairs", "srl_questions"})
