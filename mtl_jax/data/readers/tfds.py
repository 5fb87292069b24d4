"""TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mtl_jax.data.files.location import Location, local_path
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_tfds(location: Location, encoding: str, *, split: str, data_dir: str = "") -> Iterator[Record | Note]:
    """One record for each example of TFDS, by random access (`as_data_source`). Record.line is its number.

    Text becomes str, class numbers become their names (-1, no label: None), arrays of one axis become lists.

    Args:
      location: a prepared folder (it holds dataset_info.json), or nothing on disk: then its name, as written in
        `path`, is the name of a data set ("glue/cola", "glue/cola:2.0.0"), downloaded and prepared once.
      encoding: of the text.
      split: TFDS split expression ("train[:90%]"), given by `splits` of the data set.
      data_dir: folder for data sets by name; "" = the default of TFDS.

    Raises UserError where the data set is unknown, cannot be prepared, has no such split or is in TFRecord files,
    which only TensorFlow reads.
    """
    try:
        builder = _prepared(_builder(location, data_dir), location)
        source = builder.as_data_source(split=split)
        size = builder.info.splits[split].num_examples
    except Exception as error:  # TFDS has no exception type of its own
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"TFDS data set {location.name!r}, split {split!r}: {cause[0]} "
            "(`path` is a name that TFDS knows, where there is a network, or a folder prepared as array_record or "
            "parquet; `splits` are TFDS split expressions)"
        ) from error
    if len(source) != size:  # TFDS 4.9 leaves the slice out for Parquet files and gives the complete split
        raise UserError(
            f"TFDS data set {location.name!r}: split {split!r} has {size} examples, but TFDS gives {len(source)}: "
            "it does not slice these files. Take whole splits with dev_fraction, or prepare it as array_record"
        )
    file = f"{location.name}[{split}]"
    for index in range(len(source)):
        try:
            fields = _plain(source[index], builder.info.features, encoding)
        except (UnicodeError, LookupError) as error:
            raise UserError(f"{file}:{index + 1}: text is not {encoding}; set `encoding` of the data set") from error
        yield Record(fields, file, index + 1)


def tfds_identity(location: Location, split: str, options: Mapping[str, Any]) -> str:
    """Name, configuration and version; "" where TFDS does not know the data set, as the reader will say."""
    try:
        return _builder(location, options.get("data_dir", "")).info.full_name
    except Exception:  # TFDS has no exception type of its own
        return ""


def prepare(name: str, data_dir: str = "") -> str:
    """The folder of a data set by its name in TFDS, downloaded where it is not there; a folder stays as it is.

    Raises UserError with the message of TFDS.
    """
    place = local_path(name)
    try:
        return str(_prepared(_builder(Location(place.place, name), data_dir), place).data_dir)
    except Exception as error:  # TFDS has no exception type of its own
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"TFDS data set {name!r}: {cause[0]}") from error


def _prepared(builder: Any, location: Location) -> Any:
    """The builder, its files downloaded; what is downloaded, and how much, is printed on standard error before."""
    if location.is_folder():
        return builder
    if not builder.is_prepared():
        info = builder.info
        print(f"TFDS {info.full_name}: downloading {info.download_size}, to {builder.data_dir}", file=sys.stderr)
    builder.download_and_prepare(file_format="array_record")
    return builder


def _builder(location: Location, data_dir: str) -> Any:
    import tensorflow_datasets
    import tensorflow_datasets.text  # registers the builders of text data sets

    if location.is_folder():
        return tensorflow_datasets.builder_from_directory(location.name)
    return tensorflow_datasets.builder(location.name, data_dir=data_dir or None)


def _plain(value: Any, feature: Any, encoding: str) -> Any:
    """A value of TFDS as plain Python, by its feature."""
    from tensorflow_datasets import features

    if isinstance(feature, features.FeaturesDict):
        return {name: _plain(value[name], feature[name], encoding) for name in feature}
    if isinstance(feature, features.Sequence):
        inner = feature.feature
        if isinstance(inner, features.FeaturesDict):  # TFDS turns a list of dicts into a dict of lists
            return {name: [_plain(v, inner[name], encoding) for v in value[name]] for name in inner}
        return [_plain(v, inner, encoding) for v in value]
    if isinstance(feature, features.ClassLabel):
        return feature.int2str(int(value)) if value >= 0 else None
    if isinstance(value, bytes):
        return value.decode(encoding)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return [_plain(v, None, encoding) for v in value]
    return value.item() if isinstance(value, np.generic) else value
