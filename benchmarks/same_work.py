"""Checks that the peer does the same work: parameters, flops and losses of both sides from the same initial values.

    python benchmarks/same_work.py --model=bilstm

Dropout is off, since random bits differ. Prints the losses of both sides step by step and ends with status 1 where
another number of parameters, a loss that is further apart than 1e-4 in 10 steps of AdamW with clipping and penalty, or
a peer that spends over 5 % more on matrix products shows that the peer does something else. It may spend less: its rows
are not padded, and what mtl_jax writes as a product (means over texts, the penalty's mean) may be a sum there.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import torch_ablation
import torch_data
import workloads
from jax_lanes import Side
from torch_models import Columns, Spec, shapes
from torch_training import Recipe, train
from torch_values import named

from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

STEPS = 10


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bilstm", choices=workloads.MODELS)
    model = parser.parse_args().model
    ours, peer = Side(), torch_ablation.Side()
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/batches.pkl"
        known = ours.load(model, file, STEPS)
        results = peer.load(model, file)
    strength = known["lanes"][2][1]
    print(f"{model}: {known['parameters']:,} and {results['parameters']:,} parameters")
    flops = (known["flops"], peer.flops())
    share = known["tokens"] / known["positions"]
    print(f"flops of products in a step: {flops[0]:,} and {flops[1]:,}; {share:.1%} of our positions hold tokens")
    expected = _our_losses(ours, strength, known["steps"])
    worst = 0.0
    for variant in sorted({(layout, stacked) for layout, stacked, _ in results["variants"]}):
        losses = _peer_losses(peer, ours, strength, *variant)[: known["steps"]]
        worst = max(worst, float(np.abs(losses - expected).max()))
        for step in (0, 1, known["steps"] - 1):
            print(f"{variant} step {step}: {np.round(expected[step], 4)} and {np.round(losses[step], 4)}")
    print(f"largest difference of a loss: {worst:.1e}")
    same = known["parameters"] == results["parameters"] and flops[1] <= 1.05 * flops[0] and worst < 1e-4
    sys.exit(0 if same else 1)


def _our_losses(side, strength, steps):
    """Losses [steps, K] of one lane, without dropout."""
    experiment, spec = side.built.experiment, side.built.spec
    spec = spec._replace(objective=spec.objective._replace(dropout=False))
    lane = min(side.built.hypers, key=lambda hyper: abs(float(hyper.strength["p"]) - strength))
    step = jax.jit(lambda state, batch: train_step(spec, state, batch, lane))
    state, results = experiment.init(0), []
    for number in range(steps):
        batch = jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(number))
        state, metrics = step(state, batch)
        results.append(np.asarray(metrics["losses"]))
    return np.stack(results)


def _peer_losses(peer, side, strength, layout, stacked):
    """Losses [steps, K] of the peer from the initial values of `side`."""
    columns = Columns(peer.spec, stacked)
    _copy(columns, peer.spec, _initial(side.built.experiment), peer.data["tasks"])
    recipe = Recipe.of(peer.config)._replace(dropout=0.0)
    batches = torch_data.batches(peer.spec, peer.data["batches"][0], peer.data["tasks"], layout, stacked, "cpu")
    return train(columns, recipe, strength, batches).numpy()


def _initial(experiment) -> dict[str, np.ndarray]:
    return flatten(experiment.by_name(jax.device_get(experiment.init_params(0))))


def _copy(columns: Columns, spec: Spec, values: dict[str, np.ndarray], tasks: list[str]) -> None:
    """Puts the parameters of mtl_jax {path: leaf} into the columns of the peer."""
    for name in shapes(spec):
        columns.set(name, torch.from_numpy(np.array(named(name, values))))
    for task, (weight, bias) in zip(tasks, columns.heads, strict=True):
        weight.detach().copy_(torch.from_numpy(np.array(values[f"heads/{task}/output/kernel"].T)))
        bias.detach().copy_(torch.from_numpy(np.array(values[f"heads/{task}/output/bias"])))


if __name__ == "__main__":
    main()
