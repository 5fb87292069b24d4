"""Adversarial shared-private columns: one for all tasks, which may not tell data sets apart, and one for each."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.models.mixers.columns import Mixer, features_at_level, require_choice, same_text_mask
from mtl_jax.models.mixers.experts import expert_columns

_HIGHEST = jax.lax.Precision.HIGHEST
REVERSALS = ("dann", "constant")


def shared_private(tasks: int, reversal: str = "dann", steepness: float = 10.0, hidden: int = 0) -> Mixer:
    """ASP-MTL: heads read [shared; private] (Liu et al. 2017, equations 6 to 15).

    Besides the losses of the tasks there are two over all texts, labelled or not:
      adversarial    cross-entropy of a discriminator that tells a text's data set from the mean of its shared features,
                     with its gradient reversed on the way into the shared column (equations 11, 12)
      orthogonality  ‖SᵀP‖²_F over the tokens of a text, of its shared and private features (equation 14); features
                     are of unit length and the sum is divided by the tokens squared, so it lies in [0, 1]. P are the
                     features of each private column of a task that reads the text, of which the mean is taken

    A private column is computed on the texts of its task alone.

    Args:
      tasks: K.
      reversal: factor on the reversed gradient: "dann": 2 / (1 + exp(−steepness · step / steps)) − 1 (Ganin et al.
        2016, section 5.2.2) | "constant": 1.
      steepness: of "dann".
      hidden: width of a ReLU layer of the discriminator, 0 = linear as in the paper.

    Params: kernel float32[D, N], bias float32[N] with N data sets; with `hidden` H also hidden/kernel [D, H],
    hidden/bias [H], and kernel is [H, N].

    Raises:
      ValueError: at `init`, where there is one data set only; for options that are out of range.
    """
    require_choice("reversal", reversal, REVERSALS)
    if not steepness > 0 or isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
        raise ValueError(f"steepness must be above 0 and hidden a whole number ≥ 0, not {steepness} and {hidden!r}")

    def init(key, place):
        if place.datasets < 2:
            raise ValueError("the discriminator tells data sets apart, there is one only")
        inner, outer = jax.random.split(key)
        params = {}
        if hidden:
            start = jax.nn.initializers.lecun_normal()(inner, (place.width, hidden), jnp.float32)
            params["hidden"] = {"kernel": start, "bias": jnp.zeros((hidden,), jnp.float32)}
        kernel = 0.02 * jax.random.normal(outer, (hidden or place.width, place.datasets), jnp.float32)
        return {**params, "kernel": kernel, "bias": jnp.zeros((place.datasets,), jnp.float32)}

    def of_task(params, task, shared, own, inputs, segment):
        del params, task, inputs, segment
        return jnp.concatenate([shared[0], own[0]], axis=-1)

    def losses_of_task(params, task, shared, own, inputs, segment, dataset, progress):
        del task, inputs
        factor = 2.0 / (1.0 + jnp.exp(-steepness * progress)) - 1.0 if reversal == "dann" else 1.0
        texts = features_at_level(shared, segment, "sequence")[0]
        return {
            "adversarial": -dataset_log_probabilities(params, reverse_gradient(texts, factor))[..., dataset],
            "orthogonality": subspace_overlap(shared[0], own[0], segment),
        }

    return Mixer(
        init,
        None,
        expert_columns(tasks, 1, 1),
        tasks,
        experts=True,
        default_layers="top",
        widen=lambda width: 2 * width,
        auxiliary={"adversarial": 0.05, "orthogonality": 0.01},
        apply_to_task=of_task,
        task_losses=losses_of_task,
    )


def reverse_gradient(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """x, with its gradient times −factor (Ganin & Lempitsky 2015). Of sums, so that forward mode works as well."""
    fixed = jax.lax.stop_gradient(x)
    return fixed - factor * (x - fixed)


def dataset_log_probabilities(params, texts: jax.Array) -> jax.Array:
    """float32[..., N], log-probabilities of the N data sets from features float32[..., D]."""
    if "hidden" in params:
        inner = jnp.matmul(texts, params["hidden"]["kernel"], precision=_HIGHEST)
        texts = jax.nn.relu(inner + jnp.broadcast_to(params["hidden"]["bias"], inner.shape))
    scores = jnp.matmul(texts, params["kernel"], precision=_HIGHEST)
    return jax.nn.log_softmax(scores + jnp.broadcast_to(params["bias"], scores.shape))


def subspace_overlap(shared: jax.Array, private: jax.Array, segment: jax.Array) -> jax.Array:
    """float32[R, T] whose mean over the n tokens of a text is ‖SᵀP‖²_F / n² with rows of unit length.

    ‖SᵀP‖²_F = Σ_{t,u} (s_t·s_u)(p_t·p_u), which needs no D × D matrix for each text. A zero vector counts as zero.

    Args:
      shared, private: [R, T, D].
      segment: int32[R, T].
    """
    same = same_text_mask(segment)

    def products(features):
        features = features.astype(jnp.float32)
        squares = (features**2).sum(axis=-1, keepdims=True)
        unit = features * jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        return jnp.einsum("rtd,rud->rtu", unit, unit, precision=_HIGHEST)

    return (products(shared) * products(private) * same).sum(axis=-1) / same.sum(axis=-1)
