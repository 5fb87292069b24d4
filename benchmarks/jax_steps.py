"""The side of mtl_jax in `steps.py` and `packing.py`: its own train step, as `launch.py` runs it, host work included.

They start it and ask; see `workers.serve`.
"""

from __future__ import annotations

import pathlib
import pickle
import sys
import tempfile
import time
from collections.abc import Iterable

import jax
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import encoders
from jax_lanes import ceiling, peak, product_flops
from workers import serve

from mtl_jax import checks
from mtl_jax.evaluation.scores import placement_from_config
from mtl_jax.models.export import save_folder
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step


class Side:
    """One experiment, its state, and its step."""

    def load(self, folder: str, steps: int, **config) -> dict:
        """Builds what `encoders.get_config` says of `config`; 0 steps: as many as an epoch has.

        Writes what the peer needs into `folder`: peer.pkl, and the encoder in the Hugging Face layout.
        """
        config = encoders.get_config(file=f"{folder}/texts.jsonl", **config)
        checks.check(config)
        self.experiment = build(config)
        self.steps = steps or int(self.experiment.batches(0).steps_per_epoch("texts"))
        self.batches = self.experiment.batches(0)
        self.state, self.number = None, 0
        params = self.experiment.by_name(jax.device_get(self.experiment.init_params(0)))
        texts, labels, plan = _texts([self.batches.batch(step) for step in range(self.steps)])
        optimizer = self.experiment.spec.optimizer
        rate, classes = optimizer.schedule.rate, len(self.experiment.tasks["task"].names)
        with open(f"{folder}/peer.pkl", "wb") as file:
            pickle.dump(
                {
                    "model": config.model.layer_type,
                    "dropout": config.model.dropout,
                    "attention_dropout": config.model.attention_dropout,
                    "clip": config.optimizer.clip_norm,
                    "dtype": config.model.dtype,
                    "weight_decay": config.optimizer.weight_decay,
                    "eps": optimizer.option("eps"),
                    "betas": (optimizer.option("b1"), optimizer.option("b2")),
                    "classes": classes,
                    "rates": [
                        config.optimizer.learning_rate * float(rate(jax.numpy.int32(step))) for step in range(1000)
                    ],
                    "texts": texts,
                    "labels": labels,
                    "plan": plan,
                    "values": flatten(params),
                },
                file,
            )
        if self.experiment.model.architecture is not None:
            column = {path: jax.tree.map(lambda leaf: leaf[0], own) for path, own in params.items() if path != "heads"}
            save_folder(f"{folder}/encoder", self.experiment.model.architecture, column)
        first = self.batches.batch(0)
        return {
            "steps": self.steps,
            "tokens": sum(map(len, texts)) / self.steps,
            "positions": first.tokens.size,
            "texts": len(texts),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "flops": self._flops(first),
            "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        }

    def _flops(self, batch):
        state = jax.eval_shape(lambda: self.experiment.init(0))
        step = jax.make_jaxpr(lambda *arguments: train_step(self.experiment.spec, *arguments))
        return product_flops(step(state, jax.tree.map(lambda a: a[None], batch), self.experiment.hyper).jaxpr)

    def _start(self, spec):
        placement = placement_from_config(self.experiment)
        self.put = placement.put_batch
        self.function = placement.train(lambda state, batch, hyper, axis: train_step(spec, state, batch, hyper, axis))
        self.state = placement.put_state(self.experiment.init(0))

    def _step(self, number):
        batch = jax.tree.map(lambda leaf: leaf[None], self.batches.batch(number))
        self.state, metrics = self.function(self.state, self.put(batch), self.experiment.hyper)
        return metrics

    def losses(self, steps: int) -> list[float]:
        """The loss of each of the first steps from the initial values, without dropout."""
        spec = self.experiment.spec
        plain = spec.objective._replace(dropout=False, attention_dropout=False)
        self._start(spec._replace(objective=plain))
        results = [float(self._step(number)["losses"][0]) for number in range(steps)]
        self.state = None
        return results

    def busy(self, steps: int) -> float | None:
        """The share of `steps` steps in which an accelerator works, from a trace; None on CPU."""
        if jax.default_backend() == "cpu":
            return None
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(steps)
            (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
            planes = [p for p in jax.profiler.ProfileData.from_file(str(file)).planes if p.name.startswith("/device:")]
            return max(covered((e.start_ns, e.end_ns) for line in p.lines for e in line.events) for p in planes)

    def compared(self, block: int) -> float:
        """The share of a row's T·T pairs of tokens that attention would compare if it left out those of blocks of
        tokens that have no text in common; with blocks of one, the pairs within texts. A block divides T."""
        shares = []
        for step in range(self.steps):
            for row in self.batches.batch(step).segment[0]:
                blocks = row.reshape(-1, block)
                locked = (np.arange(1, row.max() + 1)[:, None, None] == blocks).any(2)  # [texts, T/block]
                shares.append((locked[:, :, None] & locked[:, None, :]).any(0).mean())
        return float(np.mean(shares))

    def run(self, steps: int) -> float:
        """Seconds of the next `steps` steps; the epoch begins anew behind its end."""
        if self.state is None:
            self._start(self.experiment.spec)
        began = time.perf_counter()
        for _ in range(steps):
            metrics = self._step(self.number % self.steps)
            self.number += 1
        jax.block_until_ready(self.state)
        seconds = time.perf_counter() - began
        if not np.isfinite(np.asarray(metrics["losses"])).all():
            raise RuntimeError("a loss is not finite")
        return seconds


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The share of the time from the first begin to the last end that lies in some span."""
    spans = sorted(spans)
    if not spans:
        return 0.0
    total, (start, end) = 0.0, spans[0]
    for begin, finish in spans:
        if begin > end:
            total, start, end = total + end - start, begin, finish
        end = max(end, finish)
    return (total + end - start) / (end - spans[0][0])


def _texts(batches):
    """(token ids of each text; its label, or those of its words; for each batch the numbers of its texts)."""
    texts, labels, plan = [], [], []
    for batch in batches:
        own, plan_of_batch = batch.labels["task"], []
        for row in range(batch.tokens.shape[1]):
            for slot in np.flatnonzero(batch.length[0, row]):
                start, length = int(batch.start[0, row, slot]), int(batch.length[0, row, slot])
                value = own["value"][0, row]
                label = value[own["slot"][0, row] == slot] if "slot" in own else value[slot]
                plan_of_batch.append(len(texts))
                texts.append(np.asarray(batch.tokens[0, row, start : start + length], np.int64))
                labels.append(np.asarray(label, np.int64))
        plan.append(plan_of_batch)
    return texts, labels, plan


if __name__ == "__main__":
    side = Side()
    serve(
        {
            "load": side.load,
            "losses": side.losses,
            "run": side.run,
            "busy": side.busy,
            "compared": side.compared,
            "ceiling": ceiling,
            "memory": peak,
        }
    )
