"""GPT-2."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

import jax.numpy as jnp

from mtl_jax.models.embeddings import BertEmbeddings
from mtl_jax.models.families.base import Architecture, PublishedTensor, norm_tensors, table_tensor
from mtl_jax.models.families.config_fields import ENCODER_ONLY, ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, causal_heads
from mtl_jax.models.layers.pre_norm import HeadSpec, NormSpec, PositionSpec, PreNormLayer
from mtl_jax.models.ownership import layer_path


@dataclasses.dataclass(frozen=True)
class GPT2(Architecture):
    """GPT-2 (Radford et al. 2019): normalisation first, learned positions, attention to what stands before.

    max_positions   rows of the position table
    special_tokens  the ids of padding, begin and end in config.json, as JSON
    """

    published = "GPT2Model"
    words = "wte.weight"
    causal = True
    causal_model = "GPT2LMHeadModel", "transformer."
    final_softcap = 0.0

    model_type: str
    layers: int
    width: int
    heads: int
    intermediate: int
    activation: str
    norm_eps: float
    vocab_size: int
    max_positions: int
    special_tokens: str
    tied_head: bool = True
    initializer_range: float = 0.02

    @property
    def max_length(self) -> int:
        return self.max_positions

    def embeddings(self, dtype: Any = jnp.float32) -> BertEmbeddings:
        return BertEmbeddings(
            vocab_size=self.vocab_size,
            width=self.width,
            max_positions=self.max_positions,
            type_vocab=0,
            normalised=False,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        return causal_heads("GPT2", "transformer.", "classifier")

    def layer(self, number: int, dtype: Any = jnp.float32) -> PreNormLayer:
        return PreNormLayer(
            hidden_size=self.width,
            heads=HeadSpec(self.heads, self.heads, self.width // self.heads),
            intermediate_size=self.intermediate,
            activation=self.activation,
            norm=NormSpec("layer", self.norm_eps, bias=True),
            position=PositionSpec(causal=True),
            gated=False,
            attention_bias=True,
            mlp_bias=True,
            final_norm=number == self.layers - 1,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        fields = ConfigFields(config, where)
        fields.require({**ENCODER_ONLY, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False})
        width, heads = fields.integer("n_embd", 768), fields.integer("n_head", 12)
        fields.multiple("n_embd", width, "n_head", heads)
        special = {
            field: config[field] for field in ("pad_token_id", "bos_token_id", "eos_token_id") if field in config
        }
        return cls(
            model_type=config["model_type"],
            layers=fields.integer("n_layer", 12),
            width=width,
            heads=heads,
            intermediate=fields.integer("n_inner", 4 * width),
            activation=fields.activation("activation_function", "gelu_new"),
            norm_eps=fields.positive("layer_norm_epsilon", 1e-5),
            vocab_size=fields.integer("vocab_size", 50257),
            max_positions=fields.integer("n_positions", 1024),
            special_tokens=json.dumps(special),
            tied_head=fields.flag("tie_word_embeddings", True),
        )

    def published_config(self) -> dict[str, Any]:
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            "n_layer": self.layers,
            "n_embd": self.width,
            "n_head": self.heads,
            "n_inner": self.intermediate,
            "activation_function": self.activation,
            "layer_norm_epsilon": self.norm_eps,
            "vocab_size": self.vocab_size,
            "n_positions": self.max_positions,
            "tie_word_embeddings": self.tied_head,
            **json.loads(self.special_tokens),
            "dtype": "float32",
        }

    def published_tensors(self) -> Iterator[PublishedTensor]:
        width, wide = self.width, self.intermediate
        yield table_tensor("wte", ("embed", "word"), self.vocab_size, width)
        yield table_tensor("wpe", ("embed", "position"), self.max_positions, width)
        for number in range(self.layers):
            name, path = f"h.{number}", layer_path(number)
            yield from norm_tensors(f"{name}.ln_1", (path, "attention_norm"), width)
            joint = [(path, "attention", part) for part in ("query", "key", "value")]
            yield from _kernels(f"{name}.attn.c_attn", joint, width, width)
            yield from _kernels(f"{name}.attn.c_proj", [(path, "attention", "output")], width, width)
            yield from norm_tensors(f"{name}.ln_2", (path, "mlp_norm"), width)
            yield from _kernels(f"{name}.mlp.c_fc", [(path, "intermediate")], width, wide)
            yield from _kernels(f"{name}.mlp.c_proj", [(path, "output")], wide, width)
        yield from norm_tensors("ln_f", ("final_norm",), width)


def _kernels(name: str, paths: list[tuple[str, ...]], inputs: int, outputs: int) -> Iterator[PublishedTensor]:
    """Affine layers of one input, published as one kernel [in, outputs of all] and one bias."""
    total = outputs * len(paths)
    parts = [(number * outputs, (number + 1) * outputs) for number in range(len(paths))]
    for path, part in zip(paths, parts, strict=True):
        yield PublishedTensor(f"{name}.weight", (*path, "kernel"), (inputs, total), False, part, axis=1)
    for path, part in zip(paths, parts, strict=True):
        yield PublishedTensor(f"{name}.bias", (*path, "bias"), (total,), False, part)
