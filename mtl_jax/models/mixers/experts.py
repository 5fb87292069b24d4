"""Experts: columns of which each task takes what its gate chooses.

Behind the C experts a gate for each task weighs those that the task may use, by the features that went into the
experts. A block passes the shared experts and those of its tasks. With gates behind every layer (PLE) each task has a
stream of its own between the layers, and the shared experts have one too, whose gate weighs all experts, so that every
block passes through all.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.mixers.columns import LEVELS, Mixer, features_at_level, require_choice, require_integer

_HIGHEST = jax.lax.Precision.HIGHEST
GATES = ("softmax", "dselect_k")


def mmoe(
    tasks: int, experts: int = 4, gate: str = "softmax", level: str = "token", chosen: int = 2, gamma: float = 1.0
) -> Mixer:
    """Multi-gate mixture of experts: f_k = Σ_e g_k(x)_e f_e(x), g_k = softmax(W_k x) (Ma et al. 2018, equations 6, 7).

    One expert is hard sharing.

    Args:
      tasks: K.
      experts: their number; all are shared.
      gate: "softmax" | "dselect_k", which comes to use `chosen` experts at most, see `dselect_weights`.
      level: "token": gates read each token's features | "sequence": the means over its text.
      chosen: of "dselect_k", number of its selectors.
      gamma: of "dselect_k", width of the smooth step: the smaller, the sooner a gate is decided.

    Params: kernel float32[G, D', C], bias float32[G, C] of "softmax", G = the tasks, and the shared stream where gates
    stand between layers; those of "dselect_k" see `dselect_weights`.

    Raises:
      ValueError: for options that are out of range.
    """
    return _gated(tasks, experts, 0, "top", gate, level, chosen, gamma)


def cgc(
    tasks: int,
    shared: int = 2,
    private: int = 2,
    gate: str = "softmax",
    level: str = "token",
    chosen: int = 2,
    gamma: float = 1.0,
) -> Mixer:
    """Customized gate control: shared experts, and experts of each task's own (Tang et al. 2020, equations 1, 2).

    A task's gate weighs the shared experts and its own. Without private experts it is `mmoe`.

    Args:
      tasks: K.
      shared, private: number of experts that all tasks share; of each task's own.
      gate, level, chosen, gamma: as in `mmoe`.

    Params, raises: as `mmoe`.
    """
    return _gated(tasks, shared, private, "top", gate, level, chosen, gamma)


def ple(
    tasks: int,
    shared: int = 2,
    private: int = 2,
    gate: str = "softmax",
    level: str = "token",
    chosen: int = 2,
    gamma: float = 1.0,
) -> Mixer:
    """Progressive layered extraction: `cgc` with gates behind every layer (Tang et al. 2020, section 4.2).

    Between layers the shared experts read a stream of their own, whose gate weighs the experts of all tasks.

    Args, params, raises: as `cgc`.
    """
    return _gated(tasks, shared, private, "each", gate, level, chosen, gamma)


def expert_columns(tasks: int, shared: int, private: int) -> tuple[int | None, ...]:
    """The task of each of the C columns, None for shared ones, which come first."""
    return (*(None,) * shared, *(k for k in range(tasks) for _ in range(private)))


def _gated(tasks, shared, private, where, gate, level, chosen, gamma) -> Mixer:
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
    columns = expert_columns(tasks, shared, private)
    streams = tasks + (shared > 0)
    # gate k < K is that of a task, gate K that of the shared stream
    seen = np.asarray([[owner in (None, k) for owner in columns] for k in range(tasks)] + [[True] * len(columns)])

    def init(key, place):
        gates = tasks if place.top else streams
        if gate == "dselect_k":
            return dselect_init(key, seen[:gates], place.inputs, chosen, gamma)
        kernel = 0.02 * jax.random.normal(key, (gates, place.inputs, len(columns)), jnp.float32)
        return {"kernel": kernel, "bias": jnp.zeros((gates, len(columns)), jnp.float32)}

    def gates_of(params, inputs, segment):
        count = jax.tree.leaves(params)[0].shape[0]
        return features_at_level(inputs[:count], segment, level), seen[:count]

    def apply(params, outputs, inputs, segment):
        features, visible = gates_of(params, inputs, segment)
        if gate == "dselect_k":
            weights = dselect_weights(params, features, visible, gamma)
        else:
            weights = softmax_weights(params, features, visible)
        return jnp.einsum("grtc,crtd->grtd", weights.astype(outputs.dtype), outputs, precision=_HIGHEST)

    def losses(params, outputs, inputs, segment, dataset, progress):
        del outputs, dataset, progress
        features, _ = gates_of(params, inputs, segment)
        return {"gate_entropy": dselect_entropy(params, features, gamma).mean(axis=0)}

    own_columns = np.stack([np.flatnonzero(row) for row in seen[:tasks]])  # [K, S + P], shared ones first
    all_seen = np.ones((1, shared + private), bool)

    def gate_of(params, task, inputs, segment):
        return jax.tree.map(lambda leaf: leaf[task][None], params), features_at_level(inputs[None], segment, level)

    def of_task(params, task, shared_outputs, own_outputs, inputs, segment):
        own, features = gate_of(params, task, inputs, segment)
        if gate == "dselect_k":
            weights = dselect_weights(own, features, all_seen, gamma)
        else:
            own = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.asarray(own_columns)[task], axis=-1), own)
            weights = softmax_weights(own, features, all_seen)
        weights = weights[0].astype(inputs.dtype)
        parts = (weights[..., :shared], shared_outputs), (weights[..., shared:], own_outputs)
        taken = [jnp.einsum("rtc,crtd->rtd", w, x, precision=_HIGHEST) for w, x in parts if len(x)]
        return sum(taken[1:], taken[0])

    def losses_of_task(params, task, shared_outputs, own_outputs, inputs, segment, dataset, progress):
        del shared_outputs, own_outputs, dataset, progress
        own, features = gate_of(params, task, inputs, segment)
        return {"gate_entropy": dselect_entropy(own, features, gamma)[0]}

    decided = {}
    if gate == "dselect_k":
        decided = {"losses": losses, "losses_of_task": losses_of_task, "auxiliary": {"gate_entropy": 0.0}}
    return Mixer(init, apply, columns, streams, experts=True, default_layers=where, apply_to_task=of_task, **decided)


def softmax_weights(params, features: jax.Array, seen: np.ndarray) -> jax.Array:
    """softmax(W_g x + b_g) over the experts that gate g sees.

    Args:
      params: kernel float32[G, D', C], bias float32[G, C].
      features: float32[G, R, T, D'].
      seen: bool[G, C].

    Returns:
      float32[G, R, T, C], sums to 1.
    """
    scores = jnp.einsum("grtd,gdc->grtc", features, params["kernel"], precision=_HIGHEST)
    scores = scores + params["bias"][:, None, None, :]
    return jax.nn.softmax(jnp.where(seen[:, None, None, :], scores, jnp.finfo(jnp.float32).min), axis=-1)


def dselect_init(key: jax.Array, seen: np.ndarray, inputs: int, chosen: int, gamma: float):
    """Parameters of `dselect_weights`: codes start near the middle of the smooth step, where all experts are alike."""
    gates, bits = len(seen), _bits(seen)
    code_key, weight_key, bias_key = jax.random.split(key, 3)
    near = gamma / 100.0
    return {
        "code": 0.02 * gamma * jax.random.normal(code_key, (gates, inputs, chosen, bits), jnp.float32),
        "code_bias": jax.random.uniform(bias_key, (gates, chosen, bits), jnp.float32, -near, near),
        "weight": 0.02 * jax.random.normal(weight_key, (gates, inputs, chosen), jnp.float32),
        "weight_bias": jnp.zeros((gates, chosen), jnp.float32),
    }


def dselect_weights(params, features: jax.Array, seen: np.ndarray, gamma: float) -> jax.Array:
    """DSelect-k: q(x) = Σ_i softmax(α)_i r(z_i), r(z)_e = Π_j S(z_j)^{b_j} (1 − S(z_j))^{1 − b_j} with b the binary
    code of expert e and S the smooth step (Hazimeh et al. 2021, equations 3 to 6; z and α are affine in x).

    Where a gate's number of experts is no power of two, codes beyond it stand for its first experts again; the paper
    keeps away from them by a penalty.

    Args:
      params: code float32[G, D', k, m], code_bias [G, k, m], weight [G, D', k], weight_bias [G, k]; k selectors, m
        bits.
      features: float32[G, R, T, D'].
      seen: bool[G, C].
      gamma: width of the smooth step.

    Returns:
      float32[G, R, T, C], sums to 1; at most k entries are not zero once all codes are decided.
    """
    choices = _selectors(params, features, gamma)  # [G, R, T, k, codes]
    scores = jnp.einsum("grtd,gdk->grtk", features, params["weight"], precision=_HIGHEST)
    weights = jax.nn.softmax(scores + params["weight_bias"][:, None, None, :], axis=-1)
    by_code = jnp.einsum("grtk,grtkc->grtc", weights, choices, precision=_HIGHEST)
    expert_of = np.zeros((len(seen), choices.shape[-1], seen.shape[1]), np.float32)
    for g, row in enumerate(seen):
        own = np.flatnonzero(row)
        for code in range(choices.shape[-1]):
            expert_of[g, code, own[code % len(own)]] = 1.0
    return jnp.einsum("grtc,gce->grte", by_code, jnp.asarray(expert_of), precision=_HIGHEST)


def dselect_entropy(params, features: jax.Array, gamma: float) -> jax.Array:
    """Σ_i H(r(z_i)) of the k selectors, nats, float32[G, R, T]; zero once all codes are decided (section 3.3)."""
    choices = _selectors(params, features, gamma)
    logs = jnp.log(jnp.where(choices > 0, choices, 1.0))
    return -(choices * logs).sum(axis=(-1, -2))


def smooth_step(t: jax.Array, gamma: float) -> jax.Array:
    """0 below −γ/2, 1 above γ/2, between them the cubic −2/γ³ t³ + 3/(2γ) t + 1/2 (Hazimeh et al. 2020)."""
    inner = -2.0 / gamma**3 * t**3 + 1.5 / gamma * t + 0.5
    return jnp.where(t <= -gamma / 2, 0.0, jnp.where(t >= gamma / 2, 1.0, inner))


def _selectors(params, features, gamma):
    """r(z) of every code: float32[G, R, T, k, 2^m]."""
    z = jnp.einsum("grtd,gdkm->grtkm", features, params["code"], precision=_HIGHEST)
    on = smooth_step(z + params["code_bias"][:, None, None], gamma)
    bits = on.shape[-1]
    result = jnp.ones((*on.shape[:-1], 1), jnp.float32)
    for bit in range(bits):  # code c has bit j where (c >> j) & 1
        s = on[..., bit, None]
        result = jnp.concatenate([result * (1.0 - s), result * s], axis=-1)
    return result


def _bits(seen: np.ndarray) -> int:
    return max(int(seen.sum(axis=1).max() - 1).bit_length(), 1)
