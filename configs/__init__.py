"""Experiments. Each file changes what differs from `mtl_jax.config.default`."""

import functools
import os
import pathlib
import sys

FOLDER = os.environ.get("MTL_JAX_DATA", "../shared/data")


@functools.cache  # one note for each
def data_path(name: str) -> str:
    """The path of a raw data set that is not in a wheel; a note on stderr where it is absent."""
    path = f"{FOLDER}/{name}"
    if not pathlib.Path(path).expanduser().exists():
        print(
            f"note: {path} is not there. Set MTL_JAX_DATA to the folder that holds {name.split('/')[0]}/; the page "
            '"Data" of the documentation says where it comes from',
            file=sys.stderr,
        )
    return path
