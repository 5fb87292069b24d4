"""MPNet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mtl_jax.models.dropout import Noise
from mtl_jax.models.families.base import PublishedTensor, table_tensor
from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.published_heads import PublishedHead
from mtl_jax.models.families.roberta import roberta_heads
from mtl_jax.models.layers.transformer import TransformerLayer
from mtl_jax.models.relative_positions import RelativeBias
from mtl_jax.tasks.heads import HeadForm

# transformers counts buckets and distances so, whatever config.json says
BUCKETS, MAX_DISTANCE = 32, 128


class MPNetLayer(TransformerLayer):
    """The layer of BERT with a relative bias, of the encoder as a whole, on the scores of attention."""

    encoder_parts = ("relative",)

    def self_attention(self, x: jax.Array, segment: jax.Array, noise: Noise | None) -> jax.Array:
        relative = RelativeBias(BUCKETS, MAX_DISTANCE, self.num_heads, self.initializer_range, name="relative")
        return self.attention_module()(x, segment, noise, relative(x.shape[1]))


@dataclasses.dataclass(frozen=True)
class MPNet(Bert):
    """MPNet (Song et al. 2020): BERT with a relative bias next to absolute positions, without token types."""

    published = "MPNetModel"
    defaults: ClassVar[Mapping[str, int]] = {
        **{field: value for field, value in Bert.defaults.items() if field != "type_vocab_size"},
        "vocab_size": 30527,
        "pad_token_id": 1,
    }
    required: ClassVar[Mapping[str, Any]] = {**Bert.required, "relative_attention_num_buckets": BUCKETS}
    part_names: ClassVar[Mapping[str, str]] = {
        **Bert.part_names,
        "query": "attention.attn.q",
        "key": "attention.attn.k",
        "value": "attention.attn.v",
        "attention_output": "attention.attn.o",
        "attention_norm": "attention.LayerNorm",
    }

    @property
    def position_offset(self) -> int:
        return 2  # the table has padding in row 1, whatever pad_token_id says

    def layer(self, number: int, dtype: Any = jnp.float32) -> MPNetLayer:
        del number
        return MPNetLayer(**self.layer_fields(), dtype=dtype)

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        return roberta_heads("MPNet", "mpnet.", HeadForm("first", self.width, "tanh"), self.masked_form("gelu"))

    def encoder_tensors(self) -> Iterator[PublishedTensor]:
        yield table_tensor("encoder.relative_attention_bias", ("relative",), BUCKETS, self.heads)
