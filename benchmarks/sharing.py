"""What each way of sharing costs: parameters, time and memory of a train step beside single-task columns.

    python benchmarks/sharing.py
    python benchmarks/sharing.py --table=ewt --rounds=9

The ways, tasks and sizes are those of the tables in `configs/sharing.py`, at the learning rate of the config. Six ways
at a time take turns with `single`; shown are medians of the ratios within a round. The sides of a ratio train the same
tasks on the same batches.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from record import save
from rounds import Step, timed

from configs import sharing
from mtl_jax import checks
from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.config import default
from mtl_jax.experiment.assemble import assemble
from mtl_jax.runs.build import build

TOGETHER = 6  # ways in one set of rounds: a process cannot map the programs of all at once


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="snips", choices=("snips", "ewt"))
    parser.add_argument("--ways", help="some of them, with commas; default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="steps of a way in a round")
    options = parser.parse_args()
    table = sharing.get_config(options.table)
    settings = table.ablation.choices.sharing.settings
    chosen = options.ways.split(",") if options.ways else [way for way in settings if way != "single"]
    base = _config(table, settings, "single")
    single = build(base)
    first, results = Step(single), []
    for start in range(0, len(chosen), TOGETHER):
        steps = {"single": first}
        for way in chosen[start : start + TOGETHER]:
            steps[way] = Step(assemble(_config(table, settings, way), single.corpus, None, None))
            print(f"{way}: compiled", file=sys.stderr)
        for way, one in timed(steps, options.rounds, options.steps).items():
            if way != "single" or not start:
                shapes = jax.eval_shape(lambda experiment=steps[way].experiment: experiment.init_params(0))
                results.append(
                    {
                        "way": way,
                        **one.numbers(),
                        "spread": one.spread,
                        "bytes": steps[way].temporaries,
                        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
                    }
                )
        del steps
        jax.clear_caches()
    rows = [("way", "parameters", "ms a step", "ratio", "lowest to highest", "MiB of temporaries")]
    for one in results:
        rows.append(
            (
                one["way"],
                f"{one['parameters']:,}",
                f"{one['ms']:.1f}",
                f"{one['ratio']:.2f}",
                one["spread"],
                f"{one['bytes'] / 2**20:.0f}",
            )
        )
    save(f"sharing_{options.table}", [], {f"a step of each way over that of `single`, {options.table}": rows}, results)


def _config(table, settings, way):
    config = traced_fields.merged(table, settings[way], f"configs/sharing.py:{way}")
    config.ablation = default.get_config().ablation
    checks.check(config)
    return config


if __name__ == "__main__":
    main()
