"""Whatever stands in a field of a config, it is refused by name, or makes an experiment.

FUZZ=1000 python -m pytest tests/checks/test_checks_fuzz.py
"""

import os

import hypothesis
import pytest
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs.build import build

EXAMPLES = int(os.environ.get("FUZZ", "40"))
VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        7,
        10**9,
        0.0,
        0.5,
        -0.5,
        1.0,
        1e30,
        float("nan"),
        float("inf"),
        "",
        " ",
        "x",
        "none",
        "all",
        "task_0",
        "layer_00",
        "data_0",
        "vmap",
        "(",
        (),
        (0,),
        (1, 2),
        ("",),
        ("task_0",),
        ("x", "y"),
        {},
        {"x": 1},
        {"task_0": ("task_1",)},
        {"task_0": 1.0},
    ]
)


def base() -> ConfigDict:
    """Two small tasks with one of everything that has fields of its own."""
    config = default.get_config()
    for k in range(2):
        options = {"kind": "text", "features": 20, "tokens": 6, "noise": 0.1, "rho": 0.5, "task": k}
        options |= {"examples": {"train": 16, "dev": 8, "test": 8}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=options)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1)
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "cnn", 1, 4
    config.sharing.trunk = "none"
    config.data.row_length, config.data.rows_per_block = 8, 8
    return config


def fields(config, prefix=()):
    """Paths of all fields, of mappings and of what is in them."""
    for name, value in config.items():
        yield (*prefix, name)
        if hasattr(value, "items"):
            yield from fields(value, (*prefix, name))


PATHS = sorted(fields(base()), key=str)


@hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(changes=st.lists(st.tuples(st.sampled_from(PATHS), VALUES), min_size=1, max_size=2))
@pytest.mark.usefixtures("standard_promotion")
def test_an_experiment_or_a_user_error(tmp_path, monkeypatch, changes):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    plain = base().to_dict()
    for path, value in changes:
        node = plain
        for name in path[:-1]:
            node = node.get(name) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[path[-1]] = value
    config = ConfigDict(plain)
    try:
        checks.check(config)
        experiment = build(config)
    except UserError as error:
        assert str(error).strip() and "Traceback" not in str(error)
        return
    except MemoryError:  # what is asked for may be more than there is; launch.py says so
        return
    assert set(experiment.tasks) <= {"task_0", "task_1"} and experiment.tasks
