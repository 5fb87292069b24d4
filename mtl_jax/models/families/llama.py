"""Llama, and the decoders whose layers are its own with a few settings changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.families.base import Architecture, PublishedTensor, dense_tensors, norm_tensors, table_tensor
from mtl_jax.models.families.config_fields import ENCODER_ONLY, ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, causal_heads
from mtl_jax.models.layers.pre_norm import HeadSpec, NormSpec, PositionSpec, PreNormLayer
from mtl_jax.models.ownership import layer_path
from mtl_jax.models.rotary import rotary_from_config

GLOBAL, LOCAL = "full_attention", "sliding_attention"
_MARKS = {GLOBAL: "g", LOCAL: "l"}


@dataclasses.dataclass(frozen=True)
class Llama(Architecture):
    """Llama 1 to 3, SmolLM2, TinyLlama (Touvron et al. 2023): normalisation first, rotary positions, fewer keys than
    queries, a gated feed-forward, attention to what stands before.

    key_heads     heads of keys and values, a divisor of `heads`
    head_width    features of each head
    rope          `rope_parameters` of config.json as JSON, with rope_theta and rope_type
    local_rope    the same of layers with local attention; "": as the others
    layer_types   a letter for each layer, g: attends to all before, l: within the window
    window        tokens that a layer with local attention sees, its own included; 0: there is none
    query_scalar  the products of attention are divided by its root; 0: by that of `head_width`
    attention_softcap, final_softcap  caps of the scores of attention and of the LM head; 0: none
    tied_head     whether the LM head is the table of words
    special_tokens  the ids of padding, begin and end in config.json, as JSON

    defaults      fields of config.json and the values that transformers takes where one is left out
    required      fields that change what the model computes, and the only value that is computed here
    activation_name  what config.json calls the activation
    bias_fields   fields of config.json that say which affine maps have an offset
    query_bias    whether queries, keys and values have one whatever it says
    head_norm     whether queries and keys are normalised
    shifted       whether normalisations count from 1, and words are scaled by √D
    post_norm     whether normalisations also follow attention and feed-forward
    """

    published = "LlamaModel"
    causal_model = "LlamaForCausalLM", "model."
    words = "embed_tokens.weight"
    causal: ClassVar[bool] = True
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "head_dim": None,
        "intermediate_size": 11008,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    }
    required: ClassVar[Mapping[str, Any]] = {**ENCODER_ONLY, "pretraining_tp": 1}
    activation_name: ClassVar[str] = "hidden_act"
    bias_fields: ClassVar[tuple[str, ...]] = ("attention_bias", "mlp_bias")
    query_bias: ClassVar[bool] = False
    head_norm: ClassVar[bool] = False
    shifted: ClassVar[bool] = False
    post_norm: ClassVar[bool] = False

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
    rope: str
    special_tokens: str
    tied_head: bool
    local_rope: str = ""
    layer_types: str = ""
    window: int = 0
    query_scalar: float = 0.0
    attention_softcap: float = 0.0
    final_softcap: float = 0.0
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02

    @property
    def max_length(self) -> int:
        return self.max_positions

    def embeddings(self, dtype: Any = jnp.float32) -> nn.Module:
        scale = self.width**0.5 if self.shifted else 1.0
        return WordEmbeddings(self.vocab_size, self.width, self.initializer_range, dtype, scale=scale)

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        return causal_heads(self.published.removesuffix("Model"), "model.")

    def layer(self, number: int, dtype: Any = jnp.float32) -> PreNormLayer:
        is_local = self._is_local(number)
        rope = json.loads(self.local_rope if is_local and self.local_rope else self.rope)
        window = (self.window - 1 if self.causal else self.window) if is_local else 0
        scale = self.query_scalar**-0.5 if self.query_scalar else None
        return PreNormLayer(
            hidden_size=self.width,
            heads=HeadSpec(self.heads, self.key_heads, self.head_width, scale, self.attention_softcap, self.head_norm),
            intermediate_size=self.intermediate,
            activation=self.activation,
            norm=NormSpec("rms", self.norm_eps, shifted=self.shifted),
            position=PositionSpec(
                rotary_from_config(rope, self.head_width, "rope_parameters"), window, causal=self.causal
            ),
            attention_bias=self.attention_bias or self.query_bias,
            output_bias=self.attention_bias,
            mlp_bias=self.mlp_bias,
            post_norm=self.post_norm,
            final_norm=number == self.layers - 1,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    def _is_local(self, number: int) -> bool:
        return bool(self.layer_types) and self.layer_types[number] == _MARKS[LOCAL]

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        fields, known = ConfigFields(config, where), cls.defaults
        fields.require(cls.required)

        def integer(field: str) -> int:
            return fields.integer(field, known[field])

        width, heads = integer("hidden_size"), integer("num_attention_heads")
        if fields.value("head_dim", known["head_dim"]) is None:
            fields.multiple("hidden_size", width, "num_attention_heads", heads)
        key_heads = fields.integer("num_key_value_heads", known["num_key_value_heads"] or heads)
        fields.multiple("num_attention_heads", heads, "num_key_value_heads", key_heads)
        head_width = fields.integer("head_dim", known["head_dim"] or width // heads)
        fields.multiple("head_dim", head_width, "2:", 2)
        layers = integer("num_hidden_layers")
        special = {
            field: config[field] for field in ("pad_token_id", "bos_token_id", "eos_token_id") if field in config
        }
        architecture = cls(
            model_type=config["model_type"],
            layers=layers,
            width=width,
            heads=heads,
            key_heads=key_heads,
            head_width=head_width,
            intermediate=integer("intermediate_size"),
            activation=fields.activation(cls.activation_name, known[cls.activation_name]),
            norm_eps=fields.positive("rms_norm_eps", known["rms_norm_eps"]),
            vocab_size=integer("vocab_size"),
            max_positions=integer("max_position_embeddings"),
            special_tokens=json.dumps(special),
            tied_head=fields.flag("tie_word_embeddings", known["tie_word_embeddings"]),
            **{field: fields.flag(field, False) for field in cls.bias_fields},
            **cls.position_fields(fields, layers),
            **cls.more_fields(fields),
        )
        for rope in filter(None, (architecture.rope, architecture.local_rope)):
            rotary_from_config(json.loads(rope), head_width, f"{where}: rope_parameters")
        return architecture

    @classmethod
    def position_fields(cls, fields: ConfigFields, layers: int) -> dict[str, Any]:
        """The dataclass's fields about positions: `rope`, and those of local attention where there is any."""
        del layers
        return {"rope": rope_parameters(fields, "rope_theta", cls.defaults["rope_theta"])}

    @classmethod
    def more_fields(cls, fields: ConfigFields) -> dict[str, Any]:
        """The dataclass's fields that Llama has not, from config.json."""
        del fields
        return {}

    def published_config(self) -> dict[str, Any]:
        rope = json.loads(self.rope)
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_heads,
            "head_dim": self.head_width,
            "intermediate_size": self.intermediate,
            self.activation_name: self.activation,
            "rms_norm_eps": self.norm_eps,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            "tie_word_embeddings": self.tied_head,
            **{field: getattr(self, field) for field in self.bias_fields},
            **self.published_positions(rope),
            **json.loads(self.special_tokens),
            "dtype": "float32",
        }

    def published_positions(self, rope: dict[str, Any]) -> dict[str, Any]:
        """Fields of config.json about positions, and those of a subclass. Both ways to write them: of transformers
        before 5, and since.
        """
        scaling = None if rope["rope_type"] == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
        return {"rope_theta": rope["rope_theta"], "rope_parameters": rope} | (
            {"rope_scaling": scaling} if scaling else {}
        )

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
                yield from dense_tensors(published, place, width, outputs, bias=self.attention_bias or self.query_bias)
            for letter in "qk" if self.head_norm else "":
                place = (path, "attention", f"{heads[letter][0]}_norm")
                yield from norm_tensors(f"{name}.self_attn.{letter}_norm", place, self.head_width, False)
            inner, output = self.heads * self.head_width, (path, "attention", "output")
            yield from dense_tensors(f"{name}.self_attn.o_proj", output, inner, width, bias=self.attention_bias)
            for published, part in self._norm_names().items():
                yield from norm_tensors(f"{name}.{published}", (path, part), width, False)
            yield from dense_tensors(f"{name}.mlp.gate_proj", (path, "intermediate"), width, wide, bias=self.mlp_bias)
            yield from dense_tensors(f"{name}.mlp.up_proj", (path, "gate"), width, wide, bias=self.mlp_bias)
            yield from dense_tensors(f"{name}.mlp.down_proj", (path, "output"), wide, width, bias=self.mlp_bias)
        yield from norm_tensors("norm", ("final_norm",), width, False)

    def _norm_names(self) -> dict[str, str]:
        """Normalisations after attention: published name -> name here."""
        if not self.post_norm:
            return {"post_attention_layernorm": "mlp_norm"}
        return {
            "post_attention_layernorm": "attention_post_norm",
            "pre_feedforward_layernorm": "mlp_norm",
            "post_feedforward_layernorm": "mlp_post_norm",
        }


