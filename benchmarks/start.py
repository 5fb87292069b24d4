"""From the command to the first training step, as a user waits for it.

    python benchmarks/start.py
    python benchmarks/start.py --config=configs/snips_joint.py:bert

`launch.py` is started and, behind its first step, asked to end, several times: first with empty caches (texts are
encoded, programs compiled), then with full ones. Shown is the time until the first line stands in metrics.jsonl.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from record import Claim, save

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", help="one or several; default: quickstart and a MiniLM")
    parser.add_argument("--repeats", type=int, default=5, help="starts with full caches")
    options = parser.parse_args()
    configs = options.config or ["configs/quickstart.py:soft", "configs/snips_joint.py:bert"]
    rows, claims, numbers = [("config", "first time, s", "cached, s", "imports alone, s")], [], {}
    for config in configs:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            first, *cached = [first_step(config, folder, n) for n in range(1 + options.repeats)]
        imports = [_imports() for _ in range(options.repeats)]
        middle = statistics.median(cached)
        rows.append((config, f"{first:.1f}", f"{middle:.1f}", f"{statistics.median(imports):.1f}"))
        what = f"{config}: seconds from command to first step, cached"
        bound = "data and weights, tracing, and the first step, in which XLA sets up each product and each sum; "
        bound += f"imports alone take {statistics.median(imports):.1f} s"
        claims.append(Claim(what, "≤ 10 s", middle, min(cached), max(cached), middle <= 10, bound))
        numbers[config] = {"first": first, "cached": cached, "imports": imports}
    save("start", claims, {"From the command to the first step": rows}, numbers)


def first_step(config: str, folder: pathlib.Path, number: int) -> float:
    """Seconds until the first step's numbers are written. Caches lie in the folder, wheels stay where they are."""
    cache = folder / "cache"
    if not cache.exists():
        cache.mkdir()
        if (wheels := _wheels()).is_dir():
            (cache / "wheels").symlink_to(wheels)
    workdir = folder / str(number)
    command = [sys.executable, "launch.py", f"--config={config}", f"--workdir={workdir}"]
    command.append("--config.training.log_every=1")
    env = {**_as_found(), "MTL_JAX_CACHE": str(cache)}
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        metrics, seconds = workdir / "metrics.jsonl", None
        while run.poll() is None and seconds is None:
            if metrics.exists() and metrics.stat().st_size:
                seconds = time.perf_counter() - began
            time.sleep(0.01)
        run.terminate()
        output = run.communicate()[0].decode()
    if run.returncode not in (0, 128 + signal.SIGTERM) or seconds is None:
        raise SystemExit(output)
    return seconds


def _as_found() -> dict[str, str]:
    """The environment without what would take a cache away, of programs or of Python's bytecode."""
    apart = ("JAX_COMPILATION_CACHE", "PYTHONDONTWRITEBYTECODE")
    return {key: value for key, value in os.environ.items() if not key.startswith(apart)}


def _wheels() -> pathlib.Path:
    """Where downloaded wheels are kept now: the network is not what is measured."""
    code = "from mtl_jax.data.files import array_cache; print(array_cache.cache_folder() / 'wheels')"
    return pathlib.Path(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip())


def _imports() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mtl_jax.runs.train"], cwd=ROOT, env=_as_found(), check=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
