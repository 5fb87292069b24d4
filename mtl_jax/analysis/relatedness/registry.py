"""The measures that `--mode=relate` compares with measured transfer: one function and one line each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from mtl_jax.analysis.relatedness import grad_tag, measures
from mtl_jax.analysis.relatedness.measure_inputs import Evidence
from mtl_jax.data.corpus import Corpus


class Measure(NamedTuple):
    """One measure.

    compute   Evidence -> float[K, K], NaN where it is not known; the row acts, the column is acted upon
    needs     "gradients" along the joint run | "linearised", the examples after it | "columns" | "labels": the part of
              the evidence that it reads
    distance  larger is farther
    title     for figures and tables
    fields    of `config.relatedness`, on which it depends
    """

    compute: Callable[[Evidence], np.ndarray | jax.Array]
    needs: str
    distance: bool
    title: str
    fields: tuple[str, ...] = ()


def _mean(matrices: np.ndarray) -> np.ndarray:
    """The mean over the measurements in which both tasks had labels, NaN where there is none."""
    known = np.isfinite(matrices)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, matrices, 0.0).sum(axis=0) / np.maximum(count, 1), np.nan)


def label_divergence(evidence: Evidence) -> np.ndarray:
    """KL between label distributions of tasks with the same classes in train; NaN for other pairs."""
    corpus = evidence.corpus
    tasks = corpus.layout.tasks
    names = [tuple(corpus.vocabularies[t].names) if corpus.specs[t].kind == "class" else None for t in tasks]
    counts = [corpus.statistics["tasks"][task]["train"].get("counts") for task in tasks]
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for classes in {n for n in names if n is not None}:
        indices = [k for k, n in enumerate(names) if n == classes]
        table = np.asarray([[counts[k][c] for c in classes] for k in indices], np.float32)
        matrix[np.ix_(indices, indices)] = np.asarray(measures.label_divergence(table))
    return matrix


def mutual_information(evidence: Evidence) -> np.ndarray:
    """Of the labels in train, for tasks with the same data set and level (except "predicate"); NaN for other pairs."""
    corpus = evidence.corpus
    tasks = corpus.layout.tasks
    matrix = np.full((len(tasks), len(tasks)), np.nan)
    for i, a in enumerate(tasks):
        for j, b in enumerate(tasks):
            first, second = corpus.specs[a], corpus.specs[b]
            comparable = (first.dataset, first.level) == (second.dataset, second.level) and first.level != "predicate"
            if comparable and first.kind == second.kind == "class":
                matrix[i, j] = measures.mutual_information(_ids(corpus, a), _ids(corpus, b))
    return matrix


def _ids(corpus: Corpus, task: str) -> np.ndarray:
    """int[records or words]: classes in train, −1 where there is no label."""
    gold = corpus.splits[corpus.specs[task].dataset]["train"].encoded.labels[task]
    value = gold.value.argmax(-1) if gold.value.ndim == 2 else gold.value
    return np.where(gold.known, value, -1)


MEASURES: dict[str, Measure] = {
    "gradient_cosine": Measure(
        lambda e: _mean(e.joint.cosines), "gradients", False, "cosine of gradients", ("measure_every",)
    ),
    "tag": Measure(
        lambda e: _mean(e.joint.affinities),
        "gradients",
        False,
        "TAG affinity",
        ("measure_every", "lookahead", "lookahead_steps"),
    ),
    "grad_tag": Measure(
        lambda e: grad_tag.predicted_gains(e.joint.linearised, e.weights),
        "linearised",
        False,
        "Grad-TAG",
        ("linearised_dimensions", "linearised_examples"),
    ),
    "fisher": Measure(
        lambda e: measures.fisher_distance(e.joint.fisher),
        "gradients",
        True,
        "Fisher (Task2Vec) distance",
        ("measure_every",),
    ),
    "cka": Measure(
        lambda e: measures.cka(e.columns.representations), "columns", False, "CKA of columns", ("num_inputs",)
    ),
    "rsa": Measure(
        lambda e: measures.rsa(e.columns.representations), "columns", False, "RSA of columns", ("num_inputs",)
    ),
    "parameter_cosine": Measure(
        lambda e: measures.parameter_cosine(e.columns.end, e.columns.start), "columns", False, "cosine of parameters"
    ),
    "mtrl": Measure(lambda e: measures.mtrl_correlation(e.columns.change), "columns", False, "MTRL correlation"),
    "label_divergence": Measure(label_divergence, "labels", True, "KL of labels"),
    "mutual_information": Measure(mutual_information, "labels", False, "mutual information of labels"),
}
