"""Programs of the last run of a command are read by a thread, and only what JAX names is taken."""

import os
import subprocess
import sys
import textwrap

import pytest

from mtl_jax.runtime import compilation_prefetch

SCRIPT = """
import sys, threading
import jax, jax.numpy as jnp
from jax._src import compilation_cache
from mtl_jax.runtime import compilation_cache as programs
from mtl_jax.runtime import compilation_prefetch as ahead

read = compilation_cache.get_executable_and_time

def told(key, *more):
    found = read(key, *more)
    if "_f-" in key:
        print(threading.current_thread().name.split("_")[0], found[0] is not None)
    return found

compilation_cache.get_executable_and_time = told
command, factor = sys.argv[1], float(sys.argv[2])
programs.enable()

@jax.jit
def f(x):
    return factor * x + 1.0

with ahead.prefetching(command):
    for thread in threading.enumerate():
        if thread.name.startswith("programs"):
            thread.join()
    print(f(jnp.arange(3.0)).tolist())
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    settings = {"MTL_JAX_CACHE": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def start(command="train a", factor=2, **env):
        done = subprocess.run(
            [sys.executable, tmp_path / "script.py", command, str(factor)],
            env={**os.environ, **settings, **env},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        *reads, result = done.stdout.splitlines()
        assert result == str([1.0, 1.0 + factor, 1.0 + 2 * factor])
        return reads

    return start


@pytest.mark.skipif(compilation_prefetch._cores() < 2, reason="one core: nothing is read ahead")
def test_a_thread_reads_what_the_last_run_used(start, tmp_path):
    assert start() == ["MainThread False"]
    assert start() == ["programs True"]
    assert start("evaluate b") == ["MainThread True"]  # of another command nothing is known yet
    # another program: what was read is not taken
    assert sorted(start(factor=3)) == ["MainThread False", "programs True"]
    assert start(factor=3) == ["programs True"]
    for file in tmp_path.rglob("*.used.json"):
        file.write_text(file.read_text()[:-9])
    assert start(factor=3) == ["MainThread True"]
    assert start(factor=3) == ["programs True"]


def test_where_no_programs_are_kept(start, tmp_path):
    assert start(JAX_ENABLE_COMPILATION_CACHE="false") == []
    assert start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == ["MainThread False"]
    assert start(JAX_COMPILATION_CACHE_DIR=str(tmp_path / "other")) == ["MainThread True"]  # as JAX does
    assert not list(tmp_path.rglob("*.used.json"))
