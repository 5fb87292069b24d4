"""Masked language modelling: which tokens were hidden (Devlin et al. 2019), as one task among others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.tasks import features, heads, losses, options
from mtl_jax.tasks.base import Features, Labels, Params, Task, TaskData

CANDIDATES = 5  # candidates of a prediction
NORM_EPS = 1e-12  # of the plain transform


@dataclasses.dataclass(frozen=True)
class MaskedLM(Task):
    """Some tokens of a row are drawn; most become [MASK], some another token, some stay, and all are predicted.

    rate        share of a row's tokens that are drawn, one at least; special and unknown tokens never are
    random      share of the drawn ones that become a token drawn evenly from the vocabulary
    keep        share of the drawn ones that stay
    transform   a dense layer with GELU and LayerNorm before the scores, as BERT has
    tied        the scores are products with the word vectors of the task's own embedding table (Press & Wolf 2017),
                and a bias; else a matrix of their own
    head_form   as in `Classification`: of layers before the scores, which `transform` does not decide then
    mask_token, table_width   id of [MASK], and width of the word vectors: of the run, not of the config
    """

    predicts = "hidden"
    label_type = "hidden"
    levels = ("token",)
    reads_right = True
    head_kind = "masked"
    from_data = ("mask_token", "table_width", "published_head")

    name: str
    names: tuple[str, ...]
    level: str = "token"
    metrics: tuple[str, ...] = ("masked_accuracy", "masked_perplexity")
    rate: float = 0.15
    random: float = 0.1
    keep: float = 0.1
    transform: bool = True
    tied: bool = False
    head_form: str = "plain"
    published_head: heads.HeadForm | None = None
    mask_token: int = 0
    table_width: int = 0

    def __post_init__(self):
        if self.level != "token":
            raise options.option_error(
                self.name, "kind", f"has the tokens as labels, not those of level {self.level!r}"
            )
        options.require_number(self.name, "rate", self.rate, 0.0, 1.0)
        if not self.rate:
            raise options.option_error(self.name, "rate", "nothing would be hidden; it should be above 0")
        for field in ("random", "keep"):
            options.require_number(self.name, field, getattr(self, field), 0.0)
        if self.random + self.keep > 1.0:
            raise options.option_error(
                self.name, "random", f"and keep sum to {self.random + self.keep:g}, 1 is the most"
            )
        for field in ("transform", "tied"):
            options.require_flag(self.name, field, getattr(self, field))
        heads.check_form(self)
        if self.published_head and not self.transform:
            raise options.option_error(self.name, "transform", "is decided by head_form = 'published'; leave it out")
        if self.tied and not self.transform:
            raise options.option_error(
                self.name, "tied", "needs the transform, which leads to the width of the word vectors"
            )

    @classmethod
    def data_fields(cls, data: TaskData) -> dict[str, Any]:
        """See `Task.data_fields`."""
        return {"mask_token": data.mask_token, "table_width": data.table_width, **super().data_fields(data)}

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        if self.published_head:
            return self._init_published(key, width)
        inner, outer = jax.random.split(key)
        inner_width = self.table_width if self.tied else width
        params: dict[str, Any] = {"bias": jnp.zeros((len(self.names),), jnp.float32)}
        if self.transform:
            params["transform"] = heads.inner_init(inner, width, inner_width)
            params["layer_norm"] = {"scale": jnp.ones((inner_width,)), "bias": jnp.zeros((inner_width,))}
        if not self.tied:
            params["output"] = {"kernel": heads.dense_init(outer, inner_width, len(self.names))["kernel"]}
        return params

    def _init_published(self, key: jax.Array, width: int) -> Params:
        """As `init`, of a published form: the bias of the scores stands by itself, as in a plain head."""
        params = dict(heads.init_form(key, width, len(self.names), self.published_head))
        if (bias := params["output"].pop("bias", None)) is not None:
            params["bias"] = bias
        if self.tied:
            del params["output"]
        return params

    def corrupt(
        self, tokens: jax.Array, segment: jax.Array, maskable: jax.Array, keys: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Draws and hides tokens. Of n tokens that may be hidden, round(rate · n) are, 1 at least.

        Args:
          tokens, segment: int32[R, T].
          maskable: bool[R, T].
          keys: [R], one for each row.

        Returns:
          tokens int32[R, T] and the labels of level "token" (`mtl_jax.data.batch`), Q = ⌈rate · T⌉.
        """
        count = math.ceil(self.rate * tokens.shape[1])

        def corrupt_row(tokens, segment, maskable, key):
            order, kind, other = (jax.random.fold_in(key, n) for n in range(3))
            drawn = jax.random.uniform(order, tokens.shape)
            _, at = jax.lax.top_k(jnp.where(maskable, -drawn, -2.0), count)
            number = maskable.sum(dtype=jnp.int32)
            limit = jnp.maximum(jnp.round(self.rate * number.astype(jnp.float32)).astype(jnp.int32), 1)
            chosen = jnp.arange(count, dtype=jnp.int32) < jnp.minimum(limit, number)
            fate, clean = jax.random.uniform(kind, (count,)), tokens[at]
            another = jax.random.randint(other, (count,), 0, len(self.names), jnp.int32)
            hidden = jnp.where(fate < self.keep + self.random, another, self.mask_token)
            hidden = jnp.where(fate < self.keep, clean, hidden)
            row = tokens.at[at].set(jnp.where(chosen, hidden, clean).astype(tokens.dtype))
            segments = jnp.where(chosen, segment[at], 0)
            labels = {
                "value": clean,
                "mask": chosen,
                "token": at,
                "segment": segments,
                "slot": jnp.maximum(segments - 1, 0),
            }
            return row, labels

        return jax.vmap(corrupt_row)(tokens, segment, maskable, keys)

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, Q, C]; of `labels` token is read, and params["table"] [C, W] where the head is tied."""
        x = features.gather_tokens(features_.hidden, labels["token"]).astype(jnp.float32)
        if self.published_head:
            x = heads.apply_transform(params, x, self.published_head)
        elif self.transform:
            x = heads.layer_norm(params["layer_norm"], jax.nn.gelu(heads.dense(params["transform"], x)), NORM_EPS)
        table = params["table"][: len(self.names)].T if self.tied else params["output"]["kernel"]
        scores = x @ table
        return scores + jnp.broadcast_to(params["bias"], scores.shape) if "bias" in params else scores

    def loss(self, params: Params, logits: jax.Array, labels: Labels, slots: int | None = None) -> jax.Array:
        """Cross-entropy of each hidden token, float32 [R, Q], or summed by example, [R, E] with E = `slots`."""
        values = jnp.where(labels["mask"], -_log_p(logits, labels), 0.0)
        return features.sum_by_example(values, labels["slot"], slots)

    def weight(self, labels: Labels, slots: int | None = None) -> jax.Array:
        """1 for each hidden token, float32 [R, Q], or their number by example, [R, E]. None before `corrupt`."""
        return features.sum_by_example(labels["mask"].astype(jnp.float32), labels["slot"], slots)

    def class_sums(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
        """How often each token was hidden and is predicted, float32 [C] each, see `losses.class_sums`."""
        return losses.class_sums(logits, losses.soft_targets(labels, len(self.names)))

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """The likeliest tokens: candidates int32[R, Q, 5] and their probability float32[R, Q, 5].

        value float32[R, Q, 4]: likeliest token, hidden token, the log-probability of the latter, and 1 where it is
        known: what the metrics read.
        """
        best, candidates = jax.lax.top_k(logits, min(CANDIDATES, len(self.names)))
        parts = (candidates[..., 0], labels["value"], _log_p(logits, labels), labels["mask"])
        value = jnp.stack([part.astype(jnp.float32) for part in parts], -1)
        probability = jnp.exp(best - jax.nn.logsumexp(logits, -1, keepdims=True))
        return {"value": value, "probability": probability, "candidates": candidates.astype(jnp.int32)}

    def decode(self, value: Any, probability: Any, candidates: Any) -> list[dict[str, Any]]:
        """For each [MASK] of a text {"token", "probabilities": {token: p}}, the likeliest first."""
        predictions = []
        for ids, p in zip(candidates, probability, strict=True):
            ranked = {self.names[i]: float(q) for i, q in zip(ids, p, strict=True)}
            predictions.append({"token": self.names[ids[0]], "probabilities": ranked})
        return predictions


def _log_p(logits: jax.Array, labels: Mapping[str, jax.Array]) -> jax.Array:
    score = jnp.take_along_axis(logits, labels["value"][..., None], -1, mode="clip")[..., 0]
    return score - jax.nn.logsumexp(logits, axis=-1)
