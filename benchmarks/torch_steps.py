"""The PyTorch side of `steps.py` and `packing.py`: `transformers.BertModel` or `torch.nn.LSTM`, fused AdamW, clipping.

They start it and ask; see `workers.serve`.
"""

from __future__ import annotations

import functools
import pathlib
import pickle
import sys
import time
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from torch_ablation import DEVICE, ceiling, memory, wait
from workers import serve

UNKNOWN = -100  # PyTorch's index of targets that do not count


class Encoder(nn.Module):
    """BertModel and a linear layer on its first token; returns the mean loss of a batch."""

    def __init__(self, known, folder, attention, dropout):
        super().__init__()
        _leave_out_torchvision()
        from transformers import BertModel

        rates = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
        if dropout:
            rates = dict(zip(rates, (known["dropout"], known["attention_dropout"]), strict=True))
        self.encoder = BertModel.from_pretrained(
            f"{folder}/encoder", add_pooling_layer=False, attn_implementation=attention, **rates
        )
        self.head = nn.Linear(self.encoder.config.hidden_size, known["classes"])
        _set(self.head, known["values"], "heads/task/output")

    def forward(self, tokens, mask, target):
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return F.cross_entropy(self.head(hidden[:, 0]), target)


class Recurrent(nn.Module):
    """Word vectors, a bidirectional LSTM and a linear layer on each word; returns the mean loss of a batch.

    PyTorch's LSTM has two biases where one would do; the second one stays zero.
    """

    def __init__(self, known, dropout):
        super().__init__()
        values, rate = known["values"], known["dropout"] if dropout else 0.0
        table = values["embed/word/embedding"][0]
        layers = len({path.split("/")[0] for path in values if path.startswith("layer_")})
        units = values["layer_00/forward/recurrent/kernel"].shape[1]
        self.dropout = nn.Dropout(rate)
        self.table = nn.Embedding(*table.shape)
        self.table.weight.data.copy_(torch.from_numpy(np.array(table)))
        self.lstm = nn.LSTM(
            table.shape[1], units, num_layers=layers, dropout=rate, bidirectional=True, batch_first=True
        )
        for layer in range(layers):
            for way, suffix in (("forward", ""), ("backward", "_reverse")):
                path = f"layer_{layer:02d}/{way}"
                for name, value in {
                    "weight_ih": values[f"{path}/input/kernel"][0].T,
                    "weight_hh": values[f"{path}/recurrent/kernel"][0].T,
                    "bias_ih": values[f"{path}/input/bias"][0],
                }.items():
                    getattr(self.lstm, f"{name}_l{layer}{suffix}").data.copy_(torch.from_numpy(np.array(value)))
                getattr(self.lstm, f"bias_hh_l{layer}{suffix}").requires_grad_(False).zero_()
        self.head = nn.Linear(2 * units, known["classes"])
        _set(self.head, values, "heads/task/output")

    def forward(self, tokens, mask, target):
        hidden = self.dropout(self.lstm(self.dropout(self.table(tokens)))[0])
        return F.cross_entropy(self.head(hidden).flatten(0, 1), target.flatten(), ignore_index=UNKNOWN)


def _leave_out_torchvision():
    """transformers imports it for pictures, and fails with a build for another PyTorch, such as LibMTL brings along."""
    from transformers import utils

    for module in (utils, utils.import_utils):
        module.is_torchvision_available = lambda: False


def _set(linear, values, path):
    linear.weight.data.copy_(torch.from_numpy(np.array(values[f"{path}/kernel"].T)))
    linear.bias.data.copy_(torch.from_numpy(np.array(values[f"{path}/bias"])))


