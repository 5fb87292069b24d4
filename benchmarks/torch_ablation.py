"""The PyTorch side: a loop over the grid in one process. `ablation.py` starts it and asks; see `workers.serve`."""

from __future__ import annotations

import functools
import pathlib
import pickle
import sys
import time
import warnings

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import torch_data
import torch_models
import workloads
from torch_training import Recipe, train
from workers import peak_memory, serve

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What is tried for a kind of layer: (layout of the texts, are columns stacked). The fastest one is the peer.
VARIANTS = {
    "cnn": (("texts", False), ("texts", True)),
    "bilstm": (("texts", False), ("packed", False)),
    "transformer": (("rows", False), ("rows", True), ("texts", False)),
}


class Side:
    """A model and its data."""

    def load(self, model: str, data: str) -> dict:
        """Reads what `jax_lanes.py` wrote. Returns the variants: [layout, stacked, compiled]."""
        self.config = workloads.get_config(model)
        with open(data, "rb") as file:
            self.data = pickle.load(file)
        known = self.data
        self.spec = torch_models.Spec.of(self.config, known["vocabulary"], tuple(known["classes"]), known["level"])
        self.batches = functools.lru_cache(None)(self._batches)
        results = [[layout, stacked, False] for layout, stacked in VARIANTS[self.spec.layer]]
        if self.spec.layer != "bilstm":  # nothing to compile between the calls of the library's LSTM
            results += [[layout, stacked, True] for layout, stacked, _ in results if layout != "packed"]
        count = torch_models.Columns(self.spec, False).count()
        return {"variants": results, "parameters": count, "device": DEVICE, "version": torch.__version__}

    def _batches(self, seed, layout, stacked):
        data = self.data["batches"][seed]
        return torch_data.batches(self.spec, data, self.data["tasks"], layout, stacked, DEVICE)

    def lanes(self, variant: list, threads: int, lanes: list, steps: int) -> float:
        """Seconds of `steps` steps of each of the lanes [[seed, λ], ...], one after another."""
        layout, stacked, compiled = variant
        torch.set_num_threads(threads)
        recipe = Recipe.of(self.config)
        loss = _compiled_losses() if compiled else torch_models.losses
        seconds = 0.0
        for seed, strength in lanes:
            columns = torch_models.Columns(self.spec, stacked, DEVICE)
            columns.start(torch.Generator().manual_seed(seed))
            batches = self.batches(seed, layout, stacked)[:steps]
            wait()
            began = time.perf_counter()
            history = train(columns, recipe, strength, batches, loss)
            wait()
            seconds += time.perf_counter() - began
            if not bool(torch.isfinite(history).all()):
                raise RuntimeError(f"a loss is not finite: {history}")
        return seconds

    def flops(self) -> int:
        """Floating-point operations of matrix products in one step, the penalty's among them."""
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        layout = "packed" if self.spec.layer == "bilstm" else VARIANTS[self.spec.layer][0][0]
        columns = torch_models.Columns(self.spec, False)
        batches = torch_data.batches(self.spec, self.data["batches"][0][:1], self.data["tasks"], layout, False, "cpu")
        # the library's LSTM and attention are opaque calls; taken apart they are counted
        apart = torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH)
        with apart[0], apart[1], FlopCounterMode(display=False) as counter:
            train(columns, Recipe.of(self.config), 1.0, batches)
        return counter.get_total_flops()


@functools.cache
def _compiled_losses():
    return torch.compile(torch_models.losses)


def wait() -> None:
    """Until a GPU has done all that it was asked."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def ceiling(threads: int) -> dict:
    """The best that this machine does: flops/s of a large float32 product, bytes/s of a += b over 256 MB."""
    torch.set_num_threads(threads)
    size = 1536 if DEVICE == "cpu" else 8192
    a, b = torch.randn(2, size, size, device=DEVICE)
    x, y = torch.zeros(2, 1 << 25, device=DEVICE)
    return {"flops": 2 * size**3 / _best(lambda: a @ b), "bytes": 12 * x.numel() / _best(lambda: x.add_(y))}


def _best(function, repeats=8) -> float:
    times = []
    for _ in range(repeats):
        wait()
        began = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - began)
    return min(times)


def memory() -> int:
    """Peak bytes: on the GPU where there is one."""
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else peak_memory()


if __name__ == "__main__":
    # stacked leaves are columns of a buffer, not dense blocks; and attention is not batched over columns on CPU
    warnings.filterwarnings("ignore", message="grad and param do not obey|There is a performance|TF32")
    side = Side()
    serve({"load": side.load, "lanes": side.lanes, "flops": side.flops, "ceiling": ceiling, "memory": memory})
