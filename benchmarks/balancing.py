"""Time and memory of a train step by method of balancing, relative to equal weighting.

    python benchmarks/balancing.py --layer=bilstm --tasks=4,8,16
    python benchmarks/balancing.py --layer=transformer --tasks=16 --methods=cagrad,pcgrad

K tasks with texts of their own share all layers: two BiLSTM layers of width 128, or two transformer layers of width
256, and a vocabulary of 2,000 words. Six methods at a time take turns with the plain sum; shown are medians of the
ratios within a round, and the memory that XLA plans for temporaries. Functions of the Gram matrix are meant to take 1.3
times as long at most. "layers" is cagrad with config.aggregation.gradient_storage = "layers".
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from ml_collections import ConfigDict
from record import table
from rounds import Step, timed

from mtl_jax import checks
from mtl_jax.balancing import AGGREGATION, GRADIENT_TRANSFORMS, LOSS_WEIGHTS
from mtl_jax.config import default
from mtl_jax.experiment.assemble import assemble
from mtl_jax.runs.build import build

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
    results = []
    for count in map(int, options.tasks.split(",")):
        results += _measured(options, count)
    file = ROOT / "benchmarks" / "results" / f"balancing_{options.layer}_{time.strftime('%Y%m%d_%H%M%S')}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(results, indent=2))
    print(f"\nnumbers in {file}")


def _measured(options, count: int) -> list[dict]:
    plain = _config(options.layer, count)
    checks.check(plain)
    experiment = build(plain)
    first = Step(experiment)
    chosen = options.methods.split(",") if options.methods else None
    methods = [(name, c) for name, c in _methods(count) if chosen is None or name.split(" ")[0] in chosen]
    results = []
    for start in range(0, len(methods), TOGETHER):
        steps = {"equal, sum": first}
        for name, changes in methods[start : start + TOGETHER]:
            config = ConfigDict(plain.to_dict())
            for field, value in changes.items():
                config[field].update(value)
            steps[name] = Step(assemble(config, experiment.corpus, None, None))
            print(f"K = {count}: {name} compiled", file=sys.stderr)
        of_all = list(timed(steps, options.rounds, options.steps).items())[start > 0 :]
        results += [
            {
                "layer": options.layer,
                "tasks": count,
                "method": name,
                **one.numbers(),
                "spread": one.spread,
                "bytes": steps[name].temporaries,
            }
            for name, one in of_all
        ]
        del steps
        jax.clear_caches()
    rows = [(f"{options.layer}, K = {count}", "ms a step", "ratio", "lowest to highest", "MiB of temporaries")]
    for one in results:
        size = f"{one['bytes'] / 2**20:.0f}"
        rows.append((one["method"], f"{one['ms']:.1f}", f"{one['ratio']:.2f}", one["spread"], size))
    table(rows)
    return results


def _methods(count: int):
    """(name, changes of the config)"""
    for name in AGGREGATION:
        if name == "sum":
            continue
        options = {"byzantine": 1} if name == "krum" else {}
        kind = "reads gradients" if name in GRADIENT_TRANSFORMS else "Gram"
        yield f"{name} ({kind})", {"aggregation": {"method": name, "options": ConfigDict(options)}}
    yield "layers (Gram)", {"aggregation": {"method": "cagrad", "memory": "layers"}}
    for name in LOSS_WEIGHTS:
        options = {"weights": (1.0,) * count} if name == "fixed" else {}
        if name != "equal":
            yield f"{name} (α)", {"loss_weights": {"method": name, "options": ConfigDict(options)}}


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
    config.model.layer_type = layer
    config.model.num_layers = 2
    config.model.hidden_size = 128 if layer == "bilstm" else 256
    if layer == "transformer":
        config.model.num_heads, config.model.intermediate_size = 4, 1024
    config.data.row_length = 64
    config.data.rows_per_block = 4
    return config


if __name__ == "__main__":
    main()
