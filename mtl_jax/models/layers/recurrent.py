"""Recurrent layers over packed rows: the state starts from zero at the first token of every segment."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtl_jax.models.dense import Dense
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.layers.base import Layer


class RNN(Layer):
    """Simple recurrence h_t = tanh(W x_t + U h_{t-1} + b) (Elman 1990). x [R, T, D] -> [R, T, hidden_size]."""

    projections: ClassVar[tuple[str, ...]] = ("forward/input",)

    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, hidden_size]. Dropout is on the output."""
        forward = Direction(self.hidden_size, ("hidden",), self.dtype, name="forward")
        (hidden,) = scan_directions(TANH, [(*forward(_time_first(x, segment)), _continues(segment))])
        return dropout(noise, 0, _swapped(hidden).astype(self.dtype))


class LSTM(Layer):
    """Long short-term memory (Hochreiter & Schmidhuber 1997; Gers et al. 2000), left to right, forget bias 1."""

    projections: ClassVar[tuple[str, ...]] = ("forward/input",)

    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, hidden_size]. Dropout is on the output."""
        forward = Direction(self.hidden_size, LSTM_GATES, self.dtype, name="forward")
        (hidden,) = scan_directions(LSTM_CELL, [(*forward(_time_first(x, segment)), _continues(segment))])
        return dropout(noise, 0, _swapped(hidden).astype(self.dtype))


class BiLSTM(Layer):
    """Two LSTMs, left to right and right to left (Graves & Schmidhuber 2005), concatenated in this order."""

    projections: ClassVar[tuple[str, ...]] = ("forward/input", "backward/input")

    hidden_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, 2·hidden_size]. Dropout is on the output."""
        forward = Direction(self.hidden_size, LSTM_GATES, self.dtype, name="forward")
        backward = Direction(self.hidden_size, LSTM_GATES, self.dtype, name="backward")
        x = _time_first(x, segment)
        # Read from the right, the last token of a segment is its first: the same resets do for both directions.
        # Both advance in one scan: half the sequential steps.
        left, right = scan_directions(
            LSTM_CELL,
            [(*forward(x), _continues(segment)), (*backward(jnp.flip(x, 0)), _continues(jnp.flip(segment, 1)))],
        )
        hidden = _swapped(jnp.concatenate([left, jnp.flip(right, 0)], axis=-1))
        return dropout(noise, 0, hidden.astype(self.dtype))


LSTM_GATES = ("input", "forget", "cell", "output")  # the order of the blocks in kernels [D, 4·hidden]


