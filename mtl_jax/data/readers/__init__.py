"""One file per format. `READERS` maps the `reader` of a data-set entry to its `Reader`: a new one is a line there."""

from __future__ import annotations

import functools

from mtl_jax.data.readers.annotated import read_conllu_endings, read_srl_pairs, read_srl_questions
from mtl_jax.data.readers.base import Reader
from mtl_jax.data.readers.conll import read_conll
from mtl_jax.data.readers.conllu import read_conllu
from mtl_jax.data.readers.csv import read_csv
from mtl_jax.data.readers.derived_generation import read_derived
from mtl_jax.data.readers.dialogue import read_dialogue
from mtl_jax.data.readers.folders import read_folders
from mtl_jax.data.readers.hub import hub_identity, read_hub
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
from mtl_jax.data.readers.tfds import read_tfds, tfds_identity
from mtl_jax.data.readers.xml import read_xml

READERS: dict[str, Reader] = {
    "jsonl": Reader(read_jsonl),
    "csv": Reader(read_csv),
    "lines": Reader(read_lines),
    "xml": Reader(read_xml),
    "parquet": Reader(read_parquet, binary=True),
    "conll": Reader(read_conll, cached=True),
    "conllu": Reader(read_conllu, cached=True),
    "spans": Reader(read_spans),
    "brat": Reader(read_brat),
    "parallel": Reader(
        read_parallel,
        list_files=lambda location, split, options: list(parallel_files(location, options.get("files")).values()),
    ),
    "folders": Reader(read_folders),
    "srl": Reader(read_srl, cached=True),
    "json_splits": Reader(
        read_json_splits, list_files=lambda location, split, options: files_of_splits(location, split)
    ),
    "tfds": Reader(read_tfds, identity=tfds_identity, named=True),
    "hub": Reader(read_hub, identity=hub_identity, named=True, binary=True),
    "dialogue": Reader(read_dialogue),
    "squad": Reader(read_squad),
    "srl_questions": Reader(read_srl_questions, cached=True),
    "srl_pairs": Reader(read_srl_pairs, cached=True),
    "conllu_endings": Reader(read_conllu_endings, cached=True),
    "nlvr": Reader(read_nlvr),
    "idx": Reader(read_idx, binary=True),
    "synthetic": Reader(read_synthetic, identity=lambda *_: "generated", generated=True, binary=True),
}
READERS["derived"] = Reader(functools.partial(read_derived, READERS))  # it reads through another of them
