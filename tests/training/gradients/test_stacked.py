"""Stacks of K gradients: combined as TorchJD combines their Jacobians; slices that one loss reaches stay out."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.balancing import WEIGHTINGS
from mtl_jax.training.gradients import stacked

GOLDENS = json.loads((pathlib.Path(__file__).parents[2] / "helpers" / "torchjd_goldens.json").read_text())
OPTIONS = {"cagrad": {"c": 0.4}}


@pytest.mark.parametrize("number", range(len(GOLDENS)))
def test_as_torchjd(number, differs):
    golden = GOLDENS[number]
    jacobian = np.asarray(golden["jacobian"], np.float32)
    tasks = len(jacobian)
    # 18 = one slice [3, 2], and the shared two of three slices [6]; the third belongs to the last task
    private = np.zeros((tasks, 1, 6), np.float32)
    private[-1] = 5.0
    stacks = {
        "a": jnp.asarray(jacobian[:, :6].reshape(tasks, 1, 3, 2)),
        "b": jnp.concatenate([jacobian[:, 6:].reshape(tasks, 2, 6), private], axis=1),
    }
    every = frozenset(range(tasks))
    reach = {"a": (every,), "b": (every, every, frozenset({tasks - 1}))}
    shared = stacked.shared_slices(["a/kernel", "b/kernel"], reach, {}, tasks)
    stacks = {f"{path}/kernel": leaf for path, leaf in stacks.items()}
    method = WEIGHTINGS[golden["method"]](**OPTIONS.get(golden["method"], {}))
    inputs = types.SimpleNamespace(
        key=jax.random.key(0),
        balance=types.SimpleNamespace(aggregation=method.init(tasks)),
        trained={path: leaf[0] for path, leaf in stacks.items()},
    )
    combined = stacked.combine_stacks(
        shared,
        inputs,
        method,
        stacks,
        products=stacked.stack_products(shared, stacks),
        applied=jnp.ones(tasks),
        losses=jnp.ones(tasks),
        present=jnp.ones(tasks, bool),
    )
    kernel_a, kernel_b = combined.gradient["a/kernel"], combined.gradient["b/kernel"]
    actual = np.concatenate([np.ravel(kernel_a), np.ravel(kernel_b[:2])])
    wanted = np.asarray(golden["result"])
    differs(
        f"{golden['method']} against TorchJD, relative",
        actual / np.abs(wanted).max(),
        wanted / np.abs(wanted).max(),
        1e-4,
    )
    np.testing.assert_array_equal(kernel_b[2], private[-1, 0])
