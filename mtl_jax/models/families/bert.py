"""What a published BERT-family model is made of: its configuration, and the names and shapes of its tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import BertEmbeddings
from mtl_jax.models.layers.transformer import ACTIVATIONS, TransformerLayer
from mtl_jax.models.ownership import layer_path

FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}

# Fields of config.json and the values that transformers takes where one is left out (its BertConfig, RobertaConfig).
_DEFAULTS = {
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_TYPE_DEFAULTS = {
    "bert": {"pad_token_id": 0},
    "roberta": {"pad_token_id": 1, "vocab_size": 50265},
    "xlm-roberta": {"pad_token_id": 1},
    "camembert": {"pad_token_id": 1},
}
# Fields that change what the model computes, and the only value that the layers here compute.
_REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Hyperparameters of a BERT-family encoder. Hashable.

    model_type       "bert", "roberta", "xlm-roberta" or "camembert"; `family` is "bert" or "roberta"
    max_positions    rows of the position table; `max_length` is the longest text in tokens
    initializer_range  deviation of the values that kernels and tables start from, where they start at random
    """

    model_type: str
    layers: int
    width: int
    heads: int
    intermediate: int
    activation: str
    layer_norm_eps: float
    vocab_size: int
    max_positions: int
    type_vocab: int
    pad_token: int
    initializer_range: float = 0.02

    @property
    def family(self) -> str:
        return FAMILIES[self.model_type]

    @property
    def position_offset(self) -> int:
        """RoBERTa counts positions from padding_idx + 1, BERT from 0."""
        return self.pad_token + 1 if self.family == "roberta" else 0

    @property
    def max_length(self) -> int:
        return self.max_positions - self.position_offset

    def embeddings(self, dtype: Any = jnp.float32) -> BertEmbeddings:
        """The module of the path `embed`."""
        return BertEmbeddings(
            vocab_size=self.vocab_size,
            width=self.width,
            max_positions=self.max_positions,
            type_vocab=self.type_vocab,
            position_offset=self.position_offset,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    def layer(self, dtype: Any = jnp.float32) -> TransformerLayer:
        """The module of each path `layer_NN`."""
        return TransformerLayer(
            hidden_size=self.width,
            num_heads=self.heads,
            intermediate_size=self.intermediate,
            activation=self.activation,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )


def architecture_from_config(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that a published config.json describes. `where` names it in errors (UserError)."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(f"{where}: model_type is {model_type!r}; supported are {', '.join(FAMILIES)}")
    for field, wanted in _REQUIRED.items():
        if config.get(field, wanted) not in (wanted, None):
            raise UserError(f"{where}: {field} = {config[field]!r} is not supported, only {wanted!r}")
    sizes = {**_DEFAULTS, **_TYPE_DEFAULTS[model_type]}
    for field, default in sizes.items():
        value = default if config.get(field) is None else config[field]
        lowest = 0 if field == "pad_token_id" else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise UserError(f"{where}: {field} = {value!r}; it has to be an integer of at least {lowest}")
        sizes[field] = value
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise UserError(
            f"{where}: hidden_size {sizes['hidden_size']} is not a multiple of "
            f"num_attention_heads {sizes['num_attention_heads']}"
        )
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act = {activation!r}; supported are {', '.join(ACTIVATIONS)}")
    eps = config.get("layer_norm_eps", 1e-12)
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not eps > 0:
        raise UserError(f"{where}: layer_norm_eps = {eps!r}; it has to be a number above 0")
    architecture = Architecture(
        model_type=model_type,
        layers=sizes["num_hidden_layers"],
        width=sizes["hidden_size"],
        heads=sizes["num_attention_heads"],
        intermediate=sizes["intermediate_size"],
        activation=activation,
        layer_norm_eps=float(eps),
        vocab_size=sizes["vocab_size"],
        max_positions=sizes["max_position_embeddings"],
        type_vocab=sizes["type_vocab_size"],
        pad_token=sizes["pad_token_id"],
    )
    if architecture.max_length < 1:
        raise UserError(
            f"{where}: max_position_embeddings {architecture.max_positions} leaves no position for a token, "
            f"since the first has index {architecture.position_offset}"
        )
    return architecture


_ARCHITECTURES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
}


def published_config(architecture: Architecture) -> dict[str, Any]:
    """config.json of an architecture: the inverse of `architecture_from_config`."""
    return {
        "architectures": [_ARCHITECTURES[architecture.model_type]],
        "model_type": architecture.model_type,
        "num_hidden_layers": architecture.layers,
        "hidden_size": architecture.width,
        "num_attention_heads": architecture.heads,
        "intermediate_size": architecture.intermediate,
        "hidden_act": architecture.activation,
        "layer_norm_eps": architecture.layer_norm_eps,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_positions,
        "type_vocab_size": architecture.type_vocab,
        "pad_token_id": architecture.pad_token,
        "position_embedding_type": "absolute",
        "dtype": "float32",
    }


class PublishedTensor(NamedTuple):
    """One published tensor and its place here.

    name        published name, without the prefix of a model with heads
    path        keys in the params here
    shape       published shape
    transposed  published as [out, in], here a kernel [in, out]
    """

    name: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool


def published_tensors(architecture: Architecture) -> Iterator[PublishedTensor]:
    """Every tensor of an encoder, embeddings first."""
    width, wide = architecture.width, architecture.intermediate

    def table(name, key, rows):
        return PublishedTensor(f"embeddings.{name}.weight", ("embed", key, "embedding"), (rows, width), False)

    def norm(name, path):
        yield PublishedTensor(f"{name}.LayerNorm.weight", (*path, "layer_norm", "scale"), (width,), False)
        yield PublishedTensor(f"{name}.LayerNorm.bias", (*path, "layer_norm", "bias"), (width,), False)

    def dense(name, path, inputs, outputs):
        yield PublishedTensor(f"{name}.weight", (*path, "kernel"), (outputs, inputs), True)
        yield PublishedTensor(f"{name}.bias", (*path, "bias"), (outputs,), False)

    yield table("word_embeddings", "word", architecture.vocab_size)
    yield table("position_embeddings", "position", architecture.max_positions)
    yield table("token_type_embeddings", "token_type", architecture.type_vocab)
    yield from norm("embeddings", ("embed",))
    for number in range(architecture.layers):
        name, path = f"encoder.layer.{number}", layer_path(number)
        for part in ("query", "key", "value"):
            yield from dense(f"{name}.attention.self.{part}", (path, "attention", part), width, width)
        yield from dense(f"{name}.attention.output.dense", (path, "attention", "output"), width, width)
        yield from norm(f"{name}.attention.output", (path, "attention"))
        yield from dense(f"{name}.intermediate.dense", (path, "intermediate"), width, wide)
        yield from dense(f"{name}.output.dense", (path, "output"), wide, width)
        yield from norm(f"{name}.output", (path,))
