"""Arrays made in shards: resumed, repaired, shared by processes, in worker processes or without."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from mtl_jax.data.files import array_shards, workers
from mtl_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def chunk(begin, end, log=None):
    """Numbers, the ends of ranges that begin at 0, and a constant."""
    if log:
        with open(log, "a") as file:
            file.write(f"{begin}\n")
    numbers = np.arange(begin, end)
    return {
        "number": numbers,
        "end": np.cumsum(np.ones_like(numbers)),
        "zero": np.zeros((end - begin, 2), np.int8),
    }, end


def job(**options):
    return array_shards.Job("test", {"k": 1}, chunk, cumulative=("end",), **options)


TASKS = [(begin, begin + 10) for begin in range(0, 100, 10)]


def check(made):
    np.testing.assert_array_equal(made.arrays["number"], np.arange(100))
    np.testing.assert_array_equal(made.arrays["end"], np.arange(101))
    np.testing.assert_array_equal(made.arrays["zero"], np.zeros((100, 2)))
    assert made.info == [end for _, end in TASKS]


@pytest.mark.parametrize("count", ["1", "2"])
def test_the_arrays_do_not_depend_on_the_workers(count, monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, count)
    made = array_shards.make(job(), TASKS, True)
    check(made)
    check(array_shards.make(job(), TASKS, False))
    assert not made.arrays["number"].flags.writeable and made.folder.is_dir()
    workers.close()


def test_it_goes_on_at_the_first_missing_shard(cache, tmp_path, monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "1")
    log = tmp_path / "log"
    logged = job(common=(str(log),))

    def stop(*task):
        if task[0] == 40:
            raise KeyboardInterrupt
        return chunk(*task)

    with pytest.raises(KeyboardInterrupt):
        array_shards.make(logged._replace(function=stop), TASKS, True)
    check(array_shards.make(logged, TASKS, True))
    assert log.read_text().split() == [str(begin) for begin, _ in TASKS]


def test_a_damaged_shard_is_made_again(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv(workers.VARIABLE, "1")
    folder = array_shards.make(job(), TASKS, True).folder
    for name, at in (("number", 8 * 35), ("end", 8 * 72)):
        content = bytearray((folder / f"{name}.bin").read_bytes())
        content[at] ^= 1
        (folder / f"{name}.bin").write_bytes(content)
    log = tmp_path / "log"
    check(array_shards.make(job(common=(str(log),)), TASKS, True))
    assert log.read_text().split() == ["30", "70"] and "shards 3, 7: made again" in caplog.text
    os.truncate(folder / "number.bin", 100)
    check(array_shards.make(job(), TASKS, True))


def chunk_until_killed(begin, end, log):
    """As `chunk`, but the process is killed at 40."""
    if begin == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    return chunk(begin, end, log)


def test_a_killed_process_loses_the_shard_that_it_was_making(tmp_path, cache, monkeypatch):
    log = str(tmp_path / "log")
    script = (
        "import sys; sys.path[:0] = ['tests/data/files']; import test_array_shards as t\n"
        "t.array_shards.make(t.job(common=(sys.argv[1],))._replace(function=t.chunk_until_killed), t.TASKS, True)"
    )
    environment = {**os.environ, workers.VARIABLE: "1", "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script, log], cwd=ROOT, env=environment).returncode == -signal.SIGKILL
    monkeypatch.setenv(workers.VARIABLE, "1")
    check(array_shards.make(job(common=(log,)), TASKS, True))
    assert pathlib.Path(log).read_text().split() == [str(begin) for begin, _ in TASKS]


def test_what_comes_out_otherwise_is_refused(monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "1")
    folder = array_shards.make(job(), TASKS, True).folder
    (folder / "number.bin").write_bytes(bytes((folder / "number.bin").stat().st_size))

    def other(begin, end):
        arrays, info = chunk(begin, end)
        return arrays | {"number": arrays["number"] + 1}, info

    with pytest.raises(UserError, match="damaged and come out otherwise"):
        array_shards.make(job()._replace(function=other), TASKS, True)
    check(array_shards.make(job(), TASKS, True))


def test_processes_share_the_work_and_a_dead_owner_gives_it_back(tmp_path, cache):
    """Three processes at once make every shard once; a lock file of a process that died does not hinder them."""
    folder = array_shards._folder(job())
    (folder / "locks").mkdir(parents=True)
    (folder / "locks" / "00003").touch()
    script = (
        "import sys; sys.path[:0] = ['tests/data/files']; import test_array_shards as t\n"
        "t.check(t.array_shards.make(t.job(common=(sys.argv[1],)), t.TASKS, True))"
    )
    environment = {**os.environ, "MTL_JAX_CACHE": str(cache), workers.VARIABLE: "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    running = [subprocess.Popen(command, cwd=ROOT, env=environment) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == [begin for begin, _ in TASKS]


def test_a_cache_that_cannot_be_written_is_one_sentence(cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cache/test/.*cannot be written there.*MTL_JAX_CACHE"):
        array_shards.make(job(), TASKS, True)


def test_errors_of_a_worker_are_those_of_the_first_task(monkeypatch):
    monkeypatch.setenv(workers.VARIABLE, "2")
    with pytest.raises(json.JSONDecodeError, match="Expecting value"):
        list(workers.run(json.loads, [("1",), ("x",), ("[",)]))
    assert list(workers.run(json.loads, [("1",), ("2",)])) == [1, 2]
    workers.close()


def test_a_worker_that_dies_or_cannot_import_costs_time_only(monkeypatch, caplog):
    monkeypatch.setenv(workers.VARIABLE, "2")
    parent = os.getpid()
    assert list(workers.run(local_function, [(n, parent) for n in range(5)])) == [0, 1, 4, 9, 16]
    assert "a worker process is lost" in caplog.text
    workers.close()


def local_function(number, parent):
    """Of a module that workers may not find; they would die in it."""
    if os.getpid() != parent:
        os._exit(1)
    return number**2
