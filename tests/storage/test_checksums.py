"""Checksums against plain numpy, damaged checkpoints, writes that fail, two runs in one folder."""

import fcntl
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from mtl_jax.errors import UserError
from mtl_jax.storage import checkpoint, checksums
from mtl_jax.storage import workdir as folders

RNG = np.random.default_rng(0)
LEAVES = {
    "float32": RNG.standard_normal((3, 5, 2)).astype(np.float32),
    "bfloat16": RNG.standard_normal((4, 3)).astype(ml_dtypes.bfloat16),
    "int32": RNG.integers(-9, 9, 7, np.int32),
    "uint32": RNG.integers(0, 2**32, (2, 2), np.uint32),
    "int8": RNG.integers(-9, 9, 5, np.int8),
    "bool": RNG.random(6) < 0.5,
    "scalar": np.float32(1.5),
    "none": np.zeros((0, 3), np.float32),
}


def by_hand(leaf):
    leaf = np.asarray(leaf)
    bits = np.frombuffer(leaf.tobytes(), f"u{leaf.dtype.itemsize}").astype(object)
    return int(sum(int(u) * (2 * i + 1) for i, u in enumerate(bits)) % 2**32)


def test_sums_against_numpy():
    assert checksums.array_checksums({"a": LEAVES}) == {f"a/{name}": by_hand(leaf) for name, leaf in LEAVES.items()}


def test_every_flipped_bit_changes_the_sum():
    leaf = LEAVES["float32"]
    right = checksums.array_checksums({"x": leaf})
    for bit in range(8 * leaf.nbytes):
        raw = bytearray(leaf.tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        assert checksums.array_checksums({"x": np.frombuffer(bytes(raw), np.float32).reshape(leaf.shape)}) != right, bit
    assert checksums.array_checksums({"x": np.roll(leaf, 1, axis=0)}) != right


def test_sharded_leaves_have_the_same_sums_and_are_not_gathered():
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    leaf = RNG.standard_normal((8, 6)).astype(np.float32)
    placed = jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("a", "b")))
    assert checksums.array_checksums({"x": placed}) == checksums.array_checksums({"x": leaf})
    compiled = checksums._sums.lower([placed]).compile().as_text()
    assert "all-gather" not in compiled and "all-reduce" in compiled


def test_sealed_metadata():
    parts = {"x": {"w": jnp.arange(4.0)}}
    sealed = json.loads(json.dumps(checksums.with_checksums({"step": 3, "score": 0.25}, parts)))
    notes = checksums.verified(sealed)
    assert notes["score"] == 0.25
    checksums.require_checksums(notes, parts)
    with pytest.raises(checksums.DamagedError, match="x/w"):
        checksums.require_checksums(notes, {"x": {"w": jnp.arange(4.0) + 1}})
    for field in sealed:
        with pytest.raises(checksums.DamagedError):
            checksums.verified({**sealed, field: 4})
    with pytest.raises(checksums.DamagedError):
        checksums.verified({})
    with pytest.raises(UserError, match="without checksums"):
        checksums.verified({"data": "x", "progress": {}})


def parts_of(value):
    noise = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    return {"params": {"w": jnp.asarray(noise).at[0, 0].set(value)}}


