"""Every field that may be swept reaches the step as an argument, with the value that its config has alone."""

import jax
import numpy as np
import pytest

from mtl_jax import checks
from mtl_jax.analysis.ablation import lane_program, plan, traced_fields
from mtl_jax.config import default
from mtl_jax.data.corpus import Corpus
from mtl_jax.experiment.assemble import assemble
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")

SWEEPS = {
    "penalties.l2.strength": (0.0, 0.5),
    "penalties.l2.by_layer.layer_00": (0.0, 4.0),
    "tasks.color.weight": (0.0, 3.0),
    "optimizer.learning_rate": (1e-3, 1e-2),
    "optimizer.weight_decay": (0.0, 5.0),
    "model.dropout": (0.0, 0.6),
    "model.attention_dropout": (0.0, 0.6),
    "sharing.adapter_options.dropout": (0.0, 0.6),
    "loss_weights.options.temperature": (0.5, 8.0),
    "aggregation.options.c": (0.1, 0.9),
    "meta.inner_learning_rate": (0.0, 0.5),
}


def base(tiny):
    config = tiny(
        sharing__trunk="embed",
        aggregation__method="cagrad",
        model__layer_type="transformer",
        model__num_heads=2,
        model__intermediate_size=16,
    )
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.5, scope="layer", by_layer={"layer_00": 2.0})
    config.loss_weights.method = "dwa"
    config.loss_weights.options.temperature = 2.0
    config.model.attention_dropout = 0.1
    return config


def test_each_is_an_argument(tiny):
    """Two settings of one program differ, and each takes the step that its own config takes."""
    config = base(tiny)
    corpora = lane_program.Sources()
    for field, points in SWEEPS.items():
        assert traced_fields.is_traced(field), field
        config.ablation.sweeps = type(config.ablation.sweeps)(sort_keys=False)
        default.add_sweep(config, "x", field=field, points=points, scale="linear")
        config.ablation.limits = False
        config.sharing.adapter = "lora" * field.startswith("sharing.adapter")
        if field.startswith("meta."):
            config.meta.method, config.aggregation.method, config.aggregation.options = "maml", "sum", {}
        (one,) = plan.make_plan(config, lambda c: checks.check(c, "ablate")).programs
        built = lane_program.build(one, corpora)
        moved = [flat(hyper) for hyper in built.hypers]
        assert moved[0].keys() == moved[1].keys()
        different = [path for path in moved[0] if moved[0][path] != moved[1][path]]
        assert len(different) == 1, (field, different)
        np.testing.assert_allclose([m[different[0]] for m in moved], np.asarray(points, np.float32))


def flat(tree):
    """Every number of a tree, by path and index."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {f"{jax.tree_util.keystr(path)} {at}": x for path, leaf in leaves for at, x in np.ndenumerate(leaf)}


def test_the_step_reads_them(tiny):
    """Options and factors by layer, against the step of a config that has the values built in."""
    config = base(tiny)
    config.ablation.limits = False
    for field in ("penalties.l2.by_layer.layer_00", "loss_weights.options.temperature", "aggregation.options.c"):
        default.add_sweep(config, field.split(".")[-1], field=field, points=SWEEPS[field][1:], scale="linear")
    (one,) = plan.make_plan(config, lambda c: checks.check(c, "ablate")).programs
    built = lane_program.build(one, lane_program.Sources())
    corpus: Corpus = built.experiment.corpus
    alone = assemble(traced_fields.with_values(config, one.settings[0].fields), corpus, None, None)
    results = []
    for spec, hyper in ((built.spec, built.hypers[0]), (alone.spec, alone.hyper)):
        step = jax.jit(lambda state, batch, hyper, spec=spec: train_step(spec, state, batch, hyper))
        state = alone.init(0)
        for number in range(4):
            batch = jax.tree.map(lambda leaf: leaf[None], alone.batches(0).batch(number))
            state, metrics = step(state, batch, hyper)
        results.append((state.params, metrics["alpha"]))
    for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(results[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert not np.allclose(results[0][1], 1.0, atol=1e-4)