class Direction(nn.Module):
    """Parameters of one direction: input/kernel [D, G·hidden], input/bias, recurrent/kernel [hidden, G·hidden].

    x [T, R, D], time first. Returns the projected inputs float32 [T, R, G·hidden] (outside of the scan: one large
    product) and the recurrent kernel in the compute dtype.
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
            row_axis=1,
            name="input",
        )(x)
        recurrent = RecurrentKernel(self.hidden, len(self.gates), name="recurrent")()
        return projected.astype(jnp.float32), recurrent.astype(self.dtype)

    def _bias(self, key, shape, dtype=jnp.float32):
        """1 for the forget gate, so that memory is residuals at first (Jozefowicz et al. 2015); 0 elsewhere."""
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


class Cell(NamedTuple):
    """A recurrent cell over R rows, all float32, and its derivative by hand.

    states   arrays [R, hidden] in its state, h included
    advance  (pre-activations z [R, G·hidden], memory: the state without its h) -> (the new state (h, *memory),
             residuals)
    advance_gradient  (residuals, gradient of the new state) -> (gradient of z, gradient of the memory)
    """

    states: int
    advance: Callable[[jax.Array, tuple], tuple[tuple, Any]]
    advance_gradient: Callable[[Any, tuple], tuple[jax.Array, tuple]]


def _advance_tanh(z, memory):
    del memory
    h = jnp.tanh(z)
    return (h,), h


def _tanh_gradient(h, gradient):
    (dh,) = gradient
    return dh * (1.0 - h * h), ()


def _advance_lstm(z, memory):
    (c,) = memory
    # σ(z) = ½·tanh(½·z) + ½: one function for all gates, in one pass
    half = _by_gates(z, (0.5, 0.5, 1.0, 0.5))
    gates = half * jnp.tanh(half * z) + _by_gates(z, (0.5, 0.5, 0.0, 0.5))
    i, f, g, o = jnp.split(gates, len(LSTM_GATES), axis=-1)
    after = f * c + i * g
    shown = jnp.tanh(after)
    return (o * shown, after), (gates, c, shown)


def _lstm_gradient(residuals, gradient):
    (gates, c, shown), (dh, dc) = residuals, gradient
    i, f, g, o = jnp.split(gates, len(LSTM_GATES), axis=-1)
    dc = dc + dh * o * (1.0 - shown * shown)
    # σ' = σ − σ², tanh' = 1 − tanh²
    slope = _by_gates(gates, (0.0, 0.0, 1.0, 0.0)) + _by_gates(gates, (1.0, 1.0, 0.0, 1.0)) * gates - gates * gates
    return jnp.concatenate([dc * g, dc * c, dc * i, dh * shown], axis=-1) * slope, (dc * f,)


def _by_gates(like: jax.Array, values: tuple[float, ...]) -> jax.Array:
    """A number for each gate, in the shape of `like` [R, 4·hidden]."""
    return jnp.broadcast_to(np.repeat(np.float32(values), like.shape[-1] // len(values)), like.shape)


TANH = Cell(1, _advance_tanh, _tanh_gradient)
LSTM_CELL = Cell(2, _advance_lstm, _lstm_gradient)


def scan_directions(cell: Cell, directions) -> list[jax.Array]:
    """Runs all directions in one scan over T.

    directions  list of (projected float32 [T, R, G·hidden], kernel [hidden, G·hidden], keep float32 [T, R, 1]: 0 where
                the state starts from zero, else 1)

    Returns h of each direction, float32 [T, R, hidden].
    """
    return _over_time(cell, *(list(parts) for parts in zip(*directions, strict=True)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_time(cell: Cell, inputs: list, kernels: list, keep: list) -> list[jax.Array]:
    """The scan of `scan_directions`, time first: inputs [T, R, G·hidden], keep float32 [T, R, 1] -> h of each [T, R,
    hidden].

    Its gradient is by hand, 1.4 times as fast as that of autodiff, which keeps about twice as much of each step and
    adds up a kernel's gradient in T small products. It can be differentiated again, in either mode; forward mode only
    (`jax.jvp` of the model itself) needs `_over_time.fun`.
    """
    return [h for h, _ in _forward(cell, inputs, kernels, keep)]


def _forward(cell, inputs, kernels, keep):
    """(h, residuals) of each direction, over time."""

    def advance(state, z, keep, kernel):
        h, *memory = (s * keep for s in state)
        state, residuals = cell.advance(z + _product(h, kernel), tuple(memory))
        return state, (state[0], residuals)

    def step(carry, at_t):
        carry, outputs = zip(*(advance(*one) for one in zip(carry, *at_t, kernels, strict=True)), strict=True)
        return list(carry), list(outputs)

    rows = inputs[0].shape[1]
    zero = [(jnp.zeros((rows, kernel.shape[0]), jnp.float32),) * cell.states for kernel in kernels]
    return jax.lax.scan(step, zero, (inputs, keep))[1]


def _over_time_forward(cell, inputs, kernels, keep):
    steps = _forward(cell, inputs, kernels, keep)
    return [h for h, _ in steps], (steps, kernels, keep)


def _over_time_backward(cell, residuals, gradients):
    steps, kernels, keep = residuals
    transposed = [kernel.T for kernel in kernels]  # once, not in each step

    def advance_gradient(later, shown, residuals, keep, kernel):
        dh, *dmemory = later
        dz, dmemory = cell.advance_gradient(residuals, (dh + shown, *dmemory))
        return tuple(d * keep for d in (_product(dz, kernel), *dmemory)), dz

    def step(carry, at_t):
        carry, dz = zip(*(advance_gradient(*one) for one in zip(carry, *at_t, transposed, strict=True)), strict=True)
        return list(carry), list(dz)

    zero = [(jnp.zeros_like(h[0]),) * cell.states for h, _ in steps]
    at_t = (gradients, [residuals for _, residuals in steps], keep)
    input_gradients = jax.lax.scan(step, zero, at_t, reverse=True)[1]
    by_kernel = []
    for (h, _), k, dz, kernel in zip(steps, keep, input_gradients, kernels, strict=True):
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]]) * k  # no slice of dz, which would be copied
        product = jnp.einsum(
            "trh,trg->hg", before.astype(kernel.dtype), dz.astype(kernel.dtype), preferred_element_type=jnp.float32
        )
        by_kernel.append(product.astype(kernel.dtype))
    return input_gradients, by_kernel, [None] * len(keep)


_over_time.defvjp(_over_time_forward, _over_time_backward)


def _product(h: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32)


def _time_first(x: jax.Array, segment: jax.Array) -> jax.Array:
    """x [R, T, D] -> [T, R, D]; a segment of another shape is refused, since it would broadcast."""
    chex.assert_rank(x, 3)
    chex.assert_shape(segment, x.shape[:2])
    return _swapped(x)


def _continues(segment: jax.Array) -> jax.Array:
    """float32 [T, R, 1]: 1 where the token before is of the same segment, 0 at the first token of a segment."""
    same = segment[:, 1:] == segment[:, :-1]
    return _swapped(jnp.pad(same, ((0, 0), (1, 0))).astype(jnp.float32))[..., None]


def _swapped(x: jax.Array) -> jax.Array:
    """[R, T, ...] and back: time first is how a scan reads and writes."""
    return jnp.swapaxes(x, 0, 1)
