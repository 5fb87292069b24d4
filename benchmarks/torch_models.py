"""The same models in PyTorch at their best: the peer of the lanes. See README.md for what was tried.

A column's parameters are rows of two buffers [K, n] (with and without weight decay), and so are their gradients:
penalty, clipping and AdamW are then one call each for the whole model. Linear weights are [out, in], PyTorch's order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

Weights = Mapping[str, torch.Tensor]


class Spec(NamedTuple):
    """What is static about a model.

    layer     "cnn" | "bilstm" | "transformer", and as many `layers`
    vocab     tokens; `positions` of a transformer
    classes   C of each of the K tasks
    level     "word": a label for each word; "text": for each text, from the mean over its tokens
    """

    layer: str
    layers: int
    vocab: int
    width: int
    heads: int
    intermediate: int
    window: int
    positions: int
    classes: tuple[int, ...]
    level: str

    @staticmethod
    def of(config: Any, vocab: int, classes: tuple[int, ...], level: str) -> Spec:
        """From a config of mtl_jax. ValueError for one that these models do not cover."""
        model = config.model
        if config.sharing.trunk != "none" or (model.layer_type == "cnn" and model.activation != "gelu"):
            raise ValueError("the peer has a column for each task (sharing.trunk = 'none') and GELU only")
        return Spec(
            model.layer_type,
            model.num_layers,
            vocab,
            model.hidden_size,
            model.num_heads,
            model.intermediate_size,
            model.kernel_size,
            config.data.row_length,
            classes,
            level,
        )


class Examples(NamedTuple):
    """What one task reads in a step, int64 unless said; [N, T] are rows of several texts, or a text a row.

    tokens, position, token_type  [N, T]
    mask     bool [N, 1, T, T] or [N, 1, 1, T], where a transformer attends; float [N, T, 1] 1 at tokens, for others
    reverse  [N, T, 1], where the token at t stands when the text is read from its end
    sizes    batch sizes of a packed sequence; tokens are then [sum of lengths], and N is sizes[0]. Else empty
    index    [M], the labelled words as indices on the axis N·T
    target   [M] class ids, -100 in the padding
    """

    tokens: torch.Tensor
    position: torch.Tensor
    token_type: torch.Tensor
    mask: torch.Tensor
    reverse: torch.Tensor
    sizes: torch.Tensor
    index: torch.Tensor
    target: torch.Tensor


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Name -> shape of one column's parameters."""
    width, wide = spec.width, spec.intermediate
    results: dict[str, tuple[int, ...]] = {"embed/word": (spec.vocab, width)}
    if spec.layer == "transformer":
        results |= {"embed/position": (spec.positions, width), "embed/type": (2, width)}
        results |= _norm("embed", width)
    size = width
    for number in range(spec.layers):
        path = f"layer_{number:02d}"
        if spec.layer == "transformer":
            results |= _linear(f"{path}/qkv", width, 3 * width) | _linear(f"{path}/attention", width, width)
            results |= _norm(f"{path}/attention", width) | _linear(f"{path}/in", width, wide)
            results |= _linear(f"{path}/out", wide, width) | _norm(path, width)
        elif spec.layer == "cnn":
            results |= _linear(path, spec.window * width, width)
        else:
            for way in ("forward", "backward"):
                results |= _linear(f"{path}/{way}", size, 4 * width)
                results[f"{path}/{way}/recurrent"] = (4 * width, width)
            size = 2 * width
    return results


def _linear(path, inputs, outputs):
    return {f"{path}/weight": (outputs, inputs), f"{path}/bias": (outputs,)}


def _norm(path, width):
    return {f"{path}/norm/scale": (width,), f"{path}/norm/bias": (width,)}


def features_width(spec: Spec) -> int:
    """D of what the heads read."""
    return 2 * spec.width if spec.layer == "bilstm" and spec.layers else spec.width


