"""The interface of a kind of task, and the inputs of a head."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.tasks import options

Params = Any
Labels = Mapping[str, jax.Array]  # see `mtl_jax.data.batch`, leading axis [R]


class Noise(Protocol):
    """Random bits in training: every use has a salt of its own; the bits of a row do not depend on its place."""

    def drop(self, salt: int, x: jax.Array) -> jax.Array:
        """Inverted dropout of features x [R, ...]."""

    def drop_attention(self, salt: int, x: jax.Array) -> jax.Array:
        """Inverted dropout of attention weights x [R, ...]."""


class Features(NamedTuple):
    """The output of the network for the rows that one task reads. R = all rows of all its blocks.

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


class TaskData(NamedTuple):
    """Properties of the data that a task depends on.

    settings     the options that its config sets
    statistics   of its labels in train
    spans        whether its classes are tags of spans, None if unknown
    join         tokens -> text; None for a task that generates none
    source       ids of targets by token id, for a task that copies; () elsewhere
    mask_token   id of the token that hides another, None without
    table_width  width of the word vectors
    causal       whether tokens see only those before them
    published_heads  {kind of head: the form that the model family gives it}, see `heads.HeadForm`; {} without a family
    end_token    id of the token that ends an answer, None without
    lm_head      whether the published LM head is a matrix of its own
    softcap      cap of its scores, 0 for none
    """

    settings: Mapping[str, Any]
    statistics: Mapping[str, Any]
    spans: bool | None
    join: Callable[[Sequence[str]], str] | None
    source: tuple[int, ...]
    mask_token: int | None
    table_width: int
    causal: bool = False
    published_heads: Mapping[str, Any] = {}
    end_token: int | None = None
    lm_head: bool = False
    softcap: float = 0.0


