"""Text-level labels: one of C classes (single texts and pairs alike), or any set of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.tasks import features, heads, losses, options
from mtl_jax.tasks.base import Features, Labels, Params, Task


@dataclasses.dataclass(frozen=True)
class Classification(Task):
    """One of the C = len(names) classes for each text; softmax and cross-entropy.

    metrics          names in METRICS, the first is the task's score
    pool             "mean" or "max" over the text's tokens, "first" ([CLS]) or "last", which is the default of causal
                     models
    pooler           a tanh layer before the classes, as BERT has on its [CLS]
    hidden           width of a GELU layer before the classes, 0 = linear
    class_weights    one weight for each class, () = all 1; `make_task` also takes "balanced" and {class: weight}
    label_smoothing  ε in [0, 1)
    focal_gamma      γ >= 0 of the focal loss, 0 = cross-entropy
    head_form        "plain": by the options pool, pooler and hidden | "published": the layers that the model family
                     has in `transformers`, so that `--mode=export` writes a head that others load
    published_head   that form: of the model, not of the config
    """

    head_kind = "sequence"
    from_data = ("published_head",)

    name: str
    names: tuple[str, ...]
    level: str = "text"
    metrics: tuple[str, ...] = ("accuracy", "macro_f1")
    pool: str = "mean"
    pooler: bool = False
    hidden: int = 0
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    head_form: str = "plain"
    published_head: heads.HeadForm | None = None

    def __post_init__(self):
        if len(self.names) < 2:
            raise options.option_error(self.name, "label", f"train has fewer than two classes: {', '.join(self.names)}")
        check_text_head(self)
        check_loss(self)

    def form(self, classes: int) -> Task:
        """See `Task.form`."""
        return class_form(self, classes)

    def values(self, classes: int) -> dict[str, Any]:
        """See `Task.values`."""
        return class_values(self, classes)

    def unpadded(self, predictions: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.unpadded`."""
        count = len(self.names)
        return {name: array[..., :count] if name == "probability" else array for name, array in predictions.items()}

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        return heads.init_task_head(self, key, width, len(self.names))

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, E, C]; `labels` is not read."""
        return losses.blank_padding(_scores(self, params, features_), self.class_count)

    def loss(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Cross-entropy of each example, float32 [R, E]."""
        return losses.cross_entropy(logits, losses.soft_targets(labels, len(self.names)), *loss_options(self))

    def weight(self, labels: Labels) -> jax.Array:
        """Weight of each labelled example's class, float32 [R, E]."""
        return losses.item_weight(losses.soft_targets(labels, len(self.names)), class_weights(self))

    def class_sums(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
        """How often each class is the label and is predicted, float32 [C] each, see `losses.class_sums`."""
        return losses.class_sums(logits, losses.soft_targets(labels, len(self.names)))

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """value int32[R, E], probability float32[R, E, C]."""
        return {"value": jnp.argmax(logits, -1).astype(jnp.int32), "probability": jax.nn.softmax(logits)}

    def distribution(self, params: Params, features_: Features) -> jax.Array:
        """Probabilities of the classes of its text at each token, float32 [R, T, C]; zeros in the padding."""
        return features.repeat_at_tokens(jax.nn.softmax(self.logits(params, features_, {})), features_.segment)

    def soft_labels(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Probabilities of the classes, float32 [R, E, C]."""
        return jax.nn.softmax(logits)

    def decode(self, value: Any, probability: Any) -> dict[str, Any]:
        """One text's prediction for JSON: {"label": name, "probabilities": {name: p}}, the likeliest first."""
        order = np.argsort(-np.asarray(probability), kind="stable")
        ranked = {self.names[c]: float(probability[c]) for c in order}
        return {"label": self.names[int(value)], "probabilities": ranked}


@dataclasses.dataclass(frozen=True)
class Multilabel(Task):
    """Any set of the C = len(names) labels for each text; a sigmoid for each. Labels are 0/1 (or probabilities) [E, C].

    Options as in `Classification`, the class weights weigh the positive answers; besides:
    threshold        probability from which a label counts as given
    delimiter        between the names of a set that is one text in the data (`LabelSpec.delimiter`); " ": any blanks
    """

    predicts = "sets"
    label_type = "set"
    head_kind = "sequence"
    from_data = ("published_head",)

    name: str
    names: tuple[str, ...]
    level: str = "text"
    metrics: tuple[str, ...] = ("micro_f1", "macro_f1", "subset_accuracy")
    pool: str = "mean"
    pooler: bool = False
    hidden: int = 0
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    focal_gamma: float = 0.0
    threshold: float = 0.5
    delimiter: str = ","
    head_form: str = "plain"
    published_head: heads.HeadForm | None = None

    def __post_init__(self):
        if not self.names:
            raise options.option_error(self.name, "label", "train has no label at all")
        check_text_head(self)
        check_loss(self)
        options.require_number(self.name, "threshold", self.threshold, 0.0, 1.0)

    def form(self, classes: int) -> Task:
        """See `Task.form`."""
        return class_form(self, classes)

    def values(self, classes: int) -> dict[str, Any]:
        """See `Task.values`."""
        return class_values(self, classes)

    def unpadded(self, predictions: Mapping[str, Any]) -> dict[str, Any]:
        """See `Task.unpadded`."""
        return {name: array[..., : len(self.names)] for name, array in predictions.items()}

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        return heads.init_task_head(self, key, width, len(self.names))

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, E, C]; `labels` is not read."""
        return losses.blank_padding(_scores(self, params, features_), self.class_count)

    def loss(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Mean binary cross-entropy over the labels, of each example, float32 [R, E]."""
        target = losses.soft_targets(labels, len(self.names))
        return jnp.where(labels["mask"], losses.binary_cross_entropy(logits, target, *loss_options(self)), 0.0)

    def weight(self, labels: Labels) -> jax.Array:
        """1 for each labelled example, float32 [R, E]."""
        return labels["mask"].astype(jnp.float32)

    def predict(self, params: Params, logits: jax.Array, labels: Labels) -> dict[str, jax.Array]:
        """value int32[R, E, C] of 0 and 1, probability float32[R, E, C]."""
        probability = jax.nn.sigmoid(logits)
        return {"value": (probability >= self.threshold).astype(jnp.int32), "probability": probability}

    def distribution(self, params: Params, features_: Features) -> jax.Array:
        """Probabilities of the labels of its text at each token, float32 [R, T, C]; zeros in the padding."""
        return features.repeat_at_tokens(jax.nn.sigmoid(self.logits(params, features_, {})), features_.segment)

    def soft_labels(self, params: Params, logits: jax.Array, labels: Labels) -> jax.Array:
        """Probability of each label, float32 [R, E, C]."""
        return jax.nn.sigmoid(logits)

    def decode(self, value: Any, probability: Any) -> dict[str, Any]:
        """One text's prediction for JSON: {"labels": [name], "probabilities": {name: p}}, the likeliest first."""
        order = np.argsort(-np.asarray(probability), kind="stable")
        ranked = {self.names[c]: float(probability[c]) for c in order}
        return {"labels": [self.names[c] for c in order if value[c]], "probabilities": ranked}


def _scores(task: Any, params: Params, features_: Features) -> jax.Array:
    return heads.apply_task_head(task, params, features.pool(features_, heads.pooling(task)))


def loss_options(task: Any) -> tuple[tuple[float, ...] | None, float, float, Any]:
    """(class weights or None, ε, γ, number of classes or None), the last arguments of the functions in `losses`."""
    return class_weights(task), task.label_smoothing, task.focal_gamma, task.class_count


def class_weights(task: Any) -> tuple[float, ...] | None:
    """The class weights of a task, None where it has none. Inside of a group they may be traced."""
    return task.class_weights if len(task.class_weights) else None


def class_form(task: Any, classes: int, **attributes: Any) -> Any:
    """`Task.form` of a task whose names are those of its classes alone."""
    weights = (1.0,) * classes if task.class_weights else ()
    return task.with_attributes(name="", names=("",) * classes, metrics=(), class_weights=weights, **attributes)


def class_values(task: Any, classes: int) -> dict[str, Any]:
    """`Task.values` of such a task: the class weights."""
    weights = np.ones(classes, np.float32)
    weights[: len(task.class_weights)] = task.class_weights
    return {"class_weights": weights} if task.class_weights else {}


def check_loss(task: Any) -> None:
    """Raises UserError for wrong class weights, smoothing or focal γ."""
    if task.class_weights and len(task.class_weights) != len(task.names):
        problem = f"{len(task.class_weights)} weights for {len(task.names)} classes ({', '.join(task.names[:10])} ...)"
        raise options.option_error(task.name, "class_weights", problem)
    for weight in task.class_weights:
        options.require_number(task.name, "class_weights", weight, 0.0)
    if task.class_weights and not any(task.class_weights):
        raise options.option_error(task.name, "class_weights", "all are zero, nothing would be learned")
    options.require_number(task.name, "label_smoothing", task.label_smoothing, 0.0, 1.0)
    options.require_number(task.name, "focal_gamma", task.focal_gamma, 0.0)


def check_text_head(task: Any, level: str = "text") -> None:
    """Raises UserError for a wrong level or wrong options of a head on texts."""
    if task.level != level:
        raise options.option_error(
            task.name, "kind", f"needs one label a text, the labels here are of level {task.level!r}"
        )
    options.require_choice(task.name, "pool", task.pool, features.POOLS)
    options.require_flag(task.name, "pooler", task.pooler)
    options.require_integer(task.name, "hidden", task.hidden)
    heads.check_form(task)
