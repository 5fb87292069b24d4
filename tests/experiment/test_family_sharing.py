"""Families in a network: columns, trunks and trees compute what their columns compute alone; per-task gradients."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_encoder_goldens import config_of, hashed_weights
from safetensors.numpy import load_file, save_file

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.models import families, pretrained
from mtl_jax.models.encoder_parts import layer_params
from mtl_jax.models.export import published_values
from mtl_jax.models.ownership import layer_path
from mtl_jax.runs import export, train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders
from mtl_jax.training.gradients import per_task
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
TASKS = ("tags", "long")  # of one data set
# normalisation first and last, a table of positions, tied depth, a decoder
FORMS = ("modernbert", "deberta-v2", "albert", "gemma3_text")


def folder_of(folder, family):
    config = {**config_of(family), "vocab_size": 80}
    tensors = families.architecture_from_config(config, family).published_tensors()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(hashed_weights({tensor.name: tensor.shape for tensor in tensors}), folder / "model.safetensors")
    return str(folder)


@pytest.fixture
def make(tiny, tmp_path):
    def config(family, **changes):
        config = tiny(data__rows_per_block=2, train_tasks=TASKS, **changes)
        config.model = default.get_config().model
        config.model.pretrained, config.model.dropout = folder_of(tmp_path / "encoder", family), 0.0
        config.model.num_layers = 3
        return config

    return config


def moved_params(experiment):
    """Parameters whose slices differ from owner to owner."""
    params = dict(jax.device_get(experiment.init_params(0)))

    def move(leaf):
        owners = np.arange(leaf.shape[0], dtype=np.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        return leaf * (1.0 + 0.1 * owners)

    return {path: tree if path == "heads" else jax.tree.map(move, tree) for path, tree in params.items()}


def column(experiment, params, task):
    """The parameters of one task's column, by path of every layer and part."""
    result = {
        path: jax.tree.map(lambda leaf, o=owner[task]: leaf[o], params[path])
        for path, owner in experiment.owners.items()
    }
    for number in range(1, experiment.model.architecture.layers):  # tied to the layer below it
        result.setdefault(layer_path(number), result[layer_path(number - 1)])
    return result


def features(architecture, params, tokens, position, token_type, segment):
    x = architecture.embeddings().apply({"params": params["embed"]}, tokens, position, token_type, segment)
    for number in range(architecture.layers):
        layer = architecture.layer(number)
        x = layer.apply({"params": layer_params(layer, params, layer_path(number))}, x, segment)
    return x


@pytest.mark.parametrize("family", FORMS)
@pytest.mark.parametrize("trunk", ["none", "layer_00"])
def test_columns_compute_what_they_compute_alone(make, family, trunk, differs):
    experiment = build(make(family, sharing__trunk=trunk))
    params, batch = moved_params(experiment), experiment.batches(0).batch(0)
    layout = experiment.corpus.layout
    outputs = jax.jit(experiment.objective_for(layout).network.apply)(params, batch).hidden
    for number, task in enumerate(layout.tasks):
        blocks = list(layout.reads(task))
        rows = [
            np.asarray(array)[blocks].reshape(-1, array.shape[-1])
            for array in (batch.tokens, batch.position, batch.token_type, batch.segment)
        ]
        alone = features(experiment.model.architecture, column(experiment, params, number), *rows)
        differs(f"columns of {family}, trunk {trunk}", outputs[task], alone, 2e-5)
    if family == "albert":
        layers = sorted(path for path in params if path.startswith("layer_"))
        assert layers == (["layer_00"] if trunk == "none" else ["layer_00", "layer_01"])
        assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(params[layers[-1]]))
    else:
        part = "relative" if family == "deberta-v2" else "final_norm"
        lowest = "layer_02" if part == "final_norm" else "layer_00"
        assert experiment.owners[part] == experiment.owners[lowest]
        assert all(part not in params[path] for path in params if path.startswith("layer_"))


@pytest.mark.parametrize("family", FORMS)
def test_gradients_by_task_are_those_of_each_loss(make, family, differs):
    experiment = build(make(family, sharing__trunk="layer_01", aggregation__method="mgda"))
    params, batch = moved_params(experiment), experiment.batches(0).batch(0)
    layout = experiment.corpus.layout
    network = experiment.objective_for(layout).network
    shared = per_task.shared_parameters(tuple(flatten(params)), experiment.owners, "parameters", "copies", 1)

    def losses(params, taps=None):
        hidden = network.apply(params, batch, None, None, taps, taps and shared.taps).hidden
        return jnp.stack([(hidden[task] ** 2).mean() for task in layout.tasks])

    @jax.jit
    def tapped(params):
        _, pullback = jax.vjp(losses, params, network.taps(params, batch, shared.taps))
        return per_task.split_by_task(shared, layout, batch, pullback(jnp.ones(len(layout.tasks)))[1]).leaves

    leaves = tapped(params)
    wanted = jax.jit(jax.jacrev(losses))(params)
    wanted = flatten(wanted)
    assert {path.split("/")[0] for path in leaves} >= ({"layer_00"} if family == "albert" else {"layer_00", "layer_01"})
    for path, by_task in leaves.items():
        for number, owner in enumerate(shared.owners[path]):
            exact = wanted[path][number, owner]
            scale = max(1.0, float(jnp.abs(exact).max()))
            differs(f"gradients by task, {family}", by_task[number] / scale, exact / scale, 1e-4)
    config = experiment.config
    config.aggregation.gradient_storage = "layers"
    with pytest.raises(UserError, match=r"gradient_storage: 'layers' .* take 'copies'"):
        train_one(build(config))


def train_one(experiment):
    state = experiment.init(0)
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], experiment.batches(0).batch(0))
    return train_step(experiment.spec, state, batch, experiment.hyper)


@pytest.mark.parametrize("family", ["modernbert", "albert"])
def test_a_run_is_trained_and_its_columns_exported(make, tmp_path, family):
    config = make(family, sharing__trunk="none")
    config.data.rows_per_block, config.training.steps, config.training.eval_every = 8, 4, 4
    checks.check(config)
    workdir = folders.prepare(tmp_path / "run")
    train.train(config, workdir)
    export.export(config, workdir, ["best"], tmp_path / "out")
    start = load_file(tmp_path / "encoder" / "model.safetensors")
    columns = [published_values(*pretrained.load(tmp_path / "out" / task)[:2]) for task in TASKS]
    assert {name for name in start if "layers.3" not in name} == columns[0].keys()
    moved = [name for name in columns[0] if not np.array_equal(columns[0][name], start[name])]
    assert any("norm" in name.lower() for name in moved) and len(moved) > len(columns[0]) // 2
    if family == "albert":
        config.sharing.trunk = "layer_00"
        other = folders.prepare(tmp_path / "other")
        train.train(config, other)
        with pytest.raises(UserError, match="AlbertModel has one set of weights for all layers, but layer_01"):
            export.export(config, other, ["best"], tmp_path / "out2")