class LocalLlama(Llama):
    """Decoders of which some layers, or all, attend within a window."""

    def published_positions(self, rope: dict[str, Any]) -> dict[str, Any]:
        kinds = {mark: kind for kind, mark in _MARKS.items()}
        types = [kinds[mark] for mark in self.layer_types[: self.layers]]
        return {**super().published_positions(rope), "sliding_window": self.window or None, "layer_types": types}


@dataclasses.dataclass(frozen=True)
class Mistral(LocalLlama):
    """Mistral (Jiang et al. 2023): Llama whose layers all attend within a window."""

    published = "MistralModel"
    causal_model = "MistralForCausalLM", "model."
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "max_position_embeddings": 4096 * 32,
    }
    required: ClassVar[Mapping[str, Any]] = {**ENCODER_ONLY, "layer_types": None}
    bias_fields: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def position_fields(cls, fields: ConfigFields, layers: int) -> dict[str, Any]:
        window = 4096 if "sliding_window" not in fields.config else fields.value("sliding_window", 0)
        if window:
            window = fields.integer("sliding_window", 4096)
        types = _MARKS[LOCAL if window else GLOBAL] * layers
        return {**super().position_fields(fields, layers), "window": window, "layer_types": types}

    def published_positions(self, rope: dict[str, Any]) -> dict[str, Any]:
        positions = super().published_positions(rope)
        del positions["layer_types"]
        return positions