@pytest.fixture
def saved(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3, which hold their number."""
    with checkpoint.Checkpoints(tmp_path, 3) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save_parts(step, parts_of(float(step)), {"number": step})
    return tmp_path


def restored(folder):
    """(step, metadata, first number) of the newest whole checkpoint, or None."""
    with checkpoint.Checkpoints(folder, 3) as checkpoints:
        return checkpoints.restore_newest(
            lambda step: (
                step,
                checkpoints.metadata(step)["number"],
                float(checkpoints.restore_parts(step, jax.eval_shape(parts_of, 0.0))["params"]["w"][0, 0]),
            )
        )


def flip(file, place):
    raw = bytearray(file.read_bytes())
    raw[place] ^= 4
    file.write_bytes(bytes(raw))


def data_file(folder):
    """The file that holds the array."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(saved, capsys):
    assert restored(saved) == (3, 3, 3.0)
    file = data_file(saved / "checkpoints" / "3")
    flip(file, file.stat().st_size // 2)
    assert restored(saved) == (2, 2, 2.0)
    message = capsys.readouterr().out
    assert (
        "step 3" in message
        and str(saved / "damaged" / "checkpoints_3") in message
        and "resuming from step 2" in message
    )
    assert sorted(f.name for f in (saved / "checkpoints").iterdir()) == ["1", "2"]
    with checkpoint.Checkpoints(saved, 3) as checkpoints:  # the step can be made again
        checkpoints.save_parts(3, parts_of(3.0), {"number": 3})
    assert restored(saved) == (3, 3, 3.0)
    for step in (1, 2, 3):
        for file in (saved / "checkpoints" / str(step)).rglob("*"):
            if file.is_file():
                file.write_bytes(b"")
    assert restored(saved) is None and "from the beginning" in capsys.readouterr().out
    assert len(list((saved / "damaged").iterdir())) == 4


def test_late_replies_to_a_read_that_failed_are_not_printed_and_other_errors_are(monkeypatch):
    message = []
    monkeypatch.setattr(sys, "unraisablehook", message.append)
    checkpoint._silence_unfinished_reads.__wrapped__()
    for error in (RuntimeError("Event loop is closed"), RuntimeError("else"), OSError("Event loop is closed")):
        sys.unraisablehook(types.SimpleNamespace(object=None, exc_value=error))
    sys.unraisablehook(types.SimpleNamespace(object=print, exc_value=RuntimeError("Event loop is closed")))
    assert [(str(one.exc_value), one.object) for one in message] == [
        ("else", None),
        ("Event loop is closed", None),
        ("Event loop is closed", print),
    ]
    message.clear()
    for file in ("/site-packages/orbax/checkpoint/a.py", "/elsewhere/orbax.py"):
        scope = {}
        exec(compile("async def read(): pass", file, "exec"), scope)
        coroutine = scope["read"]()
        sys.unraisablehook(types.SimpleNamespace(object=coroutine, exc_value=ValueError(file)))
        coroutine.close()
    assert [str(one.exc_value) for one in message] == ["/elsewhere/orbax.py"]


def test_other_shapes_are_refused_and_not_set_aside(saved):
    with checkpoint.Checkpoints(saved, 3) as checkpoints:
        other = {"params": {"w": jax.ShapeDtypeStruct((3, 3), jnp.float32)}}
        with pytest.raises(UserError, match="another model"):
            checkpoints.restore_newest(lambda step: checkpoints.restore_parts(step, other))
    assert restored(saved) == (3, 3, 3.0)


class FullDisk:
    """What Orbax returns of a write that fails after a while."""

    def __init__(self):
        self.asked = 0

    def result(self, timeout=None):
        self.asked += 1
        if self.asked < 3 and timeout == 0:
            raise TimeoutError
        raise OSError(28, "No space left on device")


def test_a_write_that_failed_shows_soon(tmp_path, monkeypatch):
    """Not only when the next one begins."""
    with checkpoint.Checkpoints(tmp_path, 2) as checkpoints:
        monkeypatch.setattr(checkpoints._newest, "save_checkpointables_async", lambda *_, **__: FullDisk())
        checkpoints.save_parts(2, parts_of(2.0), {})
        checkpoints.check()
        checkpoints.check()
        with pytest.raises(UserError, match=r"cannot write the checkpoint of step 2 .*No space left"):
            checkpoints.check()
        checkpoints.check()  # said once


def test_a_second_run_in_one_folder_is_refused(tmp_path):
    code = (
        "import sys\nfrom mtl_jax.storage import workdir\n"
        "with workdir.locked(sys.argv[1]):\n    print('in', flush=True); sys.stdin.read()\n"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline() == b"in\n"
        with pytest.raises(UserError, match=f"another run writes here .process {first.pid} on"):
            with folders.locked(tmp_path):
                pass
    finally:
        first.kill()
        first.wait()
    with folders.locked(tmp_path) as workdir:  # the lock went with the process
        assert workdir == tmp_path
        with (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
