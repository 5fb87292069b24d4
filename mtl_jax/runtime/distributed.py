"""Several processes that train one model, one on each host: connection, agreement, and which of them writes.

JAX's runtime does the work. With a single process these functions do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed as jax_distributed  # its client's key-value store has no public name
from jax.experimental import multihost_utils

from mtl_jax.errors import Stopped, UserError

_PR_SET_PDEATHSIG = 1  # of prctl(2)
WORKER_VARIABLE = "MTL_JAX_WORKER"  # set in the environment of processes that `supervise` starts
GRACE_SECONDS = 20.0  # seconds from a signal to the end of a worker that has nothing to save
ACKNOWLEDGE_SECONDS = 10  # that a failing process waits for the others to print its error
_ERROR_KEY = "mtl_jax/error"  # in the key-value store: (process number, message); (-1, "") at the regular end
T = TypeVar("T")
_ended = threading.Lock()  # taken by what ends this process with an error: one message only
_alignments = itertools.count()  # number of calls of `_align`
_calls = itertools.count()  # number of calls of `is_preempted`


def is_distributed_environment() -> bool:
    """Whether the environment says that this is one of several processes: a TPU pod, Slurm, Open MPI."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    counts = (os.environ.get("SLURM_NTASKS", "1"), os.environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    return len(hosts) > 1 or (any(c.isdigit() and int(c) > 1 for c in counts) and not _interactive())


def _interactive() -> bool:
    """Inside an allocation, but not started by srun or mpirun."""
    return not ({"SLURM_PROCID", "OMPI_COMM_WORLD_RANK"} & os.environ.keys()) or (
        os.environ.get("SLURM_STEP_NUM_TASKS") == "1"
    )


