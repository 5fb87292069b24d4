"""Data sets of the Hugging Face Hub, streamed by its library `datasets`, which is installed separately."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.parquet import plain_value
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_hub(
    location: Location, encoding: str, *, split: str, name: str = "", revision: str = "", streaming: bool = True
) -> Iterator[Record | Note]:
    """One record for each row of a split, `Record.line` its number from 1; nothing but the rows read is kept in memory.

    Class numbers (ClassLabel, also in lists) become their names; -1 there, NaN and null are None. Translations are
    objects, read as "translation.de". Columns of pictures, sound and video are left out.

    Args:
      location: its name, as written in `path` ("stanfordnlp/imdb"), or a folder: one that `save_to_disk` wrote, or
        that `datasets` reads.
      encoding: not used.
      split: its name on the Hub, given by `splits` of the data set. Slices follow as for files: "train[:1000]".
      name: the configuration of a data set that has several.
      revision: a commit, branch or tag; "" = the newest.
      streaming: False downloads the split into the cache of `datasets` first.

    Raises UserError where the library is missing, or the data set cannot be read.
    """
    del encoding
    datasets = _library()
    file = f"{location.name}[{split}]"
    try:
        if _is_saved(location):
            rows = _saved_split(datasets.load_from_disk(location.name), split)
        else:
            rows = datasets.load_dataset(
                location.name, name or None, split=split, revision=revision or None, streaming=streaming
            )
        features = rows.features.to_dict() if rows.features else {}
        if binary := [key for key, feature in features.items() if _is_binary(feature)]:
            rows = rows.remove_columns(binary)
            yield Note(f"columns of pictures, sound or video left out ({', '.join(binary)})", file, 0, harmless=True)
        for number, row in enumerate(rows, start=1):
            yield Record({key: plain_value(v, features.get(key)) for key, v in row.items()}, file, number)
    except Exception as error:  # `datasets` raises those of many libraries
        cause = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise UserError(f"Hub data set {location.name!r}, split {split!r}: {cause}") from error


def _is_saved(location: Location) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((location.place / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _saved_split(data: Any, split: str) -> Any:
    """The split of a saved DatasetDict; a saved Dataset is all of itself. Raises KeyError for an absent one."""
    if not hasattr(data, "keys"):
        return data
    if split not in data:
        raise KeyError(f"there is no split {split!r}; there are {', '.join(data)}")
    return data[split]


def _is_binary(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") in ("Image", "Audio", "Video", "Pdf")


def hub_identity(location: Location, split: str, options: Mapping[str, Any]) -> str:
    """The commit of a data set on the Hub. Raises UserError where the Hub does not answer."""
    _library()
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(location.name, revision=options.get("revision") or None).sha
    except Exception as error:
        cause = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise UserError(f"Hub data set {location.name!r}: {cause}") from error


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError('the reader "hub" needs the library datasets: pip install "mtl-jax[hub]"') from error
    return datasets
