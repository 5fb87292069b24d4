"""Gemma 1 to 3, those that read text alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, ClassVar

from mtl_jax.models.families.config_fields import ENCODER_ONLY, ConfigFields
from mtl_jax.models.families.llama import GLOBAL, LOCAL, Llama, LocalLlama, layer_types, rope_parameters
from mtl_jax.models.families.published_heads import PublishedHead, causal_heads


@dataclasses.dataclass(frozen=True)
class Gemma(Llama):
    """Gemma (Mesnard et al. 2024): Llama with scaled word vectors and normalisations that count from 1."""

    published = "GemmaModel"
    causal_model = "GemmaForCausalLM", "model."
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "num_hidden_layers": 28,
        "hidden_size": 3072,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "intermediate_size": 24576,
        "hidden_act": "gelu_pytorch_tanh",
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }
    required: ClassVar[Mapping[str, Any]] = {**ENCODER_ONLY, "use_bidirectional_attention": False}
    bias_fields: ClassVar[tuple[str, ...]] = ("attention_bias",)
    shifted: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str):
        if config.get("hidden_act") == "gelu":  # of the first release, which meant the approximation
            config = {**config, "hidden_act": "gelu_pytorch_tanh"}
        return super().from_config(config, where)


@dataclasses.dataclass(frozen=True)
class Gemma2(LocalLlama):
    """Gemma 2 (Riviere et al. 2024): Gemma with capped scores, more normalisations, and every second layer local."""

    published = "Gemma2Model"
    causal_model = "Gemma2ForCausalLM", "model."
    defaults: ClassVar[Mapping[str, Any]] = {
        **{field: value for field, value in Gemma.defaults.items() if field != "hidden_act"},
        "hidden_activation": "gelu_pytorch_tanh",
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 9216,
    }
    required: ClassVar[Mapping[str, Any]] = Gemma.required
    activation_name: ClassVar[str] = "hidden_activation"
    bias_fields: ClassVar[tuple[str, ...]] = ("attention_bias",)
    shifted: ClassVar[bool] = True
    post_norm: ClassVar[bool] = True
    caps: ClassVar[Mapping[str, float]] = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    global_every: ClassVar[int] = 2

    @classmethod
    def position_fields(cls, fields: ConfigFields, layers: int) -> dict[str, Any]:
        every = fields.integer("sliding_window_pattern", cls.global_every)
        usual = [LOCAL if (number + 1) % every else GLOBAL for number in range(layers)]
        return {
            "rope": rope_parameters(fields, "rope_theta", cls.defaults["rope_theta"]),
            "window": fields.integer("sliding_window", 4096),
            "layer_types": layer_types(fields, layers, usual),
        }

    @classmethod
    def more_fields(cls, fields: ConfigFields) -> dict[str, Any]:
        def cap(field: str) -> float:
            default = cls.caps.get(field, 0.0)
            absent = fields.config.get(field, default) in (None, 0.0)
            return 0.0 if absent else fields.positive(field, default)

        return {
            "query_scalar": fields.positive("query_pre_attn_scalar", 256),
            "attention_softcap": cap("attn_logit_softcapping"),
            "final_softcap": cap("final_logit_softcapping"),
        }

    def published_positions(self, rope: dict[str, Any]) -> dict[str, Any]:
        return {
            **super().published_positions(rope),
            "query_pre_attn_scalar": int(self.query_scalar),
            "attn_logit_softcapping": self.attention_softcap or None,
            "final_logit_softcapping": self.final_softcap or None,
        }


@dataclasses.dataclass(frozen=True)
class Gemma3(Gemma2):
    """Gemma 3 (Kamath et al. 2025): Gemma 2 with normalised queries and keys instead of caps, every sixth layer global,
    with another base of its rotary positions.
    """

    published = "Gemma3TextModel"
    causal_model = "Gemma3ForCausalLM", "model."
    defaults: ClassVar[Mapping[str, Any]] = {
        **Gemma2.defaults,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "rope_theta": 1e6,
    }
    # transformers reads this cap and does not apply it
    required: ClassVar[Mapping[str, Any]] = {**Gemma.required, "attn_logit_softcapping": None}
    head_norm: ClassVar[bool] = True
    caps: ClassVar[Mapping[str, float]] = {}
    global_every: ClassVar[int] = 6

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        return causal_heads("Gemma3Text", "model.", token="")

    @classmethod
    def position_fields(cls, fields: ConfigFields, layers: int) -> dict[str, Any]:
        return {
            **super().position_fields(fields, layers),
            "rope": rope_parameters(fields, "rope_theta", cls.defaults["rope_theta"], GLOBAL),
            "local_rope": rope_parameters(fields, "rope_local_base_freq", 10000.0, LOCAL, scaled=False),
        }

    def published_positions(self, rope: dict[str, Any]) -> dict[str, Any]:
        local = json.loads(self.local_rope)
        return {
            **super().published_positions(rope),
            "rope_local_base_freq": local["rope_theta"],
            "rope_parameters": {GLOBAL: rope, LOCAL: local},
        }
