"""What the forms that are written for speed gain over the plain ones that they replace.

    python benchmarks/plain_forms.py
    python benchmarks/plain_forms.py --only=bilstm,process --rounds=15

Each row is the same train step, or the same command, with one form replaced by the plain one, next to the program as it
is; both take turns in one run. A form that gains less than 10 % of what a user waits for has no place here. Parts:

bert_mini, minilm   16 full rows of 128 tokens through transformers, see `encoders.py`
bilstm              the same rows through two BiLSTM layers
process             steps of BERT-mini in a process of its own, without large pages of memory
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from unittest import mock

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import encoders
import jax
import jax.numpy as jnp
from flax import linen as nn
from record import Claim, save
from rounds import Step, timed

from mtl_jax.models.dense import Dense
from mtl_jax.models.layers import recurrent, transformer
from mtl_jax.runs.build import build

GOAL = 1.1  # time of the plain form over that of ours
PARTS = ("bert_mini", "minilm", "bilstm", "process")


class _Affine(Dense):
    """Rows and tokens are axes of the product."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def _jax_gelu(x):
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


TRANSFORMER = {  # plain form -> what it replaces: (object, attribute, value)
    "affine layers: rows and tokens not joined": (transformer, "Dense", _Affine),
    "GELU of jax.nn": (transformer, "ACTIVATIONS", transformer.ACTIVATIONS | {"gelu": _jax_gelu}),
}
RECURRENT = {"LSTM: scan under autodiff": (recurrent, "_over_time", recurrent._over_time.fun)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps of a side in its turn")
    parser.add_argument("--process", action="store_true", help=argparse.SUPPRESS)  # a side of the part `process`
    options = parser.parse_args()
    if options.process:
        return _run_steps(options.steps)
    measured = {}
    for part in options.only.split(","):
        measured[part] = _large_pages(options) if part == "process" else _steps(part, options)
    _report(measured)
    return None


@contextlib.contextmanager
def _replaced(form) -> Iterator[None]:
    """The plain form in place of ours, in programs that are traced meanwhile."""
    with mock.patch.object(*form):
        jax.clear_caches()
        yield
    jax.clear_caches()


def _experiment(model: str, folder: str):
    encoders.write_full_texts(model, f"{folder}/texts.jsonl", 64, 128)
    return build(encoders.get_config(model, f"{folder}/texts.jsonl", 16, 128, 0.1, 0.0))


def _steps(model: str, options) -> dict[str, tuple[list[float], list[float]]]:
    """{plain form: (seconds of a step of ours, of the plain form), by rounds}."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {"": Step(_experiment(model, folder))}
        for name, form in (RECURRENT if model == "bilstm" else TRANSFORMER).items():
            with _replaced(form):
                steps[name] = Step(_experiment(model, folder))
        sides = timed(steps, options.rounds, options.steps)
    ours = sides.pop("").seconds
    return {name: (ours, side.seconds) for name, side in sides.items()}


def _run_steps(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        step = Step(_experiment("bert_mini", folder))
        step.run(2)
        print(json.dumps(step.run(steps)))


def _large_pages(options) -> dict[str, tuple[list[float], list[float]]]:
    command = [sys.executable, pathlib.Path(__file__).resolve(), "--process", f"--steps={4 * options.steps}"]
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(options.rounds):
        for side, pages in zip(seconds, (1, 0), strict=True):
            env = {**os.environ, "GLIBC_TUNABLES": f"glibc.malloc.hugetlb={pages}"}
            side.append(float(subprocess.check_output(command, env=env, text=True).splitlines()[-1]))
    return {"memory: pages of 4 KiB": seconds}


def _report(measured) -> None:
    rows, claims = [("part", "plain form", "ours, ms", "plain, ms", "plain / ours")], []
    for part, forms in measured.items():
        for name, (ours, plain) in forms.items():
            ratios = [b / a for a, b in zip(ours, plain, strict=True)]
            median = statistics.median(ratios)
            times = (f"{1e3 * statistics.median(seconds):,.0f}" for seconds in (ours, plain))
            rows.append((part, name, *times, f"{median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"))
            goal = f"≥ {GOAL}×"
            claims.append(
                Claim(f"{part}, {name}: plain / ours", goal, median, min(ratios), max(ratios), median >= GOAL)
            )
    save("plain_forms", claims, {"Forms that are written for speed": rows}, measured)


if __name__ == "__main__":
    main()
