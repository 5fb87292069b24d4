"""One column as a folder in the Hugging Face layout, which `transformers` loads and `pretrained.load` reads back."""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.errors import UserError
from mtl_jax.models.export_heads import ExportedHead
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.ownership import layer_path
from mtl_jax.models.pretrained import TOKENIZER_FILES


def save_folder(
    folder: str | pathlib.Path,
    architecture: Architecture,
    params: Mapping[str, Any],
    tokenizer_folder: str | pathlib.Path | None = None,
    head: ExportedHead | None = None,
) -> list[str]:
    """Writes config.json, model.safetensors and the tokenizer's files. Returns the names of the tensors written.

    Args:
      folder: made if it is not there; files of these names in it are replaced.
      architecture: of the encoder.
      params: of one column (no leading task axis): {"embed": {...}, "layer_00": {...}, ...}. Paths other than those of
        the architecture (heads, mixers) are no part of the published layout and are not written.
      tokenizer_folder: where the tokenizer's files are copied from; None copies none.
      head: what stands on the encoder; None for none. The pooler of the published BERT is part of a head here: without
        one `transformers` starts it at random, saying so.

    UserError: a leaf that is missing or has another shape, a folder that cannot be written.
    """
    from safetensors.numpy import save_file

    folder, published = pathlib.Path(folder), published_values(architecture, params)
    fields = architecture.published_config()
    if head is not None:
        published = {head.published.prefix + name: value for name, value in published.items()} | head.tensors
        fields |= {"architectures": [head.published.architecture], **head.config}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if tokenizer_folder is not None:
            _copy_tokenizer(pathlib.Path(tokenizer_folder), folder)
        (folder / "config.json").write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # "pt" is the layout that transformers asks for: it says nothing of torch, only that kernels are [out, in].
        save_file(published, folder / "model.safetensors", metadata={"format": "pt"})
    except OSError as error:
        raise UserError(f"export: cannot write {folder}: {error}") from error
    return list(published)


def save_tokenizer_config(
    folder: pathlib.Path, tokenizer: Tokenizer, architecture: Architecture, row_length: int
) -> bool:
    """Writes tokenizer_config.json next to a tokenizer.json, so that `transformers` reads it as it is here.

    Args:
      folder: of the model.
      tokenizer: of the run.
      architecture: of the encoder.
      row_length: tokens of the longest text.

    Returns:
      whether there is a tokenizer.json; words of the training data have none.
    """
    if not (folder / "tokenizer.json").is_file():
        return False
    before, after = tokenizer.single.before, tokenizer.single.after
    ids = {
        "unk_token": tokenizer.unknown_id,
        "mask_token": tokenizer.mask_id,
        "pad_token": getattr(architecture, "pad_token", None),
        "cls_token": before[0][0] if before else None,
        "sep_token": after[-1][0] if after and before else None,
        "eos_token": after[-1][0] if after and not before else None,
    }
    inputs = ["input_ids", *(["token_type_ids"] if architecture.reads_token_types else []), "attention_mask"]
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": min(row_length, architecture.max_length),
        "model_input_names": inputs,
        "clean_up_tokenization_spaces": False,
        **{role: tokenizer.id_to_token(index) for role, index in ids.items() if index is not None},
    }
    text = json.dumps(fields, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)  # the same in fewer words
    return True


def published_values(architecture: Architecture, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{published name: float32 array} of the parameters of one column, or of a gradient of their form.

    UserError: a leaf that is missing or has another shape.
    """
    if architecture.tied_layers and (others := [p for p in params if p.startswith("layer_") and p != layer_path(0)]):
        if any(params[path] is not params[layer_path(0)] for path in others):
            raise UserError(
                f"export: {architecture.published} has one set of weights for all layers, but {others[0]} has others "
                f"than {layer_path(0)}: there is no such published model (config.sharing.trunk = 'all', 'embed' or "
                "'none')"
            )
    parts: dict[tuple[str, int], list[np.ndarray]] = {}
    for tensor in architecture.published_tensors():
        value = np.asarray(_leaf(params, tensor.path), np.float32)
        value = value.T if tensor.transposed else value
        if value.shape != tensor.part_shape:
            raise UserError(
                f"export: {'/'.join(tensor.path)} gives {tensor.name} the shape {list(value.shape)} instead of "
                f"{list(tensor.part_shape)}; one column has no leading task axis"
            )
        parts.setdefault((tensor.name, tensor.axis), []).append(value)
    return {name: np.ascontiguousarray(np.concatenate(values, axis)) for (name, axis), values in parts.items()}


def _leaf(params: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for depth, key in enumerate(path):
        if key not in params:
            raise UserError(f"export: the parameters have no {'/'.join(path[: depth + 1])}")
        params = params[key]
    return params


def _copy_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and file.parent.resolve() != folder.resolve():
                shutil.copyfile(file, folder / file.name)
