"""Compiled programs are read from disk before they are asked for.

JAX looks for a kept program once it has traced the function, and reading a large one then takes seconds in which all
else waits. The programs that the last run of the same command used are most likely those of this run: a thread reads
them while the main one imports, reads data and traces. JAX still names the program that it wants by a hash of all that
decides it, so a wrong guess costs a little time of another core, and gives no other program.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import inspect
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from mtl_jax.runtime.compilation_cache import folder as program_folder

try:  # JAX has no public name for what reads a kept program: where another version has it otherwise, nothing is ahead
    from jax._src import compilation_cache
    from jax._src.lib import xla_client

    _asked = tuple(inspect.signature(compilation_cache.get_executable_and_time).parameters)
    KNOWN = _asked == ("cache_key", "compile_options", "backend", "executable_devices")
except (ImportError, AttributeError):
    KNOWN = False

MOST = 32  # programs of a command
_LIST, _FORGOTTEN = ".used.json", 30 * 24 * 3600.0


class Use(NamedTuple):
    """A program as JAX asked for it: its name, the options it was compiled with (base64), ids of its devices."""

    key: str
    options: str
    devices: tuple[int, ...]


@contextlib.contextmanager
def reading(command: str) -> Iterator[None]:
    """Reads the programs that the last run of `command` used; at the end those of this run are noted for the next.

    Nothing happens on a single core, and where programs are not kept in the folder of `compilation_cache.keep`.
    Devices are looked up in the thread: call this behind all that must come before, as `jax.distributed.initialize`.
    """
    folder = program_folder()
    kept = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir == str(folder)
    if not (KNOWN and kept) or _cores() < 2:
        yield
        return
    _forget(folder)
    file = folder / (hashlib.sha256(command.encode()).hexdigest()[:32] + _LIST)
    reader = _Reader(_listed(file))
    try:
        yield
        reader.note(file)
    finally:
        reader.stop()


class _Reader:
    """Stands before JAX's function that reads a program."""

    def __init__(self, expected: Sequence[Use]):
        self._read = compilation_cache.get_executable_and_time
        self._expected = set(expected)
        self._used: dict[str, Use] = {}
        pool = ThreadPoolExecutor(1, thread_name_prefix="programs")
        self._ahead: dict[Use, Future] = {use: pool.submit(self._begin, use) for use in expected}
        pool.shutdown(wait=False)
        compilation_cache.get_executable_and_time = self.get

    def _begin(self, use: Use) -> Any:
        by_id = {device.id: device for device in jax.devices()}
        devices = xla_client.DeviceList(tuple(by_id[number] for number in use.devices))
        options = xla_client.CompileOptions.ParseFromString(base64.b64decode(use.options))
        return self._read(use.key, options, devices[0].client, devices)

    def get(self, key, options, backend, devices) -> Any:
        """(program, seconds it took to compile) as JAX's own; (None, None) where it is not kept."""
        told = base64.b64encode(options.SerializeAsString()).decode()
        use = self._used[key] = Use(key, told, tuple(device.id for device in devices))
        begun = self._ahead.pop(use, None)
        if begun is None or begun.cancel():  # not expected, or not its turn yet
            return self._read(key, options, backend, devices)
        try:
            return begun.result()
        except Exception:  # it comes again here, where JAX expects it
            return self._read(key, options, backend, devices)

    def stop(self) -> None:
        """JAX reads by itself again; what has not begun is left."""
        compilation_cache.get_executable_and_time = self._read
        for waiting in self._ahead.values():
            waiting.cancel()

    def note(self, file: pathlib.Path) -> None:
        """Writes what was used and is kept, the first first; nothing where all of it is in the list already."""
        kept = [use for use in self._used.values() if (file.parent / f"{use.key}-cache").exists()][:MOST]
        if self._expected.issuperset(kept):  # a run that was stopped early uses few
            return
        try:
            temporary = file.with_name(f"{file.name}.{os.getpid()}")
            temporary.write_text(json.dumps(kept), encoding="utf-8")
            os.replace(temporary, file)
        except OSError:  # the disk is full: the next run reads its programs when it wants them
            return


def _listed(file: pathlib.Path) -> list[Use]:
    try:
        uses = json.loads(file.read_text(encoding="utf-8"))
        return [Use(str(key), str(options), tuple(ids)) for key, options, ids in uses][:MOST]
    except (OSError, ValueError, TypeError):  # none, or damaged
        return []


def _forget(folder: pathlib.Path) -> None:
    """Removes the lists of commands that nobody has run for long."""
    for file in folder.glob(f"*{_LIST}"):
        try:
            if time.time() - file.stat().st_mtime > _FORGOTTEN:
                file.unlink()
        except OSError:
            continue


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