def column(spec: Spec, weights: Weights, x: Examples, dropout: float) -> torch.Tensor:
    """What one column's head reads: features [M, D] of the labelled words, or [N, D] of the texts."""
    h = F.embedding(x.tokens, weights["embed/word"])
    if spec.layer == "transformer":
        h = h + F.embedding(x.position, weights["embed/position"]) + F.embedding(x.token_type, weights["embed/type"])
        h = _layer_norm(h, weights, "embed")
    h = F.dropout(h, dropout)
    layer: Callable = {"transformer": _transformer, "cnn": _convolution, "bilstm": _bilstm}[spec.layer]
    for number in range(spec.layers):
        h = layer(spec, weights, f"layer_{number:02d}", x, h, dropout)
    if spec.level == "word":
        return h.reshape(-1, h.shape[-1]).index_select(0, x.index)
    return (h * x.mask).sum(1) / x.mask.sum(1).clamp(min=1.0)


def _layer_norm(h, weights, path):
    return F.layer_norm(h, h.shape[-1:], weights[f"{path}/norm/scale"], weights[f"{path}/norm/bias"], 1e-12)


def _apply(h, weights, path):
    return F.linear(h, weights[f"{path}/weight"], weights[f"{path}/bias"])


def _transformer(spec, weights, path, x, h, dropout):
    rows, tokens, width = h.shape
    qkv = _apply(h, weights, f"{path}/qkv").view(rows, tokens, 3, spec.heads, width // spec.heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(query, key, value, attn_mask=x.mask).transpose(1, 2).reshape(h.shape)
    h = _layer_norm(h + F.dropout(_apply(y, weights, f"{path}/attention"), dropout), weights, f"{path}/attention")
    y = _apply(F.gelu(_apply(h, weights, f"{path}/in")), weights, f"{path}/out")
    return _layer_norm(h + F.dropout(y, dropout), weights, path)


def _convolution(spec, weights, path, x, h, dropout):
    tokens = h.shape[-2]
    padded = F.pad(h * x.mask, (0, 0, (spec.window - 1) // 2, spec.window // 2))
    windows = torch.cat([padded[..., tap : tap + tokens, :] for tap in range(spec.window)], -1)
    return h + F.dropout(F.gelu(_apply(windows, weights, path)), dropout)


def _bilstm(spec, weights, path, x, h, dropout):
    def parameters(way):
        bias = weights[f"{path}/{way}/bias"]  # PyTorch has two; the other one is zero and not trained
        return [weights[f"{path}/{way}/weight"], weights[f"{path}/{way}/recurrent"], bias, torch.zeros_like(bias)]

    if x.sizes.numel():
        state = h.new_zeros(2, int(x.sizes[0]), spec.width)
        both = parameters("forward") + parameters("backward")
        out = torch._VF.lstm(h, x.sizes, (state, state), both, True, 1, 0.0, True, True)[0]
    else:  # one direction at a time, so that the padding is behind the text in both
        state = h.new_zeros(1, h.shape[0], spec.width)

        def run(inputs, way):
            return torch._VF.lstm(inputs, (state, state), parameters(way), True, 1, 0.0, True, False, True)[0]

        left = run(h, "forward")
        right = run(h.gather(1, x.reverse.expand_as(h)), "backward")
        out = torch.cat([left, right.gather(1, x.reverse.expand_as(right))], -1)
    return F.dropout(out, dropout)


class Columns:
    """The parameters of K columns and their heads, their gradients, and views of both.

    buffers, gradients  {"decay" | "plain": float32 [K, n]}; the columns' parameters stand before the heads'
    columns             how many of n belong to the columns, by buffer
    leaves              name -> [K, ...] (stacked) or (name, k) -> [...], with .grad in the gradients' buffer
    heads               for each task (weight [C, D], bias [C])
    """

    def __init__(self, spec: Spec, stacked: bool, device: str = "cpu"):
        self.spec, self.stacked = spec, stacked
        tasks, width = len(spec.classes), features_width(spec)
        plan = shapes(spec)
        groups = {"decay": [n for n in plan if _decays(n)], "plain": [n for n in plan if not _decays(n)]}
        sizes = {group: [math.prod(plan[n]) for n in names] for group, names in groups.items()}
        head = {"decay": max(spec.classes) * width, "plain": max(spec.classes)}
        self.columns = {group: sum(counts) for group, counts in sizes.items()}
        blank = {g: torch.zeros(tasks, self.columns[g] + head[g], device=device) for g in groups}
        self.buffers = {g: nn.Parameter(b) for g, b in blank.items()}
        self.gradients = {g: torch.zeros_like(b) for g, b in blank.items()}
        self.leaves: dict[Any, torch.Tensor] = {}
        for group, names in groups.items():
            self.buffers[group].grad = self.gradients[group]
            start = 0
            for name, size in zip(names, sizes[group], strict=True):
                if stacked:
                    self.leaves[name] = self._leaf(group, slice(None), start, (tasks, *plan[name]))
                else:
                    for k in range(tasks):
                        self.leaves[name, k] = self._leaf(group, k, start, plan[name])
                start += size
        self.heads = [
            tuple(self._leaf(g, k, self.columns[g], shape) for g, shape in (("decay", (c, width)), ("plain", (c,))))
            for k, c in enumerate(spec.classes)
        ]

    def _leaf(self, group, rows, start, shape):
        size = math.prod(shape) // (1 if isinstance(rows, int) else shape[0])

        def view(buffer):
            return buffer.detach()[rows, start : start + size].view(shape)

        leaf = view(self.buffers[group]).requires_grad_()
        leaf.grad = view(self.gradients[group])
        return leaf

    def column(self, k: int) -> dict[str, torch.Tensor]:
        """The weights of one column."""
        return {name: self.leaves[name, k] for name in shapes(self.spec)}

    def start(self, generator: torch.Generator) -> None:
        """Random initial values, the same in every column."""
        plan = shapes(self.spec)
        for name, shape in plan.items():
            scale = 0.1 if name == "embed/word" else shape[-1] ** -0.5
            value = torch.randn(shape, generator=generator) * scale
            if name.endswith("scale"):
                value = torch.ones(shape)
            elif name.endswith("bias"):
                value = torch.zeros(shape)
            self.set(name, value.expand(len(self.spec.classes), *shape))
        for weight, _ in self.heads:
            weight.detach().copy_(torch.randn(weight.shape, generator=generator) * 0.02)

    def set(self, name: str, value: torch.Tensor) -> None:
        """Sets a parameter of all columns, value [K, ...]."""
        if self.stacked:
            self.leaves[name].detach().copy_(value)
        else:
            for k in range(len(self.spec.classes)):
                self.leaves[name, k].detach().copy_(value[k])

    def count(self) -> int:
        """The number of parameters."""
        heads = sum(weight.numel() + bias.numel() for weight, bias in self.heads)
        return heads + len(self.spec.classes) * sum(self.columns.values())


def _decays(name):
    return name.rsplit("/", 1)[-1] not in ("bias", "scale")


def losses(columns: Columns, examples: Any, dropout: float) -> list[torch.Tensor]:
    """The K losses. examples: one for each task, or, where the columns are stacked, one with leaves [K, ...]."""
    spec = columns.spec
    if columns.stacked:
        run = torch.func.vmap(lambda w, x: column(spec, w, x, dropout), randomness="different")
        hidden, targets = run(columns.leaves, examples).unbind(0), examples.target.unbind(0)
    else:
        hidden = [column(spec, columns.column(k), x, dropout) for k, x in enumerate(examples)]
        targets = [x.target for x in examples]
    return [
        F.cross_entropy(F.linear(h, weight, bias), target)
        for h, (weight, bias), target in zip(hidden, columns.heads, targets, strict=True)
    ]
