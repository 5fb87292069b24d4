"""What shared and private columns cost where every task has a data set of its own: a train step over hard sharing's.

    python benchmarks/experts.py
    python benchmarks/experts.py --layer=transformer --tasks=4,16 --rounds=9

K tasks with texts of their own, of each some rows a step: two BiLSTM layers of width 128, or two transformer layers of
width 256, over 2,000 words; AdamW. Hard sharing passes every text through one column. `shared_private` and `cgc` with
one shared and one private expert pass it through two, the shared one and that of its task, so they do twice the work
above the embeddings; `ple` passes it through all. Sides take turns; shown are medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from ml_collections import ConfigDict
from record import Claim, save
from rounds import Step, timed

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.experiment.assemble import assemble
from mtl_jax.runs.build import build

GOAL = 2.5  # of shared_private, K = 16
ONE_EACH = {"shared": 1, "private": 1}
WAYS = {
    "hard": {"trunk": "all"},
    "shared_private": {"trunk": "embed", "mixer": "shared_private"},
    "cgc": {"trunk": "embed", "mixer": "cgc", "mixer_options": ONE_EACH},
    "ple": {"trunk": "embed", "mixer": "ple", "mixer_options": ONE_EACH},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="bilstm", choices=("bilstm", "transformer"))
    parser.add_argument("--tasks", default="16", help="K, several with commas")
    parser.add_argument("--ways", default="shared_private,cgc", help="also ple")
    parser.add_argument("--rows", type=int, default=4, help="rows of each task in a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of a side in a round")
    options = parser.parse_args()
    chosen, results = ["hard", *options.ways.split(",")], []
    if unknown := set(chosen) - WAYS.keys():
        parser.error(f"--ways: {', '.join(sorted(unknown))} is none of {', '.join(WAYS)}")
    for tasks in map(int, options.tasks.split(",")):
        first = build(_config(options, tasks, "hard"))
        steps = {}
        for way in chosen:
            steps[way] = Step(assemble(_config(options, tasks, way), first.corpus, None, None))
            print(f"{way}, K = {tasks}: compiled", file=sys.stderr)
        for way, one in timed(steps, options.rounds, options.steps).items():
            results.append(
                {"way": way, "tasks": tasks, **one.numbers(), "spread": one.spread, "bytes": steps[way].temporaries}
            )
        del steps
        jax.clear_caches()
    rows = [("way", "K", "ms a step", "ratio", "lowest to highest", "MiB of temporaries")]
    for one in results:
        rows.append(
            (
                one["way"],
                str(one["tasks"]),
                f"{one['ms']:.1f}",
                f"{one['ratio']:.2f}",
                one["spread"],
                f"{one['bytes'] / 2**20:.0f}",
            )
        )
    tokens = options.rows * options.length
    title = f"a step of each way over that of hard sharing, {options.layer}, {tokens} tokens a task"
    save(f"experts_{options.layer}", [c for one in results if (c := _claim(options, one))], {title: rows}, results)


def _claim(options, one) -> Claim | None:
    if (one["way"], one["tasks"]) != ("shared_private", 16):
        return None
    reached = one["ratio"] <= GOAL
    bound = "" if reached else "two columns for each text, and the optimizer's pass over 17 columns of parameters"
    what = f"{options.layer}, K = 16 data sets: step of shared_private / of hard sharing"
    return Claim(what, f"≤ {GOAL}×", one["ratio"], min(one["ratios"]), max(one["ratios"]), reached, bound)


def _config(options, tasks: int, way: str):
    config = default.get_config()
    for k in range(tasks):
        synthetic = {"kind": "text", "features": 2000, "tokens": 12, "noise": 0.05, "rho": 0.6, "task": k}
        synthetic |= {"examples": {"train": 400, "dev": 20, "test": 20}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=synthetic)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers = options.layer, 2
    config.model.hidden_size = 128 if options.layer == "bilstm" else 256
    if options.layer == "transformer":
        config.model.num_heads, config.model.intermediate_size = 4, 1024
    config.data.row_length, config.data.rows_per_block = options.length, options.rows
    for field, value in WAYS[way].items():
        config.sharing[field] = ConfigDict(value) if isinstance(value, dict) else value
    checks.check(config)
    return config


if __name__ == "__main__":
    main()
