"""DeBERTa-v2, DeBERTa-v3 and mDeBERTa."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models.attention import attend
from mtl_jax.models.dense import Dense, adapter_of
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.families.base import PublishedTensor, dense_tensors, norm_tensors, table_tensor
from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.config_fields import ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads, masked_head, pooled_head
from mtl_jax.models.layers.transformer import TransformerLayer, add_and_normalise
from mtl_jax.models.relative_positions import by_place, distances
from mtl_jax.tasks.heads import HeadForm

_TERMS = ("c2p", "p2c")


class Disentangled(NamedTuple):
    """Attention by content and position.

    buckets        of distances in one direction, logarithmic above a half of them; 0: each distance by itself
    max_distance   in one direction
    content_to_position, position_to_content  which terms are added to those between contents
    shares_keys    whether positions have the query and key maps of contents
    normalises     whether a LayerNorm follows the table of positions
    """

    buckets: int
    max_distance: int
    content_to_position: bool
    position_to_content: bool
    shares_keys: bool
    normalises: bool

    @property
    def span(self) -> int:
        """Rows of the table in one direction."""
        return self.buckets or self.max_distance

    def rows(self, distance: np.ndarray) -> jax.Array:
        """int32: the rows of the table for distances query minus key, 0 … 2 · span − 1."""
        if self.buckets:
            middle = self.buckets // 2
            size = np.where(np.abs(distance) < middle, middle - 1, np.abs(distance)).astype(np.float32)
            ratio = np.log(size / np.float32(middle)) / np.log(np.float32((self.max_distance - 1) / middle))
            large = np.ceil(ratio * np.float32(middle - 1)) + middle
            distance = np.where(size <= middle, distance, (large * np.sign(distance)).astype(np.int64))
        return jnp.asarray(np.clip(distance + self.span, 0, 2 * self.span - 1), jnp.int32)


class PositionTable(nn.Module):
    """The vectors of relative positions, of the encoder as a whole: float32 [2 · span, D]."""

    rows: int
    width: int
    normalises: bool
    layer_norm_eps: float
    initializer_range: float

    @nn.compact
    def __call__(self) -> jax.Array:
        init = nn.initializers.normal(self.initializer_range)
        table = self.param("embedding", init, (self.rows, self.width), jnp.float32)
        if not self.normalises:
            return table
        options = {"dtype": jnp.float32, "use_fast_variance": False, "name": "layer_norm"}
        return nn.LayerNorm(self.layer_norm_eps, **options)(table)


class DisentangledAttention(nn.Module):
    """Attention in which contents and relative positions are vectors of their own (He et al. 2021, equation 4), output
    projection, residual and LayerNorm.
    """

    width: int
    heads: int
    layer_norm_eps: float
    initializer_range: float
    dtype: Any
    terms: Disentangled

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None, table: jax.Array) -> jax.Array:
        """x [R, T, D], segment int32[R, T], table float32 [2 · span, D] -> dtype [R, T, D]."""
        terms = self.terms

        def dense(name: str) -> Dense:
            init = nn.initializers.normal(self.initializer_range)
            return Dense(self.width, dtype=self.dtype, kernel_init=init, name=name)

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, self.width // self.heads)

        maps = {name: dense(name) for name in ("query", "key", "value")}
        query, key, value = (split(maps[name](x)) for name in maps)
        scale = (self.width // self.heads * (1 + terms.content_to_position + terms.position_to_content)) ** -0.5
        length = x.shape[1]
        bias = jnp.zeros((len(x), self.heads, length, length), jnp.float32)
        distance = distances(length)
        if terms.content_to_position:
            to_key = maps["key"] if terms.shares_keys else dense("position_key")
            bias = bias + _products(query, split(to_key(table[terms.rows(-distance)])))
        if terms.position_to_content:
            to_query = maps["query"] if terms.shares_keys else dense("position_query")
            by_key = _products(key, split(to_query(table[terms.rows(distance)])))
            bias = bias + jnp.swapaxes(by_key, 2, 3)
        bias = bias * jnp.float32(scale)
        y = attend(query, key, value, segment, noise, bias=bias, scale=scale, prefix=adapter_of(self))
        y = dense("output")(y.reshape(x.shape))
        return add_and_normalise(x, dropout(noise, 1, y), self.layer_norm_eps, self.dtype)


def _products(x: jax.Array, vectors: jax.Array) -> jax.Array:
    """float32 [R, H, T, T]: of x [R, T, H, D/H] at t with the vector [2T − 1, H, D/H] of the distance from t to s."""
    return by_place(jnp.einsum("rthd,phd->rhtp", x, vectors, preferred_element_type=jnp.float32))


class DebertaLayer(TransformerLayer):
    """The layer of BERT with disentangled attention, whose table of positions belongs to the encoder as a whole."""

    terms: Disentangled | None = None

    encoder_parts = ("relative",)
    dense = (*TransformerLayer.dense, "attention/position_key", "attention/position_query")

    def self_attention(self, x: jax.Array, segment: jax.Array, noise: Noise | None) -> jax.Array:
        rows, eps, scale = 2 * self.terms.span, self.layer_norm_eps, self.initializer_range
        table = PositionTable(rows, self.hidden_size, self.terms.normalises, eps, scale, name="relative")()
        sizes = self.hidden_size, self.num_heads, eps, scale, self.dtype
        # transformers drops features of the table, too; here it is the same for all texts
        return DisentangledAttention(*sizes, self.terms, name="attention")(x, segment, noise, table)


@dataclasses.dataclass(frozen=True)
class Deberta(Bert):
    """DeBERTa-v2, DeBERTa-v3 and mDeBERTa (He et al. 2021, 2023): BERT with disentangled attention.

    position_buckets, max_relative_positions, share_att_key, norm_rel_ebd, position_biased_input: as in config.json
    pos_att_type  likewise, joined by "|"
    """

    published = "DebertaV2Model"
    defaults: ClassVar[Mapping[str, int]] = {
        **Bert.defaults,
        "hidden_size": 1536,
        "num_hidden_layers": 24,
        "num_attention_heads": 24,
        "intermediate_size": 6144,
        "vocab_size": 128100,
        "type_vocab_size": 0,
    }
    default_eps: ClassVar[float] = 1e-7
    part_names: ClassVar[Mapping[str, str]] = {
        **Bert.part_names,
        "query": "attention.self.query_proj",
        "key": "attention.self.key_proj",
        "value": "attention.self.value_proj",
    }

    position_buckets: int = 0
    max_relative_positions: int = 0
    pos_att_type: str = ""
    share_att_key: bool = False
    norm_rel_ebd: str = "none"
    position_biased_input: bool = True

    @property
    def terms(self) -> Disentangled:
        """Attention in its layers."""
        return Disentangled(
            self.position_buckets,
            self.max_relative_positions,
            *(term in self.pos_att_type.split("|") for term in _TERMS),
            self.share_att_key,
            self.norm_rel_ebd == "layer_norm",
        )

    @property
    def position_rows(self) -> int:
        return self.max_positions if self.position_biased_input else 0

    def layer(self, number: int, dtype: Any = jnp.float32) -> DebertaLayer:
        del number
        return DebertaLayer(**self.layer_fields(), terms=self.terms, dtype=dtype)

    @classmethod
    def more_fields(cls, fields: ConfigFields) -> dict[str, Any]:
        if not fields.flag("relative_attention", False):
            raise UserError(f"{fields.where}: relative_attention = false is not supported, only true")
        width = fields.integer("hidden_size", cls.defaults["hidden_size"])
        heads = fields.integer("num_attention_heads", cls.defaults["num_attention_heads"])
        fields.require({"conv_kernel_size": 0, "embedding_size": width, "attention_head_size": width // heads})
        positions = fields.value("pos_att_type", [])
        kinds = [kind.strip() for kind in positions.lower().split("|")] if isinstance(positions, str) else positions
        if not set(kinds) <= set(_TERMS):
            raise UserError(f"{fields.where}: pos_att_type = {positions!r}; supported are {', '.join(_TERMS)}")
        if (norm := fields.value("norm_rel_ebd", "none")) not in ("none", "layer_norm"):
            raise UserError(f"{fields.where}: norm_rel_ebd = {norm!r}; supported are none, layer_norm")
        reach = fields.integer("max_relative_positions", -1, -1)
        return {
            "position_buckets": max(fields.integer("position_buckets", -1, -1), 0),
            "max_relative_positions": reach if reach > 0 else fields.integer("max_position_embeddings", 512),
            "pos_att_type": "|".join(kinds),
            "share_att_key": fields.flag("share_att_key", False),
            "norm_rel_ebd": norm,
            "position_biased_input": fields.flag("position_biased_input", True),
        }

    def published_config(self) -> dict[str, Any]:
        return {
            **super().published_config(),
            "relative_attention": True,
            "position_buckets": self.position_buckets or -1,
            "max_relative_positions": self.max_relative_positions,
            "pos_att_type": [kind for kind in self.pos_att_type.split("|") if kind],
            "share_att_key": self.share_att_key,
            "norm_rel_ebd": self.norm_rel_ebd,
            "position_biased_input": self.position_biased_input,
        }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        form, prefix, masked = HeadForm("first", self.width, "gelu"), "deberta.", "cls.predictions"
        text = {"sequence": "SequenceClassification", "choice": "MultipleChoice"}
        names = (f"{masked}.transform.dense", f"{masked}.transform.LayerNorm", f"{masked}.decoder")
        biases = (f"{masked}.bias", f"{masked}.decoder.bias")
        return {
            **{
                kind: pooled_head(
                    f"DebertaV2For{name}", prefix, form, "pooler.dense", activation_field="pooler_hidden_act"
                )
                for kind, name in text.items()
            },
            **linear_heads("DebertaV2", prefix),
            "masked": masked_head("DebertaV2ForMaskedLM", prefix, self.masked_form(self.activation), names, biases),
        }

    def encoder_tensors(self) -> Iterator[PublishedTensor]:
        yield table_tensor("encoder.rel_embeddings", ("relative",), 2 * self.terms.span, self.width)
        if self.terms.normalises:
            yield from norm_tensors("encoder.LayerNorm", ("relative", "layer_norm"), self.width)

    def layer_tensors(self, name: str, path: str) -> Iterator[PublishedTensor]:
        yield from super().layer_tensors(name, path)
        if not self.share_att_key:
            added = {"key": self.terms.content_to_position, "query": self.terms.position_to_content}
            for part in (part for part, is_added in added.items() if is_added):
                published, place = f"{name}.attention.self.pos_{part}_proj", (path, "attention", f"position_{part}")
                yield from dense_tensors(published, place, self.width, self.width)
