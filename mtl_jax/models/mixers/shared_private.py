"""Adversarial shared-private columns: a shared one that is trained to hide the data set, and one per task."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.models.mixers.base import Mixer, MixerPlace, Params, features_at_level, require_choice, same_text_mask
from mtl_jax.models.mixers.experts import expert_columns

_HIGHEST = jax.lax.Precision.HIGHEST
REVERSALS = ("dann", "constant")


def shared_private(tasks: int, reversal: str = "dann", steepness: float = 10.0, hidden: int = 0) -> Mixer:
    """ASP-MTL: heads read [shared; private] (Liu et al. 2017, equations 6 to 15).

    Besides the losses of the tasks there are two over all texts, labelled or not:
      adversarial    cross-entropy of a discriminator of the text's data set, from the mean of its shared features; its
                     gradient is reversed before the shared column (equations 11, 12)
      orthogonality  ‖SᵀP‖²_F over the tokens of a text, of its shared and private features (equation 14); features
                     have unit length and the sum is divided by the squared number of tokens, so that it lies in [0, 1].
                     P are the features of a private column; the mean is taken over the tasks that read the text

    A private column is computed on the texts of its task only.

    Args:
      tasks: K.
      reversal: factor on the reversed gradient: "dann": 2 / (1 + exp(−steepness · step / steps)) − 1 (Ganin et al.
        2016, section 5.2.2) | "constant": 1.
      steepness: of "dann".
      hidden: width of a ReLU layer of the discriminator, 0 = linear as in the paper.

    Params: kernel float32[D, N], bias float32[N] with N data sets; with `hidden` H also hidden/kernel [D, H],
    hidden/bias [H], and kernel is [H, N].

    Raises:
      ValueError: at `init`, if there is only one data set; for options that are out of range.
    """
    require_choice("reversal", reversal, REVERSALS)
    if not steepness > 0 or isinstance(hidden, bool) or not isinstance(hidden, int) or hidden < 0:
        raise ValueError(f"steepness must be above 0 and hidden a whole number ≥ 0, not {steepness} and {hidden!r}")

    def init(key, place):
        if place.datasets < 2:
            raise ValueError("the discriminator classifies the data set of a text, but there is only one data set")
        return _discriminator(key, place, hidden)

    def apply_to_task(params, task, shared, private, inputs, segment):
        del params, task, inputs, segment
        return jnp.concatenate([shared[0], private[0]], axis=-1)

    def task_losses(params, task, shared, private, inputs, segment, dataset, progress):
        del task, inputs
        factor = 2.0 / (1.0 + jnp.exp(-steepness * progress)) - 1.0 if reversal == "dann" else 1.0
        texts = features_at_level(shared, segment, "sequence")[0]
        return {
            "adversarial": -dataset_log_probabilities(params, reverse_gradient(texts, factor))[..., dataset],
            "orthogonality": subspace_overlap(shared[0], private[0], segment),
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
        apply_to_task=apply_to_task,
        task_losses=task_losses,
        axes={"kernel": ("", "dataset"), "bias": ("dataset",)},
    )


def _discriminator(key: jax.Array, place: MixerPlace, hidden: int) -> Params:
    inner, outer = jax.random.split(key)
    params = {}
    if hidden:
        start = jax.nn.initializers.lecun_normal()(inner, (place.width, hidden), jnp.float32)
        params["hidden"] = {"kernel": start, "bias": jnp.zeros((hidden,), jnp.float32)}
    kernel = 0.02 * jax.random.normal(outer, (hidden or place.width, place.datasets), jnp.float32)
    return {**params, "kernel": kernel, "bias": jnp.zeros((place.datasets,), jnp.float32)}


def reverse_gradient(x: jax.Array, factor: jax.Array | float) -> jax.Array:
    """x, with its gradient times −factor (Ganin & Lempitsky 2015). As a sum, so that forward mode works as well."""
    fixed = jax.lax.stop_gradient(x)
    return fixed - factor * (x - fixed)


def dataset_log_probabilities(params: Params, texts: jax.Array) -> jax.Array:
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
    mask = same_text_mask(segment)

    def products(features):
        features = features.astype(jnp.float32)
        squares = (features**2).sum(axis=-1, keepdims=True)
        unit = features * jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        return jnp.einsum("rtd,rud->rtu", unit, unit, precision=_HIGHEST)

    return (products(shared) * products(private) * mask).sum(axis=-1) / mask.sum(axis=-1)
