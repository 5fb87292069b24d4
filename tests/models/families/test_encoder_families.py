"""Encoders of every family equal the published ones (transformers on torch; see make_encoder_goldens.py)."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_encoder_goldens import (
    FEATURES,
    GOLDENS,
    TEXTS,
    TINY,
    TYPES,
    config_of,
    direction,
    hashed_weights,
    places,
)
from safetensors.numpy import load_file, save_file

from mtl_jax.errors import UserError
from mtl_jax.models import families, pretrained
from mtl_jax.models.dropout import Noise
from mtl_jax.models.encoder_parts import layer_params
from mtl_jax.models.export import published_values, save_folder
from mtl_jax.models.ownership import layer_path


@functools.cache
def goldens():
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def tensors(family):
    return hashed_weights({name: tuple(shape) for name, shape in goldens()[family]["tensors"].items()}, family)


def write(folder, family, values=None, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**config_of(family), **config}), encoding="utf-8")
    save_file(tensors(family) if values is None else values, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    @functools.cache
    def load(family):
        return pretrained.load(write(tmp_path_factory.mktemp("family"), family))

    return load


def separate_rows():
    """Inputs [N, T], one text a row."""
    longest = max(map(len, TEXTS))
    tokens, position, token_type, segment = np.zeros((4, len(TEXTS), longest), np.int32)
    for row, (text, types) in enumerate(zip(TEXTS, TYPES, strict=True)):
        count = len(text)
        tokens[row, :count], token_type[row, :count] = text, types
        position[row, :count], segment[row, :count] = range(count), 1
    return tokens, position, token_type, segment


def packed_row():
    """The same inputs in one row, then padding."""
    parts = [*zip(TEXTS, TYPES, strict=True), ([0] * 5, [0] * 5)]
    segments = [*range(1, len(TEXTS) + 1), 0]
    rows = (
        [token for text, _ in parts for token in text],
        [at for text, _ in parts for at in range(len(text))],
        [kind for _, types in parts for kind in types],
        [segment for (text, _), segment in zip(parts, segments, strict=True) for _ in text],
    )
    return tuple(np.asarray(row, np.int32)[None] for row in rows)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def states(architecture, params, inputs, dtype=jnp.float32, remat=False, noise=None):
    """[1 + layers] hidden states [R, T, D] of the embeddings and of every layer."""
    result = [architecture.embeddings(dtype).apply({"params": params["embed"]}, *inputs, noise)]
    for number in range(architecture.layers):
        layer = architecture.layer(number, dtype)
        apply = jax.checkpoint(layer.apply) if remat else layer.apply
        result.append(apply({"params": layer_params(layer, params, layer_path(number))}, result[-1], inputs[3], noise))
    return jnp.stack(result)


@pytest.mark.parametrize("family", TINY)
def test_hidden_states_and_tensors(loaded, family, differs):
    model = loaded(family)
    assert model.unused == ()
    apart = np.asarray(states(model.architecture, model.params, separate_rows()))
    packed = np.asarray(states(model.architecture, model.params, packed_row()))
    start = 0
    for row, wanted in enumerate(goldens()[family]["hidden"]):
        count = len(TEXTS[row])
        differs(f"{family} against transformers", apart[:, row, :count, :FEATURES], wanted, 1e-5)
        differs(f"{family}, packed", packed[:, 0, start : start + count], apart[:, row, :count], 1e-5)
        start += count


@pytest.mark.parametrize(("family", "remat"), [*((family, False) for family in TINY), ("modernbert", True)])
def test_gradients(loaded, family, remat, differs):
    model, inputs = loaded(family), packed_row()
    weight = np.zeros((1, inputs[0].shape[1], model.architecture.width), np.float32)
    start = 0
    for number, text in enumerate(TEXTS):
        weight[0, start : start + len(text)] = direction(number, model.architecture.width)
        start += len(text)

    tied = [layer_path(number) for number in range(1, model.architecture.layers) if model.architecture.tied_layers]
    params = {path: tree for path, tree in model.params.items() if path not in tied}

    def loss(params):
        params = {**params, **{path: params[layer_path(0)] for path in tied}}
        return (states(model.architecture, params, inputs, remat=remat)[-1] * weight).sum()

    computed = published_values(model.architecture, jax.grad(loss)(params))
    for name, (norm, *values) in goldens()[family]["gradients"].items():
        flat, scale = computed[name].ravel(), max(1.0, norm)
        differs(f"gradients of {family}, norms", np.linalg.norm(flat) / scale, norm / scale, 1e-4)
        differs(f"gradients of {family}", flat[places(name, flat.size)] / scale, np.asarray(values) / scale, 1e-4)


@pytest.mark.parametrize("family", TINY)
def test_written_tensors_are_the_published_ones(loaded, tmp_path, family):
    model = loaded(family)
    save_folder(tmp_path / "out", model.architecture, model.params)
    written, wanted = load_file(tmp_path / "out" / "model.safetensors"), tensors(family)
    assert written.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)
    again = pretrained.load(tmp_path / "out")
    assert again.architecture == model.architecture
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tmp_path / "out")
    for field, value in config_of(family).items():
        assert getattr(config, field) == value, field


@pytest.mark.parametrize("family", TINY)
def test_transformers_reads_what_is_written(loaded, tmp_path, family):
    """Bit for bit; where torch is installed."""
    torch = pytest.importorskip("torch")
    from make_encoder_goldens import published_class

    model = loaded(family)
    save_folder(tmp_path, model.architecture, model.params)
    cls = published_class(family)
    read, info = cls.from_pretrained(tmp_path, attn_implementation="eager", output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all("pooler" in name for name in info["missing_keys"])
    values = dict(read.named_parameters())
    for name, value in tensors(family).items():
        np.testing.assert_array_equal(values[name].detach().numpy(), value, err_msg=name)
    with torch.no_grad():
        top = read(torch.tensor([TEXTS[2]]), attention_mask=torch.ones(1, len(TEXTS[2]))).last_hidden_state
    ours = states(model.architecture, model.params, separate_rows())[-1, 2]
    np.testing.assert_allclose(top[0].numpy(), ours, atol=2e-5)


@pytest.mark.parametrize("family", TINY)
def test_bfloat16_and_dropout(loaded, family):
    model, inputs = loaded(family), packed_row()
    exact = np.asarray(states(model.architecture, model.params, inputs))
    rounded = states(model.architecture, model.params, inputs, jnp.bfloat16)
    assert rounded.dtype == jnp.bfloat16
    real = inputs[3][0] > 0
    error = np.abs(np.asarray(rounded, np.float32) - exact)[:, 0, real]
    assert error.mean() < 0.02 * np.abs(exact).mean() + 0.01
    keys = jax.random.split(jax.random.key(0), 1)
    still, wet, attention = (
        np.asarray(states(model.architecture, model.params, inputs, noise=Noise(keys, *map(jnp.float32, rates))))
        for rates in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.5))
    )
    np.testing.assert_allclose(still, exact, atol=1e-5)
    assert (np.abs(wet[0] - exact[0]) > 1e-3).any()
    np.testing.assert_allclose(attention[0], exact[0], atol=1e-5)  # embeddings attend to nothing
    assert all((np.abs(dropped[1] - exact[1])[0, real] > 1e-3).any() for dropped in (wet, attention))


@pytest.mark.parametrize("family", TINY)
def test_missing_misshapen_and_extra_tensors(tmp_path, family):
    values = tensors(family)
    name = next(name for name in sorted(values, reverse=True) if name != model_words(family))
    with pytest.raises(UserError, match=rf"1 of \d+ tensors are missing: {name}"):
        pretrained.load(write(tmp_path, family, {n: v for n, v in values.items() if n != name}))
    with pytest.raises(UserError, match=rf"{name} has shape"):
        pretrained.load(write(tmp_path, family, {**values, name: np.ones((3, 3, 3), np.float32)}))
    with pytest.raises(UserError, match="quantised"):
        pretrained.load(write(tmp_path, family, {**values, name: values[name].astype(np.int8)}))
    extra = {"head.weight": np.ones(2, np.float32)}
    assert pretrained.load(write(tmp_path, family, {**values, **extra})).unused == ("head.weight",)
    words = model_words(family)
    with pytest.raises(UserError, match=rf"{words} has shape \[40, \d+\], but by config\.json"):
        pretrained.load(write(tmp_path, family, vocab_size=41))


def test_words_of_t5_under_their_other_name(loaded, tmp_path):
    values = tensors("t5")
    words = values.pop("shared.weight")
    both = {f"transformer.{name}": value for name, value in {**values, "encoder.embed_tokens.weight": words}.items()}
    read = pretrained.load(write(tmp_path, "t5", both))
    np.testing.assert_array_equal(read.params["embed"]["word"]["embedding"], words)
    assert read.unused == ()
    assert pretrained.load(write(tmp_path, "t5", {**both, "transformer.shared.weight": words + 1})).unused == ()


def model_words(family):
    return families.FAMILIES[family.partition(" ")[0]].words


UNSUPPORTED = [
    ("distilbert", {"layer_norm_eps": 1e-5}, "layer_norm_eps = 1e-05"),
    ("distilbert", {"n_heads": 5}, "dim 12 is not a multiple of n_heads 5"),
    ("distilbert", {"n_layers": 0}, "n_layers = 0"),
    ("electra", {"embedding_size": 0}, "embedding_size = 0"),
    ("electra", {"is_decoder": True}, "is_decoder = True"),
    ("modernbert", {"layer_types": ["sliding_attention"] * 4}, r"layer_types = \['sliding"),
    ("modernbert", {"hidden_activation": "gleu"}, "hidden_activation = 'gleu'"),
    (
        "modernbert",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
        r"rope_parameters = \{'full_attention': \{'rope_type': 'yarn'\}\}",
    ),
    ("modernbert", {"mlp_bias": 1}, "mlp_bias = 1; it has to be true or false"),
    ("eurobert", {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type = 'longrope' is not supp"),
    ("eurobert", {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
    ("albert", {"num_hidden_groups": 3}, "num_hidden_groups = 3 is not supported, only 1"),
    ("mpnet", {"relative_attention_num_buckets": 64}, "relative_attention_num_buckets = 64"),
    ("t5", {"feed_forward_proj": "gated-gleu"}, "feed_forward_proj = 'gated-gleu'"),
    ("t5", {"is_decoder": True}, "is_decoder = True"),
    ("deberta-v2", {"conv_kernel_size": 3}, "conv_kernel_size = 3 is not supported, only 0"),
    ("deberta-v2", {"relative_attention": False}, "relative_attention = false"),
    ("deberta-v2", {"pos_att_type": "p2p|c2p"}, r"pos_att_type = 'p2p\|c2p'; supported are c2p, p2c"),
    ("deberta-v2", {"embedding_size": 8}, "embedding_size = 8 is not supported, only 12"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
    ("gpt2", {"n_head": 5}, "n_embd 12 is not a multiple of n_head 5"),
    ("llama", {"pretraining_tp": 2}, "pretraining_tp = 2 is not supported, only 1"),
    ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 10.0}}, "'llama3' lacks a number .'factor'"),
    ("llama", {"rope_parameters": {}, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
    ("mistral", {"sliding_window": -1}, "sliding_window = -1"),
    (
        "qwen2",
        {"layer_types": ["full_attention", "chunked", "chunked"]},
        r"layer_types = \['full_attention', 'chunked'",
    ),
    ("qwen2", {"use_sliding_window": False, "layer_types": ["sliding_attention"] * 3}, "there is no sliding_window"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported"),
    ("electra", {"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
]


@pytest.mark.parametrize(("family", "config", "message"), UNSUPPORTED)
def test_settings_that_are_not_computed(tmp_path, family, config, message):
    with pytest.raises(UserError, match=message):
        pretrained.load(write(tmp_path, family, **config))


@pytest.mark.parametrize("family", TINY)
def test_quantised_folders(tmp_path, family):
    with pytest.raises(UserError, match="quantization_config = "):
        pretrained.load(write(tmp_path, family, quantization_config={"bits": 4}))


def test_an_unknown_family_says_which_there_are(tmp_path):
    with pytest.raises(UserError, match=r"'mamba'; supported are bert, .*electra.*A new family is .*families\.md"):
        pretrained.load(write(tmp_path, "electra", model_type="mamba"))
