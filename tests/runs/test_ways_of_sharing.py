"""Every way of sharing on every way in which tasks have data: train, evaluate, predict, attribute.

The ways are made from the registries, so that a new mixer, adapter or reader is walked too. The whole walk takes
minutes and is marked `slow`; what has crashed once, and one of each kind, always runs.
"""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax.analysis import attribution
from mtl_jax.config import default
from mtl_jax.data.sampler import evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.readouts import READOUTS
from mtl_jax.runs import evaluate, predict, train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders

pytestmark = pytest.mark.usefixtures("standard_promotion")
TASKS = ("tags", "color", "length")  # the head of the first stands low, its labels are fed to the second
ALL, NONE, EMBED = {"trunk": "all"}, {"trunk": "none"}, {"trunk": "embed"}
LOW, LOWEST = {"head_layers": {"tags": "layer_00"}}, {"head_layers": {"tags": "embed"}}
FED = {"cascades": {"color": ("tags",)}}
TREE = {"groups": {"layer_00": (("tags", "length"), ("color",))}}
BESIDE = {  # further parts of training that see streams and blocks
    "maml": {"meta.method": "maml", "meta.inner_steps": 1},
    "reptile": {"meta.method": "reptile"},
    "pcgrad": {"aggregation.method": "pcgrad"},
    "mgda_by_layers": {"aggregation.method": "mgda", "aggregation.gradient_storage": "layers"},
    "gradnorm": {"loss_weights.method": "gradnorm"},
    "accumulated": {"training.grad_accum_steps": 2},
}
OPTIONS = {"mmoe": {"experts": 3}, "cgc": {"shared": 1, "private": 1}, "ple": {"shared": 1, "private": 1}}
# the kernels of a CNN are no matrices, and only a transformer has keys
LAYER_TYPES = {"bottleneck": "cnn", "fusion": "cnn", "ia3": "transformer", "prefix": "transformer"}


def _mixed(name, **more):
    trunk = EMBED if MIXERS[name](3).experts else NONE
    return {**trunk, "mixer": name, "mixer_options": OPTIONS.get(name, {}), **more}


def _ways():
    ways = {
        "hard": ALL,
        "columns": NONE,
        "trunk_and_columns": {"trunk": "layer_00"},
        "tree": TREE,
        "tied": {**NONE, "tied": True},
        "hierarchy": {**ALL, **LOW},
        "hierarchy_at_embed": {**ALL, **LOWEST},
        "hierarchy_of_columns": {**NONE, **LOW},
        "hierarchy_of_a_tree": {**TREE, **LOW},
        "two_low": {**ALL, "head_layers": {"tags": "embed", "length": "layer_00"}},
        "all_low": {**ALL, "head_layers": dict.fromkeys(TASKS, "layer_00")},
        "cascade": {**ALL, **LOW, **FED},
        "cascade_at_embed": {**ALL, **LOWEST, **FED},
        "cascade_of_columns": {**NONE, **LOW, **FED},
        "cascade_at_the_top": {**ALL, **FED},
        "cascade_below_the_top": {**ALL, **FED, "head_layers": {"tags": "embed", "color": "layer_00"}},
        "cascade_of_three": {**ALL, **LOWEST, "cascades": {"color": ("tags",), "length": ("color", "tags")}},
    }
    for name in READOUTS:
        ways |= {f"read_{name}": {**ALL, "read": name}, f"read_{name}_of_columns": {**NONE, "read": name}}
        ways[f"hierarchy_read_{name}"] = {**ALL, **LOW, "read": name}
        ways[f"cascade_read_{name}"] = {**ALL, **LOW, **FED, "read": name}
    for name in ADAPTERS:
        options = {"adapter": name}
        ways |= {f"adapters_{name}": {**ALL, **options}, f"adapters_{name}_of_columns": {**NONE, **options}}
        ways[f"adapters_{name}_of_all"] = {**ALL, **options, "adapter_owner": "all"}
        ways[f"adapters_{name}_on_one_layer"] = {**ALL, **options, "adapter_layers": ("layer_00",)}
        ways[f"hierarchy_adapters_{name}"] = {**ALL, **LOW, **options}
        ways[f"cascade_adapters_{name}"] = {**ALL, **LOW, **FED, **options}
    for name in MIXERS:
        experts = MIXERS[name](3).experts
        ways[f"mixer_{name}"] = _mixed(name)
        ways[f"hierarchy_mixer_{name}"] = _mixed(name, **(LOWEST if experts else LOW))
        ways[f"cascade_mixer_{name}"] = _mixed(name, **(LOWEST if experts else LOW), **FED)
        ways[f"all_low_mixer_{name}"] = _mixed(name, head_layers=dict.fromkeys(TASKS, "embed"))
        if not experts:
            ways[f"mixer_{name}_on_one_layer"] = _mixed(name, mixer_layers=("layer_00",))
            ways[f"hierarchy_mixer_{name}_on_one_layer"] = _mixed(name, mixer_layers=("layer_00",), **LOW)
            ways[f"cascade_mixer_{name}_on_one_layer"] = _mixed(name, mixer_layers=("layer_00",), **LOW, **FED)
            ways[f"mixer_{name}_read_mixture"] = _mixed(name, readout="mixture")
    for name in ("lora", "bottleneck", "mtl_lora"):
        ways[f"mixer_mmoe_adapters_{name}"] = _mixed("mmoe", adapter=name)
        ways[f"mixer_cgc_adapters_{name}_of_all"] = _mixed("cgc", adapter=name, adapter_owner="all")
    for name, fields in BESIDE.items():
        ways[f"hierarchy_{name}"] = {**ALL, **LOW, **fields}
        ways[f"hierarchy_of_a_tree_{name}"] = {**TREE, **LOW, **fields}
    ways["cascade_maml"] = {**ALL, **LOW, **FED, **BESIDE["maml"]}
    ways["mixer_cgc_maml"] = _mixed("cgc", **BESIDE["maml"])
    ways["mixer_ple_hierarchy_at_a_gate"] = _mixed("ple", **LOW)
    ways["mixer_ple_cascade_at_a_gate"] = _mixed("ple", **LOW, **FED)
    ways["mixer_cgc_gates_at_each"] = _mixed("cgc", mixer_layers=("layer_00", "layer_01"))
    ways["mixer_mmoe_dselect_k"] = _mixed("mmoe") | {"mixer_options": {"experts": 4, "gate": "dselect_k"}}
    ways["mixer_cgc_dselect_k"] = _mixed("cgc") | {"mixer_options": {"gate": "dselect_k"}}
    return ways


