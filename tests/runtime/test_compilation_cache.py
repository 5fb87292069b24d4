"""What a start costs: each program is compiled once, and found again by the next run."""

import os
import pathlib
import subprocess
import sys
import time

import jax
import pytest

from benchmarks import launching
from mtl_jax.runs import train, training_loop
from mtl_jax.runtime import compilation_cache

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.usefixtures("standard_promotion")
def test_no_program_is_compiled_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    scope, lines = {}, []
    exec(launching.CONFIG, scope)
    config = scope["get_config"]()
    log = training_loop.TrainingLoop._report_step

    def logging(run, step, metrics, bar):
        lines.append(step)
        log(run, step, metrics, bar)

    monkeypatch.setattr(training_loop.TrainingLoop, "_report_step", logging)
    compiled = []

    def listener(event, seconds, **more):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            compiled.append(len(lines))

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        (tmp_path / "run").mkdir()
        train.train(config, tmp_path / "run")
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)
    # behind the first evaluation (step 20) and checkpoints nothing new comes until the test split is scored
    assert compiled and not [step for step in compiled if 21 < step < config.training.steps], compiled


def test_the_next_run_finds_the_programs(tmp_path, launch_environment):
    (tmp_path / "config.py").write_text(launching.CONFIG)
    env = {
        **launch_environment,
        "MTL_JAX_CACHE": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    del env["JAX_COMPILATION_CACHE_DIR"]

    def run(name, *flags):
        command = [sys.executable, "launch.py", f"--config={tmp_path}/config.py", f"--workdir={tmp_path / name}"]
        done = subprocess.run(
            [*command, "--config.training.steps=6", *flags], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0 and "cache" not in done.stderr, done.stderr
        (folder,) = (tmp_path / "cache" / "programs").iterdir()
        return {file.name: file.read_bytes() for file in folder.glob("*-cache")}, folder

    first, folder = run("one")
    assert first and all((folder / f"{name}.sha256").exists() for name in first)
    damaged = max(folder.glob("*-cache"), key=lambda file: file.stat().st_size)
    launching.flip(damaged, 4 * damaged.stat().st_size)
    flipped = damaged.read_bytes()
    # neither is a constant of a program
    again, _ = run("two", "--config.seed=7", "--config.optimizer.learning_rate=0.01")
    assert again.keys() == first.keys() and again[damaged.name] != flipped
    assert all(again[name] == first[name] for name in first if name != damaged.name)
    assert (folder / f"{damaged.name}.sha256").exists()


def test_what_is_thrown_away(tmp_path):
    for name in ("whole", "changed", "new", "old"):
        (tmp_path / f"{name}-cache").write_text(name)
    compilation_cache._write_checksums(tmp_path, 0.0)
    (tmp_path / "changed-cache").write_text("other")
    for name in ("new", "old"):
        (tmp_path / f"{name}-cache.sha256").unlink()
    os.utime(tmp_path / "old-cache", (time.time() - 7200,) * 2)
    (tmp_path / "evicted-cache.sha256").write_text("")
    compilation_cache._remove_damaged(tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["new-cache", "whole-cache", "whole-cache.sha256"]


@pytest.mark.parametrize("name", ["jax_compilation_cache_dir", "jax_enable_compilation_cache"])
def test_what_the_user_chose_stays(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path) if name.endswith("dir") else None)
        jax.config.update("jax_enable_compilation_cache", name.endswith("dir"))
        compilation_cache.enable()
    finally:
        for setting, value in zip(("jax_compilation_cache_dir", "jax_enable_compilation_cache"), before, strict=True):
            jax.config.update(setting, value)
    assert not (tmp_path / "cache").exists()
