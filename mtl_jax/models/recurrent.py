"""Recurrent layers over packed rows: the state starts from zero at the first token of every segment."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.dense import Dense
from mtl_jax.models.dropout import Noise, dropout


class RNN(nn.Module):
    """Simple recurrence h_t = tanh(W x_t + U h_{t-1} + b) (Elman 1990). x [R, T, D] -> [R, T, hidden]."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, hidden]. Dropout is on the output."""
        forward = Direction(self.hidden, ("hidden",), self.dtype, name="forward")(x)
        (hidden,) = recur(tanh_cell, [(*forward, segment)], states=1)
        return dropout(noise, 0, hidden.astype(self.dtype))


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), left to right, forget bias 1."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, hidden]. Dropout is on the output."""
        forward = Direction(self.hidden, LSTM_GATES, self.dtype, name="forward")(x)
        (hidden,) = recur(lstm_cell, [(*forward, segment)], states=2)
        return dropout(noise, 0, hidden.astype(self.dtype))


class BiLSTM(nn.Module):
    """Two LSTMs, left to right and right to left (Graves & Schmidhuber 2005), concatenated in this order."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, 2·hidden]. Dropout is on the output."""
        forward = Direction(self.hidden, LSTM_GATES, self.dtype, name="forward")(x)
        # Read from the right, the last token of a segment is its first: the same resets do for both directions.
        backward = Direction(self.hidden, LSTM_GATES, self.dtype, name="backward")(jnp.flip(x, 1))
        # Both directions advance in one scan: half the sequential steps.
        left, right = recur(lstm_cell, [(*forward, segment), (*backward, jnp.flip(segment, 1))], states=2)
        hidden = jnp.concatenate([left, jnp.flip(right, 1)], axis=-1)
        return dropout(noise, 0, hidden.astype(self.dtype))


LSTM_GATES = ("input", "forget", "cell", "output")  # the order of the blocks in kernels [D, 4·hidden]


class Direction(nn.Module):
    """Parameters of one direction: input/kernel [D, G·hidden], input/bias, recurrent/kernel [hidden, G·hidden].

    Returns the projected inputs float32 [R, T, G·hidden] (outside of the scan: one large product) and the recurrent
    kernel in the compute dtype.
    """

    hidden: int
    gates: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        projected = Dense(
            len(self.gates) * self.hidden,
            dtype=self.dtype,
            kernel_init=_by_gate(nn.initializers.glorot_uniform(), len(self.gates)),
            bias_init=self._bias,
            name="input",
        )(x)
        recurrent = RecurrentKernel(self.hidden, len(self.gates), name="recurrent")()
        return projected.astype(jnp.float32), recurrent.astype(self.dtype)

    def _bias(self, key, shape, dtype=jnp.float32):
        """1 for the forget gate, so that memory is kept at first (Jozefowicz et al. 2015); 0 elsewhere."""
        return jnp.repeat(jnp.asarray([float(gate == "forget") for gate in self.gates], dtype), self.hidden)


class RecurrentKernel(nn.Module):
    """One orthogonal matrix for each gate, side by side: kernel float32 [hidden, G·hidden]."""

    hidden: int
    gates: int

    @nn.compact
    def __call__(self) -> jax.Array:
        init = _by_gate(nn.initializers.orthogonal(), self.gates)
        return self.param("kernel", init, (self.hidden, self.gates * self.hidden), jnp.float32)


def _by_gate(init, gates: int):
    """Initialises the block of each gate by itself, as if it were a matrix of its own."""

    def initialise(key, shape, dtype=jnp.float32):
        block = (shape[0], shape[1] // gates)
        return jnp.concatenate([init(k, block, dtype) for k in jax.random.split(key, gates)], axis=1)

    return initialise


def tanh_cell(z: jax.Array, memory: tuple[()]) -> tuple[jax.Array]:
    """Pre-activation z [R, hidden] -> the new state (h,)."""
    del memory
    return (jnp.tanh(z),)


def lstm_cell(z: jax.Array, memory: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Pre-activations z [R, 4·hidden] in the order of LSTM_GATES and (c,) -> the new state (h, c)."""
    (c,) = memory
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def recur(cell, directions, states: int) -> list[jax.Array]:
    """Runs all directions side by side in one scan over T.

    cell        (z [R, G], memory: the state without its h) -> the new state (h, *memory)
    directions  list of (projected float32 [R, T, G], kernel [hidden, G], segment int32[R, T])
    states      arrays in the state, h included, all float32 [R, hidden]

    Returns h of each direction, float32 [R, T, hidden]. The state is zero before the first token of every segment.
    """
    inputs = [jnp.swapaxes(projected, 0, 1) for projected, _, _ in directions]
    keep = [jnp.swapaxes(_continues(segment), 0, 1)[..., None] for _, _, segment in directions]
    hidden = _over_time(cell, states, inputs, [kernel for _, kernel, _ in directions], keep)
    return [jnp.swapaxes(h, 0, 1) for h in hidden]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _over_time(cell, states: int, inputs: list, kernels: list, keep: list) -> list[jax.Array]:
    """The scan of `recur`, time first: inputs [T, R, G], keep float32 [T, R, 1] -> h of each [T, R, hidden]."""

    def advance(state, z, keep, kernel):
        h, *memory = (s * keep for s in state)
        return cell(z + _product(h, kernel), tuple(memory))

    def step(carry, at_t):
        carry = [advance(*one) for one in zip(carry, *at_t, kernels, strict=True)]
        return carry, [state[0] for state in carry]

    rows = inputs[0].shape[1]
    zero = [(jnp.zeros((rows, kernel.shape[0]), jnp.float32),) * states for kernel in kernels]
    return jax.lax.scan(step, zero, (inputs, keep))[1]


@_over_time.defjvp
def _over_time_jvp(cell, states, primals, tangents):
    # A kernel acts by what it adds to the inputs. So its gradient is one product over all T behind the loop, where
    # autodiff would add T small ones up within it.
    inputs, kernels, keep = primals
    moved_inputs, moved_kernels, _ = tangents
    hidden, derivative = jax.linearize(lambda inputs: _over_time.fun(cell, states, inputs, kernels, keep), inputs)
    moved = []
    for h, k, z, kernel in zip(hidden, keep, moved_inputs, moved_kernels, strict=True):
        added = _product(h[:-1] * k[1:], kernel)  # at the first token there is no state yet
        moved.append(z + jnp.pad(added, ((1, 0), (0, 0), (0, 0))))
    return hidden, derivative(moved)


def _product(h: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def _continues(segment: jax.Array) -> jax.Array:
    """float32 [R, T]: 1 where the token before is of the same segment, 0 at the first token of a segment."""
    same = segment[:, 1:] == segment[:, :-1]
    return jnp.pad(same, ((0, 0), (1, 0))).astype(jnp.float32)
