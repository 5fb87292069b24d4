"""`config.init_from`: what is taken from a finished run by name, and old tasks that stay as they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.config.plain import from_plain
from mtl_jax.data.sampler import evaluation_batches
from mtl_jax.errors import UserError
from mtl_jax.experiment.budget import steps_per_epoch
from mtl_jax.experiment.inputs import make_mixing
from mtl_jax.runs import evaluate, predict, train
from mtl_jax.runs.build import build
from mtl_jax.runs.init_from import load_run
from mtl_jax.storage import workdir as folders
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.state import importance

pytestmark = pytest.mark.usefixtures("standard_promotion")

QUICK = {
    "tasks__tags__options": {},
    "training__steps": 3,
    "training__eval_every": 0,
    "training__checkpoint_every": 0,
    "evaluation__checkpoint": "last",
}
OLD = ("color", "tags")


def trained(config, folder):
    checks.check(config)
    return train.train(config, folders.prepare(folder))


def old_run(tiny, folder, **changes):
    """A finished run on two of the tasks; `long` reads the data set of `tags`, and keeps out of it here."""
    trained(tiny(train_tasks=OLD, **{**QUICK, **changes}), folder)
    return folder


def third_task(tiny, run, tmp_path, **changes):
    """The config that adds a third task, with a data set of its own, to a run."""
    config = tiny(**{**QUICK, "init_from__run": str(run), **changes})
    config.datasets.more = config.datasets.sentences.copy_and_resolve_references()
    config.tasks.long.dataset = "more"
    return config


def params_of(folder):
    config = from_plain(folders.read_config(folder))
    return load_run(config, folder, "last")


def predictions(folder, tmp_path, tasks=OLD):
    source = tmp_path / "input.jsonl"
    lines = [{"text": "w1 red w7 unknown", "words": ["w1", "red", "never", "w3"]}, {"text": "blue", "words": ["w2"]}]
    source.write_text("\n".join(map(json.dumps, lines)))
    target = tmp_path / f"{folder.name}.jsonl"
    config = from_plain(folders.read_config(folder))
    checks.check(config, "predict")
    predict.predict(config, folder, ["last"], str(source), str(target), tasks)
    return target.read_text()


SHARING = {
    "hard": {},
    "columns": {"sharing__trunk": "embed"},
    "cross_stitch": {"sharing__trunk": "embed", "sharing__mixer": "cross_stitch"},
    "attention": {"sharing__trunk": "embed", "sharing__mixer": "attention"},
    "mmoe": {"sharing__trunk": "embed", "sharing__mixer": "mmoe", "sharing__mixer_options": {"experts": 2}},
    "ple": {
        "sharing__trunk": "embed",
        "sharing__mixer": "ple",
        "sharing__mixer_options": {"shared": 1, "private": 1},
        "model__num_layers": 2,
    },
    "adapters": {"sharing__adapter": "bottleneck", "sharing__adapter_options": {"size": 2}},
}


@pytest.mark.parametrize("way", SHARING)
def test_frozen_tasks_predict_as_before_to_the_last_bit(tiny, tmp_path, way):
    old = old_run(tiny, tmp_path / "old", **SHARING[way])
    config = third_task(tiny, old, tmp_path, init_from__freeze=OLD, **SHARING[way])
    summary = trained(config, tmp_path / "new")
    assert predictions(tmp_path / "new", tmp_path) == predictions(old, tmp_path)
    assert summary["init_from"]["run"] == str(old) and "heads/color" in summary["init_from"]["taken"]
    start = build(config).init_params(0)
    _, after, _ = params_of(tmp_path / "new")
    assert np.abs(after["heads/long/output/kernel"] - np.asarray(start["heads"]["long"]["output"]["kernel"])).max() > 0


def test_a_new_adapter_on_a_frozen_trunk(tiny, tmp_path):
    """Adapters that the run did not have begin as the identity, and those of frozen tasks stay so."""
    old = old_run(tiny, tmp_path / "old")
    adapter = {"sharing__adapter": "bottleneck", "sharing__adapter_options": {"size": 2}}
    trained(
        third_task(tiny, old, tmp_path, init_from__freeze=OLD, init_from__untrained=OLD, **adapter), tmp_path / "new"
    )
    assert predictions(tmp_path / "new", tmp_path) == predictions(old, tmp_path)
    _, after, _ = params_of(tmp_path / "new")
    assert [bool(leaf.any()) for leaf in after["adapter_00/up/kernel"]] == [False, False, True]


def test_old_tasks_without_their_data(tiny, tmp_path):
    """Their data sets have no place: nothing is read, and they predict as before; the folder evaluates by itself."""
    old = old_run(tiny, tmp_path / "old")
    config = third_task(tiny, old, tmp_path, init_from__freeze=OLD, init_from__untrained=OLD)
    for name in ("texts", "sentences"):
        config.datasets[name].path, config.datasets[name].splits = "", ConfigDict()
    summary = trained(config, tmp_path / "new")
    assert predictions(tmp_path / "new", tmp_path) == predictions(old, tmp_path)
    assert [task for task, scores in summary["tasks"].items() if scores] == ["long"]
    old.rename(tmp_path / "gone")
    again = evaluate.evaluate(config, tmp_path / "new", "last")
    assert again["tasks"] == summary["tasks"]


def test_untrained_tasks_are_scored_but_in_no_batch(tiny, tmp_path):
    old = old_run(tiny, tmp_path / "old")
    config = third_task(tiny, old, tmp_path, init_from__untrained=OLD, data__mixing="temperature")
    experiment = build(config)
    layout = experiment.corpus.layout
    sampler = experiment.batches(0)
    assert {layout.datasets[d] for step in range(4) for d in sampler.indices(step)[0]} == {"more"}
    assert make_mixing(config).kind == "temperature"
    assert list(steps_per_epoch(config, experiment.corpus)) == ["more"]
    start = build(config).init_params(0)
    _, before, _ = params_of(old)
    summary = trained(config, tmp_path / "new")
    assert set(summary["tasks"]) == {"color", "tags", "long"}
    _, after, _ = params_of(tmp_path / "new")
    assert (after["heads/color/output/kernel"] == before["heads/color/output/kernel"]).all()  # no gradient reaches it
    assert np.abs(after["layer_00/forward/input/kernel"] - before["layer_00/forward/input/kernel"]).max() > 0
    assert np.asarray(start["embed"]["word"]["embedding"]).shape == before["embed/word/embedding"].shape


def test_by_name(tiny, tmp_path):
    """A trunk into columns, columns into a trunk, another name of a task, rows by word and by class."""
    few = {f"datasets__{name}__max_examples": {"train": 9} for name in ("texts", "sentences")}
    old = old_run(tiny, tmp_path / "old", sharing__trunk="embed", **few)
    _, before, _ = params_of(old)
    config = third_task(tiny, old, tmp_path, init_from__tasks={"long": "tags"}, init_from__vocabulary="data")
    del config.datasets.more
    config.tasks.long.dataset = "sentences"
    config.tasks.color.classes = ("green", "purple", "red", "blue")
    experiment = build(config)
    params = experiment.by_name(experiment.init_params(0))
    layer = np.asarray(params["layer_00"]["forward"]["input"]["kernel"])
    assert layer.shape[0] == 1
    np.testing.assert_array_equal(layer[0], before["layer_00/forward/input/kernel"].mean(axis=0))
    old_words = params_of(old)[0].corpus.tokenizer
    for word in ("red", "w3"):
        here, there = experiment.corpus.tokenizer.token_to_id(word), old_words.token_to_id(word)
        np.testing.assert_array_equal(
            np.asarray(params["embed"]["word"]["embedding"])[0, here], before["embed/word/embedding"][0, there]
        )
    head, old_head = np.asarray(params["heads"]["color"]["output"]["kernel"]), before["heads/color/output/kernel"]
    np.testing.assert_array_equal(head[:, [3, 0, 2]], old_head)  # blue, green, red
    start = experiment.beginning.describe()
    assert "no name of its rows" in str(start["new"]) and "3 of 4 names" in start["partly"]["heads/color/output/kernel"]
    assert "words are those of the run" in start["partly"]["embed/word/embedding"]
    config.sharing.trunk = "none"
    columns = build(config).init_params(0)["layer_00"]["forward"]["input"]["kernel"]
    owner = {"color": 0, "tags": 1, "long": 1}  # `long` continues `tags`
    for k, task in enumerate(("color", "tags", "long")):
        np.testing.assert_array_equal(columns[k], before["layer_00/forward/input/kernel"][owner[task]])


def test_shared_parameters_are_drawn_to_the_values_of_the_run(tiny, tmp_path):
    """λ → ∞ by the proximal operator leaves the trunk where it was."""
    old = old_run(tiny, tmp_path / "old")
    penalty = {"kind": "l2_to_anchor", "strength": 1e9, "shared": True, "proximal": True}
    config = third_task(tiny, old, tmp_path)
    default.add_penalty(config, "stay", **penalty)
    trained(config, tmp_path / "new")
    _, before, _ = params_of(old)
    _, after, _ = params_of(tmp_path / "new")
    np.testing.assert_allclose(after["embed/word/embedding"], before["embed/word/embedding"], atol=1e-6)
    assert np.abs(after["heads/color/output/kernel"] - before["heads/color/output/kernel"]).max() > 1e-4


def test_elastic_weight_consolidation(tiny, tmp_path):
    """The Fisher information of the old tasks' rows against one gradient after another, and what Ω makes of it."""
    old = old_run(tiny, tmp_path / "old")
    config = third_task(tiny, old, tmp_path, init_from__untrained=OLD)
    options = {"importance": "fisher"}
    default.add_penalty(config, "ewc", kind="l2_to_anchor", strength=10.0, shared=True, options=options)
    experiment = build(config)
    state = experiment.init(0)
    expected, count = 0.0, 0.0
    for number, name in enumerate(("texts", "sentences")):
        layout = dataclasses.replace(
            experiment.corpus.layout, candidates=((experiment.corpus.layout.datasets.index(name),),)
        )
        objective = experiment.objective_for(layout)._replace(dropout=False)

        def loss(table, batch, objective=objective, number=number):
            params = {**state.params, "embed": {"word": {"embedding": table}}}
            return terms.loss_contributions(objective, params, batch, experiment.hyper, None, jnp.ones(3))[number]

        gradient = jax.jit(jax.grad(loss))
        for batch in evaluation_batches(experiment.corpus.rows[name]["train"], layout, 1):
            expected += np.asarray(gradient(state.params["embed"]["word"]["embedding"], batch), np.float64) ** 2
            count += float(terms.loss_denominators(objective, batch, experiment.hyper)[number])
    weights = importance(state.anchor)
    np.testing.assert_allclose(weights["embed/word/embedding"], expected / count, rtol=1e-4, atol=1e-12)
    flat = flatten(state.params)
    moved = {path: leaf + 0.1 for path, leaf in flat.items()}
    value = experiment.spec.objective.penalties["ewc"].value(moved, state.anchor, {})
    np.testing.assert_allclose(value, 0.01 * sum(float(leaf.sum()) for leaf in weights.values()), rtol=1e-4)
    summary = trained(config, tmp_path / "new")
    assert summary["penalties"]["ewc"]["strength"] == 10.0
    config.datasets.texts.path, config.datasets.texts.splits = "", ConfigDict()
    config.datasets.sentences.path, config.datasets.sentences.splits = "", ConfigDict()
    with pytest.raises(UserError, match="measured on the training data of earlier tasks"):
        build(config).init(0)


