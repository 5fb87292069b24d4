"""BERT, and what the families that follow it have in common with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import BertEmbeddings
from mtl_jax.models.families.base import Architecture, PublishedTensor
from mtl_jax.models.layers.transformer import ACTIVATIONS, TransformerLayer
from mtl_jax.models.ownership import layer_path

# Fields that change what the model computes, and the only value that the layers here compute.
_REQUIRED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}


@dataclasses.dataclass(frozen=True)
class Bert(Architecture):
    """BERT (Devlin et al. 2019): layer norms after attention and feed-forward, absolute positions.

    max_positions  rows of the position table
    defaults       fields of config.json and the values that transformers takes where one is left out
    """

    published = "BertModel"
    words = "embeddings.word_embeddings.weight"
    defaults: ClassVar[Mapping[str, int]] = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }

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
    def position_offset(self) -> int:
        """The row of the position table at which a text begins."""
        return 0

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

    def layer(self, number: int, dtype: Any = jnp.float32) -> TransformerLayer:
        """The module of the path `layer_NN`; all are alike."""
        del number
        return TransformerLayer(
            hidden_size=self.width,
            num_heads=self.heads,
            intermediate_size=self.intermediate,
            activation=self.activation,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        """The architecture that a published config.json describes. `where` names it in errors (UserError)."""
        for field, wanted in _REQUIRED.items():
            if config.get(field, wanted) not in (wanted, None):
                raise UserError(f"{where}: {field} = {config[field]!r} is not supported, only {wanted!r}")
        sizes = dict(cls.defaults)
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
        architecture = cls(
            model_type=config["model_type"],
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

    def published_config(self) -> dict[str, Any]:
        """config.json: the inverse of `from_config`."""
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "hidden_act": self.activation,
            "layer_norm_eps": self.layer_norm_eps,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "type_vocab_size": self.type_vocab,
            "pad_token_id": self.pad_token,
            "position_embedding_type": "absolute",
            "dtype": "float32",
        }

    def published_tensors(self) -> Iterator[PublishedTensor]:
        """Every tensor of an encoder, embeddings first."""
        width, wide = self.width, self.intermediate

        def table(name, key, rows):
            return PublishedTensor(f"embeddings.{name}.weight", ("embed", key, "embedding"), (rows, width), False)

        def norm(name, path):
            yield PublishedTensor(f"{name}.LayerNorm.weight", (*path, "layer_norm", "scale"), (width,), False)
            yield PublishedTensor(f"{name}.LayerNorm.bias", (*path, "layer_norm", "bias"), (width,), False)

        def dense(name, path, inputs, outputs):
            yield PublishedTensor(f"{name}.weight", (*path, "kernel"), (outputs, inputs), True)
            yield PublishedTensor(f"{name}.bias", (*path, "bias"), (outputs,), False)

        yield table("word_embeddings", "word", self.vocab_size)
        yield table("position_embeddings", "position", self.max_positions)
        yield table("token_type_embeddings", "token_type", self.type_vocab)
        yield from norm("embeddings", ("embed",))
        for number in range(self.layers):
            name, path = f"encoder.layer.{number}", layer_path(number)
            for part in ("query", "key", "value"):
                yield from dense(f"{name}.attention.self.{part}", (path, "attention", part), width, width)
            yield from dense(f"{name}.attention.output.dense", (path, "attention", "output"), width, width)
            yield from norm(f"{name}.attention.output", (path, "attention"))
            yield from dense(f"{name}.intermediate.dense", (path, "intermediate"), width, wide)
            yield from dense(f"{name}.output.dense", (path, "output"), wide, width)
            yield from norm(f"{name}.output", (path,))
