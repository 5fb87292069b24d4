"""Training steps at equal shapes, against transformers' BertModel and torch.nn.LSTM.

    python benchmarks/steps.py --model=minilm
    python benchmarks/steps.py --model=bilstm --rounds=9
    python benchmarks/steps.py --model=bert_base --length=512 --rows=64 --dtype=bfloat16     on a GPU

Rows are full texts, so that neither side has padding: 16 rows of 128 tokens. mtl_jax runs its train step as `launch.py`
does, with the host's part of a batch; PyTorch has its batches ready. Both have AdamW, clipping and dropout of 0.1 on
embeddings and layers; none on attention probabilities unless `--attention-dropout` says so. Before anything is timed
both start from the same values and the losses of five steps in float32 are compared. In bfloat16 parameters and AdamW
stay float32 on both sides (PyTorch: autocast); on a GPU that is known the share of its peak is shown (MFU), and from a
trace how much of the time it works.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import encoders
import peers
from record import CORES, Claim, save

GOALS = {"bert_mini": 1.0, "minilm": 1.0, "bilstm": 0.95, "bert_base": 1.0, "bert_large": 1.0}
# dense bfloat16 products a second, from NVIDIA's data sheets
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12}
BATCHES = 8  # that are taken in turns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", choices=encoders.MODELS)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="tokens of a row, and of each text")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument(
        "--attention-dropout", type=float, default=0.0, help="on attention probabilities, on both sides"
    )
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--steps", type=int, default=4, help="steps of a side in its turn")
    peers.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        texts = BATCHES * options.rows
        encoders.write_full_texts(options.model, f"{folder}/texts.jsonl", texts, options.length)
        loads = {
            "model": options.model,
            "rows": options.rows,
            "length": options.length,
            "dropout": options.dropout,
            "attention_dropout": options.attention_dropout,
            "dtype": options.dtype,
            "steps": BATCHES,
        }
        difference = peers.require_same_losses(folder, loads)
        ours, peer = peers.workers()
        known, results = ours("load", folder=folder, **loads), peer("load", folder=folder)
        best, peers_best = ours("ceiling", dtype=options.dtype), peer("ceiling", threads=CORES)
        ceilings = {"mtl_jax": best["flops"], "PyTorch": peers_best["flops"]}
        variant, threads, trials, failed = peers.fastest(peer, results["variants"], 2, options)
        ours("run", steps=1)  # compiles
        steps = options.steps
        seconds = peers.in_turns(
            {
                "mtl_jax": lambda: ours("run", steps=steps) / steps,
                "PyTorch": lambda: peer("run", variant=variant, threads=threads, steps=steps) / steps,
            },
            options.rounds,
        )
        known["busy"] = ours("busy", steps=steps)
    memory = {"mtl_jax": ours("memory"), "PyTorch": peer("memory")}
    ours.close()
    peer.close()
    _report(options, known, variant, threads, (trials, failed), difference, ceilings, seconds, memory)


def _report(options, known, variant, threads, tried, difference, ceilings, seconds, memory):
    if known["tokens"] != known["positions"]:
        raise SystemExit(f"{known['tokens']} tokens in {known['positions']} positions: rows are meant to be full")
    median, low, high = peers.ratios(seconds["PyTorch"], seconds["mtl_jax"])
    top, goal = max(ceilings.values()), GOALS[options.model]
    names = {"mtl_jax": "mtl_jax, train step", "PyTorch": f"PyTorch, {peers.named(variant)}, threads: {threads}"}
    rows = [("side", "ms a step", "PyTorch / mtl_jax", "tokens/s", "peak memory", "products")]
    share = {}
    for side, name in names.items():
        time = statistics.median(seconds[side])
        share[side] = known["flops"] / top / time
        rows.append(
            (
                name,
                f"{1e3 * time:.0f}",
                f"{median:.2f} ({low:.2f} to {high:.2f})" if side == "PyTorch" else "",
                f"{known['tokens'] / time:,.0f}",
                f"{memory[side] / 2**20:,.0f} MiB",
                f"{share[side]:.0%}",
            )
        )
    what = f"{options.model}, steps of {options.rows} rows of {options.length} tokens: PyTorch / mtl_jax"
    attention = f"{options.attention_dropout:g} on attention" if options.attention_dropout else "none on attention"
    claim = Claim(
        what,
        f"≥ {goal}×",
        median,
        low,
        high,
        median >= goal,
        f"products need {share['mtl_jax']:.0%} of mtl_jax's step at the machine's best rate, of PyTorch's "
        f"{share['PyTorch']:.0%}",
    )
    notes = (
        f"{known['parameters']:,} parameters, {known['flops'] / 1e9:.1f} GFLOP of products a step; the best "
        f"{options.dtype} product of this machine: {top / 1e9:.0f} GFLOP/s. Dropout {options.dropout:g}, {attention}, "
        "on both sides. "
        f"Losses of {peers.CHECKED} steps without dropout differ by {difference:.1e} (allowed: {peers.TOLERANCE:g}). "
        + peers.tried(*tried)
    )
    print(notes)
    claims = [claim, *_of_accelerator(options, known, statistics.median(seconds["mtl_jax"]))]
    name = f"steps_{options.model}" + ("_attention_dropout" if options.attention_dropout else "")
    save(
        name + ("_bfloat16" if options.dtype == "bfloat16" else ""),
        claims,
        {what: rows},
        {
            "seconds_a_step": seconds,
            "known": known,
            "ceilings": ceilings,
            "peak_bytes": memory,
            "trials": tried[0],
            "left_out": tried[1],
            "difference_of_losses": difference,
            "options": vars(options),
        },
        notes,
    )


def _of_accelerator(options, known, seconds) -> list[Claim]:
    """How much of its peak, and of the time, a GPU works; nothing for a CPU."""
    claims = []
    peak = next((peak for name, peak in PEAKS.items() if name in known["device"]), None)
    if peak and options.dtype == "bfloat16":
        share = known["flops"] / seconds / peak
        claims.append(Claim(f"{options.model}: MFU on {known['device']}", "≥ 0.5", share, share, share, share >= 0.5))
    if (busy := known["busy"]) is not None:
        what = f"{options.model}: share of time in which the device works"
        claims.append(Claim(what, "≥ 0.95", busy, busy, busy, busy >= 0.95))
    return claims


if __name__ == "__main__":
    main()
