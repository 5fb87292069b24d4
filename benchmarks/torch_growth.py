"""The side of PyTorch in `growth.py`: shapes and tokens of `growth_config.py`, heads in a dict; see `workers.serve`."""

from __future__ import annotations

import pathlib
import statistics
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from growth_config import BLOCKS, LAYERS, LENGTH, ROWS, WIDTH, WORDS
from workers import peak_memory, serve

TEXTS = 4  # in a row: eight texts of seven words and a separator would not be read by an LSTM that knows no segments


class Encoder(torch.nn.Module):
    """Word vectors and a bidirectional LSTM of two layers; the mean over a text."""

    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(WORDS + 4, WIDTH)
        self.lstm = torch.nn.LSTM(WIDTH, WIDTH, LAYERS, batch_first=True, bidirectional=True, dropout=0.1)

    def forward(self, tokens):
        """int64[texts, T] -> [texts, 2·width]"""
        return self.lstm(self.words(tokens))[0].mean(dim=1)


class Side:
    """A model, AdamW, and generated texts; each data set has the tokens of one block."""

    def load(self, way: str, tasks: int) -> dict:
        torch.manual_seed(0)
        self.way, self.tasks = way, tasks
        columns = [f"task_{k:03d}" for k in range(tasks)] if way == "columns" else ["trunk"]
        self.encoders = torch.nn.ModuleDict({name: Encoder() for name in columns})
        self.heads = torch.nn.ModuleDict({f"task_{k:03d}": torch.nn.Linear(2 * WIDTH, 2) for k in range(tasks)})
        parameters = [*self.encoders.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        self.shape = (ROWS * TEXTS, LENGTH // TEXTS)
        blocks = BLOCKS if way == "drawn" else tasks
        return {"tokens": blocks * ROWS * LENGTH, "parameters": sum(p.numel() for p in parameters)}

    def run(self, steps: int) -> float:
        """Median seconds of a step."""
        seconds = []
        for _ in range(steps):
            numbers = torch.randint(self.tasks, (BLOCKS,)).tolist() if self.way == "drawn" else range(self.tasks)
            tokens = torch.randint(WORDS, (len(numbers), *self.shape))
            labels = torch.randint(2, (len(numbers), self.shape[0]))
            began = time.perf_counter()
            self._step(numbers, tokens, labels)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def _step(self, numbers, tokens, labels) -> None:
        names = [f"task_{k:03d}" for k in numbers]
        if self.way == "columns":
            features = [self.encoders[name](own) for name, own in zip(names, tokens, strict=True)]
        else:
            features = self.encoders["trunk"](tokens.flatten(0, 1)).unflatten(0, (len(names), -1))
        total = torch.zeros(())
        for name, own, gold in zip(names, features, labels, strict=True):
            total = total + torch.nn.functional.cross_entropy(self.heads[name](own), gold)
        if self.way == "columns":
            for leaves in zip(*(encoder.parameters() for encoder in self.encoders.values()), strict=True):
                stack = torch.stack(leaves)
                total = total + 0.1 * ((stack - stack.mean(dim=0)) ** 2).sum()
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()

    def peak(self) -> int:
        return peak_memory()


if __name__ == "__main__":
    side = Side()
    serve({"load": side.load, "run": side.run, "peak": side.peak})
