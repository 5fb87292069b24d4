"""From files to batches: readers, encoding, packing, and (seed, step) -> batch. NumPy only, no jax.

A *record* is what a reader reads. An *example* is a record (or a part of one) encoded as one sequence of tokens. A
*row* is a line of T tokens that holds several examples. A *batch* is B blocks of R rows.
"""
