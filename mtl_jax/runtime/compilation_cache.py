"""JAX's persistent cache of compiled programs, with checksums: damaged programs are removed."""

from __future__ import annotations

import atexit
import hashlib
import os
import pathlib
import platform
import sys
import time

import jax

from mtl_jax.data.files import array_cache, python_wheels

MAX_BYTES = 1 << 30  # of all programs; the least recently used ones are removed first
MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are not stored
_ENTRY, _CHECKSUM = "-cache", ".sha256"
_HOUR = 3600.0


def enable() -> None:
    """Enables the cache in `programs_folder()`.

    JAX_COMPILATION_CACHE_DIR selects another folder, without checksums; JAX_ENABLE_COMPILATION_CACHE=false disables the
    cache. Every program gets a file with its hash at the end of the process. A program that differs from its hash is
    removed; so is one without a hash, whose process was killed, possibly while writing. If the folder cannot be
    written, there is a warning and no cache.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    cache = programs_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_damaged(cache)
    except OSError as error:
        print(f"  compiled programs are not cached: {cache}: {error.strerror}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    atexit.register(_write_checksums, cache, time.time())


def programs_folder() -> pathlib.Path:
    """`programs/` in the cache folder, a subfolder for each kind of processor."""
    return array_cache.cache_folder() / "programs" / _processor()


def _processor() -> str:
    """A name for the instruction set of this machine: programs compiled for another may not run here."""
    description = [platform.machine(), platform.processor()]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    description += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(description).encode()).hexdigest()[:16]


def _remove_damaged(folder: pathlib.Path) -> None:
    """Removes programs that differ from their hash, and old ones without a hash."""
    for program in folder.glob(f"*{_ENTRY}"):
        try:
            checksum = program.with_name(program.name + _CHECKSUM)
            if checksum.exists():
                damaged = checksum.read_text(encoding="utf-8") != python_wheels.sha256_of_file(program)
            else:  # another process may still be writing a new one
                damaged = time.time() - program.stat().st_mtime > _HOUR
            if damaged:
                program.unlink()
                checksum.unlink(missing_ok=True)
        except FileNotFoundError:  # another process removed it
            continue
    for checksum in folder.glob(f"*{_ENTRY}{_CHECKSUM}"):
        if not checksum.with_name(checksum.name.removesuffix(_CHECKSUM)).exists():
            checksum.unlink(missing_ok=True)


def _write_checksums(folder: pathlib.Path, began: float) -> None:
    """Writes hashes of the programs that were written since `began`."""
    for program in folder.glob(f"*{_ENTRY}"):
        checksum = program.with_name(program.name + _CHECKSUM)
        try:
            if program.stat().st_mtime >= began and not checksum.exists():
                temporary = checksum.with_name(f"{checksum.name}.{os.getpid()}")
                temporary.write_text(python_wheels.sha256_of_file(program), encoding="utf-8")
                os.replace(temporary, checksum)
        except OSError:  # removed meanwhile, or the disk is full: the program will be compiled again
            continue