def initialize(coordinator: str, count: int, number: int, start_seconds: int, heartbeat_seconds: int) -> None:
    """Connects this process with the others; call before any use of devices.

    Args:
      coordinator: "host:port" of process 0; "": from the environment.
      count: of processes; 0: from the environment.
      number: of this process; -1: from the environment.
      start_seconds: to wait for all others.
      heartbeat_seconds: after which a process that does not respond counts as dead.

    Raises:
      UserError: not all processes connected, or the arguments are inconsistent.
    """
    arguments = (bool(coordinator), count > 0, number >= 0)
    if any(arguments) and not all(arguments):
        raise UserError("--coordinator=HOST:PORT, --processes and --process go together; give all three, or none")
    if all(arguments) and number >= count:
        raise UserError(f"--process={number}: the numbers of {count} processes are 0 to {count - 1}")
    try:
        jax.distributed.initialize(
            coordinator or None,
            count or None,
            number if number >= 0 else None,
            initialization_timeout=start_seconds,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        raise UserError(
            f"the processes did not connect within {start_seconds} s: {reason}. Start the same command on every host, "
            "and make sure that the coordinator's port can be reached"
        ) from None


def supervise(arguments: Sequence[str], heartbeat_seconds: int, saves: bool = True) -> int:
    """Runs Python with these arguments, those of this process, in a process of its own; returns its status.

    When a peer dies, JAX aborts the process in C++, where Python cannot report it: the supervisor does. It forwards
    signals, and kills a worker that saves no checkpoints (`saves`) `GRACE_SECONDS` seconds after one.
    """
    worker = subprocess.Popen([sys.executable, *arguments], env={**os.environ, WORKER_VARIABLE: "1"})
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        worker.send_signal(number)
        if not saves:
            timer = threading.Timer(GRACE_SECONDS, worker.kill)
            timer.daemon = True
            timer.start()

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        status = worker.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status in (-signal.SIGABRT, 128 + signal.SIGABRT):
        print(
            f"error: another process of this run has stopped responding (for {heartbeat_seconds} s); see its output "
            "for the reason. Start all of them again: they resume from the last complete checkpoint",
            file=sys.stderr,
        )
        return 3
    if received and not saves and status == -signal.SIGKILL:
        return 128 + received[0]
    return 128 - status if status < 0 else status


@contextlib.contextmanager
def ending_together(describe: Callable[[Exception], tuple[str, int]]) -> Iterator[None]:
    """In this context an error in one process ends all of them, each with the error as its only message.

    Without it the others would wait in a collective until the heartbeat of the one that failed is missed.

    Args:
      describe: error -> (message, exit status); it may print more, in the process that fails.
    """
    if jax.process_count() == 1:
        yield
        return
    client = jax_distributed.global_state.client
    watcher = threading.Thread(target=_watch_errors, args=(client,), daemon=True)
    watcher.start()

    def end() -> None:
        wait_for_all("the end")
        if is_first():
            client.key_value_set(_ERROR_KEY, "-1 0 ")
        watcher.join()

    try:
        yield
    except Stopped:  # by all of them at the same call
        end()
        raise
    except Exception as error:
        message, status = describe(error)
        number = jax.process_index()
        with contextlib.suppress(Exception):  # another process has failed before
            client.key_value_set(_ERROR_KEY, f"{number} {status} {message}")
        _leave(client, number, message, status)
    end()


def _watch_errors(client: Any) -> None:
    """Ends this process when another one has failed; runs in a thread."""
    try:
        number, status, message = client.blocking_key_value_get(_ERROR_KEY, 2**31 - 1).split(" ", 2)
    except Exception:  # the runtime has ended
        return
    if int(number) not in (-1, jax.process_index()):
        _leave(client, int(number), message, int(status))


def _leave(client: Any, failed: int, message: str, status: int) -> None:
    """Prints the error of process `failed` and ends this one; the first, which has the store, after the others."""
    own = jax.process_index()
    with _ended:
        print(f"error: {message if failed == own else f'process {failed}: {message}'}", file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            client.key_value_set(f"{_ERROR_KEY}/{own}", "")
            for other in range(1, jax.process_count()) if is_first() else ():
                client.blocking_key_value_get(f"{_ERROR_KEY}/{other}", 1000 * ACKNOWLEDGE_SECONDS)
        os._exit(status)


def end_with_parent() -> None:
    """On Linux: this process gets SIGTERM when its supervisor dies, so that it never outlives it."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGTERM)


def is_first() -> bool:
    """Whether this process writes logs, pictures and summaries."""
    return jax.process_index() == 0


def wait_for_all(what: str) -> None:
    """A barrier: returns when every process has called it; `what` names it."""
    if jax.process_count() > 1:
        _align()
        multihost_utils.sync_global_devices(what)


def _align() -> None:
    """All processes at one point, on CPU: gloo gives up where one begins a first collective 30 s after another."""
    if jax.default_backend() == "cpu":
        jax_distributed.global_state.client.wait_at_barrier(f"mtl_jax/{next(_alignments)}", 2**31 - 1)


def any_process(flag: bool) -> bool:
    """Whether the flag of any process is set; all have to call this."""
    if jax.process_count() == 1:
        return flag
    _align()
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gather(value: T) -> list[T]:
    """The values of all processes, by their number; all have to call this. A value is anything that can be pickled."""
    if jax.process_count() == 1:
        return [value]
    _align()
    raw = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(raw.size, np.int32))
    padded = np.zeros(
        1 << int(sizes.max() - 1).bit_length(), np.uint8
    )  # few lengths, so that few programs are compiled
    padded[: raw.size] = raw
    rows = multihost_utils.process_allgather(padded)
    return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, the only one that calls it; all have to call this.

    For what reads or writes files: another host may see a shared folder a moment later.
    """
    return gather(make() if is_first() else None)[0]


def place(tree: T, shardings: Any) -> T:
    """Leaves that every process has on its host, placed over the devices of all processes.

    `shardings`: one for all leaves, or a tree of them.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: placed(leaf, shardings), tree)
    return jax.tree.map(placed, tree, shardings)


def to_host(tree: T) -> T:
    """Complete arrays on the host, the same in every process; all have to call this."""

    def gathered(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        _align()
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(gathered, tree))


def require_no_signal() -> None:
    """Raises `Stopped` if `is_preempted`."""
    if is_preempted():
        raise Stopped(signal.SIGTERM)


def is_preempted() -> bool:
    """Whether one of several processes got SIGTERM: True in all of them at the same call. All have to call this equally
    often.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls))
