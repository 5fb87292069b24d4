"""The encoder of T5."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.families.base import Architecture, PublishedTensor, dense_tensors, norm_tensors, table_tensor
from mtl_jax.models.families.config_fields import ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads
from mtl_jax.models.layers.pre_norm import HeadSpec, NormSpec, PositionSpec, PreNormLayer
from mtl_jax.models.layers.transformer import ACTIVATIONS
from mtl_jax.models.ownership import layer_path

_MLP = "DenseReluDense"


@dataclasses.dataclass(frozen=True)
class T5(Architecture):
    """The encoder of T5, T5 1.1 and Flan-T5 (Raffel et al. 2020): normalisation first, products of attention that are
    not scaled, one relative bias for all layers.

    head_width     features of each head
    feed_forward   as `feed_forward_proj`: an activation, or "gated-" and one
    buckets, max_distance  of the relative bias
    """

    published = "T5EncoderModel"
    words = "shared.weight"
    other_words = "encoder.embed_tokens.weight"

    model_type: str
    layers: int
    width: int
    heads: int
    head_width: int
    intermediate: int
    feed_forward: str
    norm_eps: float
    vocab_size: int
    pad_token: int
    buckets: int
    max_distance: int
    initializer_range: float = 0.02

    @property
    def max_length(self) -> int:
        return 2**20  # relative positions reach any

    @property
    def is_gated(self) -> bool:
        """Whether the feed-forward is gated."""
        return self.feed_forward.startswith("gated-")

    def embeddings(self, dtype: Any = jnp.float32) -> nn.Module:
        return WordEmbeddings(self.vocab_size, self.width, self.initializer_range, dtype)

    def layer(self, number: int, dtype: Any = jnp.float32) -> PreNormLayer:
        return PreNormLayer(
            hidden_size=self.width,
            heads=HeadSpec(self.heads, self.heads, self.head_width, scale=1.0),
            intermediate_size=self.intermediate,
            activation=_activation(self.feed_forward),
            norm=NormSpec("rms", self.norm_eps),
            position=PositionSpec(buckets=self.buckets, max_distance=self.max_distance),
            gated=self.is_gated,
            final_norm=number == self.layers - 1,
            final_dropout=number == self.layers - 1,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        fields = ConfigFields(config, where)
        fields.require({"is_decoder": False, "quantization_config": None})
        feed_forward = fields.value("feed_forward_proj", "relu")
        if _activation(str(feed_forward)) not in ACTIVATIONS:
            raise UserError(
                f"{where}: feed_forward_proj = {feed_forward!r}; supported are {', '.join(ACTIVATIONS)}, each also as "
                "'gated-…'"
            )
        buckets = fields.integer("relative_attention_num_buckets", 32, 4)
        fields.multiple("relative_attention_num_buckets", buckets, "4:", 4)
        return cls(
            model_type=config["model_type"],
            layers=fields.integer("num_layers", 6),
            width=fields.integer("d_model", 512),
            heads=fields.integer("num_heads", 8),
            head_width=fields.integer("d_kv", 64),
            intermediate=fields.integer("d_ff", 2048),
            feed_forward=feed_forward,
            norm_eps=fields.positive("layer_norm_epsilon", 1e-6),
            vocab_size=fields.integer("vocab_size", 32128),
            pad_token=fields.integer("pad_token_id", 0, 0),
            buckets=buckets,
            max_distance=fields.integer("relative_attention_max_distance", 128, buckets),
        )

    def published_config(self) -> dict[str, Any]:
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            "num_layers": self.layers,
            "d_model": self.width,
            "num_heads": self.heads,
            "d_kv": self.head_width,
            "d_ff": self.intermediate,
            "feed_forward_proj": self.feed_forward,
            "layer_norm_epsilon": self.norm_eps,
            "vocab_size": self.vocab_size,
            "pad_token_id": self.pad_token,
            "relative_attention_num_buckets": self.buckets,
            "relative_attention_max_distance": self.max_distance,
            "is_encoder_decoder": False,
            "dtype": "float32",
        }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`; those of other kinds stand on the decoder."""
        return linear_heads("T5", "transformer.", ("token",))

    def published_tensors(self) -> Iterator[PublishedTensor]:
        width, inner = self.width, self.heads * self.head_width
        yield table_tensor("shared", ("embed", "word"), self.vocab_size, width)
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
        yield table_tensor(bias, ("relative",), self.buckets, self.heads)
        for number in range(self.layers):
            name, path = f"encoder.block.{number}.layer", layer_path(number)
            for letter, part in zip("qkv", ("query", "key", "value"), strict=True):
                place = (path, "attention", part)
                yield from dense_tensors(f"{name}.0.SelfAttention.{letter}", place, width, inner, bias=False)
            output = (path, "attention", "output")
            yield from dense_tensors(f"{name}.0.SelfAttention.o", output, inner, width, bias=False)
            yield from norm_tensors(f"{name}.0.layer_norm", (path, "attention_norm"), width, False)
            into = {"wi_0": "intermediate", "wi_1": "gate"} if self.is_gated else {"wi": "intermediate"}
            for published, part in into.items():
                mlp = f"{name}.1.{_MLP}.{published}"
                yield from dense_tensors(mlp, (path, part), width, self.intermediate, bias=False)
            yield from dense_tensors(f"{name}.1.{_MLP}.wo", (path, "output"), self.intermediate, width, bias=False)
            yield from norm_tensors(f"{name}.1.layer_norm", (path, "mlp_norm"), width, False)
        yield from norm_tensors("encoder.final_layer_norm", ("final_norm",), width, False)


def _activation(feed_forward: str) -> str:
    """The name of the activation; T5 1.1 calls the approximate one "gated-gelu"."""
    return "gelu_new" if feed_forward == "gated-gelu" else feed_forward.removeprefix("gated-")
