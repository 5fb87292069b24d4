"""Texts of different lengths: packed rows of mtl_jax against PyTorch with padded batches.

    python benchmarks/packing.py
    python benchmarks/packing.py --model=bert_mini --length=128

Equally many training texts of CoNLL-2003 (sentences), SNIPS (utterances) and 20 Newsgroups (documents, cut at the
length of a row), mixed; a classification of texts. Both sides take the same number of updates over the same texts, with
the tokens that mtl_jax made of them. PyTorch has equally many texts in each batch, padded to the longest of them
(dynamic padding): batches at random, or of texts sorted by length, the batches in random order. Losses of both sides
are compared first. SNIPS is read from the folder that MTL_JAX_DATA names.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import sys
import tempfile

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import peers
from record import CORES, Claim, save

from configs import newsgroups_conll, snips_joint
from mtl_jax.config import default
from mtl_jax.data import datasets

ORDERS = {"random": "dynamic padding of random batches", "sorted": "batches of texts sorted by length"}
BLOCK = 64  # tokens
GOALS = {"random": 2.0, "sorted": 1.0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", choices=("bert_mini", "minilm"))
    parser.add_argument("--rows", type=int, default=8, help="of mtl_jax")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row, and of the longest text")
    parser.add_argument("--texts", type=int, default=300, help="of all three sources together")
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each side")
    peers.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_mixed_texts(f"{folder}/texts.jsonl", options.texts)
        loads = {
            "model": options.model,
            "rows": options.rows,
            "length": options.length,
            "dropout": 0.1,
            "attention_dropout": 0.0,
            "steps": 0,
        }
        difference = peers.require_same_losses(folder, loads)
        ours, peer = peers.workers()
        known, results = ours("load", folder=folder, **loads), peer("load", folder=folder)
        top = max(ours("ceiling")["flops"], peer("ceiling", threads=CORES)["flops"])
        block = math.gcd(BLOCK, options.length)
        known["compared"] = {"texts": ours("compared", block=1), f"blocks of {block}": ours("compared", block=block)}
        known["padded"] = {order: peer("positions", order=order) / known["steps"] for order in ORDERS}
        variant, threads, trials, failed = peers.fastest(peer, results["variants"], 2, options, "random")
        ours("run", steps=1)  # compiles
        steps = known["steps"]
        sides = {"mtl_jax": lambda: ours("run", steps=steps)}
        for order in ORDERS:
            sides[order] = lambda order=order: peer(
                "run", variant=variant, threads=threads, steps=steps, order=order, first=0
            )
        seconds = peers.in_turns(sides, options.rounds)
    memory = {"mtl_jax": ours("memory"), **dict.fromkeys(ORDERS, peer("memory"))}
    ours.close()
    peer.close()
    how = f"PyTorch, {peers.named(variant)}, threads: {threads}"
    _report(options, known, how, peers.tried(trials, failed), difference, top, seconds, memory)


def write_mixed_texts(file: str, count: int) -> None:
    """`count` texts in random order, a third of each source, with a label each."""
    config = default.get_config()
    newsgroups_conll.add_newsgroups(config)
    newsgroups_conll.add_conll(config)
    config.datasets.snips = snips_joint.get_config("lstm").datasets.snips
    records, random = [], np.random.default_rng(0)
    for name, entry in config.datasets.items():
        train = datasets.read_dataset(name, entry, 0).splits["train"]
        for number in random.permutation(len(train))[: count // len(config.datasets)]:
            fields = train[number].fields
            words = fields["words"] if entry.words else fields["text"].split()
            topic = fields.get("category") or fields.get("intent") or "news"
            records.append({"words": list(words), "label": f"{name} {topic}"})
    with open(file, "w", encoding="utf-8") as out:
        for number in random.permutation(len(records)):
            out.write(json.dumps(records[number]) + "\n")


def _report(options, known, how, tried, difference, top, seconds, memory):
    steps, real = known["steps"], known["tokens"] / known["positions"]
    rows = [("side", "s an epoch", "its time / mtl_jax", "real tokens/s", "real tokens", "peak memory")]
    claims = []
    for side, times in seconds.items():
        time = statistics.median(times)
        share = real if side == "mtl_jax" else known["tokens"] / known["padded"][side]
        ratio = (
            "" if side == "mtl_jax" else "{:.2f} ({:.2f} to {:.2f})".format(*peers.ratios(times, seconds["mtl_jax"]))
        )
        rows.append(
            (
                "mtl_jax, packed rows" if side == "mtl_jax" else f"{how}, {ORDERS[side]}",
                f"{time:.1f}",
                ratio,
                f"{known['tokens'] * steps / time:,.0f}",
                f"{share:.0%}",
                f"{memory[side] / 2**20:,.0f} MiB",
            )
        )
    bound = known["flops"] * steps / top / statistics.median(seconds["mtl_jax"])
    for order, words in ORDERS.items():
        median, low, high = peers.ratios(seconds[order], seconds["mtl_jax"])
        claims.append(
            Claim(
                f"{options.model}, real texts, real tokens/s: mtl_jax / PyTorch with {words}",
                f"≥ {GOALS[order]:g}×",
                median,
                low,
                high,
                median >= GOALS[order],
                f"products need {bound:.0%} of mtl_jax's time at the machine's best rate; PyTorch computes "
                f"{known['padded'][order] / known['positions']:.2f} positions for each of mtl_jax's",
            )
        )
    claims.append(Claim("real tokens in packed rows", "≥ 0.9", real, real, real, real >= 0.9))
    (_, within), (blocks, left) = known["compared"].items()
    notes = (
        f"{known['texts']} texts in {steps} updates, {known['tokens']:.0f} real tokens in each of mtl_jax's "
        f"({options.rows} rows of {options.length}). Of the pairs of tokens that attention compares {within:.0%} are "
        f"within a text; one that left out pairs of {blocks} without a common text would compare {left:.0%} still. "
        f"Dropout 0.1, none on attention, on both sides. Losses of {peers.CHECKED} steps without dropout differ by "
        f"{difference:.1e} (allowed: {peers.TOLERANCE:g}). {tried}"
    )
    print(notes)
    name = "packing" if options.model == "minilm" else f"packing_{options.model}"
    save(
        name,
        claims,
        {"Texts of different lengths": rows},
        {
            "seconds_an_epoch": seconds,
            "known": known,
            "ceiling": top,
            "peak_bytes": memory,
            "difference_of_losses": difference,
            "options": vars(options),
        },
        notes,
    )


if __name__ == "__main__":
    main()