@dataclasses.dataclass(frozen=True)
class Qwen2(LocalLlama):
    """Qwen2 and 2.5 (Yang et al. 2024): Llama with offsets of queries, keys and values; its higher layers may attend
    within a window.
    """

    published = "Qwen2Model"
    causal_model = "Qwen2ForCausalLM", "model."
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "num_key_value_heads": 32,
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    }
    required: ClassVar[Mapping[str, Any]] = ENCODER_ONLY
    bias_fields: ClassVar[tuple[str, ...]] = ()
    query_bias: ClassVar[bool] = True

    @classmethod
    def position_fields(cls, fields: ConfigFields, layers: int) -> dict[str, Any]:
        used = fields.flag("use_sliding_window", False) and fields.value("sliding_window", 4096)
        window = fields.integer("sliding_window", 4096) if used else 0
        first = fields.integer("max_window_layers", 28, 0)
        usual = [LOCAL if window and number >= first else GLOBAL for number in range(layers)]
        types = layer_types(fields, layers, usual)
        if not window and _MARKS[LOCAL] in types:
            raise UserError(f"{fields.where}: layer_types has {LOCAL!r}, but there is no sliding_window")
        return {**super().position_fields(fields, layers), "window": window, "layer_types": types}

    def published_positions(self, rope: dict[str, Any]) -> dict[str, Any]:
        first = self.layer_types.find(_MARKS[LOCAL])
        windows = {"use_sliding_window": bool(self.window), "max_window_layers": self.layers if first < 0 else first}
        return {**super().published_positions(rope), **windows}


@dataclasses.dataclass(frozen=True)
class Qwen3(Qwen2):
    """Qwen3 (Yang et al. 2025): Qwen2 with normalised queries and keys instead of offsets."""

    published = "Qwen3Model"
    causal_model = "Qwen3ForCausalLM", "model."
    defaults: ClassVar[Mapping[str, Any]] = {**Qwen2.defaults, "head_dim": 128}
    bias_fields: ClassVar[tuple[str, ...]] = ("attention_bias",)
    query_bias: ClassVar[bool] = False
    head_norm: ClassVar[bool] = True


def rope_parameters(fields: ConfigFields, older: str, theta: float, layer_type: str = "", scaled: bool = True) -> str:
    """`rope_parameters` of config.json, of `layer_type` where its entries are by type, as JSON. Files written before
    transformers 5 have the base in a field of its own, `older`, and with `scaled` a type in rope_scaling.
    """
    entry = fields.value("rope_parameters", {})
    entry = dict((entry.get(layer_type) or {}) if layer_type in entry else entry if not layer_type else {})
    scaling = fields.value("rope_scaling", {}) if scaled else {}
    if not isinstance(scaling, dict):
        raise UserError(f"{fields.where}: rope_scaling = {scaling!r}; it has to be an object")
    entry = {**scaling, **entry}
    entry["rope_type"] = entry.get("rope_type") or entry.pop("type", None) or "default"
    entry.pop("type", None)
    entry["rope_theta"] = ConfigFields(entry, f"{fields.where}: rope_parameters").positive(
        "rope_theta", fields.positive(older, theta)
    )
    if entry["rope_type"] == "yarn":
        entry.setdefault("original_max_position_embeddings", fields.integer("max_position_embeddings", 2048))
    return json.dumps(entry, sort_keys=True)


def layer_types(fields: ConfigFields, layers: int, usual: list[str]) -> str:
    """A letter for each layer, from layer_types of config.json."""
    types = fields.value("layer_types", usual)
    if len(types) < layers or not set(types) <= _MARKS.keys():
        raise UserError(
            f"{fields.where}: layer_types = {types!r}; it has to name {GLOBAL!r} or {LOCAL!r} for each of the "
            f"{layers} layers"
        )
    return "".join(_MARKS[kind] for kind in types[:layers])
