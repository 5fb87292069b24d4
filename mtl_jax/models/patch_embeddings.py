"""Patches of pictures as vectors, in the place of word vectors: float32 [R, T, D]."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.data.batch import GRID_SIDE
from mtl_jax.models.embedding_table import EmbeddingTable


class PatchEmbeddings(nn.Module):
    """x E + E_pos (ViT: Dosovitskiy et al. 2021, equation 1), and which picture of the example it is.

    Pixels are scaled from 0 … 255 to −1 … 1.

    features       F, values of a patch
    rows, columns  of the largest grid: E_pos has a vector for each of its places
    pictures       of an example at most
    scale          deviation of the initial values of each of the three terms
    """

    features: int
    rows: int
    columns: int
    pictures: int
    width: int
    scale: float = 0.02
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array, place: jax.Array, picture: jax.Array) -> jax.Array:
        """pixels uint8[R, T, F]; place, picture int32[R, T] -> float32 [R, T, D]."""
        x = pixels.astype(jnp.float32) / 127.5 - 1.0
        init = nn.initializers.normal(self.scale * self.features**-0.5)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=init, name="projection")(x).astype(jnp.float32)
        index = place // GRID_SIDE * self.columns + place % GRID_SIDE
        x = x + EmbeddingTable(self.rows * self.columns, self.width, self.scale, name="position")(index)
        return x + EmbeddingTable(self.pictures, self.width, self.scale, name="picture")(picture)


def replace_words(
    patches: PatchEmbeddings | None, words: jax.Array, patch: jax.Array | None, pixels, position, token_type
) -> jax.Array:
    """`words` [R, T, D] with patch embeddings where `patch` bool[R, T] is True; all words where it is None."""
    if patch is None:
        return words
    return jnp.where(
        patch[:, :, None], patches(pixels, jnp.where(patch, position, 0), jnp.where(patch, token_type, 0)), words
    )
