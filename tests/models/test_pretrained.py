"""Folders of pretrained weights: round trip, old names, shards, dtypes, and every kind of mistake."""

import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from make_published_goldens import TINY, hashed_weights
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mtl_jax.errors import UserError
from mtl_jax.models import families, pretrained
from mtl_jax.models.export import save_folder


def published(family="bert"):
    """Tensors of the tiny model under their published names."""
    architecture = families.architecture_from_config(TINY[family], "tiny")
    return hashed_weights({tensor.name: tensor.shape for tensor in architecture.published_tensors()})


def write(folder, tensors, family="bert", **config):
    (folder / "config.json").write_text(json.dumps({**TINY[family], **config}), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return folder


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("family", TINY)
def test_params_have_the_shapes_that_the_modules_make(tmp_path, family):
    loaded = pretrained.load(write(tmp_path, published(family), family))
    ids, x = np.zeros((1, 2), np.int32), np.zeros((1, 2, 12), np.float32)
    key = jax.random.key(0)
    made = {"embed": jax.eval_shape(loaded.architecture.embeddings().init, key, ids, ids, ids, ids)["params"]}
    for number in range(2):
        made[f"layer_{number:02d}"] = jax.eval_shape(loaded.architecture.layer(number).init, key, x, ids)["params"]
    assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(lambda leaf: leaf.shape, loaded.params)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {np.dtype(np.float32)}
    kernel = loaded.params["layer_01"]["output"]["kernel"]
    np.testing.assert_array_equal(kernel.T, published(family)["encoder.layer.1.output.dense.weight"])


@pytest.mark.parametrize("family", TINY)
def test_round_trip_is_bitwise(tmp_path, family):
    (tmp_path / "in").mkdir()
    loaded = pretrained.load(write(tmp_path / "in", published(family), family))
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    (tmp_path / "in" / "vocab.txt").write_text("a\n")
    with_head = {**loaded.params, "heads": {"ner": np.ones(3)}}
    names = save_folder(tmp_path / "out", loaded.architecture, with_head, loaded.folder)
    again = pretrained.load(tmp_path / "out")
    assert again.architecture == loaded.architecture
    assert again.unused == ()
    same(again.params, loaded.params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(names) == set(written) == set(published(family))
    for name, value in published(family).items():
        np.testing.assert_array_equal(written[name], value)
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}  # transformers refuses a file without
    assert {f.name for f in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vocab.txt",
    }


def test_exported_config_is_read_by_transformers(tmp_path):
    loaded = pretrained.load(write(tmp_path, published("roberta"), "roberta"))
    save_folder(tmp_path / "out", loaded.architecture, loaded.params)
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == "roberta"
    for field, value in TINY["roberta"].items():
        assert getattr(config, field) == value


def test_prefix_old_names_and_unused_tensors(tmp_path):
    old = {}
    for name, value in published().items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        old["bert." + name] = value
    extra = {
        "bert.pooler.dense.weight": np.ones((12, 12), np.float32),
        "cls.predictions.transform.LayerNorm.gamma": np.ones(12, np.float32),
        "bert.embeddings.position_ids": np.arange(16)[None],
        "bert.encoder.layer.2.output.dense.bias": np.ones(12, np.float32),
    }
    (tmp_path / "plain").mkdir()
    plain = pretrained.load(write(tmp_path / "plain", published()))
    loaded = pretrained.load(write(tmp_path, old | extra))
    same(loaded.params, plain.params)
    assert loaded.unused == tuple(sorted(extra))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_dtypes_become_float32(tmp_path, dtype):
    cast = {name: value.astype(dtype) for name, value in published().items()}
    loaded = pretrained.load(write(tmp_path, cast))
    value = loaded.params["layer_00"]["attention"]["query"]["kernel"]
    assert value.dtype == np.float32
    wanted = cast["encoder.layer.0.attention.self.query.weight"].astype(np.float32).T
    np.testing.assert_array_equal(value, wanted)


def test_bfloat16_without_jax_imported_before(tmp_path):
    write(tmp_path, {name: value.astype(ml_dtypes.bfloat16) for name, value in published().items()})
    code = f"from mtl_jax.models import pretrained; print(len(pretrained.load({str(tmp_path)!r}).params))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "3", run.stderr


def shard(folder):
    tensors = published()
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in files.items():
        save_file({name: tensors[name] for name in inside}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, inside in files.items() for name in inside}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(TINY["bert"]))
    return index


