"""Functions of chunks of data in worker processes: as many as there are cores, results in the order of the tasks.

A worker is a Python of its own that imports nothing of the program that started it: `multiprocessing` would import its
main module again, and JAX with it. Where none can be started, or one dies, the same function runs in this process.
"""

from __future__ import annotations

import atexit
import collections
import importlib
import io
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

VARIABLE = "MTL_JAX_WORKERS"  # how many processes; 1: none but this one
_SERVE = "from mtl_jax.data.files import workers; workers.serve()"
_LOOKAHEAD = 2  # tasks handed out for each worker


class _Lost(Exception):
    """A worker ended, or cannot import the function."""


def count() -> int:
    """How many processes work: `$MTL_JAX_WORKERS`, else one for each core that this process may use."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen.isdigit() and int(chosen) > 0:
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(function: Callable[..., Any], tasks: Iterable[tuple], common: tuple = ()) -> Iterator[Any]:
    """`function(*task, *common)` of each task, in order; at most a few tasks are held at a time.

    Args:
      function: at the top of a module that a worker can import; a function of its arguments alone.
      tasks: tuples of what can be pickled; read as the workers need them.
      common: further arguments of all tasks, sent to each worker once.

    Raises what `function` raises, for the first task in order.
    """
    number = count()
    if number == 1:
        yield from (function(*task, *common) for task in tasks)
        return
    pool = _pool(number)
    job = _pickled((function.__module__, function.__qualname__, common))
    waiting: collections.deque[tuple[tuple, futures.Future]] = collections.deque()
    try:
        for task in tasks:
            waiting.append((task, pool.submit(_ask, job, task)))
            if len(waiting) >= _LOOKAHEAD * number:
                yield _result(*waiting.popleft(), function, common)
        while waiting:
            yield _result(*waiting.popleft(), function, common)
    finally:
        for _, future in waiting:
            future.cancel()
        futures.wait([future for _, future in waiting])


def close() -> None:
    """Ends the workers; the next `run` starts new ones."""
    global _threads
    if _threads is not None:
        _threads.shutdown(wait=True, cancel_futures=True)
        _threads = None
    while _idle:
        _idle.pop().end()


def serve() -> None:
    """What a worker does: answers requests from its standard input until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends it
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what else is printed must not be taken for an answer
    function: Callable[..., Any] = print
    common: tuple = ()
    while True:
        try:
            job, task = pickle.load(requests)
        except EOFError:
            return
        try:
            if job is not None:
                module, name, common = pickle.loads(job)
                function = importlib.import_module(module)
                for part in name.split("."):
                    function = getattr(function, part)
            answer = (True, function(*task, *common))
        except (ImportError, AttributeError) as error:
            answer = (None, repr(error))
        except Exception as error:  # raised again where the task came from
            answer = (False, error)
        pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


class _Worker:
    """A worker process and the job that it was sent last."""

    def __init__(self) -> None:
        path = os.pathsep.join(dict.fromkeys(filter(None, [os.getcwd() if "" in sys.path else "", *sys.path])))
        environment = {**os.environ, "PYTHONPATH": path, VARIABLE: "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._job = b""

    def ask(self, job: bytes, task: tuple) -> Any:
        """The answer to a task. Raises what the function raised; `_Lost` where the process has ended."""
        request = _pickled((None if job == self._job else job, task))
        try:
            self._process.stdin.write(request)
            self._process.stdin.flush()
            succeeded, result = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise _Lost(f"it ended with status {self._process.poll()}") from error
        if succeeded is None:
            raise _Lost(result)
        self._job = job
        if not succeeded:
            raise result
        return result

    def end(self) -> None:
        """Closes its input, upon which it ends."""
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class _Pickler(pickle.Pickler):
    """Pickles arrays that are mapped from files as the names of these."""

    def reducer_override(self, value: Any) -> Any:
        reference = references.get(id(value)) if isinstance(value, np.ndarray) else None
        return NotImplemented if reference is None else (_referred, reference[1:])


def _referred(module: str, name: str, *arguments: Any) -> np.ndarray:
    return getattr(importlib.import_module(module), name)(*arguments)


def _pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, pickle.HIGHEST_PROTOCOL).dump(value)
    return buffer.getvalue()


# {id of an array: (the array, module, function, arguments of the function that opens it)}
references: dict[int, tuple] = {}
_idle: list[_Worker] = []
_threads: futures.ThreadPoolExecutor | None = None


def _pool(number: int) -> futures.ThreadPoolExecutor:
    """Threads that wait for as many workers."""
    global _threads
    if _threads is None:
        _threads = futures.ThreadPoolExecutor(number, "data")
        atexit.unregister(close)
        atexit.register(close)
    return _threads


def _ask(job: bytes, task: tuple) -> Any:
    worker = _idle.pop() if _idle else _Worker()
    try:
        result = worker.ask(job, task)
    except _Lost:
        worker.end()
        raise
    except BaseException:
        _idle.append(worker)
        raise
    _idle.append(worker)
    return result


def _result(task: tuple, future: futures.Future, function: Callable[..., Any], common: tuple) -> Any:
    try:
        return future.result()
    except (_Lost, OSError) as error:
        logging.getLogger(__name__).warning("a worker process is lost (%s): its task is done here", error)
        return function(*task, *common)
