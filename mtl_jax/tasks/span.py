"""Extractive question answering: the span of a text that answers a question, or that there is none."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.tasks import features, heads, options, segment_softmax
from mtl_jax.tasks.base import Features, Labels, Params, Task


@dataclasses.dataclass(frozen=True)
class Span(Task):
    """The first and the last token of the answer, a softmax over the text's tokens each (Devlin et al. 2019).

    Where train has unanswerable questions, or texts read through windows of which not all hold the answer, the first
    token stands for "no answer" (section 4.3), with weights of its own, since it may be a word (in a published head
    with those of the other tokens, as there). The loss is the mean of
    both cross-entropies, each window counts. The answer is the best span of all windows of a text, by its probability
    in the window; none is predicted if the lowest probability of "no answer" over all windows is higher.

    metrics         names in METRICS, the first is the task's score
    hidden          width of a GELU layer before the scores, 0 = linear
    max_span        tokens of an answer at most when predicting, 0 = any number
    none_threshold  τ: no answer is predicted where its log probability is above that of the best span + τ; only where
                    train has unanswerable questions. To be chosen on dev (Devlin et al. 2019), above all where most
                    windows have no answer
    head_form       as in `Classification`
    """

    predicts = "answers"
    label_type = "span"
    levels = ("span",)
    reads_right = True
    head_kind = "span"
    from_data = ("published_head",)

    name: str
    names: tuple[str, ...]
    level: str = "span"
    metrics: tuple[str, ...] = ("answer_f1", "answer_exact")
    hidden: int = 0
    max_span: int = 30
    none_threshold: float = 0.0
    head_form: str = "plain"
    published_head: heads.HeadForm | None = None

    def __post_init__(self):
        if self.level != "span":
            raise options.option_error(self.name, "kind", f"needs answers, the labels here are of level {self.level!r}")
        options.require_integer(self.name, "hidden", self.hidden)
        options.require_integer(self.name, "max_span", self.max_span)
        options.require_number(self.name, "none_threshold", self.none_threshold)
        heads.check_form(self)

    @property
    def may_lack_answer(self) -> bool:
        """Whether a question may have no answer."""
        return "no answer" in self.names

    @property
    def has_windows_without_answer(self) -> bool:
        """Whether a window may have no answer."""
        return len(self.names) > 1

    def form(self, classes: int) -> Task:
        """See `Task.form`."""
        return self.with_attributes(name="", metrics=())

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        return heads.init_task_head(self, key, width, 4 if self._has_none_scores else 2)

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """Scores of (first, last) at each position, float32 [R, Q, 2]. Of `labels` token and word are read."""
        scores = heads.apply_task_head(self, params, features.gather_tokens(features_.hidden, labels["token"]))
        if not self._has_none_scores:
            return scores
        return jnp.where((labels["word"] < 0)[..., None], scores[..., 2:], scores[..., :2])

    def loss(self, params: Params, logits: jax.Array, labels: Labels, slots: int | None = None) -> jax.Array:
        """Loss of each example, float32 [R, E] with E = `slots`; None: half of it at the first token of the answer,
        half at the last, [R, Q].
        """
        log_p, targets = self._log_probabilities(logits, labels), self._targets(labels)
        at_ends = jnp.where(targets, log_p, 0.0) if targets.dtype == bool else targets * log_p
        values = -0.5 * at_ends.sum(-1)
        return features.sum_by_example(values, labels["slot"], slots)

    def weight(self, labels: Labels, slots: int | None = None) -> jax.Array:
        """1 for each example with a known answer, [R, E], or a half at both ends of the answer, [R, Q]."""
        values = 0.5 * self._targets(labels).astype(jnp.float32).sum(-1)
        return features.sum_by_example(values, labels["slot"], slots)

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """The best legal span of each window, at all of its positions.

        value float32[R, Q, 4]: first and last word, log(p(first) · p(last)), and the same of "no answer"; without a
        word, or "no answer", -inf; -1 in the padding.
        """
        word, segment = labels["word"], labels["segment"]
        token = (segment > 0) & (word >= 0)
        score, length = self._best_spans(logits, segment, token)
        first = segment_softmax.first_argmax(score, segment, token)
        log_p = self._log_probabilities(logits, labels)
        last_log_p = jnp.take_along_axis(log_p[..., 1], jnp.arange(word.shape[1], dtype=jnp.int32)[None] + length, 1)

        def segment_max(values, where):
            return segment_softmax.segment_max(values, segment, where)

        none = jnp.full(segment.shape, -jnp.inf)
        if self.has_windows_without_answer:
            none = segment_max(log_p.sum(-1), (segment > 0) & (word < 0))
        ends = [jnp.maximum(segment_max(w, first), -1).astype(jnp.float32) for w in (word, word + length)]
        value = jnp.stack([*ends, segment_max(log_p[..., 0] + last_log_p, first), none], -1)
        return {"value": jnp.where((segment == 0)[..., None], -1.0, value)}

    def best_answers(self, record: Any, value: Any, count: int) -> dict[str, np.ndarray]:
        """Answers of `count` records from those in their windows. NumPy.

        Args:
          record: int[N], of each window.
          value: float32[N, 4], see `predict`.

        Returns:
          value int64[M, 2], first and last word; (-1, -1): no answer (for want of a text where train has no such
          question); probability float32[M], p(first) · p(last) in the window.
        """
        record, value = np.asarray(record), np.asarray(value)
        order = np.lexsort((-value[:, 2], record))
        records, at = np.unique(record[order], return_index=True)
        chosen = np.full((count, 4), (-1.0, -1.0, -np.inf, -np.inf), np.float32)
        chosen[records] = value[order[at]]
        log_none = np.full(count, np.inf, np.float32)
        np.fmin.at(log_none, record, value[:, 3])
        none = np.isneginf(chosen[:, 2])
        if self.may_lack_answer:
            none |= log_none > chosen[:, 2] + self.none_threshold
        return {
            "value": np.where(none[:, None], -1, chosen[:, :2]).astype(np.int64),
            "probability": np.exp(np.where(none, np.minimum(log_none, 0.0), chosen[:, 2])),
        }

    def decode(self, value: Any, probability: Any, text: str = "", place: Any = None) -> dict[str, Any]:
        """One question's answer for JSON.

        {"answer": its text, "start", "end": first character and one after the last, or first and last word from 0,
        "probability"}; no answer: "" and null.
        """
        start, end = (None, None) if place is None else (int(p) for p in place)
        return {"answer": text, "start": start, "end": end, "probability": float(probability)}

    def _best_spans(self, logits: jax.Array, segment: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For spans that begin at each position: the highest score, and how far the last token is, [R, Q] each."""
        size = segment.shape[1]
        at = jnp.arange(size, dtype=jnp.int32)
        begin, end = logits[..., 0], logits[..., 1]

        def longer(distance, best):
            score, length = best
            last = jnp.minimum(at + distance, size - 1)
            inside = token & (segment[:, last] == segment) & (at + distance < size)[None]
            total = jnp.where(inside, begin + end[:, last], -jnp.inf)
            return jnp.maximum(score, total), jnp.where(total > score, distance, length)

        most = min(self.max_span, size) if self.max_span else size
        none = jnp.full(segment.shape, -jnp.inf, logits.dtype)
        return jax.lax.fori_loop(0, most, longer, (none, jnp.zeros_like(segment)))

    @property
    def _has_none_scores(self) -> bool:
        return self.has_windows_without_answer and self.published_head is None

    def _usable(self, labels: Labels) -> jax.Array:
        usable = labels["segment"] > 0
        return usable if self.has_windows_without_answer else usable & (labels["word"] >= 0)

    def soft_labels(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Probabilities that the answer begins, and ends, at each position of its window, float32 [R, Q, 2]."""
        return jnp.where(self._usable(labels)[..., None], jnp.exp(self._log_probabilities(logits, labels)), 0.0)

    def _targets(self, labels: Labels) -> jax.Array:
        """bool[R, Q, 2], whether the answer begins, and ends, at each position; float32 of soft labels."""
        known = labels["mask"] & self._usable(labels)
        if labels["value"].ndim == 3:
            return jnp.where(known[..., None], labels["value"], 0.0)
        return jnp.stack([(labels["value"] & bit) > 0 for bit in (1, 2)], -1) & known[..., None]

    def _log_probabilities(self, logits: jax.Array, labels: Labels) -> jax.Array:
        usable = self._usable(labels)
        ends = [segment_softmax.log_softmax(logits[..., n], labels["segment"], usable) for n in (0, 1)]
        return jnp.stack(ends, -1)
