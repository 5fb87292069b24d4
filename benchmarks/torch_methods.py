"""The peers in `gradient_methods`: LibMTL and TorchJD on the model of `torch_models`. A process of its own.

Every peer computes what its documentation shows for hard sharing, and of several ways to call it each is a variant: the
driver times all and keeps the fastest. The plain sum is one pass over the rows of all tasks.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import time
import types
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch_models
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch_values import named
from torchjd import aggregation as torchjd
from torchjd.autogram import Engine
from torchjd.autojac import backward, jac_to_grad, mtl_backward
from workers import peak_since_reset, reset_peak, serve

sys.modules["LibMTL.model"] = types.ModuleType("LibMTL.model")  # its ResNets import what torchvision no longer has
libmtl = importlib.import_module("LibMTL.weighting")
HPS = importlib.import_module("LibMTL.architecture").HPS
warnings.filterwarnings("ignore", message=".*not DPP.*")  # of TorchJD's Nash-MTL, each time
# method of mtl_jax -> class, and arguments of its `backward`
LIBMTL = {"mgda": (libmtl.MGDA, {"mgda_gn": "none"}), "pcgrad": (libmtl.PCGrad, {}), "imtl_g": (libmtl.IMTL, {})}
# method -> Jacobian aggregator by K, and the weighting of the Gram matrix, where there is one
TORCHJD: dict[str, tuple[Callable, Callable | None]] = {
    "mgda": (lambda k: torchjd.MGDA(), lambda k: torchjd.MGDAWeighting()),
    "pcgrad": (lambda k: torchjd.PCGrad(), lambda k: torchjd.PCGradWeighting()),
    "cagrad": (lambda k: torchjd.CAGrad(c=0.4), lambda k: torchjd.CAGradWeighting(c=0.4)),
    "nash_mtl": (lambda k: torchjd.NashMTL(k, 0.0, 1, 20), None),
    "upgrad": (lambda k: torchjd.UPGrad(), lambda k: torchjd.UPGradWeighting()),
    "imtl_g": (lambda k: torchjd.IMTLG(), lambda k: torchjd.IMTLGWeighting()),
    "aligned_mtl": (lambda k: torchjd.AlignedMTL(), lambda k: torchjd.AlignedMTLWeighting()),
}


class Layer(nn.Module):
    """One layer of `torch_models`, or its embeddings; a module for each, as autogram wants."""

    def __init__(self, spec: torch_models.Spec, path: str):
        super().__init__()
        self.spec, self.path = spec, path
        self.names = {n: n.replace("/", "_") for n in torch_models.shapes(spec) if n.split("/")[0] == path}
        for name, own in self.names.items():
            self.register_parameter(own, nn.Parameter(torch.zeros(torch_models.shapes(spec)[name])))

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """{name in `torch_models.shapes`: parameter}"""
        return {name: getattr(self, own) for name, own in self.names.items()}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens int64 [N, T] or hidden [N, T, D] -> hidden [N, T, D']."""
        weights, spec = self.weights, self.spec
        if self.path == "embed":
            h = F.embedding(x, weights["embed/word"])
            if spec.layer == "transformer":
                position = weights["embed/position"][: x.shape[1]]
                h = torch_models._layer_norm(h + position + weights["embed/type"][0], weights, "embed")
            return h
        if spec.layer == "transformer":
            nothing = types.SimpleNamespace(mask=None)
            return torch_models._transformer(spec, weights, self.path, nothing, x, 0.0)
        reverse = torch.arange(x.shape[1] - 1, -1, -1)[None, :, None].expand(x.shape[0], -1, 1)
        whole = types.SimpleNamespace(sizes=torch.zeros(0), reverse=reverse)
        return torch_models._bilstm(spec, weights, self.path, whole, x, 0.0)


