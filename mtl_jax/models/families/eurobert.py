"""EuroBERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.families.base import Architecture, PublishedTensor, dense_tensors, norm_tensors, table_tensor
from mtl_jax.models.families.config_fields import ENCODER_ONLY, ConfigFields
from mtl_jax.models.layers.pre_norm import HeadSpec, NormSpec, PositionSpec, PreNormLayer
from mtl_jax.models.ownership import layer_path


@dataclasses.dataclass(frozen=True)
class EuroBert(Architecture):
    """EuroBERT (Boizard et al. 2025): the layers of Llama with attention in both directions.

    key_heads    heads of keys and values, a divisor of `heads`
    head_width   features of each head
    theta        base of the rotary positions
    """

    published = "EuroBertModel"
    words = "embed_tokens.weight"

    model_type: str
    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    intermediate: int
    activation: str
    norm_eps: float
    vocab_size: int
    max_positions: int
    pad_token: int
    theta: float
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02

    @property
    def max_length(self) -> int:
        return self.max_positions

    def embeddings(self, dtype: Any = jnp.float32) -> nn.Module:
        return WordEmbeddings(self.vocab_size, self.width, self.initializer_range, dtype)

    def layer(self, number: int, dtype: Any = jnp.float32) -> PreNormLayer:
        return PreNormLayer(
            hidden_size=self.width,
            heads=HeadSpec(self.heads, self.key_heads, self.head_width),
            intermediate_size=self.intermediate,
            activation=self.activation,
            norm=NormSpec("rms", self.norm_eps),
            position=PositionSpec(self.theta),
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            final_norm=number == self.layers - 1,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        fields = ConfigFields(config, where)
        fields.require({**ENCODER_ONLY, "pretraining_tp": 1})
        width, heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
        fields.multiple("hidden_size", width, "num_attention_heads", heads)
        key_heads = fields.integer("num_key_value_heads", heads)
        fields.multiple("num_attention_heads", heads, "num_key_value_heads", key_heads)
        return cls(
            model_type=config["model_type"],
            layers=fields.integer("num_hidden_layers", 12),
            width=width,
            heads=heads,
            key_heads=key_heads,
            head_width=fields.integer("head_dim", width // heads),
            intermediate=fields.integer("intermediate_size", 3072),
            activation=fields.activation("hidden_act", "silu"),
            norm_eps=fields.positive("rms_norm_eps", 1e-5),
            vocab_size=fields.integer("vocab_size", 128256),
            max_positions=fields.integer("max_position_embeddings", 8192),
            pad_token=fields.integer("pad_token_id", 128001, 0),
            theta=fields.rope_theta(fields.positive("rope_theta", 10000.0)),
            attention_bias=fields.flag("attention_bias", False),
            mlp_bias=fields.flag("mlp_bias", False),
        )

    def published_config(self) -> dict[str, Any]:
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.intermediate,
            "hidden_act": self.activation,
            "rms_norm_eps": self.norm_eps,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "pad_token_id": self.pad_token,
            # both ways to write it: of transformers before 5, and since
            "rope_theta": self.theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "dtype": "float32",
        }

    def published_tensors(self) -> Iterator[PublishedTensor]:
        width, wide = self.width, self.intermediate
        heads = {"q": ("query", self.heads), "k": ("key", self.key_heads), "v": ("value", self.key_heads)}
        yield table_tensor("embed_tokens", ("embed", "word"), self.vocab_size, width)
        for number in range(self.layers):
            name, path = f"layers.{number}", layer_path(number)
            yield from norm_tensors(f"{name}.input_layernorm", (path, "attention_norm"), width, False)
            for letter, (part, count) in heads.items():
                outputs, place = count * self.head_width, (path, "attention", part)
                published = f"{name}.self_attn.{letter}_proj"
                yield from dense_tensors(published, place, width, outputs, bias=self.attention_bias)
            inner, output = self.heads * self.head_width, (path, "attention", "output")
            yield from dense_tensors(f"{name}.self_attn.o_proj", output, inner, width, bias=self.attention_bias)
            yield from norm_tensors(f"{name}.post_attention_layernorm", (path, "mlp_norm"), width, False)
            yield from dense_tensors(f"{name}.mlp.gate_proj", (path, "intermediate"), width, wide, bias=self.mlp_bias)
            yield from dense_tensors(f"{name}.mlp.up_proj", (path, "gate"), width, wide, bias=self.mlp_bias)
            yield from dense_tensors(f"{name}.mlp.down_proj", (path, "output"), wide, width, bias=self.mlp_bias)
        yield from norm_tensors("norm", ("final_norm",), width, False)
