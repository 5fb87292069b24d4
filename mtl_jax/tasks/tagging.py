"""A tag for each word, or for each (predicate, word) pair in semantic role labelling (SRL)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.tasks import crf, features, heads, losses, options, tags
from mtl_jax.tasks.base import Features, Labels, Params, Task, TaskData
from mtl_jax.tasks.classification import check_loss, class_form, class_values, class_weights, loss_options

PREDICATE_HIDDEN = 256


@dataclasses.dataclass(frozen=True)
class Tagging(Task):
    """One of C = len(names) tags for each word, read at its first sub-word; softmax, or a linear-chain CRF.

    Level "predicate" (SRL): the sentence is encoded once, and each predicate's vector is joined to each word's.

    metrics        names in METRICS, the first is the task's score
    crf            learned moves between tags, the loss is that of whole sequences
    scheme         "" or "iob2" or "bioes": then only legal sequences are predicted, by the CRF and by softmax
                   (He et al. 2017) alike
    hidden         width of a GELU layer before the tags, 0 = linear. Predicates default to 256, since a linear head
                   adds what it knows of word and predicate but cannot match them
    distance       SRL: an embedding of the word's distance from the predicate, clipped to ± so many tokens
                   (Collobert et al. 2011). 1 tells before, itself, after; 0 leaves it out
    class_weights, label_smoothing, focal_gamma   as in `Classification`, softmax only
    head_form      as in `Classification`, level "word" only
    spans          whether the tags mark spans, as the data tell; None: as their names tell
    """

    predicts = "tags"
    levels = ("word", "predicate")
    reads_right = True
    head_kind = "token"
    from_data = ("spans", "published_head")

    name: str
    names: tuple[str, ...]
    level: str = "word"
    metrics: tuple[str, ...] = ()
    crf: bool = False
    scheme: str = ""
    hidden: int | None = None
    distance: int | None = None
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    spans: bool | None = None
    head_form: str = "plain"
    published_head: heads.HeadForm | None = None

    def __post_init__(self):
        self._check()
        predicate = self.level == "predicate"
        object.__setattr__(self, "spans", tags.marks_spans(self.names, self.spans))
        spans = ("span_f1" if predicate else "entity_f1",) if self.spans else ()
        defaults = {
            "metrics": (*spans, "accuracy"),
            "hidden": PREDICATE_HIDDEN if predicate else 0,
            "distance": 8 if predicate else 0,
        }
        for field, default in defaults.items():
            if getattr(self, field) in (None, ()):
                object.__setattr__(self, field, default)

    @classmethod
    def data_fields(cls, data: TaskData) -> dict[str, Any]:
        """See `Task.data_fields`."""
        return {"spans": data.spans, **super().data_fields(data)}

    def form(self, classes: int) -> Task:
        """See `Task.form`. Where moves between tags count, only tasks with as many tags are of one form, with a scheme
        only those with the same legal moves.
        """
        form = class_form(self, len(self.names) if self.crf or self.scheme else classes, spans=False)
        return form.with_attributes(names=tags.without_types(self.names)) if self.scheme else form

    def values(self, classes: int) -> dict[str, Any]:
        """See `Task.values`."""
        return class_values(self, classes)

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        if self.level == "predicate":
            params = heads.predicate_init(key, width, len(self.names), self.hidden, self.distance)
        else:
            params = heads.init_task_head(self, key, width, len(self.names))
        return {**params, "crf": crf.init_params(len(self.names))} if self.crf else params

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, Q, C]. Of `labels` only token and predicate are read."""
        if self.level == "predicate":
            scores = heads.predicate_apply(params, features_.hidden, labels["token"], labels["predicate"])
        else:
            scores = heads.apply_task_head(self, params, features.gather_tokens(features_.hidden, labels["token"]))
        return losses.blank_padding(scores, self.class_count)

    def loss(self, params: Params, logits: jax.Array, labels: Labels, slots: int | None = None) -> jax.Array:
        """Summed loss of each example's words, float32 [R, E] with E = `slots`.

        With slots=None, [R, Q]: each word's loss (or with a CRF each sequence's, at its last word) at its own place.
        """
        if not self.crf:
            values = losses.cross_entropy(logits, losses.soft_targets(labels, len(self.names)), *loss_options(self))
        elif self._has_soft_labels(labels):
            target = losses.soft_targets(labels, len(self.names))
            values = crf.marginal_cross_entropy(logits, labels["segment"], target, params["crf"], self._moves)
        else:
            values = crf.negative_log_likelihood(
                logits, labels["segment"], labels["value"], self._usable(labels), params["crf"], self._moves
            )
        return features.sum_by_example(values, labels["slot"], slots)

    def weight(self, labels: Labels, slots: int | None = None) -> jax.Array:
        """Number of each example's labelled words, or their class weights, float32 [R, E], or [R, Q] as in `loss`."""
        if self.crf and not self._has_soft_labels(labels):
            values = self._usable(labels).astype(jnp.float32)
        else:
            values = losses.item_weight(losses.soft_targets(labels, len(self.names)), class_weights(self))
        return features.sum_by_example(values, labels["slot"], slots)

    def class_sums(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
        """How often each tag is the label and is predicted, float32 [C] each; of a CRF by the words' scores alone."""
        return losses.class_sums(logits, losses.soft_targets(labels, len(self.names)))

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """value int32[R, Q], -1 in the padding, and probability float32[R, Q] of that tag (CRF: its marginal)."""
        segment, probability = labels["segment"], self.soft_labels(params, logits, labels)
        if self.crf:
            value = crf.viterbi(logits, segment, params["crf"], self._moves)
        elif self.scheme:
            value = crf.viterbi(jax.nn.log_softmax(logits), segment, crf.init_params(len(self.names)), self._moves)
        else:
            value = jnp.where(segment > 0, jnp.argmax(logits, -1).astype(jnp.int32), -1)
        chosen = jnp.take_along_axis(probability, jnp.maximum(value, 0)[..., None], axis=-1)[..., 0]
        return {"value": value, "probability": jnp.where(segment > 0, chosen, 0.0)}

    def distribution(self, params: Params, features_: Features) -> jax.Array:
        """Probabilities of the tags at each token, not only at the first of a word, float32 [R, T, C]; zeros in the
        padding. Of a CRF by the words' scores alone.

        Raises:
          UserError: level "predicate", which has several tags a word.
        """
        if self.level == "predicate":
            raise options.option_error(
                self.name, "level", "'predicate' has several tags a word, which cannot be fed upwards"
            )
        scores = losses.blank_padding(heads.apply_task_head(self, params, features_.hidden), self.class_count)
        probability = jax.nn.softmax(scores)
        return jnp.where((features_.segment > 0)[..., None], probability, 0.0)

    def soft_labels(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Probabilities of each word's tags (CRF: its marginals), float32 [R, Q, C]."""
        if self.crf:
            return crf.marginals(logits, labels["segment"], params["crf"], self._moves)
        return jax.nn.softmax(logits)

    def decode(self, value: Any, probability: Any) -> dict[str, Any]:
        """One sequence's prediction for JSON; arrays over its words, value -1 where there is none (tag null).

        {"tags": [name], "probabilities": [p], "spans": [{"start", "end", "type"}]}: first and last word from 0; spans
        only where the tags mark spans.
        """
        ids = [int(v) for v in value]
        out: dict[str, Any] = {
            "tags": [self.names[v] if v >= 0 else None for v in ids],
            "probabilities": [float(p) if v >= 0 else None for v, p in zip(ids, probability, strict=True)],
        }
        if self.spans:
            out["spans"] = [{"start": a, "end": b, "type": t} for _, a, b, t in tags.spans([ids], self.names)]
        return out

    @property
    def _moves(self) -> tags.TransitionMask:
        return tags.legal_transitions(self.names, self.scheme)

    def _has_soft_labels(self, labels: Labels) -> bool:
        return jnp.issubdtype(labels["value"].dtype, jnp.floating)

    def _usable(self, labels: Labels) -> jax.Array:
        if not self.scheme:
            return labels["mask"]
        return crf.reachable(labels["value"], labels["mask"], labels["segment"], self._moves)

    def _check(self) -> None:
        if len(self.names) < 2:
            raise options.option_error(self.name, "label", f"train has fewer than two tags: {', '.join(self.names)}")
        if self.level not in ("word", "predicate"):
            raise options.option_error(
                self.name, "kind", f"needs a label for each word, these are of level {self.level!r}"
            )
        options.require_flag(self.name, "crf", self.crf)
        options.require_choice(self.name, "scheme", self.scheme, tags.SCHEMES)
        for field in ("hidden", "distance"):
            if getattr(self, field) is not None:
                options.require_integer(self.name, field, getattr(self, field))
        if self.distance and self.level == "word":
            raise options.option_error(
                self.name, "distance", "is for labels of level 'predicate', these are of level 'word'"
            )
        heads.check_form(self)
        if self.published_head and self.level == "predicate":
            problem = "'published' is a tag for each word; the labels here are of level 'predicate'"
            raise options.option_error(self.name, "head_form", problem)
        check_loss(self)
        for field in ("class_weights", "label_smoothing", "focal_gamma"):
            if self.crf and getattr(self, field):
                problem = "weighs single words, a CRF's loss is that of whole sequences; set it with crf=False"
                raise options.option_error(self.name, field, problem)
        if self.scheme and not tags.marks_spans(self.names, self.spans):
            raise options.option_error(
                self.name, "scheme", f"{self.scheme!r} is one of spans, but {tags.no_spans_reason(self.names)}"
            )
        wrong = tags.tags_outside_scheme(self.names, self.scheme)
        if wrong:
            problem = f"{self.scheme!r} does not fit the tags {', '.join(map(repr, wrong[:5]))} of train"
            raise options.option_error(self.name, "scheme", problem)
        moves = self._moves
        if not (moves.move.diagonal() & moves.start & moves.end).any():
            problem = f"{self.scheme!r} leaves no tag that may stand anywhere: train lacks O"
            raise options.option_error(self.name, "scheme", problem)
