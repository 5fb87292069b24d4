"""From files to batches: readers, encoding, packing, and (seed, step) -> batch. Pure numpy, no jax."""
