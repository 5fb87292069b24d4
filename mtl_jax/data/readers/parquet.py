"""Parquet and Arrow files, as the Hub, pandas and `datasets` write them."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_PARQUET, _ARROW_FILE = b"PAR1", b"ARROW1"


def read_parquet(location: Location, encoding: str) -> Iterator[Record | Note]:
    """One record for each row, `Record.line` its number from 1. `encoding` is not used.

    Class numbers (ClassLabel, also in lists) become their names where the file has the features of Hugging Face's
    `datasets`; −1 there, NaN and null are None. Values that JSON lacks (dates, decimals) become strings.

    Raises UserError where the file has another format, is damaged, or a class has no name.
    """
    del encoding
    with location.open() as stream:
        content = stream.read()
    schema, rows = _rows(content, location.name)
    features = _features(schema.metadata or {})
    for number, row in enumerate(rows, start=1):
        try:
            yield Record({name: _plain(v, features.get(name)) for name, v in row.items()}, location.name, number)
        except IndexError as error:
            raise UserError(f"{location.name}:{number}: {error}") from error


def _rows(content: bytes, name: str) -> tuple[Any, list[dict[str, Any]]]:
    import pyarrow  # late: it takes a while, and most runs need none of it
    from pyarrow import ipc, parquet

    try:
        if content.startswith(_PARQUET):
            table = parquet.read_table(io.BytesIO(content))
        elif content.startswith(_ARROW_FILE):
            table = ipc.open_file(io.BytesIO(content)).read_all()
        else:
            table = ipc.open_stream(io.BytesIO(content)).read_all()
        return table.schema, table.to_pylist()
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


def _plain(value: Any, feature: Any) -> Any:
    if isinstance(feature, list) and len(feature) == 1:  # an older form of a list
        feature = {"feature": feature[0]}
    feature = feature if isinstance(feature, dict) else {}
    if isinstance(value, list):
        return [_plain(item, feature.get("feature")) for item in value]
    if isinstance(value, dict):
        inner = feature.get("feature") if isinstance(feature.get("feature"), dict) else feature
        return {key: _plain(item, _inside(inner.get(key), feature)) for key, item in value.items()}
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
