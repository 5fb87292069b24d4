"""Experiments. Each file changes what differs from `mtl_jax.config.default`."""

import os

# Folder of the raw data sets that are not in a wheel.
DATA = os.environ.get("MTL_JAX_DATA", "../shared/data")
