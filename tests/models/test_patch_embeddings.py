"""Patch embeddings against float64, and what is taken over from a published ViT against torch's figures."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from mtl_jax.errors import UserError
from mtl_jax.models import pretrained
from mtl_jax.models.embeddings import BertEmbeddings, WordEmbeddings
from mtl_jax.models.families import vit
from mtl_jax.models.patch_embeddings import PatchEmbeddings

R, T, D, F = 2, 7, 6, 12
PATCHES = PatchEmbeddings(features=F, rows=2, columns=3, pictures=2, width=D, scale=0.5)
MODULES = {
    "bert": BertEmbeddings(vocab_size=9, width=D, max_positions=5, patches=PATCHES),
    "words": WordEmbeddings(vocab_size=9, width=D, patches=PATCHES),
}


def inputs():
    rng = np.random.default_rng(0)
    patch = np.zeros((R, T), bool)
    patch[:, 1:4] = True
    tokens = np.where(patch, 0, rng.integers(1, 9, (R, T)))
    place = np.where(patch, [0, 0, 258, 256, 0, 0, 0], [0, 0, 0, 0, 1, 2, 3])  # far beyond the table of positions
    number = np.where(patch, [0, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1])
    pixels = np.where(patch[:, :, None], rng.integers(0, 256, (R, T, F)), 0).astype(np.uint8)
    text = [jnp.asarray(a, jnp.int32) for a in (tokens, place, number, np.ones((R, T)))]
    return text, jnp.asarray(patch), jnp.asarray(pixels)


def leaves(tree, prefix=""):
    for key, value in tree.items():
        yield from leaves(value, f"{prefix}{key}/") if isinstance(value, dict) else [(prefix + key, value)]


@pytest.mark.parametrize("kind", MODULES)
def test_against_float64(kind, differs):
    text, patch, pixels = inputs()
    module = MODULES[kind]
    params = jax.jit(module.init)(jax.random.key(0), *text, None, patch, pixels)["params"]
    p = {path: np.asarray(leaf, np.float64) for path, leaf in leaves(params)}
    tokens, place, number, _ = (np.asarray(a) for a in text)
    wanted = np.zeros((R, T, D))
    for r in range(R):
        for t in range(T):
            if patch[r, t]:
                x = np.asarray(pixels[r, t], np.float64) / 127.5 - 1.0
                x = x @ p["patches/projection/kernel"] + p["patches/projection/bias"]
                row, column = divmod(place[r, t], 256)
                x = x + p["patches/position/embedding"][row * 3 + column] + p["patches/picture/embedding"][number[r, t]]
            else:
                x = p["word/embedding"][tokens[r, t]]
                if kind == "bert":
                    x = x + p["position/embedding"][place[r, t]] + p["token_type/embedding"][number[r, t]]
            if kind == "bert":
                x = (x - x.mean()) / np.sqrt(x.var() + 1e-12)
            wanted[r, t] = x
    actual = jax.jit(module.apply)({"params": params}, *text, None, patch, pixels)
    differs(f"patch embeddings, {kind}", actual, wanted, 1e-5)

    def total(params, weights):
        return jnp.sum(weights * module.apply({"params": params}, *text, None, patch, pixels))

    weights = jnp.asarray(np.random.default_rng(1).normal(size=(R, T, D)), jnp.float32)
    grad = jax.jit(jax.grad(total))
    of_text, of_patches = (
        dict(leaves(grad(params, weights * mask[:, :, None].astype(jnp.float32)))) for mask in (~patch, patch)
    )
    for path in p:
        assert np.isfinite(of_text[path]).all() and np.isfinite(of_patches[path]).all(), path
        assert (np.abs(of_text[path]).max() > 0) != path.startswith("patches/") or "layer_norm" in path, path
        assert (np.abs(of_patches[path]).max() > 0) == path.startswith("patches/") or "layer_norm" in path, path


@pytest.mark.parametrize("kind", MODULES)
def test_text_alone_is_bitwise_what_it_is_without_patches(kind):
    text, patch, pixels = inputs()
    text[1] = jnp.minimum(text[1], 4)
    plain = MODULES[kind].clone(patches=None)
    with_patches = MODULES[kind].init(jax.random.key(0), *text, None, patch, pixels)["params"]
    params = plain.init(jax.random.key(0), *text)["params"]
    without = {name: tree for name, tree in with_patches.items() if name != "patches"}
    jax.tree.map(np.testing.assert_array_equal, without, params)  # initial values too
    np.testing.assert_array_equal(
        plain.apply({"params": params}, *text), MODULES[kind].apply({"params": with_patches}, *text)
    )


# what is taken over of a ViT


GOLDENS = pathlib.Path(__file__).parent / "vit_goldens.json"  # of torch: conv2d and bicubic interpolation in float64
SIDE, WIDTH = 4, 6


def vit_folder(folder, prefix="", config=None, processor=True, **tensors):
    """A ViT of 12 × 12 pixels with patches of 4, its weights by formula, as `make` of the goldens had them."""
    made = {
        f"{vit.PROJECTION}.weight": np.sin(np.arange(WIDTH * 48.0)).reshape(WIDTH, 3, SIDE, SIDE),
        f"{vit.PROJECTION}.bias": np.cos(np.arange(float(WIDTH))),
        vit.POSITIONS: np.sin(np.arange(10.0 * WIDTH) * 0.7).reshape(1, 10, WIDTH),
        "encoder.layer.0.attention.output.dense.bias": np.zeros(WIDTH),
    }
    made = {prefix + name: value.astype(np.float32) for name, value in {**made, **tensors}.items() if value is not None}
    save_file(made, folder / "model.safetensors")
    plain = {"model_type": "vit", "hidden_size": WIDTH, "image_size": 12, "patch_size": SIDE, "num_channels": 3}
    (folder / "config.json").write_text(json.dumps(plain | (config or {})))
    if processor:
        scaling = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
        (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
    return folder


@pytest.mark.parametrize("prefix", ["", "vit."])
def test_a_vit_gives_torchs_vectors(tmp_path, prefix, differs):
    golden = json.loads(GOLDENS.read_text())
    actual = vit.load_patches(vit_folder(tmp_path, prefix), WIDTH, SIDE, 3, (2, 3))
    picture = (np.arange(8 * 12 * 3) * 37 % 256).reshape(8, 12, 3).astype(np.uint8)
    cut = picture.reshape(2, SIDE, 3, SIDE, 3).swapaxes(1, 2).reshape(1, 6, 48)
    module = PatchEmbeddings(features=48, rows=2, columns=3, pictures=1, width=WIDTH)
    params = {**actual, "picture": {"embedding": jnp.zeros((1, WIDTH))}}
    place = jnp.asarray([[256 * r + c for r in range(2) for c in range(3)]], jnp.int32)
    x = module.apply({"params": params}, jnp.asarray(cut), place, jnp.zeros_like(place))
    differs("patches of a ViT", x[0], np.add(golden["projected"], golden["interpolated"]), 5e-5)
    large = vit.interpolate_positions(actual["position"]["embedding"].reshape(2, 3, WIDTH), (2, 3))
    np.testing.assert_array_equal(large.reshape(-1, WIDTH), actual["position"]["embedding"])
    five = vit.load_patches(tmp_path, WIDTH, SIDE, 3, (5, 4))["position"]["embedding"].reshape(5, 4, WIDTH)
    differs("interpolated positions", five[:, :, 0], golden["larger"], 1e-5)
    differs("interpolated positions, sum", float((five * np.arange(1.0, 7.0)).sum()), golden["larger_sum"], 1e-4)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"config": {"model_type": "bert"}}, {}, "model_type is 'bert'; config.images.pretrained takes"),
        ({}, {"width": 8}, "hidden_size = 6, but the width of the model is 8"),
        ({}, {"patch": 2}, "patch_size = 4, but config.images.patch_size is 2"),
        ({}, {"channels": 1}, "num_channels = 3, but config.images.num_channels is 1"),
        ({vit.POSITIONS: np.zeros((1, 5, WIDTH))}, {}, r"has shape \[1, 5, 6\].*should have \[1, 10, 6\]"),
        ({f"{vit.PROJECTION}.bias": None}, {}, "no tensor .*projection.bias"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, arguments, message):
    vit_folder(tmp_path, **change)
    with pytest.raises(UserError, match=message):
        vit.load_patches(tmp_path, **{"width": WIDTH, "patch": SIDE, "channels": 3, "grid": (3, 3), **arguments})


def test_a_vit_is_no_trunk(tmp_path):
    with pytest.raises(UserError, match=r"is an encoder of pictures.*config\.images\.pretrained"):
        pretrained.load(vit_folder(tmp_path))
