"""GGUF files (llama.cpp) as folders in the Hugging Face layout: weights dequantised, tokenizer and config.json beside
them, written once into the cache folder.
"""

from __future__ import annotations

import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mtl_jax.data.files import array_cache, python_wheels
from mtl_jax.errors import UserError

# architecture in the file -> model_type of config.json, whether halves of the rotated features alternate
ARCHITECTURES = {"llama": ("llama", True), "qwen2": ("qwen2", False), "qwen3": ("qwen3", False)}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_FIELDS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "context_length": "max_position_embeddings",
    "rope.freq_base": "rope_theta",
}
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}


def gguf_in(path: pathlib.Path) -> pathlib.Path | None:
    """The GGUF file that `path` is, or that is the only one of a folder without config.json; None where there is none.

    UserError: several.
    """
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise UserError(f"{path}: {len(files)} GGUF files; name one of {', '.join(file.name for file in files)}")
    return files[0] if files else None


def as_folder(file: pathlib.Path) -> pathlib.Path:
    """The folder with the content of a GGUF file, made where it is not in the cache yet: float32.

    A tokenizer.json next to the file is taken instead of the file's own vocabulary.

    UserError: no package `gguf`, a broken file, an architecture or setting that is not read here.
    """
    target = array_cache.cache_folder() / "gguf" / python_wheels.sha256_of_file(file)[:16]
    if (target / "config.json").is_file():
        return target
    try:
        import gguf  # an extra
    except ImportError:
        raise UserError(f"{file}: reading GGUF needs the package gguf: pip install 'mtl-jax[gguf]'") from None
    try:
        reader = gguf.GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError) as error:
        raise UserError(f"{file}: not a complete GGUF file: {error}") from error
    config = _config(fields, {tensor.name for tensor in reader.tensors}, str(file))
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as temporary:
        folder = pathlib.Path(temporary) / "folder"
        folder.mkdir()
        _write_tensors(reader, gguf.dequantize, config, folder)
        _write_tokenizer(file, fields, folder)
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        if not target.exists():
            folder.rename(target)
    return target


def _config(fields: Mapping[str, Any], tensors: set[str], where: str) -> dict[str, Any]:
    """config.json of the file's metadata."""
    kind = fields.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{where}: general.architecture = {kind!r}; supported are {', '.join(ARCHITECTURES)}")
    scaling = fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in tensors:
        raise UserError(f"{where}: {kind}.rope.scaling.type = {scaling!r} is not supported: scaled rotary positions")
    config = {ours: fields[f"{kind}.{name}"] for name, ours in _FIELDS.items() if f"{kind}.{name}" in fields}
    missing = [f"{kind}.{name}" for name in list(_FIELDS)[:4] if _FIELDS[name] not in config]
    if missing:
        raise UserError(f"{where}: the metadata lack {', '.join(missing)}")
    features = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    rotated = fields.get(f"{kind}.rope.dimension_count", features)
    if rotated != features:
        raise UserError(f"{where}: {kind}.rope.dimension_count = {rotated} is not supported, only {features}")
    special = {ours: fields.get(f"tokenizer.ggml.{name}_token_id") for name, ours in _TOKENS.items()}
    return {
        **config,
        **special,
        "model_type": ARCHITECTURES[kind][0],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _write_tensors(reader: Any, dequantize: Callable[..., np.ndarray], config: dict[str, Any], folder: pathlib.Path):
    from safetensors.numpy import save_file

    alternate = next(rotates for kind, rotates in ARCHITECTURES.values() if kind == config["model_type"])
    heads = {"attn_q": config["num_attention_heads"]}
    heads["attn_k"] = config.get("num_key_value_heads", heads["attn_q"])
    tensors = {}
    for tensor in reader.tensors:
        stem, _, part = tensor.name.rpartition(".")
        value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        if stem.startswith("blk."):
            _, number, name = stem.split(".", 2)
            if alternate and name in heads:  # llama.cpp rotates neighbours, here halves are
                value = value.reshape(heads[name], -1, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
            published = f"model.layers.{number}.{_LAYER_NAMES.get(name, name)}"
        else:
            published = _NAMES.get(stem, stem)
        tensors[f"{published}.{part}"] = np.ascontiguousarray(value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(file: pathlib.Path, fields: Mapping[str, Any], folder: pathlib.Path) -> None:
    if (beside := file.with_name("tokenizer.json")).is_file():
        shutil.copyfile(beside, folder / beside.name)
    else:
        source = _tokenizer(file, fields)
        (folder / "tokenizer.json").write_text(json.dumps(source, ensure_ascii=False), encoding="utf-8")
    tokens = fields["tokenizer.ggml.tokens"]
    ids = {role: fields.get(f"tokenizer.ggml.{name}_token_id") for role, name in _ROLES.items()}
    named = {role: tokens[index] for role, index in ids.items() if index is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(named, ensure_ascii=False), encoding="utf-8")


def _tokenizer(file: pathlib.Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer.json of the vocabulary in the file, as transformers reads it, which needs torch to open the file."""
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    except ImportError:
        from transformers.integrations.ggml import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer
    names = GGUF_TOKENIZER_MAPPING["tokenizer"]
    vocabulary = {ours: fields[f"tokenizer.{name}"] for name, ours in names.items() if f"tokenizer.{name}" in fields}
    try:
        backend, _ = convert_gguf_tokenizer(fields["general.architecture"], vocabulary)
    except Exception as error:  # of any kind, for vocabularies that transformers does not know
        raise UserError(
            f"{file}: its tokenizer cannot be read ({type(error).__name__}: {error}); put the model's tokenizer.json "
            "next to the file"
        ) from error
    source = json.loads(backend.to_str())
    if fields.get("tokenizer.ggml.pre") == "smollm":  # whose digits are tokens of their own
        split = [{"type": "Digits", "individual_digits": True}, source["pre_tokenizer"]]
        source["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": split}
    return source
