"""What a kind of task has to provide, and what a head is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

Params = Any
Labels = Mapping[str, jax.Array]  # see `mtl_jax.data.batch`, leading axis [R]


class Noise(Protocol):
    """What is drawn in training: each draw has a salt of its own; a row's bits do not depend on where it lies."""

    def drop(self, salt: int, x: jax.Array) -> jax.Array:
        """Inverted dropout of features x [R, ...]."""

    def drop_attention(self, salt: int, x: jax.Array) -> jax.Array:
        """Inverted dropout of attention weights x [R, ...]."""


class Features(NamedTuple):
    """What the network computed for the rows that one task reads. R = all rows of all its blocks.

    hidden   compute dtype [R, T, D]
    segment  int32[R, T]  1 + example slot, 0 in the padding
    start    int32[R, E]  first token of each example
    length   int32[R, E]  tokens of each example, 0 for an empty slot
    tokens   int32[R, T]  ids of the tokens, for tasks that copy
    noise    of training, for heads that drop features; None elsewhere
    patch    bool[R, T]  the tokens that are patches of pictures; None where no data set has pictures
    """

    hidden: jax.Array
    segment: jax.Array
    start: jax.Array
    length: jax.Array
    tokens: jax.Array | None = None
    noise: Noise | None = None
    patch: jax.Array | None = None


class Task(Protocol):
    """One task: head, loss and metrics. Frozen and hashable; everything that is learned is in `params`.

    A task that writes texts has `generate(params, features)` and `sums(logits, labels)` in place of `predict`, and
    `texts` for the metrics, see `Generation`; its logits are any pytree.

    The loss of task k over any set of rows is Σ loss / Σ weight, summed first and divided once, so that it is
    the same however the rows are split over devices and micro-batches.

    A task that changes its inputs has `corrupt` besides, see `masked_lm.MaskedLM`.
    """

    name: str
    level: str  # "text" | "word" | "predicate" | ..., the level of its labels, see `mtl_jax.data.batch`
    metrics: tuple[str, ...]  # names in `mtl_jax.tasks.metrics.METRICS`, the first is the task's score

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""

    def logits(self, params: Params, features: Features, labels: Labels) -> jax.Array:
        """Scores of the classes, float32 [R, E, C], [R, E] (regression) or [R, Q, C].

        From `labels` only the structure is read (token, segment, predicate), never value or mask.
        """

    def loss(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Weighted loss of each example, float32 [R, E]; zero where there is no label."""

    def weight(self, labels: Labels) -> jax.Array:
        """What each example counts in the denominator of the mean, float32 [R, E]. Needs no forward pass."""

    # Kinds may besides have
    #   distribution(params, features) -> float32[R, T, C], of the label at each token, so that it can be fed upwards
    #   reads_pictures: bool, whether they want a data set with pictures
    #   auxiliary {name: factor}, added(params, features, keys [R]) -> {name: float32 sum over texts}: further losses

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """Predictions for each example or word, as arrays with leading axis [R]: `value`, `probability`."""

    def soft(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """What is said of each label in the form of a soft label: probabilities float32 [R, E, C] or [R, Q, C], numbers
        [R, E] on the labels' own scale. Only kinds of task that can teach have it.
        """
