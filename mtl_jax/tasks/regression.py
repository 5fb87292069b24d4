"""A real number for each text."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.tasks import features, heads, options
from mtl_jax.tasks.base import Features, Labels, Params, Task, TaskData
from mtl_jax.tasks.classification import check_text_head


@dataclasses.dataclass(frozen=True)
class Regression(Task):
    """Mean squared error on scaled targets; predictions come back on the labels' own scale.

    metrics, pool, pooler, hidden, head_form   as in `Classification`
    head         "dense" | "none": the pooled features, of width 1, are the prediction; the column is the whole model,
                 so that penalties act on all of it. Without pooler and hidden
    low, high    the scale's ends, learned as 0 and 1: (y - low) / (high - low). STS-B: 0 and 5
    mean, scale  or standardised: (y - mean) / scale. Neither pair: y as it is
    """

    predicts = "values"
    label_type = "real"
    head_kind = "sequence"
    from_data = ("published_head",)

    name: str
    names: tuple[str, ...] = ()
    level: str = "text"
    metrics: tuple[str, ...] = ("pearson", "spearman", "mse")
    pool: str = "mean"
    pooler: bool = False
    hidden: int = 0
    head: str = "dense"
    head_form: str = "plain"
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    scale: float | None = None
    published_head: heads.HeadForm | None = None

    def __post_init__(self):
        check_text_head(self)
        options.require_choice(self.name, "head", self.head, ("dense", "none"))
        for field in ("pooler", "hidden", "published_head"):
            if self.head == "none" and getattr(self, field):
                field = field.replace("published_head", "head_form")
                raise options.option_error(self.name, field, "there is no head that could have it; head is 'none'")
        given = [f for f in ("low", "high", "mean", "scale") if getattr(self, f) is not None]
        for field in given:
            options.require_number(self.name, field, getattr(self, field))
        if given not in ([], ["low", "high"], ["mean", "scale"]):
            problem = f"given are {', '.join(given)}; give low and high, or mean and scale, or none of them"
            raise options.option_error(self.name, given[0], problem)
        if self.low is not None and self.low >= self.high:
            raise options.option_error(self.name, "high", f"{self.high!r} should be above low = {self.low!r}")
        if self.scale is not None and self.scale <= 0:
            raise options.option_error(self.name, "scale", f"{self.scale!r} should be above 0")

    @classmethod
    def data_fields(cls, data: TaskData) -> dict[str, Any]:
        """Mean and deviation in train, where the options name no scale."""
        if data.settings.keys() & {"low", "high", "mean", "scale"}:
            return super().data_fields(data)
        standard = {"mean": data.statistics["mean"], "scale": data.statistics["std"] or 1.0}
        return {**standard, **super().data_fields(data)}

    @functools.cached_property
    def scaling(self) -> tuple[float, float]:
        """(offset, unit): what is learned is (y - offset) / unit."""
        if self.low is not None:
            return float(self.low), float(self.high - self.low)
        return float(self.mean or 0.0), float(self.scale or 1.0)

    def form(self, classes: int) -> Task:
        """See `Task.form`."""
        form = self.with_attributes(name="", names=(), metrics=(), low=None, high=None, mean=None, scale=None)
        form.__dict__.pop("scaling", None)
        return form

    def values(self, classes: int) -> dict[str, Any]:
        """See `Task.values`: offset and unit."""
        return {"scaling": np.asarray(self.scaling, np.float32)}

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32; {} where it has none."""
        if self.head == "none":
            if width != 1:
                problem = (
                    f"'none' takes the features as the prediction: config.model.hidden_size is 1 then, not {width}"
                )
                raise options.option_error(self.name, "head", problem)
            return {}
        return heads.init_task_head(self, key, width, 1)

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """Scaled values, float32 [R, E]; `labels` is not read."""
        pooled = features.pool(features_, heads.pooling(self))
        return (pooled if self.head == "none" else heads.apply_task_head(self, params, pooled))[..., 0]

    def loss(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Squared error on the scaled targets, float32 [R, E]."""
        chex.assert_equal_shape([logits, labels["value"], labels["mask"]])
        offset, unit = self.scaling
        # unknown values are blanked before the subtraction: a NaN there would reach the gradient
        value = jnp.where(labels["mask"], labels["value"].astype(jnp.float32), 0.0)
        return jnp.where(labels["mask"], (logits - (value - offset) / unit) ** 2, 0.0)

    def weight(self, labels: Labels) -> jax.Array:
        """1 for each labelled example, float32 [R, E]."""
        return labels["mask"].astype(jnp.float32)

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """value float32[R, E] on the labels' own scale. There is no probability."""
        return {"value": self.soft_labels(params, logits, labels)}

    def soft_labels(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Values on the labels' own scale, float32 [R, E]."""
        offset, unit = self.scaling
        return logits * unit + offset

    def decode(self, value: Any, probability: Any = None) -> dict[str, Any]:
        """One text's prediction for JSON: {"value": number}."""
        return {"value": float(value)}
