"""LoRA as an adapter folder of PEFT: adapter_config.json and adapter_model.safetensors (Mangrulkar et al. 2022).

PEFT adds scaling · B A to a published weight [out, in], with A [r, in], B [out, r] and scaling = lora_alpha / r.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.errors import UserError
from mtl_jax.models.export_heads import ExportedHead, NotPublished
from mtl_jax.models.families.base import Architecture, PublishedTensor
from mtl_jax.models.pretrained import Pretrained, SafetensorsFiles, read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "span": "QUESTION_ANS"}
_ROOT = "base_model.model."


class Factors(NamedTuple):
    """What LoRA adds to one kernel [inputs, outputs]: scaling · A B with a [inputs, r], b [r, outputs]."""

    a: np.ndarray
    b: np.ndarray


def save_adapter(
    folder: pathlib.Path,
    architecture: Architecture,
    factors: Mapping[tuple[str, ...], Factors],
    scaling: float,
    base: str,
    head: tuple[str, ExportedHead] | None = None,
) -> int:
    """Writes the folder; returns the number of adapted modules.

    Args:
      folder: made if it is not there.
      architecture: of the encoder.
      factors: {path of a kernel: what is added to it}.
      scaling: α / r.
      base: folder or name of the model that the adapter stands on.
      head: (kind of head, the head), which PEFT stores with the adapter; None for none.

    Raises:
      NotPublished: a kernel has no published weight [out, in].
    """
    from safetensors.numpy import save_file

    prefix = head[1].published.prefix if head else ""
    parts: dict[str, list[tuple[PublishedTensor, Factors | None]]] = {}
    for tensor in architecture.published_tensors():
        parts.setdefault(prefix + tensor.name.removesuffix(".weight"), []).append((tensor, factors.get(tensor.path)))
    changed = {name: entries for name, entries in parts.items() if any(added for _, added in entries)}
    found = sum(added is not None for entries in changed.values() for _, added in entries)
    if found < len(factors) or any(not tensor.transposed for entries in changed.values() for tensor, _ in entries):
        raise NotPublished("PEFT changes published kernels [out, in] alone, and others are adapted here")
    joined = {name: _joined(entries) for name, entries in changed.items()}
    rank = max(one.a.shape[1] for one in joined.values())
    tensors: dict[str, np.ndarray] = {}
    for name, one in joined.items():
        more = rank - one.a.shape[1]  # zeros change nothing
        tensors[f"{_ROOT}{name}.lora_A.weight"] = np.pad(one.a, ((0, 0), (0, more))).T
        tensors[f"{_ROOT}{name}.lora_B.weight"] = np.pad(one.b, ((0, more), (0, 0))).T
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(head[0]) if head else "FEATURE_EXTRACTION",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": scaling * rank,
        "lora_dropout": 0.0,
        "target_modules": sorted(joined),
        "bias": "none",
        "inference_mode": True,
    }
    if head:
        tensors |= {_ROOT + name: value for name, value in head[1].tensors.items()}
        fields["modules_to_save"] = sorted({name.rpartition(".")[0] for name in head[1].tensors})
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(v, np.float32) for name, v in tensors.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    return len(joined)


def _joined(entries: list[tuple[PublishedTensor, Factors | None]]) -> Factors:
    """The factors of a published weight; kernels that share its rows have columns of A of their own."""
    kept = [(tensor.rows or (0, tensor.shape[0]), added) for tensor, added in entries if added is not None]
    outputs = entries[0][0].shape[0]
    rows = []
    for (first, end), added in kept:
        b = np.zeros((added.b.shape[0], outputs), np.float32)
        b[:, first:end] = added.b
        rows.append(b)
    return Factors(np.concatenate([added.a for _, added in kept], axis=1), np.concatenate(rows))


def merge_adapter(encoder: Pretrained, folder: pathlib.Path) -> Pretrained:
    """The encoder with what a LoRA of PEFT adds to its kernels, W + scaling · A B.

    Args:
      encoder: that the adapter stands on.
      folder: with adapter_config.json and adapter_model.safetensors.

    Raises:
      UserError: another kind of adapter, a module that the encoder has not, factors of another shape.
    """
    fields, where = read_json(folder / CONFIG), folder / CONFIG
    wanted = {"peft_type": "LORA", "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none"}
    for field, value in wanted.items():
        if (fields.get(field) or value) != value:
            raise UserError(f"{where}: {field} = {fields[field]!r} is not supported, only {value!r}")
    rank = fields["r"]
    scaling = fields.get("lora_alpha", 8) / (rank**0.5 if fields.get("use_rslora") else rank)
    params = unflatten_dict(flatten_dict(encoder.params))  # dicts of its own, the same arrays
    modules: dict[str, list[PublishedTensor]] = {}
    for tensor in encoder.architecture.published_tensors():
        modules.setdefault(tensor.name.removesuffix(".weight"), []).append(tensor)
    unused = []
    with SafetensorsFiles(folder) as opened:
        handle = opened.open(WEIGHTS)
        for name in sorted(handle.keys()):
            if not name.endswith(".lora_A.weight"):
                unused += [] if name.endswith(".lora_B.weight") else [name]
                continue
            module = name.removeprefix(_ROOT).removesuffix(".lora_A.weight")
            tensors = next((modules[own] for own in modules if f".{module}".endswith(f".{own}")), None)
            if tensors is None or encoder.architecture.tied_layers:
                raise UserError(f"{where}: {encoder.folder} has no kernel {module} of its own")
            b = handle.get_tensor(name.replace(".lora_A.", ".lora_B.")).astype(np.float32)
            change = scaling * b @ handle.get_tensor(name).astype(np.float32)
            for tensor in tensors:
                _add(params, tensor, change, f"{folder / WEIGHTS}: {module}")
    return encoder._replace(params=params, unused=(*encoder.unused, *unused))


def _add(params: dict[str, Any], tensor: PublishedTensor, change: np.ndarray, where: str) -> None:
    """Adds a change [out, in] of a published kernel to what it is here, [inputs, outputs]."""
    own = change[slice(*tensor.rows or (None,))].T
    *path, leaf = tensor.path
    for key in path:
        params = params[key]
    if own.shape != params[leaf].shape:
        raise UserError(f"{where}: changes a kernel {list(own.shape)}, which has the shape {list(params[leaf].shape)}")
    params[leaf] = params[leaf] + own
