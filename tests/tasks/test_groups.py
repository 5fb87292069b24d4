"""Task groups: the same numbers as tasks that are computed each by itself, which a form of None forces."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.config import default
from mtl_jax.data.batch import BatchLayout
from mtl_jax.evaluation.scores import abstract_arrays, make_evaluator, placement_from_config, restore_params
from mtl_jax.runs import train
from mtl_jax.runs.build import build
from mtl_jax.storage import checkpoint
from mtl_jax.tasks import TASK_KINDS, Task, losses, make_task
from mtl_jax.tasks.groups import TaskTraits, join_heads, make_groups, split_heads, stacked_shapes
from mtl_jax.training.optimizer import OPTIMIZERS, ignores_zeros, make_optimizer
from mtl_jax.training.parameter_paths import flatten
from tests.helpers.train_steps import batch_of, step_of, steps

pytestmark = pytest.mark.usefixtures("standard_promotion")
SGD = {
    "optimizer__name": "sgd",
    "optimizer__learning_rate": 0.1,
    "optimizer__warmup_ratio": 0.0,
    "optimizer__schedule": "constant",
}
# names of the tasks of each group
GROUPS = (("one", "two"), ("few", "many"), ("small", "large"), ("ner", "pos"), ("plain", "other"))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes configs of two tasks of each of five forms, that differ in classes, class weights, scales and tags."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)

    def record():
        words = [f"w{i}" for i in rng.integers(0, 12, rng.integers(2, 7))]
        return {
            "words": words,
            "one": str(rng.integers(0, 3)),
            "two": str(rng.integers(0, 4)),
            "few": [str(i) for i in rng.choice(3, rng.integers(1, 3), replace=False)],
            "many": [str(i) for i in rng.choice(4, rng.integers(1, 4), replace=False)],
            "small": float(rng.normal()),
            "large": float(100 + 10 * rng.normal()),
            "ner": ["B-X" if word in ("w1", "w2") else "O" for word in words],
            "pos": ["B-Y" if word in ("w3", "w4") else "O" for word in words],
            "plain": [word[-1] if word[-1] in "01" else "x" for word in words],
            "other": [word[-1] if word[-1] in "012" else "x" for word in words],
        }

    for name in "abc":
        for split, count in (("train", 48), ("dev", 16)):
            lines = (json.dumps(record()) for _ in range(count))
            (tmp_path / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")

    def config_of(**changes):
        config = default.get_config()
        for name in "abc":
            splits = {split: f"{name}.{split}.jsonl" for split in ("train", "dev")}
            default.add_dataset(config, name, reader="jsonl", path=str(tmp_path), splits=splits, words="words")
        smooth = {"label_smoothing": 0.1, "focal_gamma": 1.5, "class_weights": "balanced"}
        crf = {"crf": True, "scheme": "iob2"}
        for task, kind, dataset, options in (
            ("one", "classification", "a", smooth),
            ("few", "multilabel", "a", {"label_smoothing": 0.2}),
            ("small", "regression", "b", {}),
            ("ner", "tagging", "b", crf),
            ("plain", "tagging", "c", {"class_weights": "balanced"}),
            ("other", "tagging", "a", {"class_weights": "balanced"}),
            ("two", "classification", "b", smooth),
            ("many", "multilabel", "c", {"label_smoothing": 0.2}),
            ("large", "regression", "c", {}),
            ("pos", "tagging", "c", crf),
        ):
            default.add_task(config, task, kind=kind, dataset=dataset, label=task, options=options)
        config.tokenizer.kind = "words"
        config.model.layer_type, config.model.num_layers, config.model.hidden_size = "cnn", 1, 8
        config.data.row_length, config.data.rows_per_block = 16, 8
        config.optimizer.learning_rate = 1e-2
        config.training.steps = config.training.eval_every = config.training.checkpoint_every = 4
        config.evaluation.rows_per_batch, config.evaluation.splits = 8, ("dev",)
        for field, value in changes.items():
            node = config
            *path, last = field.split("__")
            for key in path:
                node = node[key]
            node[last] = value
        return config

    return config_of


def apart(monkeypatch, config):
    """The experiment of a config in which every task is a group by itself."""
    with monkeypatch.context() as patch:
        for kind in TASK_KINDS.values():
            patch.setattr(kind, "form", Task.form)
        experiment = build(config)
    assert all(len(group.tasks) == 1 for group in experiment.spec.objective.groups)
    return experiment


def named(experiment, params):
    return flatten(experiment.by_name(jax.device_get(params)))


WAYS = {
    "hard": {},
    "drawn": {"data__mixing": "round_robin", "data__blocks_per_batch": 2},
    "columns": {"sharing__trunk": "none"},
    "pcgrad": {"aggregation__method": "pcgrad"},
    "divergences": {"loss_weights__method": "kl"},
    "maml": {"meta__method": "maml", "meta__inner_steps": 1, "meta__tasks_per_step": 4},
    "maml, drawn": {"meta__method": "maml", "meta__inner_steps": 1, "data__mixing": "size"},
    "mixture": {"sharing__readout": "mixture"},
    "micro-batches": {"training__grad_accum_steps": 2},
}


@pytest.mark.parametrize("way", WAYS)
def test_steps_are_those_of_tasks_by_themselves(make, monkeypatch, differs, way):
    config = make(**SGD, model__dropout=0.2, optimizer__clip_norm=0.5, **WAYS[way])
    grouped, alone = build(config), apart(monkeypatch, config)
    assert {tuple(sorted(g.tasks)) for g in grouped.spec.objective.groups} == {tuple(sorted(g)) for g in GROUPS}
    for path, leaf in named(grouped, grouped.init_params(0)).items():
        np.testing.assert_array_equal(leaf, named(alone, alone.init_params(0))[path], err_msg=path)
    (state, metrics), (expected, wanted) = steps(grouped, 2), steps(alone, 2)
    differs(f"losses of groups, {way}", metrics["losses"], wanted["losses"], 2e-5)
    differs(f"norms of gradients of groups, {way}", metrics["gradient_norm"], wanted["gradient_norm"], 2e-5)
    actual = named(grouped, state.params)
    for path, leaf in named(alone, expected.params).items():
        differs(f"parameters of groups, {way}", actual[path], leaf, 2e-5)


def test_scores_and_predictions_are_those_of_tasks_by_themselves(make, monkeypatch, differs):
    config = make()
    grouped, alone = build(config), apart(monkeypatch, config)
    state, _ = steps(grouped, 6)
    own = {**state.params, "heads": join_heads(alone.spec.objective.groups, grouped.by_name(state.params)["heads"])}
    evaluators = [make_evaluator(e, placement_from_config(e)) for e in (grouped, alone)]
    scores = [evaluator.score(params, "dev") for evaluator, params in zip(evaluators, (state.params, own), strict=True)]
    for task in grouped.tasks:
        differs("scores of groups", list(scores[0][task].values()), list(scores[1][task].values()), 1e-6)
    for dataset in "abc":
        actual, wanted = (
            e.predict(p, dataset, "dev").values for e, p in zip(evaluators, (state.params, own), strict=True)
        )
        assert actual.keys() == wanted.keys()
        for task, values in wanted.items():
            for name, arrays in values.items():
                for a, b in zip(actual[task][name], arrays, strict=True):
                    differs("predictions of groups", a, b, 1e-6)


def test_padding_stays_zero_and_is_in_no_file(make, tmp_path):
    config = make(optimizer__weight_decay=0.1)
    train.train(config, tmp_path / "run")
    experiment = build(config)
    with checkpoint.Checkpoints(tmp_path / "run", 1, experiment.spec.objective.groups) as checkpoints:
        shapes = abstract_arrays(jax.eval_shape(lambda: experiment.init(0)), placement_from_config(experiment))
        state = checkpoints.restore(checkpoints.latest_step, shapes)
    kernel, moments = state.params["heads"]["one + 1"]["output"]["kernel"], jax.tree.leaves(state.opt_state)
    assert kernel.shape == (2, 8, 4) and not kernel[0, :, 3].any() and np.abs(kernel[1, :, 3]).min() > 0
    assert all(np.isfinite(leaf).all() for leaf in moments)
    saved = restore_params(experiment, placement_from_config(experiment), tmp_path / "run", "last").params
    jax.tree.map(np.testing.assert_array_equal, saved, state.params)
    names = {path: leaf.shape for path, leaf in named(experiment, saved).items()}
    assert names == {path: leaf.shape for path, leaf in experiment.shapes.items()}
    assert names["heads/one/output/kernel"] == (8, 3) and names["heads/two/output/kernel"] == (8, 4)


def test_a_name_in_a_regex_takes_its_task_out_of_the_group(make):
    slow = {"slow": {"params": "^heads/two/", "lr_multiplier": 0.5}}
    config = make(**SGD, optimizer__clip_norm=0.0)
    plain, split = build(config), build(make(**SGD, optimizer__clip_norm=0.0, optimizer__param_groups=slow))
    assert {"one", "two"} <= {group.name for group in split.spec.objective.groups}
    start = named(plain, plain.init_params(0))
    moved = [
        {path: leaf - start[path] for path, leaf in named(e, steps(e, 1)[0].params).items()} for e in (plain, split)
    ]
    for task, factor in (("one", 1.0), ("two", 0.5)):
        path = f"heads/{task}/output/kernel"
        np.testing.assert_allclose(moved[1][path], factor * moved[0][path], rtol=1e-4, atol=1e-7)
    frozen = build(make(optimizer__freeze=("^heads/one/",)))
    state, _ = steps(frozen, 2)
    np.testing.assert_array_equal(
        named(frozen, state.params)["heads/one/output/kernel"], start["heads/one/output/kernel"]
    )


def test_the_program_does_not_grow_with_the_tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))

    def lines(tasks):
        config = default.get_config()
        records = [{"text": "a b c", **{f"t{k}": str(n % 3) for k in range(tasks)}} for n in range(9)]
        (tmp_path / f"{tasks}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
        default.add_dataset(
            config, "d", reader="jsonl", path=str(tmp_path), splits={"train": f"{tasks}.jsonl"}, text=("text",)
        )
        for k in range(tasks):
            default.add_task(config, f"t{k}", kind="classification", dataset="d", label=f"t{k}")
        config.tokenizer.kind, config.model.layer_type = "words", "cnn"
        config.model.num_layers, config.model.hidden_size, config.data.rows_per_block = 1, 8, 2
        experiment = build(config)
        lowered = step_of(experiment).lower(experiment.init(0), batch_of(experiment), experiment.hyper)
        return lowered.as_text().count("\n")

    assert lines(24) <= 1.01 * lines(3)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.binary_cross_entropy])
def test_padded_classes_change_neither_loss_nor_slope(loss, differs):
    rng = np.random.default_rng(0)
    scores, target = (jnp.asarray(rng.random((5, 3)), jnp.float32) for _ in range(2))
    weights, options = jnp.asarray([1.0, 2.0, 0.5]), (0.1, 2.0)
    plain, slope = jax.value_and_grad(lambda s: loss(s, target, weights, *options).sum())(scores)

    def padded(s):
        s = losses.blank_padding(jnp.pad(s, ((0, 0), (0, 2)), constant_values=7.0), 3)
        wide = jnp.pad(target, ((0, 0), (0, 2))), jnp.pad(weights, (0, 2), constant_values=1.0)
        return loss(s, *wide, *options, 3).sum()

    actual, found_slope = jax.value_and_grad(padded)(scores)
    differs("loss with padded classes", actual, plain, 2e-6)
    differs("slope with padded classes", found_slope, slope, 2e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_zeros_change_no_update_where_classes_are_padded(name):
    rng = np.random.default_rng(0)
    leaf, *gradients = ({"heads/a": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32)} for _ in range(3))

    def widened(tree):
        return jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 3))), tree)

    def updated(leaf, gradients):
        optimizer = make_optimizer(name, {}, jnp.float32(0.01), jnp.float32(0.1))
        state = optimizer.init(leaf)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, leaf)
            leaf = jax.tree.map(jnp.add, leaf, updates)
        return leaf["heads/a"]

    plain, wide = updated(leaf, gradients), updated(widened(leaf), [widened(g) for g in gradients])
    same = np.allclose(wide[:, :4], plain, rtol=1e-5, atol=1e-7) and not np.asarray(wide[:, 4:]).any()
    assert same == ignores_zeros(name)


def test_who_is_in_a_group():
    def task(name, classes, **settings):
        return make_task(name, {"kind": "classification", **settings}, "text", [str(i) for i in range(classes)])

    tasks = {
        name: task(name, classes, **settings)
        for name, classes, settings in (
            ("a", 3, {}),
            ("b", 4, {}),
            ("c", 5, {}),
            ("d", 3, {"pool": "max"}),
            ("e", 4, {"class_weights": (1, 2, 3, 4)}),
        )
    }

    def shapes(classes):
        return {"kernel": jax.ShapeDtypeStruct((2, classes), jnp.float32)}

    traits = {name: TaskTraits(shapes(len(t.names)), ()) for name, t in tasks.items()}
    groups = make_groups(tasks, traits)
    assert [group.name for group in groups] == ["a + 1", "c", "d", "e"]
    assert groups[0].values["class_count"].tolist() == [3, 4]
    assert stacked_shapes(groups[0])["kernel"].shape == (2, 2, 4)
    assert [len(group.tasks) for group in make_groups(tasks, traits, pad=False)] == [1] * 5
    heads = {name: {"kernel": np.full((2, len(t.names)), k, np.float32)} for k, (name, t) in enumerate(tasks.items())}
    again = split_heads(groups, join_heads(groups, heads))
    assert list(again) == list(tasks)
    jax.tree.map(np.testing.assert_array_equal, again, heads)


def test_entries_of_static_and_drawn_layouts():
    tasks, groups = ("p", "q", "r", "s"), (("p", "r", "s"), ("q",))
    static = BatchLayout(("x", "y"), tasks, (1, 0, 0, 1), ((0,), (1,)), groups=groups)
    entries = static.entries["p + 2"]
    assert entries.blocks.tolist() == [1, 0, 1] and entries.fixed.tolist() == [0, 1, 2]  # in the order of the tasks
    drawn = BatchLayout(("x", "y"), tasks, (1, 0, 0, 1), ((0, 1), (0, 1)), groups=groups)
    entries = drawn.entries["p + 2"]
    assert entries.fixed is None and entries.blocks.tolist() == [0, 0, 1, 1] and entries.places.tolist() == [0, 1] * 2
    assert entries.task_at.tolist() == [[1, -1], [0, 2]]
    assert drawn.member == {"p": ("p + 2", 0), "r": ("p + 2", 1), "s": ("p + 2", 2), "q": ("q", 0)}


@pytest.mark.parametrize("trunk", ["all", "none"])
def test_absent_tasks_keep_values_and_state(make, trunk):
    """Of drawn blocks a step moves the tasks of its data set alone; a task that is there moves as it does otherwise."""
    drawn = {"data__mixing": "round_robin", "sharing__trunk": trunk, "optimizer__weight_decay": 0.5}
    skipping = build(make(**drawn, optimizer__skip_absent_tasks=True))
    plain = build(make(**drawn))
    start, after = skipping.init(0), []
    for experiment in (skipping, plain):
        state, metrics = steps(experiment, 1, state=experiment.init(0)._replace(step=jnp.int32(2)))
        after.append((state, named(experiment, state.params)))
    before, present = named(skipping, start.params), dict(zip(skipping.tasks, metrics["present"].tolist(), strict=True))
    assert 0 < sum(present.values()) < len(present)
    for task, is_present in present.items():
        path = f"heads/{task}/output/kernel"
        wanted = after[1][1][path] if is_present else before[path]
        np.testing.assert_array_equal(after[0][1][path], wanted, err_msg=task)
        assert (after[1][1][path] != before[path]).any()  # of an absent task by weight decay
    if trunk == "none":
        wanted = np.where(
            np.asarray(list(present.values()))[:, None], after[1][1]["layer_00/bias"], before["layer_00/bias"]
        )
        np.testing.assert_array_equal(after[0][1]["layer_00/bias"], wanted)
    changed = [
        np.asarray(a != b).reshape(len(a), -1).any(axis=1).tolist()
        for path, leaf in jax.tree_util.tree_leaves_with_path(after[0][0].opt_state)
        if "heads small + 1" in str(path)
        for a, b in [(np.asarray(leaf), np.asarray(dict(jax.tree_util.tree_leaves_with_path(start.opt_state))[path]))]
    ]
    assert changed and {tuple(c) for c in changed} <= {(present["small"], present["large"]), (False, False)}
