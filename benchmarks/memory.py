"""What a train step of K MiniLM columns needs: the plan of the compiler, of which nothing is allocated.

    python benchmarks/memory.py
    python benchmarks/memory.py --tasks=1,2 --columns=unroll

K tasks, each with a column of all-MiniLM-L6-v2's shapes (6 layers, width 384, 12 heads, 30,522 word pieces; random
values would do, none are made) drawn together by L2 to the mean, AdamW in float32, 16 rows of 128 tokens a task and
step. With and without recomputation of activations (config.model.remat_policy), and the same rows in 4 micro-batches
(config.training.grad_accum_steps). The plan: arguments (state and batch) + outputs − outputs that take a donated
argument's place + temporaries. Checked: the whole state is donated. The largest K follows from the slope between the
last two K.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from ml_collections import ConfigDict
from record import Claim, save

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.runs.build import build
from mtl_jax.training.step import train_step

WAYS = {
    "plain": {},
    "remat": {"remat_policy": "nothing_saveable"},
    "4 micro-batches": {"grad_accum_steps": 4},
    "remat, 4 micro-batches": {"remat_policy": "nothing_saveable", "grad_accum_steps": 4},
}
WORDS = 30522
LIMITS = {"24 GiB of host memory": 24, "139 GiB of an H200": 139}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="1,2,4,8", help="K, several with commas")
    parser.add_argument("--ways", default=";".join(WAYS), help="with semicolons")
    parser.add_argument("--rows", type=int, default=16, help="of a task in a step")
    parser.add_argument("--row-length", type=int, default=128)
    parser.add_argument(
        "--columns", default="vmap", help="config.model.column_execution; written out they compile for long"
    )
    options = parser.parse_args()
    results = []
    for way in options.ways.split(";"):
        for tasks in sorted(map(int, options.tasks.split(","))):
            results.append({"way": way, "tasks": tasks, **_planned(options, tasks, **WAYS[way])})
            print(f"{way}, K = {tasks}: {_mib(results[-1]['total'])} MiB planned", file=sys.stderr)
            jax.clear_caches()
    rows = [("way", "K", "M parameters", "state MiB", "temporaries MiB", "in all MiB", "of the state donated")]
    for one in results:
        rows.append(
            (
                one["way"],
                str(one["tasks"]),
                f"{one['parameters'] / 1e6:.1f}",
                _mib(one["state"]),
                _mib(one["temporaries"]),
                _mib(one["total"]),
                f"{one['donated']:.1%}",
            )
        )
    largest = [("way", "MiB a further column", *LIMITS)]
    for way in dict.fromkeys(one["way"] for one in results):
        of_way = [one for one in results if one["way"] == way]
        if len(of_way) > 1:
            slope, most = _largest(of_way)
            largest.append((way, _mib(slope), *(str(most[limit]) for limit in LIMITS)))
            results.append({"way": way, "slope": slope, "largest": most})
    measured = [one for one in results if "donated" in one]
    least = min(one["donated"] for one in measured)
    claims = [
        Claim(
            "share of the state whose memory the new state takes",
            "≥ 0.999",
            least,
            least,
            max(one["donated"] for one in measured),
            least >= 0.999,
        )
    ]
    notes = (
        "Planned by XLA for CPU, not measured; for an H200 the same plan is taken, though a GPU's compiler may choose "
        "other temporaries. Beside it stand the program itself, the batches and, on a host, Python (about 0.5 GiB)."
    )
    save("memory", claims, {"the plan": rows, "the largest K, by the plan": largest}, results, notes)


def _largest(of_way) -> tuple[float, dict[str, int]]:
    """Bytes of a further column, and the largest K by limit."""
    below, last = of_way[-2:]
    slope = (last["total"] - below["total"]) / (last["tasks"] - below["tasks"])
    most = {name: int(last["tasks"] + (gib * 2**30 - last["total"]) // slope) for name, gib in LIMITS.items()}
    return slope, most


def _planned(options, tasks: int, remat_policy: str = "everything_saveable", accumulate: int = 1) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        config = _config(options, tasks, folder)
        config.model.remat_policy, config.training.grad_accum_steps = remat_policy, accumulate
        config.data.rows_per_block = options.rows // accumulate
        checks.check(config)
        experiment = build(config)
    state = jax.eval_shape(lambda: experiment.init(0))
    batch = experiment.batches(0).batch(0)
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((accumulate, *leaf.shape), leaf.dtype), batch)
    spec, began = experiment.spec, time.perf_counter()
    function = jax.jit(lambda s, b, h: train_step(spec, s, b, h), donate_argnums=0)
    plan = function.lower(state, batch, experiment.hyper).compile().memory_analysis()
    locked = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    total = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "state": locked,
        "temporaries": plan.temp_size_in_bytes,
        "total": total,
        "donated": plan.alias_size_in_bytes / locked,
        "seconds": time.perf_counter() - began,
    }


def _config(options, tasks: int, folder: str):
    config = default.get_config()
    splits = {split: f"data.{split}.jsonl" for split in ("train", "dev", "test")}
    words = [f"w{number}" for number in range(WORDS - 2)]  # besides [PAD] and [UNK]
    size = options.row_length
    lines = [
        json.dumps({"text": " ".join(words[start : start + size]), "label": f"c{start // size % 4}"})
        for start in range(0, len(words), size)
    ]
    for file in splits.values():
        pathlib.Path(folder, file).write_text("\n".join(lines[:8] if "train" not in file else lines) + "\n")
    for k in range(tasks):
        default.add_dataset(config, f"data_{k}", reader="jsonl", path=folder, splits=splits, text=("text",))
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    if tasks > 1:
        default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.01)
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "transformer", 6, 384
    config.model.num_heads, config.model.intermediate_size = 12, 1536
    config.model.column_execution = options.columns if tasks > 1 else "auto"
    config.sharing.trunk = "none"
    config.data.row_length = options.row_length
    return config


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f}"


if __name__ == "__main__":
    main()
