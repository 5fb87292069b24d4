"""Input embeddings of one column: tokens int32[R, T] to features [R, T, D].

Looked-up vectors are marked by `perturb`, so that their gradients are available, see `models.gradient_taps`. For
patches of pictures the vectors come from `patches`; a module without it takes no pictures.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.dense import Dense
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.embedding_table import EmbeddingTable
from mtl_jax.models.patch_embeddings import PatchEmbeddings, replace_words


class BertEmbeddings(nn.Module):
    """Word + position + token type, LayerNorm, dropout (Devlin et al. 2019; RoBERTa: Liu et al. 2019).

    max_positions    rows of the position table; 0 (relative or rotary positions): there is none.
    position_offset  RoBERTa's tables count positions from padding_idx + 1; 0 for BERT. Texts may have
                     max_positions − position_offset tokens.
    type_vocab       1 (RoBERTa) ignores the token types of the input; 0: there is no table.
    normalised       whether there is a LayerNorm (not in GPT-2).
    norm_bias        whether it has an offset.
    projected_width  D where the tables have fewer features (ELECTRA: Clark et al. 2020; ALBERT): an affine map after
                     dropout; 0 for none.
    """

    vocab_size: int
    width: int
    max_positions: int = 512
    type_vocab: int = 2
    position_offset: int = 0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    dtype: Any = jnp.float32
    patches: PatchEmbeddings | None = None
    normalised: bool = True
    norm_bias: bool = True
    projected_width: int = 0

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        position: jax.Array,
        token_type: jax.Array,
        segment: jax.Array,
        noise: Noise | None = None,
        patch: jax.Array | None = None,
        pixels: jax.Array | None = None,
    ) -> jax.Array:
        """tokens, position, token_type, segment int32[R, T] -> dtype [R, T, D]. The segment is not needed.

        patch bool[R, T] and pixels uint8[R, T, F] as in a `Batch`; None: no pictures.
        """
        del segment
        grid, number = position, token_type  # of the patches
        if patch is not None:
            position, token_type = jnp.where(patch, 0, position), jnp.where(patch, 0, token_type)

        def table(name, rows):
            return EmbeddingTable(rows, self.width, self.initializer_range, name=name)

        x = self.perturb("words", table("word", self.vocab_size)(tokens))
        if self.max_positions:
            x = x + table("position", self.max_positions)(position + self.position_offset)
        if self.type_vocab:
            x = x + table("token_type", self.type_vocab)(jnp.minimum(token_type, self.type_vocab - 1))
        x = replace_words(self.patches, x, patch, pixels, grid, number)
        if self.normalised:
            norm = {"dtype": jnp.float32, "use_fast_variance": False, "use_bias": self.norm_bias}
            x = nn.LayerNorm(self.layer_norm_eps, **norm, name="layer_norm")(x)
        x = dropout(noise, 0, x.astype(self.dtype))
        if not self.projected_width:
            return x
        init = nn.initializers.normal(self.initializer_range)
        return Dense(self.projected_width, dtype=self.dtype, kernel_init=init, name="projection")(x)


class WordEmbeddings(nn.Module):
    """A table of word vectors and dropout: the input of recurrent and convolutional layers, and of layers that see
    positions themselves.

    Initial values are random; vectors from a file can replace them in `word/embedding`. The vectors are multiplied by
    `scale`, rounded to the compute dtype as Gemma does.
    """

    vocab_size: int
    width: int
    initializer_range: float = 0.1
    dtype: Any = jnp.float32
    patches: PatchEmbeddings | None = None
    scale: float = 1.0

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        position: jax.Array,
        token_type: jax.Array,
        segment: jax.Array,
        noise: Noise | None = None,
        patch: jax.Array | None = None,
        pixels: jax.Array | None = None,
    ) -> jax.Array:
        """tokens int32[R, T] -> dtype [R, T, D]. Of text only the tokens are used: the layers above see the order.

        patch bool[R, T] and pixels uint8[R, T, F] as in a `Batch`; None: no pictures.
        """
        del segment
        x = self.perturb(
            "words", EmbeddingTable(self.vocab_size, self.width, self.initializer_range, name="word")(tokens)
        )
        if self.scale != 1.0:
            x = x * jnp.asarray(self.scale, self.dtype).astype(x.dtype)
        x = replace_words(self.patches, x, patch, pixels, position, token_type)
        return dropout(noise, 0, x.astype(self.dtype))
