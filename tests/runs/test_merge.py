"""--mode=merge on whole runs: what is written is a run, and the tied end is the run that was merged."""

import jax
import numpy as np
import pytest

from mtl_jax.analysis import report
from mtl_jax.config import default
from mtl_jax.config.plain import from_plain
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import placement_from_config, restore_params
from mtl_jax.runs import merge, train
from mtl_jax.runs.build import build
from mtl_jax.runs.evaluate import evaluate
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import data_metadata

pytestmark = pytest.mark.usefixtures("standard_promotion")


def trained(config, workdir):
    folders.prepare(workdir)
    train.train(config, workdir)
    return workdir


def params_of(workdir, config, step):
    experiment = build(config)
    return jax.device_get(restore_params(experiment, placement_from_config(experiment), workdir, step).params)


def small(tiny, **changes):
    common = {
        "model__layer_type": "cnn",
        "training__steps": 4,
        "training__eval_every": 4,
        "train_tasks": ("color", "long"),
    }
    return tiny(**(common | {"sharing__trunk": "embed"} | changes))


def test_columns_of_one_run_become_one_encoder_that_is_a_run(tiny, tmp_path):
    config = small(tiny)
    run = trained(config, tmp_path / "run")
    config.merging.methods, config.merging.reference_runs = ("linear", "dare"), (str(run),)
    out = folders.prepare(tmp_path / "merged")
    result = merge.merge(config.merging, [run], out)
    assert [row["name"] for row in result["rows"]] == ["as they were", "linear", "dare", str(run)]
    assert result["rows"][0]["scores"] == folders.read_summary(run)["tasks"] == result["rows"][-1]["scores"]
    assert "dare" in report.merging_report(out, result)

    written = from_plain(folders.read_config(out))
    scores = evaluate(written, out, "best")["tasks"]
    chosen = next(row for row in result["rows"] if row["name"] == result["chosen"])
    assert scores == chosen["scores"] == folders.read_summary(out)["tasks"]
    own, one = params_of(run, config, "best"), params_of(out, written, "best")
    assert {leaf.shape[0] for leaf in jax.tree.leaves(one["layer_00"])} == {1}
    for path in ("embed", "heads"):  # the trunk and the heads stay as they were
        jax.tree.map(np.testing.assert_array_equal, one[path], own[path])
    config.merging.methods = ("linear",)
    again = folders.prepare(tmp_path / "again")
    merge.merge(config.merging, [run], again)
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0, keepdims=True), own["layer_00"])
    one = params_of(again, written, "best")["layer_00"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, mean)
    with pytest.raises(UserError, match="holds a merged run"):
        merge.merge(config.merging, [run], again)


def held(config, workdir, change=lambda params: params):
    """The folder of a finished run of no step, its parameters changed by hand."""
    experiment = build(config)
    folders.claim(folders.prepare(workdir), config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    state = experiment.init(config.seed)
    with Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        metadata = data_metadata(experiment.corpus) | {"progress": {}}
        checkpoints.save(state._replace(params=change(jax.device_get(state.params))), metadata)
    folders.write_json(workdir / "summary.json", {"step": 0, "tasks": {name: {} for name in experiment.tasks}})
    return workdir


def test_runs_of_one_seed_merge_as_the_columns_of_one_run_do(tiny, tmp_path):
    rng = np.random.default_rng(0)
    moved = {}

    def columns(params):
        for path in ("embed", "layer_00"):
            moved[path] = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), params[path])
        return params | moved

    joint = held(small(tiny, sharing__trunk="none"), tmp_path / "joint", columns)
    alone = [
        held(
            small(tiny, sharing__trunk="none", train_tasks=(task,)),
            tmp_path / task,
            lambda params, k=k: params | jax.tree.map(lambda leaf: leaf[k : k + 1], moved),
        )
        for k, task in enumerate(("color", "long"))
    ]
    merging = default.get_config().merging
    merging.methods = ("ties",)
    outs = [folders.prepare(tmp_path / name) for name in ("of_joint", "of_alone")]
    merge.merge(merging, [joint], outs[0])
    result = merge.merge(merging, alone, outs[1])
    assert [column["tasks"] for column in result["columns"]] == [["color"], ["long"]]
    config = from_plain(folders.read_config(outs[1]))
    first, second = (params_of(out, config, "best") for out in outs)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_runs_that_do_not_merge_are_named(tiny, tmp_path):
    def refused(message, *runs):
        with pytest.raises(UserError, match=message):
            merge.merge(default.get_config().merging, runs, folders.prepare(tmp_path / "out"))

    one = held(small(tiny, train_tasks=("color",)), tmp_path / "one")
    two = held(small(tiny, train_tasks=("long",), model__hidden_size=4), tmp_path / "two")
    refused("one column for all its tasks", one)
    refused(r"one and .*two differ in config\.model", one, two)
    refused("both have a head for task 'color'", one, one)
    refused(r"no config\.json", tmp_path / "nowhere")
    own = held(small(tiny, model__column_init="independent"), tmp_path / "own")
    refused(r"layer_00/\S+ started from other values in .*own \(color\) than in .*own \(long\)", own)
    refused("equal already", held(small(tiny, sharing__tied=True), tmp_path / "tied"))
    mixed = held(small(tiny, sharing__trunk="none", sharing__mixer="cross_stitch"), tmp_path / "mixed")
    refused("mixed has config.sharing.mixer = 'cross_stitch'", mixed)
    (one / "summary.json").unlink()
    refused("the run is not finished", one)
