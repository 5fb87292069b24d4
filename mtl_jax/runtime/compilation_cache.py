"""Compiled programs, kept on disk from run to run by JAX's compilation cache; damaged ones are thrown away."""

from __future__ import annotations

import atexit
import hashlib
import os
import pathlib
import platform
import sys
import time

import jax

from mtl_jax.data.files import array_cache, wheels

LARGEST = 1 << 30  # bytes of all programs; those not used for longest go first
WORTH = 0.3  # seconds; what compiles faster is not kept
_ENTRY, _SEAL = "-cache", ".sha256"
_HOUR = 3600.0


def keep() -> None:
    """Keeps them in `folder()`.

    JAX_COMPILATION_CACHE_DIR chooses another folder, which is left alone; JAX_ENABLE_COMPILATION_CACHE=false keeps
    none. Every program gets a file with its hash at the end of the process. One that differs from it is removed, and so
    is one without: the process that wrote it was killed, maybe while it wrote. A folder that cannot be written costs
    the time to compile, with a warning.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    kept = folder()
    try:
        kept.mkdir(parents=True, exist_ok=True)
        _clean(kept)
    except OSError as error:
        print(f"  compiled programs are not kept: {kept}: {error.strerror}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(kept))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTH)
    atexit.register(_seal, kept, time.time())


def folder() -> pathlib.Path:
    """`programs/` in the cache folder, apart for each kind of processor."""
    return array_cache.cache_folder() / "programs" / _processor()


def _processor() -> str:
    """A name for the instructions that this machine has: programs of another one may not run here."""
    told = [platform.machine(), platform.processor()]
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _clean(folder: pathlib.Path) -> None:
    """Removes programs that differ from their hash, and old ones that never got any."""
    for program in folder.glob(f"*{_ENTRY}"):
        try:
            seal = program.with_name(program.name + _SEAL)
            if seal.exists():
                damaged = seal.read_text(encoding="utf-8") != wheels.sha256_of_file(program)
            else:  # another process may be at work on a new one
                damaged = time.time() - program.stat().st_mtime > _HOUR
            if damaged:
                program.unlink()
                seal.unlink(missing_ok=True)
        except FileNotFoundError:  # another process removed it
            continue
    for seal in folder.glob(f"*{_ENTRY}{_SEAL}"):
        if not seal.with_name(seal.name.removesuffix(_SEAL)).exists():
            seal.unlink(missing_ok=True)


def _seal(folder: pathlib.Path, began: float) -> None:
    """Hashes of the programs that were written since."""
    for program in folder.glob(f"*{_ENTRY}"):
        seal = program.with_name(program.name + _SEAL)
        try:
            if program.stat().st_mtime >= began and not seal.exists():
                temporary = seal.with_name(f"{seal.name}.{os.getpid()}")
                temporary.write_text(wheels.sha256_of_file(program), encoding="utf-8")
                os.replace(temporary, seal)
        except OSError:  # removed meanwhile, or the disk is full: it is compiled again
            continue
