"""Experts: columns that each task combines by the weights of its gate.

After the C experts a gate per task weighs the experts that the task may use, by the inputs of the experts. A block
passes through the shared experts and those of its tasks. With gates after every layer (PLE) each task has a stream of
its own between the layers, and so have the shared experts, whose gate weighs all experts, so that every block passes
through all of them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.mixers.base import (
    LEVELS,
    NEVER,
    Mixer,
    MixerPlace,
    Params,
    features_at_level,
    require_choice,
    require_integer,
)

_HIGHEST = jax.lax.Precision.HIGHEST
GATES = ("softmax", "dselect_k")


def mmoe(
    tasks: int, experts: int = 4, *, gate: str = "softmax", level: str = "token", chosen: int = 2, gamma: float = 1.0
) -> Mixer:
    """Multi-gate mixture of experts: f_k = Σ_e g_k(x)_e f_e(x), g_k = softmax(W_k x) (Ma et al. 2018, equations 6, 7).

    One expert is hard sharing.

    Args:
      tasks: K.
      experts: their number; all are shared.
      gate: "softmax" | "dselect_k", which converges to at most `chosen` experts, see `dselect_weights`.
      level: "token": gates read the features of each token | "sequence": the means over its text.
      chosen: number of selectors of "dselect_k".
      gamma: width of the smooth step of "dselect_k": the smaller, the sooner a gate converges.

    Params: kernel float32[G, D', C], bias float32[G, C] of "softmax", G = the tasks, and the shared stream where gates
    stand between layers; those of "dselect_k" see `dselect_weights`.

    Raises:
      ValueError: for options that are out of range.
    """
    return _mixture(_Gates(tasks, experts, 0, gate=gate, level=level, chosen=chosen, gamma=gamma), "top")


def cgc(
    tasks: int,
    shared: int = 2,
    private: int = 2,
    *,
    gate: str = "softmax",
    level: str = "token",
    chosen: int = 2,
    gamma: float = 1.0,
) -> Mixer:
    """Customized gate control: shared experts, and private experts of each task (Tang et al. 2020, equations 1, 2).

    A task's gate weighs the shared experts and its private ones. Without private experts it is `mmoe`.

    Args:
      tasks: K.
      shared, private: number of experts that all tasks share, and of each task.
      gate, level, chosen, gamma: as in `mmoe`.

    Params, raises: as `mmoe`.
    """
    return _mixture(_Gates(tasks, shared, private, gate=gate, level=level, chosen=chosen, gamma=gamma), "top")


def ple(
    tasks: int,
    shared: int = 2,
    private: int = 2,
    *,
    gate: str = "softmax",
    level: str = "token",
    chosen: int = 2,
    gamma: float = 1.0,
) -> Mixer:
    """Progressive layered extraction: `cgc` with gates after every layer (Tang et al. 2020, section 4.2).

    Between layers the shared experts read a stream of their own, whose gate weighs the experts of all tasks.

    Args, params, raises: as `cgc`.
    """
    return _mixture(_Gates(tasks, shared, private, gate=gate, level=level, chosen=chosen, gamma=gamma), "each")


def expert_columns(tasks: int, shared: int, private: int) -> tuple[int | None, ...]:
    """The task of each of the C columns, None for shared ones, which come first."""
    return (*(None,) * shared, *(k for k in range(tasks) for _ in range(private)))


class _Gates:
    """The gates of a mixture of experts: how they are parameterised, and the experts that each of them sees.

    Gate k < K is that of a task; gate K, if any expert is shared, that of the shared stream.
    """

    def __init__(self, tasks: int, shared: int, private: int, *, gate: str, level: str, chosen: int, gamma: float):
        _check_options(shared, private, gate, level, chosen, gamma)
        self.tasks, self.shared, self.private = tasks, shared, private
        self.is_dselect, self.level, self.chosen, self.gamma = gate == "dselect_k", level, chosen, gamma
        self.columns = expert_columns(tasks, shared, private)
        self.streams = tasks + (shared > 0)
        by_task = [[owner in (None, k) for owner in self.columns] for k in range(tasks)]
        self.visible = np.asarray([*by_task, [True] * len(self.columns)])
        # [K, S + P] columns that a task sees, shared ones first
        self.task_columns = np.stack([np.flatnonzero(row) for row in self.visible[:tasks]])

    def init(self, key: jax.Array, place: MixerPlace) -> Params:
        gates = self.tasks if place.top else self.streams
        if self.is_dselect:
            return dselect_init(key, self.visible[:gates], place.inputs, self.chosen, self.gamma)
        kernel = 0.02 * jax.random.normal(key, (gates, place.inputs, len(self.columns)), jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros((gates, len(self.columns)), jnp.float32)}

    def apply(self, params: Params, outputs: jax.Array, inputs: jax.Array, segment: jax.Array) -> jax.Array:
        """See `Mixer.apply`."""
        features, visible = self._features(params, inputs, segment)
        if self.is_dselect:
            weights = dselect_weights(params, features, visible, self.gamma)
        else:
            weights = softmax_weights(params, features, visible)
        return jnp.einsum("grtc,crtd->grtd", weights.astype(outputs.dtype), outputs, precision=_HIGHEST)

    def losses(self, params, outputs, inputs, segment, dataset, progress) -> dict[str, jax.Array]:
        """See `Mixer.losses`."""
        del outputs, dataset, progress
        features, _ = self._features(params, inputs, segment)
        return {"gate_entropy": dselect_entropy(params, features, self.gamma).mean(axis=0)}

    def apply_to_task(self, params, task, shared_outputs, private_outputs, inputs, segment) -> jax.Array:
        """See `Mixer.apply_to_task`."""
        gate, features = self._task_gate(params, task, inputs, segment)
        visible = np.ones((1, self.shared + self.private), bool)
        if self.is_dselect:
            weights = dselect_weights(gate, features, visible, self.gamma)
        else:
            gate = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.asarray(self.task_columns)[task], axis=-1), gate)
            weights = softmax_weights(gate, features, visible)
        weights = weights[0].astype(inputs.dtype)
        parts = (weights[..., : self.shared], shared_outputs), (weights[..., self.shared :], private_outputs)
        sums = [jnp.einsum("rtc,crtd->rtd", w, x, precision=_HIGHEST) for w, x in parts if len(x)]
        return sum(sums[1:], sums[0])

    def task_losses(self, params, task, shared_outputs, private_outputs, inputs, segment, dataset, progress):
        """See `Mixer.task_losses`."""
        del shared_outputs, private_outputs, dataset, progress
        gate, features = self._task_gate(params, task, inputs, segment)
        return {"gate_entropy": dselect_entropy(gate, features, self.gamma)[0]}

    def _features(self, params: Params, inputs: jax.Array, segment: jax.Array) -> tuple[jax.Array, np.ndarray]:
        """Inputs of the gates, and the experts that they see."""
        count = jax.tree.leaves(params)[0].shape[0]
        return features_at_level(inputs[:count], segment, self.level), self.visible[:count]

    def _task_gate(self, params: Params, task: jax.Array, inputs: jax.Array, segment: jax.Array):
        """Parameters and inputs of the gate of one task, leading axis 1."""
        gate = jax.tree.map(lambda leaf: leaf[task][None], params)
        return gate, features_at_level(inputs[None], segment, self.level)


def _mixture(gates: _Gates, default_layers: str) -> Mixer:
    """The mixer of these gates; those of "dselect_k" have a loss."""
    losses = {}
    if gates.is_dselect:
        losses = {"losses": gates.losses, "task_losses": gates.task_losses, "auxiliary": {"gate_entropy": 0.0}}
        axes, absent = dict.fromkeys(("code", "weight", "code_bias", "weight_bias"), ("stream",)), {}
    else:
        axes = {"kernel": ("stream", "", "column"), "bias": ("stream", "column")}
        absent = {"kernel": 0.0, "bias": NEVER}
    return Mixer(
        gates.init,
        gates.apply,
        gates.columns,
        gates.streams,
        experts=True,
        default_layers=default_layers,
        apply_to_task=gates.apply_to_task,
        axes=axes,
        absent=absent,
        **losses,
    )


def _check_options(shared: int, private: int, gate: str, level: str, chosen: int, gamma: float) -> None:
    for name, value, lowest in (("shared", shared, 0), ("private", private, 0), ("chosen", chosen, 1)):
        require_integer(name, value, lowest)
    if shared + private < 1:
        raise ValueError("there has to be one expert at least")
    require_choice("gate", gate, GATES)
    require_choice("level", level, LEVELS)
    if gate == "dselect_k" and chosen > shared + private:
        raise ValueError(f"chosen = {chosen}, but a task has {shared + private} experts")
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, not {gamma}")


def softmax_weights(params: Params, features: jax.Array, visible: np.ndarray) -> jax.Array:
    """softmax(W_g x + b_g) over the experts that are visible to gate g.

    Args:
      params: kernel float32[G, D', C], bias float32[G, C].
      features: float32[G, R, T, D'].
      visible: bool[G, C].

    Returns:
      float32[G, R, T, C], sums to 1.
    """
    scores = jnp.einsum("grtd,gdc->grtc", features, params["kernel"], precision=_HIGHEST)
    scores = scores + params["bias"][:, None, None, :]
    return jax.nn.softmax(jnp.where(visible[:, None, None, :], scores, jnp.finfo(jnp.float32).min), axis=-1)


def dselect_init(key: jax.Array, visible: np.ndarray, inputs: int, chosen: int, gamma: float) -> Params:
    """Parameters of `dselect_weights`: codes start near the middle of the smooth step, where all weights are equal."""
    gates, bits = len(visible), _bits(visible)
    code_key, weight_key, bias_key = jax.random.split(key, 3)
    near = gamma / 100.0
    return {
        "code": 0.02 * gamma * jax.random.normal(code_key, (gates, inputs, chosen, bits), jnp.float32),
        "code_bias": jax.random.uniform(bias_key, (gates, chosen, bits), jnp.float32, -near, near),
        "weight": 0.02 * jax.random.normal(weight_key, (gates, inputs, chosen), jnp.float32),
        "weight_bias": jnp.zeros((gates, chosen), jnp.float32),
    }


def dselect_weights(params: Params, features: jax.Array, visible: np.ndarray, gamma: float) -> jax.Array:
    """DSelect-k: q(x) = Σ_i softmax(α)_i r(z_i), r(z)_e = Π_j S(z_j)^{b_j} (1 − S(z_j))^{1 − b_j} with b the binary
    code of expert e and S the smooth step (Hazimeh et al. 2021, equations 3 to 6; z and α are affine in x).

    If a gate's number of experts is no power of two, the remaining codes stand for its first experts again; the paper
    avoids them by a penalty.

    Args:
      params: code float32[G, D', k, m], code_bias [G, k, m], weight [G, D', k], weight_bias [G, k]; k selectors, m
        bits.
      features: float32[G, R, T, D'].
      visible: bool[G, C].
      gamma: width of the smooth step.

    Returns:
      float32[G, R, T, C], sums to 1; at most k entries are not zero once all codes have converged.
    """
    choices = _selectors(params, features, gamma)  # [G, R, T, k, codes]
    scores = jnp.einsum("grtd,gdk->grtk", features, params["weight"], precision=_HIGHEST)
    weights = jax.nn.softmax(scores + params["weight_bias"][:, None, None, :], axis=-1)
    by_code = jnp.einsum("grtk,grtkc->grtc", weights, choices, precision=_HIGHEST)
    expert_of = np.zeros((len(visible), choices.shape[-1], visible.shape[1]), np.float32)
    for g, row in enumerate(visible):
        experts = np.flatnonzero(row)
        for code in range(choices.shape[-1]):
            expert_of[g, code, experts[code % len(experts)]] = 1.0
    return jnp.einsum("grtc,gce->grte", by_code, jnp.asarray(expert_of), precision=_HIGHEST)


def dselect_entropy(params: Params, features: jax.Array, gamma: float) -> jax.Array:
    """Σ_i H(r(z_i)) of the k selectors, nats, float32[G, R, T]; zero once all codes have converged (section 3.3)."""
    choices = _selectors(params, features, gamma)
    logs = jnp.log(jnp.where(choices > 0, choices, 1.0))
    return -(choices * logs).sum(axis=(-1, -2))


def smooth_step(t: jax.Array, gamma: float) -> jax.Array:
    """0 below −γ/2, 1 above γ/2, between them the cubic −2/γ³ t³ + 3/(2γ) t + 1/2 (Hazimeh et al. 2020)."""
    inner = -2.0 / gamma**3 * t**3 + 1.5 / gamma * t + 0.5
    return jnp.where(t <= -gamma / 2, 0.0, jnp.where(t >= gamma / 2, 1.0, inner))


def _selectors(params: Params, features: jax.Array, gamma: float) -> jax.Array:
    """r(z) of every code: float32[G, R, T, k, 2^m]."""
    z = jnp.einsum("grtd,gdkm->grtkm", features, params["code"], precision=_HIGHEST)
    on = smooth_step(z + params["code_bias"][:, None, None], gamma)
    bits = on.shape[-1]
    result = jnp.ones((*on.shape[:-1], 1), jnp.float32)
    for bit in range(bits):  # code c has bit j where (c >> j) & 1
        s = on[..., bit, None]
        result = jnp.concatenate([result * (1.0 - s), result * s], axis=-1)
    return result


def _bits(visible: np.ndarray) -> int:
    return max(int(visible.sum(axis=1).max() - 1).bit_length(), 1)