class Encoder(nn.Module):
    """Tokens int64 [N, T] -> features [N, D], the mean over the tokens."""

    def __init__(self, spec: torch_models.Spec):
        super().__init__()
        paths = ["embed", *(f"layer_{number:02d}" for number in range(spec.layers))]
        self.layers = nn.ModuleList(Layer(spec, path) for path in paths)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See above."""
        hidden = tokens
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden.mean(1)

    def named_weights(self) -> dict[str, nn.Parameter]:
        """{name in `torch_models.shapes`: parameter}"""
        return {name: weight for layer in self.layers for name, weight in layer.weights.items()}


class Side:
    """K tasks, one encoder, a head each; a step by variant."""

    def load(self, file: str, known: dict, setting: str, threads: int) -> dict:
        """Reads what the side of mtl_jax wrote; names the variants by method."""
        torch.set_num_threads(threads)
        arrays, config = np.load(file), known["config"]
        tokens = arrays["tokens:0"].shape[-1]
        self.known, self.setting = known, setting
        self.spec = torch_models.Spec(
            config["layer"],
            config["layers"],
            known["vocab"],
            config["width"],
            config["heads"],
            config["intermediate"],
            3,
            tokens,
            tuple(known["classes"]),
            "text",
        )
        self.values = {n.removeprefix("params:"): arrays[n] for n in arrays.files if n.startswith("params:")}
        count = len(known["names"])
        numbers = sorted({int(n.split(":")[1]) for n in arrays.files if n.startswith("tokens:")})
        self.batches = [
            (
                torch.from_numpy(arrays[f"tokens:{i}"].astype(np.int64)),
                [torch.from_numpy(arrays[f"labels:{i}:{k}"].astype(np.int64)) for k in range(count)],
            )
            for i in numbers
        ]
        self.variants = self._variants()
        self.current, self.step = None, None
        return {
            "variants": {name: list(results) for name, results in self.variants.items()},
            "version": torch.__version__,
        }

    def _variants(self) -> dict[str, dict[str, Callable]]:
        """{method: {variant: (encoder, heads) -> step(tokens, labels)}}"""
        results = {"sum": {"plain": _Plain}}
        for method, chosen in LIBMTL.items():
            results.setdefault(method, {})["LibMTL"] = lambda *a, c=chosen: _LibMTL(*a, *c)
        for method, (aggregator, weighting) in TORCHJD.items():
            of_method = results.setdefault(method, {})
            ways = {"at once": (None, False), "in turns": (1, False)}
            if self.spec.layer == "transformer":  # fused attention cannot be batched: plain is faster at once
                ways["at once, plain attention"] = (None, True)
            for name, way in ways.items():
                of_method[f"TorchJD, {name}"] = lambda *a, m=aggregator, w=way: _TorchJD(*a, m, *w)
            if weighting is not None:
                of_method["TorchJD autogram"] = lambda *a, w=weighting: _Autogram(*a, w)
        return results

    def choose(self, method: str, variant: str) -> int:
        """Starts a variant from the initial values. Returns its number of parameters."""
        self.encoder = Encoder(self.spec)
        for name, parameter in self.encoder.named_weights().items():
            parameter.data.copy_(torch.from_numpy(np.array(named(name, self.values)[0])))
        heads = []
        for name, classes in zip(self.known["names"], self.known["classes"], strict=True):
            head = nn.Linear(torch_models.features_width(self.spec), classes)
            head.weight.data.copy_(torch.from_numpy(np.array(self.values[f"heads/{name}/output/kernel"].T)))
            head.bias.data.copy_(torch.from_numpy(np.array(self.values[f"heads/{name}/output/bias"])))
            heads.append(head)
        self.heads = nn.ModuleList(heads)
        self.step = self.variants[method][variant](self.encoder, self.heads, self.setting)
        config = self.known["config"]
        everything = [*self.encoder.parameters(), *self.heads.parameters()]
        groups = [  # no decay on biases and norms
            {"params": [p for p in everything if p.ndim > 1], "weight_decay": config["weight_decay"]},
            {"params": [p for p in everything if p.ndim == 1], "weight_decay": 0.0},
        ]
        betas = (config["b1"], config["b2"])
        self.adamw = torch.optim.AdamW(groups, lr=config["rate"], betas=betas, eps=config["eps"], fused=True)
        return sum(p.numel() for p in everything)

    def run(self, steps: int) -> float:
        """Seconds of `steps` steps of what was chosen."""
        began = time.perf_counter()
        for number in range(steps):
            self.adamw.zero_grad(set_to_none=True)
            self.step(*self.batches[number % len(self.batches)])
            self.adamw.step()
        return time.perf_counter() - began

    def memory(self) -> int:
        """Bytes that a step takes beyond those held before it."""
        self.adamw.zero_grad(set_to_none=True)
        reset_peak()
        self.run(1)
        return peak_since_reset()

    def compare(self, file: str) -> dict:
        """The K losses of the first batch, and how far the combined gradient of the encoder is from that in `file`,
        relative to its norm.
        """
        gradients = np.load(file)
        self.adamw.zero_grad(set_to_none=True)
        losses = self.step(*self.batches[0])
        apart = size = 0.0
        for name, parameter in self.encoder.named_weights().items():
            wanted = named(name, gradients)[0].astype(np.float64)
            apart += float(np.square(parameter.grad.numpy() - wanted).sum())
            size += float(np.square(wanted).sum())
        return {"losses": losses.tolist(), "apart": (apart / size) ** 0.5}


class _Peer:
    """tokens [B, R, T], labels K × [R] -> the K losses, gradients left in `.grad`."""

    def __init__(self, encoder: Encoder, heads: nn.ModuleList, setting: str):
        self.encoder, self.heads, self.setting = encoder, heads, setting

    def joint(self, tokens, labels):
        """Features of each task from one pass over all rows, and the losses."""
        features = self.encoder(tokens.flatten(0, 1))
        own = features.split(tokens.shape[1]) if self.setting == "own" else [features] * len(labels)
        return features, self.losses(own, labels)

    def apart(self, tokens, labels):
        """As `joint`, with a pass for each task: a task's backward pass then sees its own rows only."""
        own = [self.encoder(rows) for rows in tokens]
        return own, self.losses(own, labels)

    def losses(self, features, labels):
        """K cross-entropies."""
        return [F.cross_entropy(h(f), y) for h, f, y in zip(self.heads, features, labels, strict=True)]


