"""--mode=merge of adapters, as products and as factors, and of Hugging Face folders."""

import json

import jax
import numpy as np
import pytest
from export_runs import encoder_folder, family_config, make_config, write_data
from safetensors.numpy import load_file, save_file

from mtl_jax.checks import check_merged_folders
from mtl_jax.config import default
from mtl_jax.config.plain import from_plain
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import placement_from_config, restore_params
from mtl_jax.models import pretrained
from mtl_jax.runs import merge, train
from mtl_jax.runs.build import build
from mtl_jax.runs.merge_folders import merge_folders
from mtl_jax.storage import workdir as folders
from mtl_jax.training.parameter_paths import flatten

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """(workdir, config) of a run with a LoRA for each of two tasks on one frozen trunk."""
    folder = tmp_path_factory.mktemp("lora")
    write_data(folder)
    config = make_config(folder, encoder_folder(folder / "encoder", "bert"), ("topic", "pos"))
    config.sharing.adapter, config.sharing.adapter_options = "lora", {"rank": 2, "alpha": 4.0}
    config.optimizer.freeze, config.optimizer.learning_rate = ("^embed/", "^layer_"), 0.05
    config.training.steps = config.training.eval_every = config.training.checkpoint_every = 3
    workdir = folders.prepare(folder / "run")
    with jax.numpy_dtype_promotion("standard"):
        train.train(config, workdir)
    return workdir, config


def params_of(workdir):
    config = from_plain(folders.read_config(workdir))
    experiment = build(config)
    return config, flatten(
        jax.device_get(restore_params(experiment, placement_from_config(experiment), workdir, "best").params)
    )


@pytest.mark.parametrize("adapters", ["products", "factors"])
def test_adapters_of_a_run(lora_run, tmp_path, adapters):
    workdir, config = lora_run
    config.merging.methods, config.merging.adapters = ("linear",), adapters
    out = folders.prepare(tmp_path / "merged")
    result = merge.merge(config.merging, [workdir], out)
    assert [column["tasks"] for column in result["columns"]] == [["topic"], ["pos"]]
    _, before = params_of(workdir)
    merged_config, after = params_of(out)
    assert merged_config.sharing.adapter == ("lora" if adapters == "factors" else "")
    kernel = "00/attention/query/kernel"
    a, b = (before[f"adapter_{kernel}/{name}"] for name in "ab")
    assert np.abs(b).max() > 1e-3
    if adapters == "products":
        change = 2.0 * np.einsum("kir,kro->io", a, b) / 2  # α / r, and the mean of two tasks
        np.testing.assert_allclose(after[f"layer_{kernel}"][0], before[f"layer_{kernel}"][0] + change, atol=1e-5)
    else:
        np.testing.assert_allclose(after[f"adapter_{kernel}/a"][0], a.mean(0), atol=1e-6)
        np.testing.assert_array_equal(after[f"layer_{kernel}"], before[f"layer_{kernel}"])


def folder_like(source, target, seed, classes=3):
    """The encoder of a folder, changed, with a head of so many classes."""
    target.mkdir()
    draw = np.random.default_rng(seed)
    tensors = {f"bert.{name}": value for name, value in load_file(source / "model.safetensors").items()}
    tensors = {name: value + draw.normal(size=value.shape).astype(np.float32) for name, value in tensors.items()}
    tensors["classifier.weight"] = draw.normal(size=(classes, 12)).astype(np.float32)
    save_file(tensors, target / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    labels = {str(n): f"l{n}" for n in range(classes)}
    (target / "config.json").write_text(json.dumps(config | {"id2label": labels}))
    (target / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    return target


def test_hugging_face_folders(tmp_path):
    base = encoder_folder(tmp_path / "base", "bert")
    one, two, other = (folder_like(base, tmp_path / str(n), n, 3 if n < 3 else 4) for n in (1, 2, 3))
    config = default.get_config()
    config.merging.folders, config.merging.methods = (str(one), str(two)), ("linear",)
    check_merged_folders(config)
    assert "with its head" in merge_folders(config.merging, tmp_path / "soup", 0)
    tensors = [load_file(folder / "model.safetensors") for folder in (one, two, tmp_path / "soup")]
    for name, value in tensors[2].items():
        np.testing.assert_allclose(value, (tensors[0][name] + tensors[1][name]) / 2, atol=1e-6)

    # other heads, and an encoder as the base: task arithmetic of the encoders
    config.merging.folders, config.merging.methods = (str(one), str(other)), ("task_arithmetic",)
    config.merging.base, config.merging.options = str(base), {"scale": 0.25}
    assert "the encoder alone" in merge_folders(config.merging, tmp_path / "sum", 0)
    trees = [flatten(pretrained.load(folder).params) for folder in (base, one, other, tmp_path / "sum")]
    for path, value in trees[3].items():
        expected = trees[0][path] + 0.25 * (trees[1][path] + trees[2][path] - 2 * trees[0][path])
        np.testing.assert_allclose(value, expected, atol=1e-5)


def test_folders_that_do_not_belong_together(tmp_path):
    base = encoder_folder(tmp_path / "base", "bert")
    one, two = (folder_like(base, tmp_path / str(n), n) for n in (1, 2))
    config = default.get_config()
    config.merging.folders, config.merging.methods = (str(one), str(two)), ("ties",)
    with pytest.raises(UserError, match=r"merging\.base: 'ties' works on differences"):
        merge_folders(config.merging, tmp_path / "out", 0)
    config.merging.methods = ("linear",)
    vocabulary = json.loads((two / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {"w1": 7, "w2": 6}
    (two / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match="give other ids to tokens"):
        merge_folders(config.merging, tmp_path / "out", 0)
    wider = {**family_config("bert"), "intermediate_size": 24, "vocab_size": 68}
    (two / "config.json").write_text(json.dumps(wider))
    with pytest.raises(UserError, match=r"tensor .* has shape"):
        merge_folders(config.merging, tmp_path / "out", 0)
    electra = encoder_folder(tmp_path / "electra", "electra")
    config.merging.folders = (str(one), str(electra))
    with pytest.raises(UserError, match="have different architectures"):
        merge_folders(config.merging, tmp_path / "out", 0)
    config.merging.folders, config.merging.methods = (str(one),), ()
    with pytest.raises(UserError, match="name two or more"):
        check_merged_folders(config)
