"""Word embeddings, and what both kinds of embeddings do with an index that their tables do not have."""

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.dropout import Noise
from mtl_jax.models.embeddings import BertEmbeddings, WordEmbeddings

TOKENS = jnp.asarray([[3, 1, 4, 1], [5, 0, 0, 0]], jnp.int32)
ZERO = jnp.zeros_like(TOKENS)


def test_word_embeddings_look_up_and_drop():
    module = WordEmbeddings(vocab_size=6, width=50)
    params = module.init(jax.random.key(0), TOKENS, ZERO, ZERO, ZERO)["params"]
    assert jax.tree.map(jnp.shape, params) == {"word": {"embedding": (6, 50)}}
    x = module.apply({"params": params}, TOKENS, ZERO, ZERO, ZERO)
    np.testing.assert_array_equal(x, np.asarray(params["word"]["embedding"])[TOKENS])
    noise = Noise(jax.random.split(jax.random.key(1), 2), jnp.float32(0.5))
    dropped = np.asarray(module.apply({"params": params}, TOKENS, ZERO, ZERO, ZERO, noise))
    assert 0.3 < (dropped == 0).mean() < 0.7
    np.testing.assert_allclose(dropped[dropped != 0], 2 * np.asarray(x)[dropped != 0], rtol=1e-6)
    half = WordEmbeddings(vocab_size=6, width=50, dtype=jnp.bfloat16)
    assert half.apply({"params": params}, TOKENS, ZERO, ZERO, ZERO).dtype == jnp.bfloat16


def test_an_index_outside_of_a_table_is_never_silent():
    words = WordEmbeddings(vocab_size=5, width=8)  # token 5 has no row
    params = words.init(jax.random.key(0), ZERO, ZERO, ZERO, ZERO)
    assert np.isnan(words.apply(params, TOKENS, ZERO, ZERO, ZERO)[1, 0]).all()
    bert = BertEmbeddings(vocab_size=6, width=8, max_positions=5, position_offset=2)  # positions 0, 1, 2
    params = bert.init(jax.random.key(0), ZERO, ZERO, ZERO, ZERO)
    x = bert.apply(params, TOKENS, jnp.asarray([[0, 1, 2, 3]] * 2, jnp.int32), ZERO, ZERO)
    np.testing.assert_array_equal(np.isnan(x).any(-1), [[False, False, False, True]] * 2)


def test_one_token_type_ignores_the_types_of_the_input():
    roberta = BertEmbeddings(vocab_size=6, width=8, type_vocab=1)
    params = roberta.init(jax.random.key(0), TOKENS, ZERO, ZERO, ZERO)
    first, second = (roberta.apply(params, TOKENS, ZERO, types, ZERO) for types in (ZERO, ZERO + 1))
    np.testing.assert_array_equal(first, second)
