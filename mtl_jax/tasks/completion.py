"""A text for each text, continued by a causal trunk itself: prompt and answer in one row, scored by its LM head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.tasks import features, heads, options
from mtl_jax.tasks.base import Features, Labels, Params, Task, TaskData


@dataclasses.dataclass(frozen=True)
class Completion(Task):
    """The tokens of the answer after the prompt; cross-entropy of each given all before it, of the answer alone.

    The scores are products with the word vectors (Press & Wolf 2017), or with a matrix of the head where the published
    model has one.

    metrics          names in METRICS, the first is the task's score
    before           what stands between the text of the data set and the answer, a part of the prompt
    max_length       tokens of an answer at most, its end included; so many of a row are free for it
    beam             hypotheses of the search; 1 = greedy
    length_penalty   α of the beam search (Wu et al. 2016)
    join, end, lm_head, softcap  not options: what makes a text of tokens, the token that ends an answer, whether the
                     head has a matrix of its own, cap of the scores
    """

    predicts = "texts"
    label_type = "tokens"
    levels = ("sequence",)
    from_data = ("join", "end", "lm_head", "softcap")
    in_row = True
    continues = True

    name: str
    names: tuple[str, ...]
    level: str = "sequence"
    metrics: tuple[str, ...] = ("bleu", "rougeL", "exact_match", "token_accuracy", "perplexity")
    before: str = "\n"
    max_length: int = 64
    beam: int = 1
    length_penalty: float = 0.6
    join: Callable[[Sequence[str]], str] = "".join
    end: int = -1
    lm_head: bool = False
    softcap: float = 0.0

    def __post_init__(self):
        if self.level != "sequence":
            problem = f"writes sequences, the labels here are of level {self.level!r}"
            raise options.option_error(self.name, "kind", problem)
        if not isinstance(self.before, str):
            raise options.option_error(self.name, "before", f"{self.before!r} should be a string")
        options.require_integer(self.name, "beam", self.beam, 1)
        options.require_integer(self.name, "max_length", self.max_length, 2)
        options.require_number(self.name, "length_penalty", self.length_penalty, 0.0)

    @property
    def tied(self) -> bool:
        """See `Task.tied`."""
        return not self.lm_head

    @classmethod
    def data_fields(cls, data: TaskData) -> dict[str, Any]:
        """See `Task.data_fields`."""
        return {"join": data.join, "end": data.end_token, "lm_head": data.lm_head, "softcap": data.softcap}

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32: none where it is tied."""
        if not self.lm_head:
            return {}
        return {"output": {"kernel": heads.dense_init(key, width, len(self.names))["kernel"]}}

    def scores(self, params: Params, hidden: jax.Array) -> jax.Array:
        """hidden [..., D] -> scores of the next token, float32 [..., C]."""
        kernel = params["output"]["kernel"] if self.lm_head else params["table"][: len(self.names)].T
        logits = hidden.astype(jnp.float32) @ kernel.astype(jnp.float32)
        return jnp.tanh(logits / self.softcap) * self.softcap if self.softcap else logits

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, Q, C], at the token before each of the answers'."""
        return self.scores(params, features.gather_tokens(features_.hidden, labels["token"]))

    def loss(self, params: Params, logits: jax.Array, labels: Labels, slots: int | None = None) -> jax.Array:
        """Summed loss of each example's tokens, float32 [R, E] with E = `slots`; with slots=None [R, Q]."""
        chex.assert_shape([labels["value"], labels["mask"], labels["slot"]], logits.shape[:2])
        nll = jnp.where(labels["mask"], -_log_p(logits, labels["value"]), 0.0)
        return features.sum_by_example(nll, labels["slot"], slots)

    def weight(self, labels: Labels, slots: int | None = None) -> jax.Array:
        """Tokens of each example's answer, float32 [R, E], or [R, Q] as in `loss`."""
        return features.sum_by_example(labels["mask"].astype(jnp.float32), labels["slot"], slots)

    def metric_sums(self, logits: jax.Array, labels: Labels) -> jax.Array:
        """Over all answers, float32 [3]: tokens that are the likeliest given those before, Σ -log p, tokens."""
        mask = labels["mask"]
        right = mask & (jnp.argmax(logits, axis=-1) == labels["value"])
        nll = jnp.where(mask, -_log_p(logits, labels["value"]), 0.0)
        return jnp.stack([right.sum(dtype=jnp.float32), nll.sum(), mask.sum(dtype=jnp.float32)])

    def to_texts(self, value: Any, sources: Sequence[Sequence[str]] = ()) -> list[str]:
        """The texts that ids int [N, L] stand for, -1 and the end left out."""
        del sources
        return [self._text(ids) for ids in np.asarray(value)]

    def decode(self, value: Any, score: Any) -> dict[str, Any]:
        """One text's prediction for JSON: {"text", "score"}."""
        return {"text": self._text(np.asarray(value)), "score": float(score)}

    def _text(self, ids: np.ndarray) -> str:
        return self.join([self.names[i] for i in ids[(ids >= 0) & (ids != self.end)].tolist()])


def _log_p(logits: jax.Array, value: jax.Array) -> jax.Array:
    score = jnp.take_along_axis(logits, value[..., None], -1, mode="clip")[..., 0]
    return score - jax.nn.logsumexp(logits, axis=-1)
