"""Reads cached compiled programs from disk before JAX asks for them.

JAX looks for a cached program after it has traced the function, and then waits seconds while a large one is read. The
programs that the last run of the same command used are most likely those of this run: a thread reads them while the
main thread imports, reads data and traces. JAX still identifies the program by a hash of everything that it depends on,
so a wrong guess costs a little time of another core, and never yields a wrong program.
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

from mtl_jax.runtime.compilation_cache import programs_folder as program_folder

try:  # a private function of JAX; if another version has none like it, nothing is prefetched
    from jax._src import compilation_cache
    from jax._src.lib import xla_client

    _parameters = tuple(inspect.signature(compilation_cache.get_executable_and_time).parameters)
    AVAILABLE = _parameters == ("cache_key", "compile_options", "backend", "executable_devices")
except (ImportError, AttributeError):
    AVAILABLE = False

MAX_PROGRAMS = 32  # of a command
_LIST, _MAX_AGE = ".used.json", 30 * 24 * 3600.0


class ProgramUse(NamedTuple):
    """A program that JAX requested: its key, compile options (base64), and the ids of its devices."""

    key: str
    options: str
    devices: tuple[int, ...]


@contextlib.contextmanager
def prefetching(command: str) -> Iterator[None]:
    """Reads the programs that the last run of `command` used; at the end those of this run are listed for the next.

    Does nothing on a single core, or without the cache of `compilation_cache.enable`. The thread looks up the devices:
    call this after `jax.distributed.initialize`.
    """
    folder = program_folder()
    is_enabled = jax.config.jax_enable_compilation_cache and jax.config.jax_compilation_cache_dir == str(folder)
    if not (AVAILABLE and is_enabled) or _cores() < 2:
        yield
        return
    _remove_old_lists(folder)
    file = folder / (hashlib.sha256(command.encode()).hexdigest()[:32] + _LIST)
    reader = _Reader(_read_list(file))
    try:
        yield
        reader.write_list(file)
    finally:
        reader.stop()


class _Reader:
    """Replaces JAX's function that reads a program."""

    def __init__(self, expected: Sequence[ProgramUse]):
        self._read = compilation_cache.get_executable_and_time
        self._expected = set(expected)
        self._used: dict[str, ProgramUse] = {}
        pool = ThreadPoolExecutor(1, thread_name_prefix="programs")
        self._pending: dict[ProgramUse, Future] = {use: pool.submit(self._begin, use) for use in expected}
        pool.shutdown(wait=False)
        compilation_cache.get_executable_and_time = self.get

    def _begin(self, use: ProgramUse) -> Any:
        by_id = {device.id: device for device in jax.devices()}
        devices = xla_client.DeviceList(tuple(by_id[number] for number in use.devices))
        options = xla_client.CompileOptions.ParseFromString(base64.b64decode(use.options))
        return self._read(use.key, options, devices[0].client, devices)

    def get(self, key, options, backend, devices) -> Any:
        """(program, seconds it took to compile), as JAX's function; (None, None) where it is not cached."""
        encoded = base64.b64encode(options.SerializeAsString()).decode()
        use = self._used[key] = ProgramUse(key, encoded, tuple(device.id for device in devices))
        started = self._pending.pop(use, None)
        if started is None or started.cancel():  # not expected, or not started yet
            return self._read(key, options, backend, devices)
        try:
            return started.result()
        except Exception:  # it is raised again here, where JAX expects it
            return self._read(key, options, backend, devices)

    def stop(self) -> None:
        """Restores JAX's function and cancels what has not started."""
        compilation_cache.get_executable_and_time = self._read
        for waiting in self._pending.values():
            waiting.cancel()

    def write_list(self, file: pathlib.Path) -> None:
        """Writes the list of programs that were used and are cached, in order, unless it has all of them already."""
        cached = [use for use in self._used.values() if (file.parent / f"{use.key}-cache").exists()][:MAX_PROGRAMS]
        if self._expected.issuperset(cached):  # a run that was stopped early uses few
            return
        try:
            temporary = file.with_name(f"{file.name}.{os.getpid()}")
            temporary.write_text(json.dumps(cached), encoding="utf-8")
            os.replace(temporary, file)
        except OSError:  # the disk is full: the next run reads its programs when it needs them
            return


def _read_list(file: pathlib.Path) -> list[ProgramUse]:
    try:
        uses = json.loads(file.read_text(encoding="utf-8"))
        return [ProgramUse(str(key), str(options), tuple(ids)) for key, options, ids in uses][:MAX_PROGRAMS]
    except (OSError, ValueError, TypeError):  # none, or damaged
        return []


def _remove_old_lists(folder: pathlib.Path) -> None:
    """Removes the lists of commands that have not been run for long."""
    for file in folder.glob(f"*{_LIST}"):
        try:
            if time.time() - file.stat().st_mtime > _MAX_AGE:
                file.unlink()
        except OSError:
            continue


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
