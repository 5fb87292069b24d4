"""`data clean`: removes prepared data that is not in use, and says how much that was."""

from __future__ import annotations

from mtl_jax.data.files import cache_cleaning
from mtl_jax.data.files.array_cache import cache_folder
from mtl_jax.data.origins.store import megabytes
from mtl_jax.errors import UserError


def clean(days: float) -> None:
    """Removes what no run has read for `days`. Raises UserError: it cannot be removed."""
    if not days >= 0:
        raise UserError(f"--days={days:g} should be 0 or more")
    entries = cache_cleaning.unused_entries(days)
    for entry in entries:
        try:
            cache_cleaning.remove(entry)
        except OSError as error:
            raise UserError(f"{entry.path}: cannot be removed: {error.strerror or error}") from error
    size = megabytes(sum(entry.size for entry in entries))
    print(f"{len(entries)} prepared arrays, {size}, removed from {cache_folder()}")