def test_what_cannot_be_is_said(tiny, tmp_path):
    old = old_run(tiny, tmp_path / "old", sharing__trunk="embed")
    for changes, message in (
        ({"init_from__run": str(tmp_path / "nowhere")}, "config.init_from.run: .*nowhere: no config.json"),
        ({"init_from__tasks": {"long": "ner"}}, "has no task 'ner'; its tasks are color, tags"),
        ({"init_from__freeze": ("long",)}, "heads/long/.* is of a frozen or untrained task, but not all of it is of"),
        ({"init_from__freeze": ("color",), "model__hidden_size": 4}, "its shape is .* in the run and .* here"),
        ({"tokenizer__lowercase": True}, "config.tokenizer: differs from that of"),
        ({"init_from__run": "", "init_from__freeze": ("color",)}, "config.init_from.freeze: .*has no effect here"),
        ({"init_from__untrained": ("tags", "color", "long")}, "names all tasks"),
        ({"init_from__untrained": ("nobody",)}, "config.init_from.untrained: 'nobody' is none of"),
        (
            {"init_from__freeze": ("color",), "sharing__mixer": "cross_stitch", "sharing__trunk": "embed"},
            "also of tags, which would go on learning",
        ),
    ):
        config = third_task(tiny, old, tmp_path, **changes)
        with pytest.raises(UserError, match=message):
            checks.check(config)
            build(config).init_params(0)