def test_shards(tmp_path):
    (tmp_path / "plain").mkdir()
    shard(tmp_path)
    same(pretrained.load(tmp_path).params, pretrained.load(write(tmp_path / "plain", published())).params)


def test_broken_shards(tmp_path):
    index = shard(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "other": "model-00002-of-00002.safetensors"}}))
    with pytest.raises(UserError, match="other should be in model-00002-of-00002"):
        pretrained.load(tmp_path)
    path.write_text(json.dumps({"weight_map": {"other": "../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="not a file of this folder"):
        pretrained.load(tmp_path)
    path.write_text("{}")
    with pytest.raises(UserError, match="weight_map"):
        pretrained.load(tmp_path)


def test_missing_and_misshapen_tensors(tmp_path):
    tensors = published()
    name = "encoder.layer.1.intermediate.dense.weight"
    with pytest.raises(UserError, match=rf"1 of 37 tensors are missing: {name} \[20, 12\]"):
        pretrained.load(write(tmp_path, {n: v for n, v in tensors.items() if n != name}))
    with pytest.raises(UserError, match=rf"{name} has shape \[12, 20\].*should have \[20, 12\]"):
        pretrained.load(write(tmp_path, {**tensors, name: np.ascontiguousarray(tensors[name].T)}))
    with pytest.raises(UserError, match=rf"{name} has dtype I8.*quantised"):
        pretrained.load(write(tmp_path, {**tensors, name: np.ones((20, 12), np.int8)}))
    with pytest.raises(UserError, match="this is no BertModel"):
        pretrained.load(write(tmp_path, {"transformer.wte.weight": np.ones((4, 4), np.float32)}))
    with pytest.raises(UserError, match="several encoders"):
        pretrained.load(write(tmp_path, {p + n: v for p in ("a.", "b.") for n, v in tensors.items()}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "mamba"}, "'mamba'; supported are bert, roberta, xlm-roberta, camembert"),
        ({"model_type": None}, "None"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 13}, "not a multiple"),
        ({"hidden_size": "12"}, "hidden_size = '12'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"hidden_act": "gleu"}, "gleu"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"model_type": "roberta", "max_position_embeddings": 1}, "no position for a token"),
    ],
)
def test_unsupported_configurations(tmp_path, config, message):
    with pytest.raises(UserError, match=message):
        pretrained.load(write(tmp_path, published(), **config))


def test_broken_folders(tmp_path):
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text('{\n"model_type": bert}')
    with pytest.raises(UserError, match=r"config\.json:2: broken JSON"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="one JSON object"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="not UTF-8"):
        pretrained.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY["bert"]))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        pretrained.load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"only pytorch_model\.bin.*save_pretrained"):
        pretrained.load(tmp_path)
    whole = write(tmp_path, published()) / "model.safetensors"
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        pretrained.load(tmp_path)


def test_resolve(tmp_path, monkeypatch):
    assert pretrained.resolve_folder(tmp_path) == tmp_path
    with pytest.raises(UserError, match="not a folder"):
        pretrained.resolve_folder("./nowhere/at/all")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        pretrained.resolve_folder(tmp_path / "file")

    import huggingface_hub

    asked = {}

    def download(name, revision, allow_patterns):
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        if name == "nobody/nothing":
            raise OSError("no route to host")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pretrained.resolve_folder("owner/some-model@v1.0") == tmp_path
    assert (asked["name"], asked["revision"]) == ("owner/some-model", "v1.0")
    assert "config.json" in asked["patterns"]
    assert not any(pattern.endswith((".bin", ".pt", ".h5")) for pattern in asked["patterns"])
    assert pretrained.resolve_folder("bert-base-uncased") == tmp_path
    assert (asked["name"], asked["revision"]) == ("bert-base-uncased", None)
    with pytest.raises(UserError, match="without a network"):
        pretrained.resolve_folder("nobody/nothing")


def test_export_mistakes(tmp_path):
    loaded = pretrained.load(write(tmp_path, published()))
    stacked = jax.tree.map(lambda leaf: leaf[None], loaded.params)
    with pytest.raises(UserError, match="no leading task axis"):
        save_folder(tmp_path / "out", loaded.architecture, stacked)
    without = {path: tree for path, tree in loaded.params.items() if path != "layer_01"}
    with pytest.raises(UserError, match="have no layer_01"):
        save_folder(tmp_path / "out", loaded.architecture, without)
    (tmp_path / "blocked").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        save_folder(tmp_path / "blocked" / "out", loaded.architecture, loaded.params)
