"""The side of mtl_jax in `gradient_methods`: train steps of K tasks that share all layers. A process of its own.

The same program as `launch.py` trains with, one step at a time. Texts are as long as a row, so that no side pads.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import optax
from ml_collections import ConfigDict
from workers import serve

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.experiment.assemble import assemble
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

WORDS, CLASSES, BATCHES = 2000, 4, 4
OPTIONS = {"cagrad": {"c": 0.4}}


class Side:
    """The experiment by method, and its compiled steps."""

    def load(self, layer: str, setting: str, tasks: int, rows: int, tokens: int, file: str) -> dict:
        """Builds it and writes parameters and batches to an npz `file`. setting "own" | "shared"."""
        with tempfile.TemporaryDirectory() as folder:
            self.config = config_of(layer, setting, tasks, rows, tokens, folder)
            checks.check(self.config)
            self.experiment = build(self.config)
        self.steps: dict[tuple[str, str, str], _Step] = {}  # by method, level and way to the K gradients
        made = self.experiment.batches(0)
        self.batches = [made.batch(number) for number in range(BATCHES)]
        params = flatten(self.experiment.by_name(jax.device_get(self.experiment.init_params(self.config.seed))))
        arrays = {f"params:{path}": leaf for path, leaf in params.items()}
        for number, batch in enumerate(self.batches):
            assert (batch.segment == 1).all(), "a row holds something else than one text"
            arrays[f"tokens:{number}"] = batch.tokens  # [B, R, T]
            for k, name in enumerate(self.experiment.tasks):
                labels = self.experiment.corpus.layout.labels_of(batch, name)
                arrays[f"labels:{number}:{k}"] = labels["value"][0, :, 0]  # [R]
        np.savez(file, **arrays)
        return {
            "names": list(self.experiment.tasks),
            "vocab": self.experiment.corpus.tokenizer.size,
            "classes": [len(task.names) for task in self.experiment.tasks.values()],
            "config": {
                "layer": layer,
                "layers": self.config.model.num_layers,
                "width": self.config.model.hidden_size,
                "heads": self.config.model.num_heads,
                "intermediate": self.config.model.intermediate_size,
                "rate": self.config.optimizer.learning_rate,
                "weight_decay": self.config.optimizer.weight_decay,
                **{name: self.experiment.spec.optimizer.option(name) for name in ("b1", "b2", "eps")},
            },
            "parameters": sum(leaf.size for leaf in params.values()),
        }

    def compile(self, method: str, level: str = "parameters", jacobian: str = "auto") -> dict:
        """Compiles the step of a method; "sum" is the plain sum. `level`, `jacobian` as in `config.aggregation`."""
        experiment = self.experiment
        if method != "sum":
            config = ConfigDict(self.config.to_dict())
            config.aggregation.method, config.aggregation.level = method, level
            config.aggregation.jacobian = jacobian
            config.aggregation.options = ConfigDict(OPTIONS.get(method, {}))
            experiment = assemble(config, experiment.corpus, None, None)
        began = time.perf_counter()
        step = self.steps[method, level, jacobian] = _Step(experiment, self.batches)
        return {"seconds": time.perf_counter() - began, "temporaries": step.temporaries}

    def run(self, method: str, steps: int, level: str = "parameters", jacobian: str = "auto") -> float:
        """Seconds of `steps` steps."""
        return self.steps[method, level, jacobian].run(steps)

    def gradients(self, method: str, file: str) -> dict:
        """Writes the combined gradient of the first batch, by path, to an npz; returns the losses and, of a method, the
        weights, norms and cosines of the tasks.
        """
        step = self.steps[method, "parameters", "auto"]
        state, metrics = step.compiled(step.experiment.init(0), step.batches[0], step.experiment.hyper)
        moments = optax.tree_utils.tree_get_all_with_path(state.opt_state, "mu")  # (1 − b1) times the first gradient
        moment = {path: leaf for _, group in moments for path, leaf in group.items()}
        scale = 1.0 - self.experiment.spec.optimizer.option("b1")
        np.savez(file, **{path: np.asarray(leaf) / scale for path, leaf in moment.items()})
        notes = jax.device_get(metrics.get("balanced", {}))
        return {"losses": metrics["losses"].tolist(), **{name: value.tolist() for name, value in notes.items()}}


class _Step:
    """One compiled step and its state, which it donates."""

    def __init__(self, experiment, batches):
        self.experiment = experiment
        self.batches = [jax.device_put(jax.tree.map(lambda leaf: leaf[None], batch)) for batch in batches]
        self.state = experiment.init(0)
        spec = experiment.spec
        function = jax.jit(lambda state, batch, hyper: train_step(spec, state, batch, hyper), donate_argnums=0)
        self.compiled = function.lower(self.state, self.batches[0], experiment.hyper).compile()
        self.temporaries = self.compiled.memory_analysis().temp_size_in_bytes

    def run(self, steps: int) -> float:
        began = time.perf_counter()
        for number in range(steps):
            self.state, _ = self.compiled(self.state, self.batches[number % BATCHES], self.experiment.hyper)
        jax.block_until_ready(self.state)
        return time.perf_counter() - began


def config_of(layer: str, setting: str, tasks: int, rows: int, tokens: int, folder: str):
    """K classifications of random texts; each on a data set of its own, or all on one."""
    config, rng = default.get_config(), np.random.default_rng(0)
    words = np.asarray([f"w{number}" for number in range(WORDS)])
    count = max(rows * BATCHES, WORDS // tokens + 1)
    for k in range(tasks if setting == "own" else 1):
        lines = []
        for place in range(count):
            drawn = rng.permutation(WORDS)[:tokens] if place else np.arange(tokens)
            record = {"text": " ".join(words[drawn])}
            record |= {f"label_{task}": f"c{rng.integers(CLASSES)}" for task in range(tasks)}
            if place < CLASSES:  # every class occurs
                record |= {f"label_{task}": f"c{place}" for task in range(tasks)}
            lines.append(json.dumps(record))
        for split in ("train", "dev", "test"):
            remaining = lines if split == "train" else lines[:CLASSES]
            pathlib.Path(folder, f"data_{k}.{split}.jsonl").write_text("\n".join(remaining) + "\n")
        splits = {split: f"data_{k}.{split}.jsonl" for split in ("train", "dev", "test")}
        default.add_dataset(config, f"data_{k}", reader="jsonl", path=folder, splits=splits, text=("text",))
    for k in range(tasks):
        dataset = f"data_{k}" if setting == "own" else "data_0"
        default.add_task(config, f"task_{k:02d}", kind="classification", dataset=dataset, label=f"label_{k}")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.layer_type, config.model.num_layers, config.model.dropout = layer, 2, 0.0
    config.model.hidden_size = 128 if layer == "bilstm" else 256
    if layer == "transformer":
        config.model.num_heads, config.model.intermediate_size = 4, 1024
    config.data.row_length, config.data.rows_per_block = tokens, rows
    config.optimizer.schedule, config.optimizer.warmup_ratio, config.optimizer.clip_norm = "constant", 0.0, 0.0
    return config


if __name__ == "__main__":
    side = Side()
    names = ("load", "compile", "run", "gradients")
    serve({name: getattr(side, name) for name in names})
