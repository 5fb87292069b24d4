"""One lane in PyTorch: AdamW with the clipping, penalty and schedule of mtl_jax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch_models import Columns, losses

ADAMW = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}  # of optax, where `config.optimizer.options` has nothing else


class Recipe(NamedTuple):
    """What a config says about the training of a lane; see `config.sections.Training`."""

    learning_rate: float
    weight_decay: float
    b1: float
    b2: float
    eps: float
    clip: float
    warmup_steps: int
    steps: int
    schedule: str
    dropout: float
    proximal: bool

    @staticmethod
    def of(config: Any) -> Recipe:
        """From a config of mtl_jax. ValueError for one that this file does not cover."""
        optimizer, (penalty,) = config.optimizer, config.penalties.values()
        covered = (
            optimizer.name == "adamw"
            and penalty.kind == "l2_to_mean"
            and penalty.leaves == ".*"
            and not penalty.by_layer
            and penalty.schedule == "constant"
            and optimizer.schedule in ("linear", "constant")
            and not optimizer.param_groups
            and not optimizer.freeze
            and config.loss_weights.method == "equal"
            and config.training.grad_accum_steps == 1
            and not config.model.attention_dropout
        )
        if not covered:
            raise ValueError("the peer has AdamW, a linear or no decay, equal weights and l2_to_mean over all columns")
        steps = config.training.steps
        return Recipe(
            optimizer.learning_rate,
            optimizer.weight_decay,
            *({**ADAMW, **optimizer.options}[name] for name in ("b1", "b2", "eps")),
            optimizer.clip_norm,
            round(optimizer.warmup_ratio * steps),
            steps,
            optimizer.schedule,
            config.model.dropout,
            penalty.proximal,
        )

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup_steps:
            return self.learning_rate * min((step + 1) / self.warmup_steps, 1.0)
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * max((self.steps - step) / max(self.steps - self.warmup_steps, 1), 0.0)


def train(
    columns: Columns, recipe: Recipe, strength: float, batches: Sequence[Any], loss: Any = losses
) -> torch.Tensor:
    """Takes one step on each batch. Returns the losses float32 [steps, K], still on the device."""
    decay = {"decay": recipe.weight_decay, "plain": 0.0}
    groups = [{"params": [buffer], "weight_decay": decay[name]} for name, buffer in columns.buffers.items()]
    adamw = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.b1, recipe.b2), eps=recipe.eps, fused=True)
    tasks = len(columns.spec.classes)
    device = next(iter(columns.buffers.values())).device
    average = torch.full((tasks, tasks), 1.0 / tasks, device=device)
    deviation = torch.eye(tasks, device=device) - average
    own = [(columns.buffers[g].detach()[:, :n], columns.gradients[g][:, :n]) for g, n in columns.columns.items()]
    history = []
    for step, batch in enumerate(batches):
        rate = recipe.rate(step)
        for group in adamw.param_groups:
            group["lr"] = rate
        for gradient in columns.gradients.values():
            gradient.zero_()
        values = loss(columns, batch, recipe.dropout)
        sum(values).backward()
        history.append(torch.stack(values).detach())
        if not recipe.proximal:
            for weight, gradient in own:  # ∇ λ·Σ_k‖Θ_k − Θ̄‖² = 2λ·(Θ_k − Θ̄)
                gradient.addmm_(deviation, weight, alpha=2.0 * strength)
        if recipe.clip:
            norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in columns.gradients.values()])
            factor = (recipe.clip / torch.linalg.vector_norm(norms, dim=0)).clamp(max=1.0)[:, None]
            for gradient in columns.gradients.values():
                gradient.mul_(factor)
        adamw.step()
        if recipe.proximal:
            shrink = 1.0 / (1.0 + 2.0 * rate * strength)
            mixing = shrink * deviation + average
            for weight, _ in own:
                weight.copy_(mixing @ weight)
    return torch.stack(history)
