"""Parquet and Arrow files, as the Hub, pandas and `datasets` write them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_PARQUET, _ARROW_FILE = b"PAR1", b"ARROW1"
_BATCH = 1 << 13  # rows


def read_parquet(location: Location, encoding: str) -> Iterator[Record | Note]:
    """One record for each row, `Record.line` its number from 1. `encoding` is not used.

    Class numbers (ClassLabel, also in lists) become their names where the file has the features of Hugging Face's
    `datasets`; −1 there, NaN and null are None. Values that JSON lacks (dates, decimals) become strings.

    Raises UserError where the file has another format, is damaged, or a class has no name.
    """
    del encoding
    with location.open() as stream:
        for number, (row, features) in enumerate(_rows(stream, location.name), start=1):
            try:
                fields = {name: plain_value(v, features.get(name)) for name, v in row.items()}
            except IndexError as error:
                raise UserError(f"{location.name}:{number}: {error}") from error
            yield Record(fields, location.name, number)


def _rows(stream: BinaryIO, name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(row, features) of each row; a batch of them is in memory at a time."""
    import pyarrow  # late: it takes a while, and most runs need none of it
    from pyarrow import ipc, parquet

    try:
        begin = stream.read(8)
        stream.seek(0)
        if begin.startswith(_PARQUET):
            file = parquet.ParquetFile(stream)
            schema, batches = file.schema_arrow, file.iter_batches(_BATCH)
        elif begin.startswith(_ARROW_FILE):
            file = ipc.open_file(stream)
            schema, batches = file.schema, map(file.get_batch, range(file.num_record_batches))
        else:
            batches = ipc.open_stream(stream)
            schema = batches.schema
        features = _features(schema.metadata or {})
        for batch in batches:
            for row in batch.to_pylist():
                yield row, features
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, MemoryError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise UserError(f"{name}: cannot be read as Parquet or Arrow: {reason}") from error


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """{column: feature} as `datasets` keeps them; {} where the file has none, or others."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def plain_value(value: Any, feature: Any) -> Any:
    """A value as plain Python, by its feature in `datasets`. Raises IndexError for a class without a name."""
    if isinstance(feature, list) and len(feature) == 1:  # an older form of a list
        feature = {"feature": feature[0]}
    feature = feature if isinstance(feature, dict) else {}
    if isinstance(value, list):
        return [plain_value(item, feature.get("feature")) for item in value]
    if isinstance(value, dict):
        inner = feature.get("feature") if isinstance(feature.get("feature"), dict) else feature
        return {key: plain_value(item, _inside(inner.get(key), feature)) for key, item in value.items()}
    if isinstance(value, float) and math.isnan(value):
        return None
    if feature.get("_type") == "ClassLabel" and isinstance(value, int) and isinstance(feature.get("names"), list):
        if value == -1:
            return None
        if not 0 <= value < len(feature["names"]):
            raise IndexError(f"class {value}, but the file names {len(feature['names'])} classes")
        return feature["names"][value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _inside(feature: Any, around: Mapping[str, Any]) -> Any:
    """The feature of a key; a list of objects is stored as an object of lists, so that each key has a list."""
    return {"feature": feature} if "feature" in around else feature
