"""ModernBERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import BertEmbeddings
from mtl_jax.models.families.base import (
    Architecture,
    PublishedTensor,
    dense_tensors,
    joint_dense_tensors,
    norm_tensors,
    table_tensor,
)
from mtl_jax.models.families.config_fields import ENCODER_ONLY, ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, masked_head
from mtl_jax.models.layers.pre_norm import HeadSpec, NormSpec, PositionSpec, PreNormLayer
from mtl_jax.models.ownership import layer_path
from mtl_jax.models.rotary import base_rotary
from mtl_jax.tasks.heads import HeadForm

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


@dataclasses.dataclass(frozen=True)
class ModernBert(Architecture):
    """ModernBERT (Warner et al. 2024): normalisation first, rotary positions, gated feed-forward, a layer of global
    attention every few of local, one more normalisation at the top.

    global_every   every how many layers attention is global, from the lowest on
    window         largest distance in layers of local attention
    global_theta, local_theta  bases of the rotary positions
    """

    published = "ModernBertModel"
    words = "embeddings.tok_embeddings.weight"

    model_type: str
    layers: int
    width: int
    heads: int
    intermediate: int
    activation: str
    norm_eps: float
    vocab_size: int
    max_positions: int
    pad_token: int
    global_every: int
    window: int
    global_theta: float
    local_theta: float
    attention_bias: bool = False
    mlp_bias: bool = False
    norm_bias: bool = False
    initializer_range: float = 0.02

    @property
    def max_length(self) -> int:
        return self.max_positions

    def embeddings(self, dtype: Any = jnp.float32) -> BertEmbeddings:
        return BertEmbeddings(
            vocab_size=self.vocab_size,
            width=self.width,
            max_positions=0,
            type_vocab=0,
            layer_norm_eps=self.norm_eps,
            norm_bias=self.norm_bias,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    def layer(self, number: int, dtype: Any = jnp.float32) -> PreNormLayer:
        is_local, features = number % self.global_every != 0, self.width // self.heads
        rotary = base_rotary(self.local_theta if is_local else self.global_theta, features)
        return PreNormLayer(
            hidden_size=self.width,
            heads=HeadSpec(self.heads, self.heads, features),
            intermediate_size=self.intermediate,
            activation=self.activation,
            norm=NormSpec("layer", self.norm_eps, self.norm_bias),
            position=PositionSpec(rotary, self.window if is_local else 0),
            attention_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            first_norm=number > 0,
            final_norm=number == self.layers - 1,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        fields = ConfigFields(config, where)
        fields.require(ENCODER_ONLY)
        width, heads = fields.integer("hidden_size", 768), fields.integer("num_attention_heads", 12)
        fields.multiple("hidden_size", width, "num_attention_heads", heads)
        layers = fields.integer("num_hidden_layers", 22)
        every = _global_every(fields, layers)
        theta = fields.positive("global_rope_theta", 160000.0)
        return cls(
            model_type=config["model_type"],
            layers=layers,
            width=width,
            heads=heads,
            intermediate=fields.integer("intermediate_size", 1152),
            activation=fields.activation("hidden_activation", "gelu"),
            norm_eps=fields.positive("norm_eps", 1e-5),
            vocab_size=fields.integer("vocab_size", 50368),
            max_positions=fields.integer("max_position_embeddings", 8192),
            pad_token=fields.integer("pad_token_id", 50283, 0),
            global_every=every,
            window=fields.integer("local_attention", 128, 2) // 2,
            global_theta=fields.rope_theta(theta, _GLOBAL),
            local_theta=fields.rope_theta(fields.positive("local_rope_theta", 10000.0), _LOCAL),
            attention_bias=fields.flag("attention_bias", False),
            mlp_bias=fields.flag("mlp_bias", False),
            norm_bias=fields.flag("norm_bias", False),
        )

    def published_config(self) -> dict[str, Any]:
        thetas = {_GLOBAL: self.global_theta, _LOCAL: self.local_theta}
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "hidden_activation": self.activation,
            "norm_eps": self.norm_eps,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "pad_token_id": self.pad_token,
            "global_attn_every_n_layers": self.global_every,
            "layer_types": _layer_types(self.global_every, self.layers),
            "local_attention": 2 * self.window,
            # both ways to write them: of transformers before 5, and since
            "global_rope_theta": self.global_theta,
            "local_rope_theta": self.local_theta,
            "rope_parameters": {name: {"rope_type": "default", "rope_theta": theta} for name, theta in thetas.items()},
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "norm_bias": self.norm_bias,
            "dtype": "float32",
        }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`; every head has the same layer before its scores."""
        layer = HeadForm("", self.width, "gelu", False, self.norm_eps, self.norm_bias)
        tensors = {"transform": "head.dense", "layer_norm": "head.norm", "output": "classifier"}
        names = {
            "sequence": "SequenceClassification",
            "choice": "MultipleChoice",
            "token": "TokenClassification",
            "span": "QuestionAnswering",
        }
        heads = {
            kind: PublishedHead(
                f"ModernBertFor{name}",
                "model.",
                layer._replace(pool="first" if kind in ("sequence", "choice") else ""),
                tensors,
                pool_field="classifier_pooling" if kind in ("sequence", "choice") else "",
                pools={"first": "cls", "mean": "mean"},
            )
            for kind, name in names.items()
        }
        masked = ("head.dense", "head.norm", "decoder")
        return {**heads, "masked": masked_head("ModernBertForMaskedLM", "model.", layer, masked, ())}

    def published_tensors(self) -> Iterator[PublishedTensor]:
        width, wide = self.width, self.intermediate
        yield table_tensor("embeddings.tok_embeddings", ("embed", "word"), self.vocab_size, width)
        yield from norm_tensors("embeddings.norm", ("embed", "layer_norm"), width, self.norm_bias)
        for number in range(self.layers):
            name, path = f"layers.{number}", layer_path(number)
            if number:
                yield from norm_tensors(f"{name}.attn_norm", (path, "attention_norm"), width, self.norm_bias)
            parts = [(path, "attention", part) for part in ("query", "key", "value")]
            yield from joint_dense_tensors(f"{name}.attn.Wqkv", parts, width, width, bias=self.attention_bias)
            output = (path, "attention", "output")
            yield from dense_tensors(f"{name}.attn.Wo", output, width, width, bias=self.attention_bias)
            yield from norm_tensors(f"{name}.mlp_norm", (path, "mlp_norm"), width, self.norm_bias)
            inner = [(path, "intermediate"), (path, "gate")]
            yield from joint_dense_tensors(f"{name}.mlp.Wi", inner, width, wide, bias=self.mlp_bias)
            yield from dense_tensors(f"{name}.mlp.Wo", (path, "output"), wide, width, bias=self.mlp_bias)
        yield from norm_tensors("final_norm", ("final_norm",), width, self.norm_bias)


def _layer_types(every: int, layers: int) -> list[str]:
    return [_LOCAL if number % every else _GLOBAL for number in range(layers)]


def _global_every(fields: ConfigFields, layers: int) -> int:
    """Every how many layers attention is global, from either way to write it."""
    every, types = fields.integer("global_attn_every_n_layers", 3), fields.value("layer_types", None)
    if types is None:
        return every
    for period in range(1, layers + 1):
        if types == _layer_types(period, layers):
            return period
    raise UserError(
        f"{fields.where}: layer_types = {types!r} is not supported, only {_GLOBAL!r} in every n-th layer from the "
        f"first on and {_LOCAL!r} in the others, {layers} in all"
    )
