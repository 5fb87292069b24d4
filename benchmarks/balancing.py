"""Time and memory of a train step by method of balancing, relative to equal weighting.

    python benchmarks/balancing.py --layer=bilstm --tasks=4,8,16
    python benchmarks/balancing.py --layer=transformer --tasks=16 --methods=cagrad,pcgrad

K tasks with texts of their own share all layers: two BiLSTM layers of width 128, or two transformer layers of width
256, and a vocabulary of 2,000 words. Six methods at a time take turns with the plain sum; shown are medians of the
ratios within a round, and the memory that XLA plans for temporaries. Functions of the Gram matrix are meant to take 1.3
times as long at most. "layers" is cagrad with config.aggregation.memory = "layers".
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from ml_collections import ConfigDict
from record import table

from configs import default
from mtl_jax import config as checks
from mtl_jax.balancing import AGGREGATION, LOSS_WEIGHTS, OF_GRADIENTS
from mtl_jax.training.experiment import assemble, build
from mtl_jax.training.step import train_step

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOGETHER = 6  # methods in one set of rounds: a process cannot map the programs of all at once


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="bilstm", choices=("bilstm", "transformer"))
    parser.add_argument("--tasks", default="4,8,16", help="K, several with commas")
    parser.add_argument("--methods", help="some of the aggregations and loss weights, with commas; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="steps of a method in a round")
    options = parser.parse_args()
    found = []
    for count in map(int, options.tasks.split(",")):
        found += _measured(options, count)
    file = ROOT / "benchmarks" / "results" / f"balancing_{options.layer}_{time.strftime('%Y%m%d_%H%M%S')}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found, indent=2))
    print(f"\nnumbers in {file}")


def _measured(options, count: int) -> list[dict]:
    plain = _config(options.layer, count)
    checks.check(plain, default)
    experiment = build(plain)
    first = _step(experiment)
    chosen = options.methods.split(",") if options.methods else None
    methods = [(name, c) for name, c in _methods(count) if chosen is None or name.split(" ")[0] in chosen]
    found = []
    for start in range(0, len(methods), TOGETHER):
        steps = {"equal, sum": first}
        for name, changes in methods[start : start + TOGETHER]:
            config = ConfigDict(plain.to_dict())
            for field, value in changes.items():
                config[field].update(value)
            steps[name] = _step(assemble(config, experiment.corpus, None, None))
            print(f"K = {count}: {name} compiled", file=sys.stderr)
        found += _timed(steps, options, count)[start > 0 :]
        del steps
        jax.clear_caches()
    rows = [(f"{options.layer}, K = {count}", "ms a step", "ratio", "lowest to highest", "MiB of temporaries")]
    for one in found:
        spread = f"{min(one['ratios']):.2f} to {max(one['ratios']):.2f}"
        rows.append((one["method"], f"{one['ms']:.1f}", f"{one['ratio']:.2f}", spread, f"{one['bytes'] / 2**20:.0f}"))
    table(rows)
    return found


def _timed(steps: dict[str, _step], options, count: int) -> list[dict]:
    """Rounds in which every step takes its turn; ratios are those to the first within a round."""
    seconds = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, step in steps.items():
            spent = step.run(options.steps)
            if number:  # the first warms up
                seconds[name].append(spent)
    first = next(iter(seconds.values()))
    found = []
    for name, spent in seconds.items():
        ratios = [a / b for a, b in zip(spent, first, strict=True)]
        found.append({
            "layer": options.layer, "tasks": count, "method": name, "ratio": statistics.median(ratios),
            "ratios": ratios, "ms": 1e3 * statistics.median(spent) / options.steps, "bytes": steps[name].memory,
        })  # fmt: skip
    return found


def _methods(count: int):
    """(name, changes of the config)"""
    for name in AGGREGATION:
        if name == "sum":
            continue
        options = {"byzantine": 1} if name == "krum" else {}
        kind = "reads gradients" if name in OF_GRADIENTS else "Gram"
        yield f"{name} ({kind})", {"aggregation": {"method": name, "options": ConfigDict(options)}}
    yield "layers (Gram)", {"aggregation": {"method": "cagrad", "memory": "layers"}}
    for name in LOSS_WEIGHTS:
        options = {"weights": (1.0,) * count} if name == "fixed" else {}
        if name != "equal":
            yield f"{name} (α)", {"loss_weights": {"method": name, "options": ConfigDict(options)}}


class _step:
    """One compiled step and its state."""

    def __init__(self, experiment):
        self.state = experiment.init(0)
        batches = experiment.batches(0)
        self.batches = [jax.tree.map(lambda leaf: leaf[None], batches.batch(i)) for i in range(4)]
        self.hyper = experiment.hyper
        spec = experiment.spec
        lowered = jax.jit(lambda s, b, h: train_step(spec, s, b, h), donate_argnums=0).lower(
            self.state, self.batches[0], self.hyper
        )
        self.compiled = lowered.compile()
        self.memory = self.compiled.memory_analysis().temp_size_in_bytes

    def run(self, steps: int) -> float:
        began = time.perf_counter()
        for number in range(steps):
            self.state, _ = self.compiled(self.state, self.batches[number % 4], self.hyper)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def _config(layer: str, count: int):
    config = default.get_config()
    for k in range(count):
        options = {"kind": "text", "features": 2000, "tokens": 12, "noise": 0.05, "rho": 0.6, "task": k}
        options |= {"examples": {"train": 200, "dev": 20, "test": 20}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=options)
        default.add_task(
            config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label", metrics=("accuracy",)
        )
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.layer = layer
    config.model.layers = 2
    config.model.width = 128 if layer == "bilstm" else 256
    config.model.heads, config.model.intermediate = 4, 1024
    config.data.row_length = 64
    config.data.rows = 4
    return config


if __name__ == "__main__":
    main()
