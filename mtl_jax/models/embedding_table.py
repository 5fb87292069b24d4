"""Tables of vectors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.activation_sharding import gather_table


class EmbeddingTable(nn.Module):
    """A table of vectors, float32 [rows, D]. An index outside of it gives NaN, never the vector of another row.

    Parameters that it is applied with may have another number of rows: attributions give each token a row of its own.
    """

    rows: int
    width: int
    scale: float

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        if self.has_variable("params", "embedding"):
            embedding = self.get_variable("params", "embedding")
        else:
            init = nn.initializers.normal(self.scale)
            embedding = self.param("embedding", init, (self.rows, self.width), jnp.float32)
        return jnp.take(gather_table(embedding), index, axis=0, mode="fill", fill_value=jnp.nan)
