"""Experiments: each file sets the fields that differ from `mtl_jax.config.default`.

The docstring of a file states the command, its data and the scores to expect. `$MTL_JAX_DATA` is the folder of the raw
data sets; the page "Data" of the documentation lists them with their sources.
"""

import functools
import os
import pathlib
import sys

FOLDER = os.environ.get("MTL_JAX_DATA", "../shared/data")


@functools.cache  # at most one note for each data set
def data_path(name: str) -> str:
    """The path of a raw data set in the folder of data; prints a note on stderr where it does not exist."""
    path = f"{FOLDER}/{name}"
    if not pathlib.Path(path).expanduser().exists():
        print(
            f"note: {path} does not exist. Set MTL_JAX_DATA to the folder that holds {name.split('/')[0]}/; the page "
            '"Data" of the documentation says where it comes from',
            file=sys.stderr,
        )
    return path
