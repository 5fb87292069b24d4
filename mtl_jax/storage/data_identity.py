"""Whether a checkpoint was trained on the data at hand."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from mtl_jax.data.corpus import Corpus
from mtl_jax.data.files import array_cache
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed


def data_metadata(corpus: Corpus) -> dict[str, Any]:
    """What identifies the data of a checkpoint: a fingerprint, and numbers for error messages."""
    return {
        "data": corpus.fingerprint,
        "soft_labels": corpus.soft_labels,
        "numbers": {
            "data set": {
                f"{name}, {split}": f"{len(rows.tokens)} rows, {len(corpus.splits[name][split].records)} examples"
                for name, by_split in corpus.rows.items()
                for split, rows in by_split.items()
            },
            "task": {task: f"{len(vocabulary.names)} labels" for task, vocabulary in corpus.vocabularies.items()},
        },
    }


def require_same_data(metadata: dict[str, Any], corpus: Corpus, step: int) -> None:
    """Raises UserError, with the difference, where a checkpoint was trained on other data, or by other teachers.

    A corpus that was read without its teachers fits any teachers.
    """
    current = data_metadata(corpus)
    if current["soft_labels"] not in ("", metadata.get("soft_labels")):
        raise UserError(
            f"the checkpoint of step {step} learned from other teachers than those that are now in the folders of "
            "config.distillation. Restore them, or take another --workdir"
        )
    if metadata["data"] == current["data"]:
        return
    raise UserError(
        f"the checkpoint of step {step} was trained on other data ({data_differences(metadata, current)}). Restore the "
        "data, or take another --workdir"
    )


def data_differences(
    first: dict[str, Any], second: dict[str, Any], name_of_first: str = "then", name_of_second: str = "now"
) -> str:
    """How two `data_metadata` differ, for messages."""
    differing = [
        f"{kind} {name}: {saved.get(name, 'none')} {name_of_first}, {numbers.get(name, 'none')} {name_of_second}"
        for kind, numbers in second["numbers"].items()
        for saved in [first.get("numbers", {}).get(kind, {})]
        for name in sorted(saved.keys() | numbers.keys())
        if saved.get(name) != numbers.get(name)
    ]
    return (
        f"fingerprint {first['data'][:12]} {name_of_first}, {second['data'][:12]} {name_of_second}; "
        f"{'; '.join(differing) or 'as many examples, rows and labels, other contents'}"
    )


def require_same_on_all_hosts(corpus: Corpus) -> None:
    """Raises UserError, with the data sets that differ, where the processes of a run have read different data."""
    fingerprints = distributed.gather(corpus.fingerprint)
    number = next((i for i, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]), None)
    if number is None:
        return
    by_process = distributed.gather({name: _content(corpus, name) for name in corpus.rows})
    first, other = by_process[0], by_process[number]
    differing = [
        f"data set {name} ({first[name][0]} in process 0, {other[name][0]} in process {number})"
        for name in first
        if first[name] != other[name]
    ]
    raise UserError(
        f"processes 0 and {number} read different data: {'; '.join(differing) or 'the vocabularies or tokenizers'}. "
        "The same files have to be on every host"
    )


def _content(corpus: Corpus, dataset: str) -> tuple[str, list[str]]:
    """The numbers of rows of a data set's splits for people, and the hashes of their arrays."""
    splits = corpus.rows[dataset]
    arrays = [[x for x in jax.tree.leaves(rows) if isinstance(x, np.ndarray)] for _, rows in sorted(splits.items())]
    hashes = [array_cache.checksum({str(i): x for i, x in enumerate(of_split)}) for of_split in arrays]
    return ", ".join(f"{len(rows.tokens)} rows of {split}" for split, rows in splits.items()), hashes
