"""Pretrained encoders: from a folder in the Hugging Face layout to the parameters of one column.

Weights come from safetensors only: pickle files can run code when they are opened.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from mtl_jax.errors import UserError
from mtl_jax.models.families import architecture_from_config
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.gguf_files import as_folder, gguf_in
from mtl_jax.models.ownership import layer_path

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece*",
    "spiece.model",
)
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LM_HEAD = "lm_head.weight"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_FLOATS = ("F64", "F32", "F16", "BF16")


class Pretrained(NamedTuple):
    """One encoder as read from a folder.

    architecture  its hyperparameters; builds the modules
    params        {"embed": {...}, "layer_00": {...}, ...}, numpy float32; the same arrays in layers whose weights are
                  tied; "lm_head" of a decoder whose LM head is not the table of words
    unused        names of the tensors in the folder that have no place here (pooler, heads, buffers), sorted
    folder        where it was read from; the tokenizer's files lie there too
    """

    architecture: Architecture
    params: dict[str, Any]
    unused: tuple[str, ...]
    folder: pathlib.Path


def resolve_folder(spec: str | pathlib.Path) -> pathlib.Path:
    """The local folder of pretrained weights: `spec` itself, or the download of a Hub name.

    spec  a folder, a GGUF file or a folder with one, or "name", "owner/name" or "owner/name@revision" on the Hugging
          Face Hub. What was downloaded once is read from the Hub's cache, also without a network.

    UserError: no such folder, no such name on the Hub, no network.
    """
    folder = pathlib.Path(spec).expanduser()
    if (file := gguf_in(folder)) is not None:
        return as_folder(file)
    if folder.is_dir():
        return folder
    match = re.fullmatch(r"((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@([\w./-]+))?", str(spec))
    if folder.exists() or not match:
        raise UserError(f"pretrained weights: {spec} is not a folder (with config.json and {_WEIGHTS})")
    import huggingface_hub  # late: half a second

    name, revision = match.groups()
    patterns = ["config.json", "preprocessor_config.json", "model*.safetensors", _INDEX, *TOKENIZER_FILES]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of many libraries (HTTP, file system, Hub), all meaning that there is no folder
        raise UserError(
            f"pretrained weights: {spec!r} is neither a folder here nor could it be had from the Hugging Face Hub "
            f"({type(error).__name__}: {_first_line(error)}). Check the name; without a network, download the model "
            f"elsewhere (`hf download {name} --local-dir FOLDER`) and name that folder"
        ) from error


def load(folder: str | pathlib.Path) -> Pretrained:
    """Reads config.json and model.safetensors (one file, or shards with an index) of `folder`.

    Names may have the prefix of a model with heads ("bert.", "roberta."); LayerNorm may have the old names gamma and
    beta; float16, bfloat16 and float64 become float32. Every tensor is used or listed in `unused`.

    UserError: missing or broken files, an architecture that is not supported, missing or misshapen tensors.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / "config.json")
    architecture = architecture_from_config(config, str(folder / "config.json"))
    files = tensor_files(folder)
    names = {_modern(name): name for name in files}
    copies = _named_copies(names, architecture)
    prefix = _prefix(names, architecture, folder)
    wanted = list(architecture.published_tensors())
    missing = [t for t in wanted if prefix + t.name not in names]
    if missing:
        listed = "; ".join(f"{prefix}{t.name} {list(t.shape)}" for t in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(f"{folder}: {len(missing)} of {len(wanted)} tensors are missing: {listed}{more}")

    params: dict[str, Any] = {}
    with SafetensorsFiles(folder) as opened:
        for tensor in wanted:
            published = names[prefix + tensor.name]
            value = opened.read(files[published], published, tensor.shape)[tensor.part]
            _set_leaf(params, tensor.path, np.ascontiguousarray(value.T) if tensor.transposed else value)
        head = None
        if architecture.causal and _LM_HEAD in names:
            head = names[_LM_HEAD]
            shape = (architecture.vocab_size, architecture.width)
            if not architecture.tied_head:
                params["lm_head"] = {"kernel": np.ascontiguousarray(opened.read(files[head], head, shape).T)}
    if architecture.tied_layers:
        params |= {layer_path(number): params[layer_path(0)] for number in range(architecture.layers)}
    used = {names[prefix + t.name] for t in wanted} | ({head} if head else set())
    return Pretrained(architecture, params, tuple(sorted(set(files) - used - copies)), folder)


def tensor_files(folder: pathlib.Path) -> dict[str, str]:
    """Tensor name -> file of the folder that holds it."""
    if (folder / _WEIGHTS).is_file():
        with SafetensorsFiles(folder) as opened:
            return dict.fromkeys(opened.open(_WEIGHTS).keys(), _WEIGHTS)
    if (folder / _INDEX).is_file():
        shards = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
            raise UserError(f"{folder / _INDEX}: weight_map has to map names of tensors to names of files")
        with SafetensorsFiles(folder) as opened:
            names_in = {file: set(opened.open(file).keys()) for file in sorted(set(shards.values()))}
        for name, file in shards.items():
            if name not in names_in[file]:
                raise UserError(f"{folder / _INDEX}: {name} should be in {file}, but is not")
        return {name: file for file, inside in names_in.items() for name in inside}
    pickles = [name for name in _PICKLES if (folder / name).exists()]
    if pickles:
        raise UserError(
            f"{folder}: only {', '.join(pickles)}, no {_WEIGHTS}. Convert it once where torch is installed: "
            f'python -c "from transformers import AutoModel; '
            f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')\""
        )
    raise UserError(
        f"{folder}: no {_WEIGHTS} and no {_INDEX}. A model on the Hub that has only pickle weights has to be "
        f"converted: load it with transformers where torch is installed, and call save_pretrained"
    )


class SafetensorsFiles:
    """Safetensors files of one folder, each opened once."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.handles: dict[str, Any] = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles.values():
            handle.__exit__(*error)

    def open(self, file: str):
        if file not in self.handles:
            path = self.folder / file
            if pathlib.PurePath(file).name != file or not path.is_file():
                raise UserError(f"{self.folder / _INDEX}: names {file!r}, which is not a file of this folder")
            try:
                self.handles[file] = safetensors.safe_open(path, "np").__enter__()
            except (safetensors.SafetensorError, OSError) as error:
                raise UserError(
                    f"{path}: not a complete safetensors file ({_first_line(error)}); download it again"
                ) from error
        return self.handles[file]

    def read(self, file: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """One tensor as float32, if it has the shape and a floating dtype."""
        handle = self.open(file)
        tensor = handle.get_slice(name)
        if tuple(tensor.get_shape()) != shape:
            raise UserError(
                f"{self.folder / file}: tensor {name} has shape {list(tensor.get_shape())}, "
                f"but by config.json it should have {list(shape)}"
            )
        if tensor.get_dtype() not in _FLOATS:
            raise UserError(
                f"{self.folder / file}: tensor {name} has dtype {tensor.get_dtype()}; "
                f"supported are {', '.join(_FLOATS)} (a quantised model has to be dequantised first)"
            )
        return handle.get_tensor(name).astype(np.float32)


def _modern(name: str) -> str:
    """Published name with the old gamma and beta of LayerNorm as weight and bias."""
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name))


def _named_copies(names: dict[str, str], architecture: Architecture) -> set[str]:
    """The tensors that are the table of word vectors under its other name, which gets its own name, too."""
    copies = {name for name in names if architecture.other_words and name.endswith(architecture.other_words)}
    for name in copies:
        names.setdefault(name.removesuffix(architecture.other_words) + architecture.words, names[name])
    return {names[name] for name in copies}


def _prefix(names: Mapping[str, str], architecture: Architecture, folder: pathlib.Path) -> str:
    """What stands before the family's own names in those of this folder: "", "bert.", "roberta." ..."""
    words = architecture.words
    prefixes = [name.removesuffix(words) for name in names if name == words or name.endswith("." + words)]
    if len(prefixes) == 1:
        return prefixes[0]
    if not prefixes:
        example = ", ".join(sorted(names)[:3])
        raise UserError(f"{folder}: no tensor {words}; this is no {architecture.published} (it has {example} ...)")
    raise UserError(
        f"{folder}: several encoders in one file, with the prefixes {', '.join(map(repr, sorted(prefixes)))}"
    )


def _set_leaf(tree: dict[str, Any], path: tuple[str, ...], value: np.ndarray) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; pretrained weights are config.json and {_WEIGHTS}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON: {error.msg}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: has to hold one JSON object")
    return content


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")
