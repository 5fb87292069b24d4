"""Every mode in two processes of four devices against one process of eight."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import launching
from mtl_jax.runs import train
from mtl_jax.storage import workdir as folders
from tests.helpers.processes import ROOT, ended
from tests.helpers.run_modes import run_all

CONFIG = """
from mtl_jax.config import default

def base():
    config = default.get_config()
    for k in range(3):
        options = {"kind": "text", "features": 60, "tokens": 8, "noise": 0.1, "rho": 0.6, "task": k}
        options |= {"examples": {"train": 64, "dev": 16, "test": 16}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=options)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "cnn", 1, 16
    config.data.row_length, config.data.rows_per_block, config.evaluation.rows_per_batch = 16, 8, 8
    config.training.steps, config.training.eval_every = 6, 3
    return config

def columns():
    config = base()
    config.sharing.trunk, config.model.column_init = "none", "same"
    return config

def relatedness():
    config = base()
    config.relatedness.num_seeds, config.relatedness.measures = 3, ("gradient_cosine", "cka")
    return config

def adaptation():
    config = base()
    config.adaptation.shots, config.adaptation.steps, config.adaptation.learning_rates = (2,), (0, 2), (0.1,)
    config.adaptation.num_supports, config.adaptation.num_tuning_supports = 3, 2
    return config

def distillation(run):
    config = base()
    config.meta.method = "fomaml"
    default.add_distillation(config, "task_0", teachers=(str(run),))
    return config
"""
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def results(tmp_path_factory, launch_environment):
    """(folder, what one process printed, what each of two printed)."""
    import jax

    folder = tmp_path_factory.mktemp("modes")
    (folder / "config.py").write_text(CONFIG)
    scope = {}
    exec(CONFIG, scope)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 60, rng.integers(2, 8))) for _ in range(600)]
    (folder / "input.jsonl").write_text("".join(json.dumps({"words": text.split()}) + "\n" for text in texts))
    (folder / "input.txt").write_text("\n".join(texts[:12]) + "\n")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("MTL_JAX_CACHE", str(folder / "cache"))
        train.train(scope["columns"](), folders.prepare(folder / "run"))
        alone = run_all(folder, "alone")
    port, env = launching.free_port(), {**launch_environment, "MTL_JAX_CACHE": str(folder / "other_cache")}
    env["XLA_FLAGS"] += " --xla_force_host_platform_device_count=4"
    command = [sys.executable, "-m", "tests.helpers.run_modes", str(folder)]
    runs = [
        subprocess.Popen(
            [*command, str(number), "2", str(port)],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    actual = ended(runs)
    assert [status for status, _ in actual] == [0, 0], actual
    return folder, alone, [json.loads((folder / f"printed_{number}.json").read_text()) for number in range(2)]


def require_close(actual, wanted, where):
    """JSON values are equal up to the rounding of numbers."""
    assert type(actual) is type(wanted), where
    if isinstance(wanted, dict):
        assert actual.keys() == wanted.keys(), where
        for key in wanted.keys() - {"seconds", "runs", "step_seconds"}:
            require_close(actual[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(actual) == len(wanted), where
        for number, pair in enumerate(zip(actual, wanted, strict=True)):
            require_close(*pair, f"{where}[{number}]")
    elif isinstance(wanted, float):
        assert actual == pytest.approx(wanted, abs=1e-5, nan_ok=True), where
    else:
        assert actual == wanted, where


FILES = {
    "predict": "",
    "attribute": "/attributions.jsonl",
    "merge": "/merging.json",
    "adapt": "/adapt.json",
    "relate": "/relatedness.json",
    "train": "/summary.json",
}


@pytest.mark.parametrize("mode", FILES)
def test_results_are_those_of_one_process(results, mode):
    folder, _, printed = results
    several, alone = (
        [json.loads(line) for line in text.splitlines()] if mode in ("predict", "attribute") else json.loads(text)
        for text in ((folder / f"{which}_{mode}{FILES[mode]}").read_text() for which in ("several", "alone"))
    )
    require_close(several, alone, mode)
    if mode == "predict":
        assert [line["line"] for line in several] == list(range(1, 601))
    assert printed[0][mode] and not (mode == "adapt" and printed[1][mode])
