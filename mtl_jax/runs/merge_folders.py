"""--mode=merge of Hugging Face folders of one architecture: the result is such a folder."""

from __future__ import annotations

import inspect
import json
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Merging
from mtl_jax.errors import UserError
from mtl_jax.models import pretrained
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.pretrained import TOKENIZER_FILES, SafetensorsFiles
from mtl_jax.sharing.merging import MERGING, first_difference

_NOT_ARCHITECTURE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")


class _Folder(NamedTuple):
    """One model: every tensor of its file by name, float32."""

    path: pathlib.Path
    config: dict[str, Any]
    architecture: Architecture
    tensors: dict[str, np.ndarray]


def merge_folders(merging: Merging, out: pathlib.Path, seed: int) -> str:
    """Merges the models in `config.merging.folders` by the one method in `config.merging.methods`.

    Heads are merged as well where all folders have the same; where they differ, the result is the encoder alone.

    Returns:
      a line about what was written.

    Raises:
      UserError: other architectures or vocabularies, in one sentence; a method that needs `config.merging.base`.
    """
    folders = [_read(name) for name in merging.folders]
    base = _read(merging.base) if merging.base else None
    for other in [*folders[1:], *([base] if base else [])]:
        _require_alike(folders[0], other)
    tensors, has_heads = _common_tensors(folders, base)
    (name,) = merging.methods
    options = to_plain(merging.options)
    function = MERGING[name].merge
    if base is None and (_needs_base(name) or options.get("vectors")):
        raise UserError(f"config.merging.base: {name!r} works on differences from a common base; name its folder")
    stack = {path: jnp.stack([folder.tensors[path] for folder in folders]) for path in tensors}
    start = None if base is None else {path: jnp.asarray(base.tensors[path]) for path in tensors}
    try:
        merged = function(stack, start, key=jax.random.key(seed), **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.merging.options: {name}: {error}") from None
    _write(out, folders[0], {path: np.asarray(leaf) for path, leaf in merged.items()}, has_heads)
    heads = "with its head" if has_heads else "the encoder alone, since the heads differ"
    return f"{out}: {len(folders)} folders merged by {name}, {len(merged)} tensors, {heads}"


def _needs_base(name: str) -> bool:
    return inspect.signature(MERGING[name].merge).parameters["base"].default is inspect.Parameter.empty


def _read(spec: str) -> _Folder:
    path = pretrained.resolve_folder(spec)
    architecture = pretrained.load(path).architecture
    files = pretrained.tensor_files(path)
    tensors = {}
    with SafetensorsFiles(path) as opened:
        for name, file in files.items():
            value = opened.open(file).get_tensor(name)
            if np.issubdtype(value.dtype, np.floating):  # buffers of positions are no parameters
                tensors[name] = value.astype(np.float32)
    return _Folder(path, pretrained.read_json(path / "config.json"), architecture, tensors)


def _require_alike(first: _Folder, other: _Folder) -> None:
    if first.architecture != other.architecture:
        raise UserError(
            f"config.merging.folders: {first.path} and {other.path} have different architectures; entries of tensors "
            "can be merged only where they stand for the same thing"
        )
    vocabularies = [_vocabulary(folder.path) for folder in (first, other)]
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise UserError(
            f"config.merging.folders: the tokenizers of {first.path} and {other.path} give other ids to tokens, so the "
            "rows of their tables do not belong together"
        )


def _vocabulary(folder: pathlib.Path) -> Any:
    """What gives tokens their ids; None where the folder has no tokenizer."""
    if (folder / "tokenizer.json").is_file():
        source = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return source["model"].get("vocab"), source.get("added_tokens")
    return (folder / "vocab.txt").read_text(encoding="utf-8") if (folder / "vocab.txt").is_file() else None


def _common_tensors(folders: Sequence[_Folder], base: _Folder | None) -> tuple[list[str], bool]:
    """The tensors to merge, and whether they include heads: where all models are of one class, with the same labels."""
    first = folders[0]
    fields = [
        {key: value for key, value in folder.config.items() if key not in _NOT_ARCHITECTURE} for folder in folders
    ]
    models = folders if base is None else [*folders, base]
    same = all(other == fields[0] for other in fields)
    if same and not first_difference({str(folder.path): folder.tensors for folder in models}):
        return list(first.tensors), True
    prefixes = {folder.path: _prefix(folder) for folder in models}
    if len(set(prefixes.values())) > 1:
        for folder in models:
            renamed = {name.removeprefix(prefixes[folder.path]): value for name, value in folder.tensors.items()}
            folder.tensors.clear()
            folder.tensors.update(renamed)
    prefix = next(iter(prefixes.values())) if len(set(prefixes.values())) == 1 else ""
    return [prefix + tensor.name for tensor in _encoder_tensors(first)], False


def _encoder_tensors(folder: _Folder) -> list[Any]:
    return list({tensor.name: tensor for tensor in folder.architecture.published_tensors()}.values())


def _prefix(folder: _Folder) -> str:
    words = folder.architecture.words
    return next(name.removesuffix(words) for name in folder.tensors if name.endswith(words))


def _write(out: pathlib.Path, like: _Folder, tensors: Mapping[str, np.ndarray], has_heads: bool) -> None:
    """The folder: names and config.json as in the first of those that were merged."""
    from safetensors.numpy import save_file

    config = dict(like.config) if has_heads else like.architecture.published_config()
    if not has_heads:
        prefix = _prefix(like)
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    out.mkdir(parents=True, exist_ok=True)
    for pattern in TOKENIZER_FILES:
        for file in sorted(like.path.glob(pattern)):
            shutil.copyfile(file, out / file.name)
    (out / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    arrays = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
