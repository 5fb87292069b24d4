"""The head of a task as a published one, where there is one that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.models.families.base import Architecture
from mtl_jax.models.families.published_heads import PublishedHead
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.heads import HeadForm
from mtl_jax.tasks.masked_lm import NORM_EPS

_SAME = {"gelu_pytorch_tanh": "gelu_new", "swish": "silu"}
_ODD_PART_IS_LINEAR = ("relu", "gelu", "gelu_new", "silu")  # f(z) − f(−z) = z
_NEVER = -1e4  # score of rows of the table that are no token of the tokenizer
_LAYERS = {"transform", "layer_norm", "output", "pooler", "hidden", "bias"}


class ExportedHead(NamedTuple):
    """What a folder has in addition to the encoder.

    published  the model with this head
    tensors    float32 by published name
    config     fields of config.json
    notes      what the folder does not say, in sentences
    """

    published: PublishedHead
    tensors: dict[str, np.ndarray]
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


class NotPublished(Exception):
    """Why a head is none of the published ones: the end of a sentence."""


class _Layers(NamedTuple):
    """A head as form and kernels [in, out]; no output kernel where it is tied."""

    form: HeadForm
    transform: Mapping[str, np.ndarray] | None
    norm: Mapping[str, np.ndarray] | None
    kernel: np.ndarray | None
    bias: np.ndarray | None


def exported_head(task: Task, params: Mapping[str, Any], architecture: Architecture) -> ExportedHead:
    """The published head that computes the scores of a task.

    Args:
      task: of any kind.
      params: of its head, numpy.
      architecture: of the encoder below it.

    Raises:
      NotPublished: there is none.
    """
    if task.continues:
        return _causal_head(params, architecture)
    kind = task.head_kind
    published = architecture.published_heads().get(kind)
    if published is None:
        what = f"kind {type(task).__name__}" if not kind else f"this kind on {architecture.published}"
        raise NotPublished(f"transformers has no head of {what}")
    layers = _layers(task, params)
    layers, config = _fitted(layers, published)
    if kind == "masked":
        layers = _all_rows(layers, architecture.vocab_size)
        config["tie_word_embeddings"] = layers.kernel is None
    labels, notes = _labels(task), ()
    if getattr(task, "scheme", ""):
        notes = (
            f"Predictions here are sequences that the scheme {task.scheme!r} allows; a pipeline takes each tag alone.",
        )
    if kind == "span":
        notes = (
            f"Answers here have at most {task.max_span or 'any number of'} tokens, and the threshold of no answer is "
            f"{task.none_threshold:g}.",
        )
    if getattr(task, "threshold", None) is not None:
        notes = (f"A label counts as given from probability {task.threshold:g} on.",)
    return ExportedHead(published, _tensors(layers, published), config | labels, notes)


def _causal_head(params: Mapping[str, Any], architecture: Architecture) -> ExportedHead:
    """The LM head of a decoder: none of its own where it is the table of words."""
    published, tensors = PublishedHead(*architecture.causal_model, HeadForm(""), {}), {}
    if "output" in params:
        kernel = np.asarray(params["output"]["kernel"], np.float32)
        rows = ((0, architecture.vocab_size - kernel.shape[1]), (0, 0))
        tensors["lm_head.weight"] = np.ascontiguousarray(np.pad(kernel.T, rows))
    return ExportedHead(published, tensors, {})


def _labels(task: Task) -> dict[str, Any]:
    """Fields of config.json that name the scores."""
    problem = {"class": "single_label_classification", "set": "multi_label_classification", "real": "regression"}
    names = (task.name,) if task.label_type == "real" else task.names
    if task.head_kind not in ("sequence", "token"):
        return {}
    labels = {
        "id2label": {str(n): name for n, name in enumerate(names)},
        "label2id": {n: i for i, n in enumerate(names)},
    }
    return labels | ({"problem_type": problem[task.label_type]} if task.head_kind == "sequence" else {})


def _layers(task: Task, params: Mapping[str, Any]) -> _Layers:
    if task.level == "predicate":
        raise NotPublished("its tags belong to pairs of a predicate and a word")
    if getattr(task, "crf", False):
        raise NotPublished("it has a CRF")
    if getattr(task, "head", "") == "none":
        raise NotPublished("it has no head: the pooled feature is the prediction")
    if more := sorted(params.keys() - _LAYERS):
        raise NotPublished(f"it reads more than the topmost layer ({', '.join(more)})")
    if "pooler" in params and "hidden" in params:
        raise NotPublished("it has two layers before the scores")
    output = params.get("output", {})
    kernel, bias = output.get("kernel"), params.get("bias", output.get("bias"))
    if task.head_kind == "span" and kernel.shape[1] == 4:
        raise NotPublished('"no answer" has weights of its own')
    if task.label_type == "real":
        offset, unit = task.scaling
        kernel, bias = kernel * unit, (bias * unit if bias is not None else np.zeros(1)) + offset
    return _Layers(_form(task, params), _inner(params), params.get("layer_norm"), kernel, bias)


def _inner(params: Mapping[str, Any]) -> Mapping[str, np.ndarray] | None:
    return next((params[name] for name in ("transform", "pooler", "hidden") if name in params), None)


def _form(task: Any, params: Mapping[str, Any]) -> HeadForm:
    if task.published_head:
        return task.published_head
    form, inner = HeadForm(getattr(task, "pool", "")), _inner(params)
    if inner is None:
        return form
    form = form._replace(width=inner["kernel"].shape[1], activation="tanh" if "pooler" in params else "gelu_new")
    return form._replace(norm_eps=NORM_EPS) if "layer_norm" in params else form


def _fitted(layers: _Layers, published: PublishedHead) -> tuple[_Layers, dict[str, Any]]:
    """The same scores by the layers of the published head, and the fields of config.json that choose them."""
    form, target, name, config = layers.form, published.form, published.architecture, dict(published.settings)
    if published.pool_field and form.pool in published.pools:
        config[published.pool_field] = published.pools[form.pool]
    elif form.pool != target.pool:
        raise NotPublished(f"it pools tokens by {form.pool!r}, and {name} by {target.pool!r}")
    act, wanted = (_SAME.get(one.activation, one.activation) for one in (form, target))
    if form.norm_eps != target.norm_eps or (form.norm_eps is not None and (form.width, act) != (target.width, wanted)):
        raise NotPublished(f"its layers before the scores are not those of {name}")
    if form.width and not target.width:
        raise NotPublished(f"it has a layer before the scores, and {name} has none")
    if layers.bias is not None and not target.output_bias and layers.bias.any():
        raise NotPublished(f"its scores have a bias, and those of {name} have none")
    if target.width and not form.width:
        return _through(layers, published, config), config
    if form.width > target.width:
        raise NotPublished(f"its inner layer has {form.width} features, and that of {name} {target.width}")
    if target.width and act != wanted:
        if not published.activation_field:
            raise NotPublished(f"its inner layer has the activation {act!r}, and that of {name} {wanted!r}")
        config[published.activation_field] = act
    return _widened(layers, target.width), config


def _through(layers: _Layers, published: PublishedHead, config: dict[str, Any]) -> _Layers:
    """Linear scores through an inner layer: by an identity, or as f(z) − f(−z) of its activation f."""
    width, (inputs, classes) = published.form.width, layers.kernel.shape
    if published.activation_field:
        config[published.activation_field] = "linear"
        transform = {"kernel": np.eye(inputs, width, dtype=np.float32), "bias": np.zeros(width, np.float32)}
        return layers._replace(transform=transform)
    act = published.form.activation
    if act not in _ODD_PART_IS_LINEAR or 2 * classes > width:
        raise NotPublished(f"its scores are linear, and {published.architecture} has a layer with {act!r} before them")
    kernel, bias = np.zeros((inputs, width), np.float32), np.zeros(width, np.float32)
    output = np.zeros((width, classes), np.float32)
    for sign, first in ((1, 0), (-1, classes)):
        kernel[:, first : first + classes], bias[first : first + classes] = sign * layers.kernel, sign * layers.bias
        output[first : first + classes] = sign * np.eye(classes, dtype=np.float32)
    transform = {"kernel": kernel, "bias": bias}
    return layers._replace(transform=transform, kernel=output, bias=np.zeros(classes, np.float32))


def _widened(layers: _Layers, width: int) -> _Layers:
    """An inner layer with more features, which no score reads."""
    if layers.transform is None or layers.form.width == width:
        return layers
    more = width - layers.form.width
    transform = {
        "kernel": np.pad(layers.transform["kernel"], ((0, 0), (0, more))),
        "bias": np.pad(layers.transform["bias"], (0, more)),
    }
    return layers._replace(transform=transform, kernel=np.pad(layers.kernel, ((0, more), (0, 0))))


def _all_rows(layers: _Layers, rows: int) -> _Layers:
    """Scores of as many tokens as the table has rows; those that are no token are never the likeliest."""
    kernel, bias = layers.kernel, layers.bias
    count = rows - (len(bias) if bias is not None else kernel.shape[1])
    if not count:
        return layers
    if bias is None:
        raise NotPublished("the table has more rows than tokens, and the scores have no bias that rules them out")
    bias = np.pad(bias, (0, count), constant_values=_NEVER)
    return layers._replace(bias=bias, kernel=None if kernel is None else np.pad(kernel, ((0, 0), (0, count))))


def _tensors(layers: _Layers, published: PublishedHead) -> dict[str, np.ndarray]:
    """By published name; kernels are [out, in] there."""
    names, tensors = published.tensors, {}
    if layers.transform is not None:
        tensors[f"{names['transform']}.weight"] = layers.transform["kernel"].T
        if "bias" in layers.transform:
            tensors[f"{names['transform']}.bias"] = layers.transform["bias"]
    for part, published_part in (("scale", "weight"), ("bias", "bias")):
        if layers.norm is not None and part in layers.norm:
            tensors[f"{names['layer_norm']}.{published_part}"] = layers.norm[part]
    if layers.kernel is not None:
        tensors[f"{names['output']}.weight"] = layers.kernel.T
    if layers.bias is not None and published.form.output_bias:
        tensors |= dict.fromkeys(published.output_bias or (f"{names['output']}.bias",), layers.bias)
    return {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