class _Plain(_Peer):
    def __call__(self, tokens, labels):
        losses = torch.stack(self.joint(tokens, labels)[1])
        losses.sum().backward()
        return losses.detach()


class _TorchJD(_Peer):
    """mtl_backward; tasks with rows of their own one after another, since then no pass goes through another's rows."""

    def __init__(self, encoder, heads, setting, aggregator, chunk, plain_attention):
        super().__init__(encoder, heads, setting)
        self.aggregator, self.chunk, self.plain_attention = aggregator(len(heads)), chunk, plain_attention

    def __call__(self, tokens, labels):
        with sdpa_kernel([SDPBackend.MATH]) if self.plain_attention else contextlib.nullcontext():
            return self._step(tokens, labels)

    def _step(self, tokens, labels):
        shared = list(self.encoder.parameters())
        if self.setting == "own" and self.chunk == 1:
            _, losses = self.apart(tokens, labels)
            backward(losses, inputs=shared, retain_graph=True, parallel_chunk_size=1)
            torch.autograd.backward(losses, inputs=list(self.heads.parameters()))
        else:
            features, losses = self.joint(tokens, labels)
            mtl_backward(losses, features=features, parallel_chunk_size=self.chunk)
        jac_to_grad(shared, self.aggregator)
        return torch.stack(losses).detach()


class _Autogram(_Peer):
    def __init__(self, encoder, heads, setting, weighting):
        super().__init__(encoder, heads, setting)
        self.engine, self.weighting = Engine(*encoder.layers, batch_dim=None), weighting(len(heads))

    def __call__(self, tokens, labels):
        with sdpa_kernel([SDPBackend.MATH]):  # K cotangents go through it at once
            losses = torch.stack(self.joint(tokens, labels)[1])
        losses.backward(self.weighting(self.engine.compute_gramian(losses)))
        return losses.detach()


class _LibMTL(_Peer):
    """Its architecture and weighting joined in one class, and the losses computed, as its trainer does."""

    def __init__(self, encoder, heads, setting, weighting, arguments):
        super().__init__(encoder, heads, setting)
        names = [str(k) for k in range(len(heads))]
        # its weightings write into gradients that `zero_grad` of today's PyTorch takes away
        zeroed = {"zero_grad_share_params": lambda model: model.encoder.zero_grad(set_to_none=False)}
        joined = type("Model", (HPS, weighting), zeroed)
        decoders = nn.ModuleDict(dict(zip(names, heads, strict=True)))
        self.model = joined(names, lambda: encoder, decoders, False, setting == "own", torch.device("cpu"))
        self.model.task_num, self.arguments = len(heads), arguments
        self.model.init_param()

    def __call__(self, tokens, labels):
        names, losses = self.model.task_name, torch.zeros(len(labels))
        if self.setting == "own":
            results = [self.model(rows, name)[name] for rows, name in zip(tokens, names, strict=True)]
        else:
            outputs = self.model(tokens[0])
            results = [outputs[name] for name in names]
        for k, (scores, y) in enumerate(zip(results, labels, strict=True)):
            losses[k] = F.cross_entropy(scores, y)
        self.model.backward(losses, **self.arguments)
        return losses.detach()


if __name__ == "__main__":
    side = Side()
    serve({name: getattr(side, name) for name in ("load", "choose", "run", "memory", "compare")})
