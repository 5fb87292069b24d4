"""The network: streams, owners, and that a task with nothing shared walks the path that it walks alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.errors import UserError
from mtl_jax.models import ownership
from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.network import network
from mtl_jax.models.network_spec import DropoutRates

ROWS, LENGTH, WIDTH, VOCABULARY = 3, 8, 6, 20


def make_batch(layout: BatchLayout, seed: int = 0, drawn: list[int] | None = None) -> Batch:
    rng = np.random.default_rng(seed)
    blocks = len(layout.candidates)
    tokens = rng.integers(1, VOCABULARY, (blocks, ROWS, LENGTH)).astype(np.int32)
    segment = np.broadcast_to(np.repeat([1, 2, 0], [3, 3, 2]), tokens.shape).astype(np.int32)
    position = np.broadcast_to(np.array([0, 1, 2, 0, 1, 2, 0, 0]), tokens.shape).astype(np.int32)
    dataset = np.array(drawn if drawn is not None else [c[0] for c in layout.candidates], np.int32)
    row = rng.integers(0, 100, (blocks, ROWS)).astype(np.int32)
    slots = np.zeros((blocks, ROWS, 2), np.int32)
    return Batch(dataset, row, tokens, segment, position, np.zeros_like(tokens), slots, slots + 3, slots, {})


def make_network(layout, owners, **options):
    layers = [LAYERS["bilstm"](hidden_size=3), LAYERS["cnn"](hidden_size=WIDTH, residual=False)]
    return network(WordEmbeddings(VOCABULARY, WIDTH), layers, owners, layout, **options)


PAIR = BatchLayout(("a", "b"), ("x", "y", "z"), (0, 0, 1), ((0,), (1,)))


def run(layout, owners, params, batch, dropout=None, key=None, **options):
    return make_network(layout, owners, **options).apply(params, batch, dropout, key).hidden


def random_params(layout, owners):
    return make_network(layout, owners, column_init="independent").init(jax.random.key(1))


@pytest.mark.parametrize("trunk", ["all", "none", "embed", "layer_00"])
@pytest.mark.parametrize("columns", ["vmap", "map", "unroll"])
def test_every_task_sees_its_own_column(trunk, columns):
    """Against one plain network for each task, built from the slices that it owns."""
    owners = ownership.assign_owners(PAIR.tasks, 2, trunk)
    params, batch = random_params(PAIR, owners), make_batch(PAIR)
    hidden = run(PAIR, owners, params, batch, column_execution=columns)
    for k, task in enumerate(PAIR.tasks):
        block = PAIR.dataset_of[k]
        x = [a[block] for a in (batch.tokens, batch.position, batch.token_type, batch.segment)]
        column = {path: jax.tree.map(lambda leaf, o=owners[path][k]: leaf[o], params[path]) for path in owners}
        y = WordEmbeddings(VOCABULARY, WIDTH).apply({"params": column["embed"]}, *x)
        y = LAYERS["bilstm"](hidden_size=3).apply({"params": column["layer_00"]}, y, x[3])
        y = LAYERS["cnn"](hidden_size=WIDTH, residual=False).apply({"params": column["layer_01"]}, y, x[3])
        np.testing.assert_allclose(hidden[task], y, atol=1e-6)


def test_a_tree_of_tasks():
    owners = ownership.assign_owners(
        PAIR.tasks, 2, "embed", {"layer_00": (("x", "z"), ("y",)), "layer_01": (("x",), ("z",), ("y",))}
    )
    assert owners == {"embed": (0, 0, 0), "layer_00": (0, 1, 0), "layer_01": (0, 1, 2)}
    params, batch = random_params(PAIR, owners), make_batch(PAIR)
    hidden = run(PAIR, owners, params, batch)
    changed = jax.tree.map(lambda leaf: leaf.at[1].add(0.5), params["layer_00"])
    after = run(PAIR, owners, {**params, "layer_00": changed}, batch)
    assert np.allclose(hidden["x"], after["x"]) and np.allclose(hidden["z"], after["z"])
    assert not np.allclose(hidden["y"], after["y"])


@pytest.mark.parametrize("trunk", ["all", "none", "embed"])
def test_drawn_blocks_equal_blocks_of_their_own(trunk):
    owners = ownership.assign_owners(PAIR.tasks, 2, trunk)
    drawn = BatchLayout(PAIR.datasets, PAIR.tasks, PAIR.dataset_of, ((0, 1), (0, 1)))
    params, batch = random_params(PAIR, owners), make_batch(PAIR)
    dropout, key = DropoutRates(jnp.float32(0.3), None), jax.random.key(3)
    expected = run(PAIR, owners, params, batch, dropout, key)
    other = batch._replace(**{n: getattr(batch, n)[::-1] for n in ("dataset", "row", "tokens", "segment", "position")})
    actual = jax.jit(lambda b: run(drawn, owners, params, b, dropout, key))(other)
    for task, block in (("x", 1), ("y", 1), ("z", 0)):
        np.testing.assert_allclose(actual[task].reshape(2, ROWS, LENGTH, -1)[block], expected[task], atol=1e-6)


def test_a_column_draws_the_same_dropout_alone_and_together():
    owners = ownership.assign_owners(PAIR.tasks, 2, "none")
    params, batch = random_params(PAIR, owners), make_batch(PAIR)
    dropout, key = DropoutRates(jnp.float32(0.4), None), jax.random.key(5)
    together = run(PAIR, owners, params, batch, dropout, key)
    alone_layout = BatchLayout(("b",), ("z",), (0,), ((0,),))
    alone_batch = jax.tree.map(lambda a: a[1:], batch)._replace(dataset=np.array([0], np.int32))
    alone_owners = ownership.assign_owners(("z",), 2, "none")
    column = jax.tree.map(lambda leaf: leaf[2:], params)
    alone = run(alone_layout, alone_owners, column, alone_batch, dropout, key)
    np.testing.assert_array_equal(alone["z"], together["z"])
    assert not np.allclose(together["x"], together["y"])


def test_independent_columns_start_the_same_alone_and_together():
    together = random_params(PAIR, ownership.assign_owners(PAIR.tasks, 2, "none"))
    alone_layout = BatchLayout(("b",), ("z",), (0,), ((0,),))
    alone = random_params(alone_layout, ownership.assign_owners(("z",), 2, "none"))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[2]), alone, together)
    assert not np.allclose(together["embed"]["word"]["embedding"][0], together["embed"]["word"]["embedding"][1])


def test_layers_whose_values_are_known_are_not_drawn():
    net = make_network(PAIR, ownership.assign_owners(PAIR.tasks, 2, "none"), column_init="independent")
    drawn, partly = (net.init(jax.random.key(1), known) for known in ((), ("embed", "layer_01")))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, partly)
    jax.tree.map(np.testing.assert_array_equal, drawn["layer_00"], partly["layer_00"])
    assert not any(leaf.any() for path in ("embed", "layer_01") for leaf in jax.tree.leaves(partly[path]))


def test_dropout_bits_belong_to_rows_not_to_places():
    owners = ownership.assign_owners(PAIR.tasks, 2, "all")
    params, batch = random_params(PAIR, owners), make_batch(PAIR)
    dropout, key = DropoutRates(jnp.float32(0.4), None), jax.random.key(5)
    whole = run(PAIR, owners, params, batch, dropout, key)
    by_row = {name for name in batch._fields if getattr(batch, name) is not None} - {"dataset", "labels"}
    part = batch._replace(**{name: getattr(batch, name)[:, 1:2] for name in by_row})
    np.testing.assert_allclose(run(PAIR, owners, params, part, dropout, key)["z"], whole["z"][1:2], atol=1e-6)


def test_remat_changes_nothing():
    owners = ownership.assign_owners(PAIR.tasks, 2, "none")
    params, batch = random_params(PAIR, owners), make_batch(PAIR)

    def total(p, remat):
        return sum(h.sum() for h in run(PAIR, owners, p, batch, remat_policy=remat).values())

    plain, again = jax.grad(total)(params, "everything_saveable"), jax.grad(total)(params, "nothing_saveable")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again)


@pytest.mark.parametrize(
    ("trunk", "groups", "message"),
    [
        ("layer_07", {}, "trunk"),
        ("all", {"layer_09": ((),)}, "no layer 'layer_09'"),
        ("all", {"layer_00": (("x", "y"),)}, "in no group: z"),
        ("all", {"layer_00": (("x", "y"), ("y", "z"))}, "in two groups"),
        ("all", {"layer_00": (("x", "typo"), ("y", "z"))}, "no task 'typo'"),
        ("all", {"layer_00": ("x",)}, "tuple of task names"),
    ],
)
def test_wrong_owners_are_named(trunk, groups, message):
    with pytest.raises(UserError, match=message):
        ownership.assign_owners(PAIR.tasks, 2, trunk, groups)


def test_layers_of_one_form_are_traced_once():
    """However many there are, and whoever owns them: else a deep model takes minutes until its first step."""
    traced = []

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, segment, noise=None):
            traced.append(x.shape)
            return nn.Dense(WIDTH, dtype=x.dtype)(x)

    def count(depth, remat):
        net = network(
            WordEmbeddings(VOCABULARY, WIDTH),
            [Layer() for _ in range(depth)],
            ownership.assign_owners(PAIR.tasks, depth, "none"),
            PAIR,
            column_execution="unroll",
            remat_policy=remat,
        )
        params, batch = net.init(jax.random.key(0)), make_batch(PAIR)
        traced.clear()
        jax.clear_caches()
        jax.make_jaxpr(
            jax.grad(lambda params: sum(h.sum() for h in net.apply(params, batch, None, None).hidden.values()))
        )(params)
        return len(traced)

    for policy in ("everything_saveable", "nothing_saveable"):
        assert count(8, policy) == count(1, policy)