class Training:
    """A model with its optimizer. Weight decay acts on the same parameters as in mtl_jax: not on biases and norms."""

    def __init__(self, model: nn.Module, known: dict, compiled: bool, dynamic: bool):
        self.model, self.known, self.number = model.to(DEVICE), known, 0
        self.dtype = getattr(torch, known["dtype"])
        self.loss = torch.compile(model, dynamic=dynamic) if compiled else model
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        plain = [p for name, p in trained.items() if name.endswith("bias") or "bias_" in name or "LayerNorm" in name]
        remaining = {id(p) for p in plain}
        decayed = [p for p in trained.values() if id(p) not in remaining]
        self.parameters = [*decayed, *plain]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": known["weight_decay"]}, {"params": plain, "weight_decay": 0.0}],
            lr=known["rates"][0],
            betas=known["betas"],
            eps=known["eps"],
            fused=True,
        )

    def step(self, tokens, mask, target) -> torch.Tensor:
        """One step on a batch. Returns its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.known["rates"][self.number % len(self.known["rates"])]
        with torch.autocast(DEVICE, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.loss(tokens, mask, target)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.known["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.number += 1
        return loss.detach()


class Side:
    """The peer's models over the texts that `jax_steps.py` wrote."""

    def load(self, folder: str) -> dict:
        """Reads them. Returns the variants [attention, compiled] that there are."""
        self.folder = folder
        with open(f"{folder}/peer.pkl", "rb") as file:
            self.known = pickle.load(file)
        self.trained = functools.lru_cache(1)(self._make)
        self.batches = functools.lru_cache(None)(self._batches)
        recurrent = self.known["model"] != "transformer"
        variants = [["", False]] if recurrent else [["sdpa", False], ["eager", False], ["sdpa", True]]
        return {"variants": variants, "version": torch.__version__}

    def _make(self, attention, compiled, dropout, dynamic) -> Training:
        torch.manual_seed(0)
        if attention:
            model = Encoder(self.known, self.folder, attention, dropout)
        else:
            model = Recurrent(self.known, dropout)
        return Training(model.train(), self.known, compiled, dynamic)

    def _batches(self, order: str):
        """Padded batches of a plan: (tokens, mask, None where there is no padding, targets).

        order  "ours": the texts of a batch of mtl_jax; "random": dynamic padding of random batches; "sorted": the texts
               sorted by length, cut into batches, the batches in random order. All have equally many texts.
        """
        texts, plan = self.known["texts"], self.known["plan"]
        if order != "ours":
            random, lengths = np.random.default_rng(0), np.asarray([len(text) for text in texts])
            shuffled = random.permutation(len(texts))
            if order == "sorted":
                shuffled = shuffled[np.argsort(-lengths[shuffled], kind="stable")]
            plan = np.array_split(shuffled, len(plan))
            plan = [plan[i] for i in random.permutation(len(plan))]
        padded = (_padded([texts[i] for i in own], [self.known["labels"][i] for i in own]) for own in plan)
        return [tuple(None if part is None else part.to(DEVICE) for part in batch) for batch in padded]

    def losses(self, variant: list, steps: int) -> list[float]:
        """The loss of each of the first steps from the initial values, without dropout."""
        training = self._make(*variant, dropout=False, dynamic=False)
        return [float(training.step(*batch)) for batch in self.batches("ours")[:steps]]

    def run(self, variant: list, threads: int, steps: int, order: str = "ours", first: int | None = None) -> float:
        """Seconds of `steps` steps on the next batches, or those from number `first` on; the last is followed by 0."""
        torch.set_num_threads(threads)
        training = self.trained(*variant, dropout=True, dynamic=order != "ours")
        batches = self.batches(order)
        wait()
        began = time.perf_counter()
        first = training.number if first is None else first
        for number in range(first, first + steps):
            loss = training.step(*batches[number % len(batches)])
        wait()
        seconds = time.perf_counter() - began
        if not bool(torch.isfinite(loss)):
            raise RuntimeError("a loss is not finite")
        return seconds

    def positions(self, order: str) -> int:
        """Tokens of all batches of an epoch, padding included."""
        return sum(tokens.numel() for tokens, _, _ in self.batches(order))


def _padded(texts, labels):
    lengths = torch.tensor([len(text) for text in texts])
    tokens = nn.utils.rnn.pad_sequence([torch.from_numpy(text) for text in texts], batch_first=True)
    mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
    targets = [torch.as_tensor(label) for label in labels]
    if targets[0].ndim:
        target = nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=UNKNOWN)
    else:
        target = torch.stack(targets)
    return tokens, None if mask.all() else mask, target


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    side = Side()
    serve(
        {
            "load": side.load,
            "losses": side.losses,
            "run": side.run,
            "positions": side.positions,
            "ceiling": ceiling,
            "memory": memory,
        }
    )