WAYS = _ways()
DATA = {
    "one": {},
    "own": {},
    "drawn": {"data.mixing": "size", "data.blocks_per_batch": 2},
    "part": {"train_tasks": ("tags", "color")},
}
FAST = (
    ("hierarchy", "own"),
    ("cascade_of_columns", "drawn"),
    ("cascade_below_the_top", "own"),
    ("mixer_shared_private", "own"),
    ("cascade_mixer_cgc", "part"),
    ("mixer_ple_cascade_at_a_gate", "drawn"),
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Three training files; dev and test are the same for all data sets."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)

    def record():
        words = [f"w{i}" for i in rng.integers(0, 12, rng.integers(3, 8))]
        color = str(rng.choice(["red", "blue"]))
        words.insert(int(rng.integers(0, len(words))), color)
        tags = ["B-C" if word == color else "O" for word in words]
        return json.dumps({"words": words, "tags": tags, "color": color, "length": float(len(words))})

    for name in ("train_a", "train_b", "train_c", "dev", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(record() for _ in range(24)) + "\n")
    return folder


def config_of(texts, way, data):
    config = default.get_config()
    names = ("a", "b", "c") if data != "one" else ("a",)
    for name in names:
        splits = {"train": f"train_{name}.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
        default.add_dataset(config, name, reader="jsonl", path=str(texts), words="words", splits=splits)
    for place, task in enumerate(TASKS):
        dataset = names[place % len(names)]
        if task == "tags":
            options = {"crf": True, "scheme": "iob2"}
            default.add_task(config, task, kind="tagging", dataset=dataset, label=task, options=options)
        else:
            kind = "classification" if task == "color" else "regression"
            default.add_task(config, task, kind=kind, dataset=dataset, label=task)
    config.tokenizer.kind = "words"
    config.model.layer_type = LAYER_TYPES.get(way.get("adapter"), "bilstm" if "adapter" in way else "cnn")
    config.model.num_layers, config.model.hidden_size, config.model.dropout = 2, 8, 0.0
    config.data.row_length, config.data.rows_per_block, config.evaluation.rows_per_batch = 16, 8, 8
    config.training.steps, config.training.eval_every, config.optimizer.learning_rate = 4, 2, 1e-2
    for field, value in {**way, **DATA[data]}.items():
        node, name = config, field
        if "." in field:
            part, name = field.split(".")
            node = config[part]
        elif field in config.sharing:
            node = config.sharing
        node[name] = ConfigDict(value) if isinstance(value, dict) else value
    return config


def refused(way, data):
    """What is said where the way makes no sense on this data."""
    return "there is only one data set" if way.get("mixer") == "shared_private" and data == "one" else None


def walk(texts, folder, way, data):
    config, workdir = config_of(texts, WAYS[way], data), folders.prepare(folder / "run")
    if message := refused(WAYS[way], data):
        with pytest.raises(UserError, match=message):
            build(config)
        return
    layouts_agree(build(config))
    train.train(config, workdir)
    summary = folders.read_summary(workdir)
    tasks = tuple(config.train_tasks) or TASKS
    assert set(summary["tasks"]) == set(tasks)
    for task in tasks:
        assert np.isfinite(summary["tasks"][task]["test"]["loss"])

    again = evaluate.evaluate(config, workdir, "best")["tasks"]
    for task in tasks:
        assert again[task]["test"] == pytest.approx(summary["tasks"][task]["test"], abs=1e-6, nan_ok=True)

    target = folder / "predicted.jsonl"
    predict.predict(config, workdir, ["best"], str(texts / "test.jsonl"), str(target))
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    gold = [json.loads(line) for line in (texts / "test.jsonl").read_text().splitlines()]
    right = {"tags": [], "color": [], "length": []}
    for line, record in zip(lines, gold, strict=True):
        assert set(line) == {"line", *tasks}
        right["color"].append(line["color"]["label"] == record["color"])
        right["tags"] += [a == b for a, b in zip(line["tags"]["tags"], record["tags"], strict=True)]
        if "length" in tasks:
            right["length"].append((line["length"]["value"] - record["length"]) ** 2)
    metric = {"tags": "accuracy", "color": "accuracy", "length": "mse"}
    for task in tasks:
        assert np.mean(right[task]) == pytest.approx(again[task]["test"][metric[task]], rel=1e-4), task

    out = folder / "attributions"
    attribution.attribute(config, workdir, ["best"], str(texts / "test.jsonl"), out)
    for line in (out / "attributions.jsonl").read_text().splitlines():
        actual = json.loads(line)["tasks"]
        assert set(actual) == set(tasks)
        for of_task in actual.values():
            assert np.isfinite(of_task["attributions"]).all() and len(of_task["tokens"]) >= 4


def layouts_agree(experiment):
    """What a head is given of a text does not depend on which other data sets the batch holds."""
    corpus, objective = experiment.corpus, experiment.spec.objective
    params = experiment.init_params(0)
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, x.dtype), params)
    batch = experiment.batches(0).batch(0)
    run = jax.jit(lambda p, b: objective.network.apply(p, b).hidden)
    together = run(params, batch)
    for fed in experiment.config.sharing.cascades:
        if fed in params["heads"]:
            head = params["heads"][fed]
            head = {**head, "feeds": jax.tree.map(lambda x: x + 1.0, head["feeds"])}
            changed = run({**params, "heads": {**params["heads"], fed: head}}, batch)
            assert not np.allclose(changed[fed], together[fed]), "its labels are not fed upwards"
    for block in range(len(batch.dataset)):
        dataset = int(batch.dataset[block])
        alone = experiment.objective_for(evaluation_layout(corpus.layout, corpus.layout.datasets[dataset]))
        one = jax.tree.map(lambda leaf, b=block: leaf[b : b + 1], batch._replace(labels={}))
        actual = jax.jit(lambda p, b, net=alone.network: net.apply(p, b).hidden)(params, one)
        rows = batch.tokens.shape[1]
        assert set(actual) == {corpus.layout.tasks[k] for k in corpus.layout.tasks_on(dataset)}
        for task, hidden in actual.items():
            place = objective.layout.reads(task).index(block)
            np.testing.assert_allclose(together[task][place * rows : (place + 1) * rows], hidden, atol=2e-5)


@pytest.mark.parametrize(("way", "data"), FAST)
def test_one_of_each_kind(texts, tmp_path, way, data, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    walk(texts, tmp_path, way, data)


@pytest.mark.slow
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_on_all_data(texts, tmp_path, way, data, monkeypatch):
    if (way, data) in FAST:
        pytest.skip("runs in every test")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    walk(texts, tmp_path, way, data)
