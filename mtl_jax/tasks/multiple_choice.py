"""Multiple choice: which of a record's choices, each read together with the text, is the right one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mtl_jax.tasks import features, heads, segment_softmax
from mtl_jax.tasks.base import Features, Labels, Params, Task
from mtl_jax.tasks.classification import check_text_head


@dataclasses.dataclass(frozen=True)
class MultipleChoice(Task):
    """A score for each choice, softmax and cross-entropy over the choices of a record, as many as it has.

    Each choice is an example of its own, the text in a pair with it (BERT on SWAG: Devlin et al. 2019, section 4.4).

    metrics, pool, pooler, hidden, head_form   as in `Classification`
    """

    label_type = "choice"
    levels = ("choice",)
    head_kind = "choice"
    from_data = ("published_head",)

    name: str
    names: tuple[str, ...] = ()
    level: str = "choice"
    metrics: tuple[str, ...] = ("accuracy",)
    pool: str = "mean"
    pooler: bool = False
    hidden: int = 0
    head_form: str = "plain"
    published_head: heads.HeadForm | None = None

    def __post_init__(self):
        check_text_head(self, "choice")

    def form(self, classes: int) -> Task:
        """See `Task.form`."""
        return self.with_attributes(name="", names=(), metrics=())

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        return heads.init_task_head(self, key, width, 1)

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, E]; `labels` is not read."""
        return heads.apply_task_head(self, params, features.pool(features_, heads.pooling(self)))[..., 0]

    def loss(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Cross-entropy of each record, at its right choice (soft labels: at each), float32 [R, E]."""
        log_p = segment_softmax.log_softmax(logits, labels["group"], labels["group"] > 0)
        if jnp.issubdtype(labels["value"].dtype, jnp.floating):
            return -_right(labels) * log_p
        return jnp.where(_right(labels), -log_p, 0.0)

    def weight(self, labels: Labels) -> jax.Array:
        """1 at the right choice of each labelled record, or its probability at each, float32 [R, E]."""
        return _right(labels).astype(jnp.float32)

    def soft_labels(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Probability of each choice of a record, float32 [R, E]."""
        return self.predict(params, logits, labels)["probability"]

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """value int32[R, E], the number of the record's best choice, and probability float32[R, E] of each choice."""
        group = labels["group"]
        best = segment_softmax.first_argmax(logits, group, group > 0)
        value = segment_softmax.segment_max(labels["choice"], group, best)
        log_p = segment_softmax.log_softmax(logits, group, group > 0)
        return {"value": jnp.where(group > 0, value, -1), "probability": jnp.where(group > 0, jnp.exp(log_p), 0.0)}

    def decode(self, value: Any, probability: Any) -> dict[str, Any]:
        """One record's prediction for JSON: {"choice": number from 0, "probabilities": [of each choice]}."""
        return {"choice": int(value), "probabilities": [float(p) for p in probability]}


def _right(labels: Labels) -> jax.Array:
    """bool [R, E], or float32 where the labels are probabilities."""
    if jnp.issubdtype(labels["value"].dtype, jnp.floating):
        return jnp.where(labels["mask"] & (labels["group"] > 0), labels["value"], 0.0)
    return labels["mask"] & (labels["value"] == 1)