class Task:
    """One task: head, loss and predictions. A kind of task is a subclass that is a frozen dataclass, hashable; its
    fields besides `name`, `names`, `level` and those in `from_data` are the options in a config. Everything that is
    learned is in `params`.

    Every kind defines init, logits, loss, weight, predict and decode; what else is declared here is optional, and has a
    default, or raises UserError where it is missing (`defines` asks). The loss of task k over any set of rows is
    Σ loss / Σ weight, summed first and divided once, so that it is the same however the rows are split over devices and
    micro-batches.

    predicts        what it predicts, see `Metric.predictions`
    label_type      "class" | "set" | "real" | "tokens" | "choice" | "span" | "hidden", see `mtl_jax.data.labels`
    levels          the levels that its labels may have, the default first, see `mtl_jax.data.batch`
    from_data       fields whose values the data give, see `data_fields`
    reads_pictures  whether it needs a data set with words and pictures
    in_row          whether the rows have its targets after the texts, see `TargetSpec.in_row`
    continues       whether the trunk itself writes its texts, see `evaluation.decoding`
    silent          ids of targets that are no part of their texts
    reads_right     whether what follows a token matters to its label
    auxiliary       {name: factor} of the losses that it adds to its own, see `auxiliary_losses`
    head_kind       "sequence" | "choice" | "token" | "span" | "masked": the published heads that its own may be one of;
                    "" for none
    """

    predicts: ClassVar[str] = "ids"
    label_type: ClassVar[str] = "class"
    levels: ClassVar[tuple[str, ...]] = ("text",)
    from_data: ClassVar[tuple[str, ...]] = ()
    reads_pictures: ClassVar[bool] = False
    silent: ClassVar[tuple[int, ...]] = ()
    in_row: ClassVar[bool] = False
    continues: ClassVar[bool] = False
    reads_right: ClassVar[bool] = False
    auxiliary: ClassVar[Mapping[str, float]] = {}
    head_kind: ClassVar[str] = ""

    name: str
    names: tuple[str, ...]  # the classes of train, in the order of their ids
    level: str  # of its labels
    metrics: tuple[str, ...]  # names in `mtl_jax.tasks.metrics.METRICS`, the first is the task's score
    class_count: jax.Array | int | None = None  # inside of a group: its classes, where others of the group have more
    tied = False  # whether its scores are products with the word vectors, params["table"]

    @classmethod
    def defines(cls, method: str) -> bool:
        """Whether the kind defines an optional method."""
        return getattr(cls, method) is not getattr(Task, method)

    @classmethod
    def data_fields(cls, data: TaskData) -> dict[str, Any]:
        """The values of `from_data`, and of options that follow from the data where a config does not set them: of a
        causal model the last token alone has read the text. Where head_form is "published" that form too.
        """
        follows = data.causal and getattr(cls, "pool", "") == "mean" and "pool" not in data.settings
        fields: dict[str, Any] = {"pool": "last"} if follows else {}
        if "published_head" in cls.from_data:
            asked = data.settings.get("head_form") == "published"
            fields["published_head"] = data.published_heads.get(cls.head_kind) if asked else None
        return fields

    def form(self, classes: int) -> Task | None:
        """The task that stands for all that differ from this one in names and `values` only: they are computed
        together, with as many classes as the one of most, see `mtl_jax.tasks.groups`. Equal forms have equal programs.

        None, the default, for a kind whose tasks are computed each by itself.

        Args:
          classes: number of classes of the form, at least as many as the task has.
        """
        return None

    def values(self, classes: int) -> dict[str, Any]:
        """{attribute: pytree of numpy arrays} of what differs between tasks of one form; `classes` as in `form`."""
        return {}

    def unpadded(self, predictions: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of `predict` of a group without the classes that this task does not have."""
        return dict(predictions)

    def with_attributes(self, **attributes: Any) -> Self:
        """A copy in which these attributes have other values, unchecked; they may be traced."""
        other = copy.copy(self)
        other.__dict__.update(attributes)
        return other

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        raise self._missing("parameters of a head (init)")

    def logits(self, params: Params, features: Features, labels: Labels) -> Any:
        """Scores of the classes, float32 [R, E, C], [R, E] (regression) or [R, Q, C]; of a task that writes any pytree.

        From `labels` only the structure is read (token, segment, predicate), never value or mask.
        """
        raise self._missing("scores (logits)")

    def loss(self, params: Params, logits: Any, labels: Labels) -> jax.Array:
        """Weighted loss of each example, float32 [R, E]; zero where there is no label."""
        raise self._missing("loss (loss)")

    def weight(self, labels: Labels) -> jax.Array:
        """What each example counts in the denominator of the mean, float32 [R, E]. Needs no forward pass."""
        raise self._missing("weight of an example (weight)")

    def predict(self, params: Params, logits: Any, labels: Labels) -> dict[str, jax.Array]:
        """Predictions for each example or word, as arrays with leading axis [R]: `value`, `probability`, ...

        A task that writes texts has `generate` in its place.
        """
        raise self._missing("prediction (predict)")

    def decode(self, **values: Any) -> Any:
        """The prediction for one record as JSON, from the arrays of `predict`, or `generate`, by name."""
        raise self._missing("prediction for people (decode)")

    def soft_labels(self, params: Params, logits: Any, labels: Labels) -> jax.Array:
        """The prediction in the form of a soft label: probabilities float32 [R, E, C] or [R, Q, C], numbers [R, E] on
        the labels' own scale. Kinds that have it can be teachers.
        """
        raise self._missing("soft labels that could be learned from (soft_labels)")

    def distribution(self, params: Params, features: Features) -> jax.Array:
        """Probabilities of the classes at each token, float32 [R, T, C]. Kinds that have it can be fed upwards."""
        raise self._missing("label set of which a distribution at each token could be fed (distribution)")

    def class_sums(self, logits: Any, labels: Labels) -> tuple[jax.Array, jax.Array]:
        """How often each class is the label and is predicted, float32 [C] each, see `losses.class_sums`."""
        raise self._missing("classes that could be counted (class_sums)")

    def corrupt(
        self, tokens: jax.Array, segment: jax.Array, maskable: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, Labels]:
        """The tokens int32[R, T] with some of them hidden, and their labels, see `masked_lm.MaskedLM`."""
        raise self._missing("tokens to hide (corrupt)")

    def auxiliary_losses(self, params: Params, features: Features, keys: jax.Array) -> dict[str, jax.Array]:
        """{name in `auxiliary`: float32 sum over the texts of these rows}; typed PRNG keys [R]."""
        raise self._missing("losses that it adds (auxiliary_losses)")

    def generate(self, params: Params, features: Features) -> dict[str, jax.Array]:
        """What is written for each example, in place of `predict`, see `generation.Generation`."""
        raise self._missing("texts to write (generate)")

    def metric_sums(self, logits: Any, labels: Labels) -> jax.Array:
        """What its metrics need besides predictions, summed over the rows: float32 [S]."""
        return jnp.zeros((0,), jnp.float32)

    def to_texts(self, value: Any, sources: Sequence[Sequence[str]] = ()) -> list[str]:
        """The texts that `value` of `generate` stands for."""
        raise self._missing("texts to write (to_texts)")

    def best_answers(self, record: Any, value: Any, count: int) -> dict[str, np.ndarray]:
        """Predictions of `count` records from those in their windows, see `span.Span`."""
        raise self._missing("answers in windows (best_answers)")

    def _missing(self, what: str) -> UserError:
        return options.option_error(self.name, "kind", f"a task of kind {type(self).__name__} has no {what}")
