"""Experiments: each file sets the fields that differ from `mtl_jax.config.default`.

The docstring of a file states the command, its data and the scores to expect. `python -m mtl_jax data show NAME` says
where a data set comes from; a run downloads what is not here yet.
"""
