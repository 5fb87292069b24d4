"""What a penalty adds to a train step: L2-to-mean and trace norm, by the Gram matrix and written naively.

    python benchmarks/penalties.py
    python benchmarks/penalties.py --layers=bilstm --tasks=16 --rounds=21

K tasks with texts and columns of their own: two BiLSTM layers of width 128, or two transformer layers of width 256,
over 2,000 words; of each task 16 rows of 128 tokens, as in a config that names none; AdamW. A penalty goes through all
parameters whatever the batch is: --rows=2 shows steps that have little else to do. The naive forms stand in the same
step: a loop over the K·(K − 1)/2 differences, and the singular values of the matrix of all parameters. First their
values are compared with ours (relative 1e-4). Then the steps take turns; shown are medians of the ratios to the step
without penalty in that round.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import sys
from concurrent import futures

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from record import Claim, save
from rounds import Step, timed

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.experiment.assemble import assemble
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten

GOALS = {("l2_to_mean", 4): 1.02, ("l2_to_mean", 16): 1.05, ("trace_norm", 4): 1.08, ("trace_norm", 16): 1.15}
STRENGTH = 1e-3
RARELY = 3  # the naive forms are slow: a step in so many rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="bilstm,transformer")
    parser.add_argument("--tasks", default="4,16", help="K, several with commas")
    parser.add_argument("--rows", type=int, default=16, help="rows of 128 tokens of each task in a step")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="steps of a side in a round")
    options = parser.parse_args()
    results = []
    for layer in options.layers.split(","):
        for tasks in map(int, options.tasks.split(",")):
            results += _measured(options, layer, tasks)
            jax.clear_caches()
    rows = [("columns", "K", "penalty", "ms a step", "ratio", "lowest to highest", "MiB of temporaries")]
    for one in results:
        spread = f"{min(one['ratios']):.3f} to {max(one['ratios']):.3f}"
        rows.append(
            (
                one["layer"],
                str(one["tasks"]),
                one["penalty"],
                f"{one['ms']:.1f}",
                f"{one['ratio']:.3f}",
                spread,
                f"{one['bytes'] / 2**20:.0f}",
            )
        )
    claims = [claim for one in results if (claim := _claim(one))]
    name = "_".join(["penalties", *(count for count in options.tasks.split(",") if count != "4")])
    save(name, claims, {f"a step over that without penalty; {128 * options.rows} tokens a task": rows}, results)


def _claim(one) -> Claim | None:
    goal = GOALS.get((one["penalty"], one["tasks"]))
    if goal is None:
        return None
    reached = one["ratio"] <= goal
    what = f"{one['layer']} columns, K = {one['tasks']}, {one['parameters'] / 1e6:.1f} M parameters: "
    what += f"step with {one['penalty']} / without"
    bound = "" if reached else f"the penalty reads and writes {12 * one['parameters'] / 2**20:.0f} MiB at the least"
    return Claim(what, f"≤ {goal}×", one["ratio"], min(one["ratios"]), max(one["ratios"]), reached, bound)


def _measured(options, layer: str, tasks: int) -> list[dict]:
    plain = _config(layer, tasks, options.rows)
    checks.check(plain)
    first = build(plain)
    makers = {"none": (first, None)}
    for kind, naive in NAIVE.items():
        config = ConfigDict(plain.to_dict())
        default.add_penalty(config, "p", kind=kind, strength=STRENGTH)
        experiment = assemble(config, first.corpus, None, None)
        naively = f"{kind}, {naive.__name__.strip('_').replace('_', ' ')}"
        makers |= {kind: (experiment, None), naively: (experiment, naive)}
    with futures.ThreadPoolExecutor() as pool:  # compilation takes longer than all steps
        made = pool.map(lambda side: Step(side[0], side[1] and _spec(*side)), makers.values())
        steps = dict(zip(makers, made, strict=True))
    print(f"{layer}, K = {tasks}: compiled", file=sys.stderr)
    slow = {name: RARELY for name, (_, naive) in makers.items() if naive}
    for name in slow:
        kind = name.split(",")[0]
        factor = 1.0 / tasks if kind == "l2_to_mean" else 1.0  # pairwise differences count each task K times
        ours = float(steps[kind].take()["penalty"]["p"])
        theirs = factor * float(steps[name].take()["penalty"]["p"])
        if abs(ours - theirs) > 1e-4 * abs(theirs):
            sys.exit(f"{kind}: {ours}, {name} {theirs}: not the same work")
    results = timed(steps, options.rounds, options.steps, slow)
    parameters = sum(leaf.size for leaf in task_stacks(flatten(first.init_params(0)), first.owners).values())
    return [
        {
            "layer": layer,
            "tasks": tasks,
            "penalty": name,
            **one.numbers(),
            "bytes": steps[name].temporaries,
            "parameters": parameters,
        }
        for name, one in results.items()
    ]


def _pairwise(stacks) -> jax.Array:
    """Σ_{i<j} ‖Θ_i − Θ_j‖², difference by difference."""
    vectors = list(_vectors(stacks))  # cut once: the gradient of each cut is a whole matrix
    pairs = itertools.combinations(vectors, 2)
    return sum(jnp.sum((a - b) ** 2) for a, b in pairs)


def _singular_values(stacks) -> jax.Array:
    """Σ σ_i of the matrix tasks × parameters."""
    return jnp.linalg.svd(_vectors(stacks), compute_uv=False).sum()


def _vectors(stacks) -> jax.Array:
    return jnp.concatenate([leaf.reshape(leaf.shape[0], -1) for leaf in stacks.values()], axis=1)


NAIVE = {"l2_to_mean": _pairwise, "trace_norm": _singular_values}


def _spec(experiment, naive):
    """The step's, with `naive` in the place of the penalty."""
    ((name, penalty),) = experiment.spec.objective.penalties.items()
    penalty = penalty._replace(value=lambda flat, anchor, by_layer: naive(task_stacks(flat, experiment.owners)))
    return experiment.spec._replace(objective=experiment.spec.objective._replace(penalties={name: penalty}))


def _config(layer: str, tasks: int, rows: int):
    config = default.get_config()
    for k in range(tasks):
        options = {"kind": "text", "features": 2000, "tokens": 12, "noise": 0.05, "rho": 0.6, "task": k}
        options |= {"examples": {"train": 400, "dev": 20, "test": 20}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=options)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.layer_type, config.model.num_layers = layer, 2
    config.model.hidden_size = 128 if layer == "bilstm" else 256
    if layer == "transformer":
        config.model.num_heads, config.model.intermediate_size = 4, 1024
    config.model.column_init = "independent"  # so that there is something to penalise
    config.sharing.trunk = "none"
    config.data.row_length, config.data.rows_per_block = 128, rows
    return config


if __name__ == "__main__":
    main()
