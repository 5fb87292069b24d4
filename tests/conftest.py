"""Every test runs with 8 fake CPU devices and strict promotion: shapes and dtypes are meant, never guessed."""

import gc
import json
import os
import pathlib
import re
from importlib import metadata

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# most of the suite's time is the compiler's: the programs are tiny, so what its highest level saves them is nothing
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
)
if metadata.version("jaxlib").startswith("0.10."):  # a flag that XLA does not know ends the process
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# programs are the same from test to test and from run to run; most are single operations, so all of them are kept
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_include_full_tracebacks_in_locations", False)  # programs are lowered faster without them

DATA = pathlib.Path(os.environ.get("MTL_JAX_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
    """The folder of real data sets; tests that need it are skipped, saying so, where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"real data not found at {DATA}; set MTL_JAX_DATA to their folder")
    return DATA


@pytest.fixture(scope="session")
def launch_environment() -> dict[str, str]:
    """The environment of processes that tests start: one device, programs kept where those of the tests are."""
    return {
        **os.environ,
        "XLA_FLAGS": re.sub(r"\S+device_count=\d+", "", os.environ["XLA_FLAGS"]),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


@pytest.fixture
def standard_promotion():
    """For tests of whole steps: optax's Adam multiplies a float by an int32 count, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Makes configs of three small tasks on two data sets of generated text: seconds to train on a CPU."""
    import numpy as np

    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    words = {"red": 0, "blue": 1, "green": 2}
    noise = [f"w{i}" for i in range(30)]
    lines = {"texts": [], "sentences": []}
    for _ in range(160):
        color = str(rng.choice(list(words)))
        text = [str(w) for w in rng.choice(noise, rng.integers(2, 9))]
        text.insert(int(rng.integers(0, len(text))), color)
        lines["texts"].append(json.dumps({"text": " ".join(text), "color": color}))
        tags = ["B-COL" if w in words else "O" for w in text]
        lines["sentences"].append(json.dumps({"words": text, "tags": tags, "long": "yes" if len(text) > 5 else "no"}))
    for name, records in lines.items():
        for split, part in (("train", records[:96]), ("dev", records[96:128]), ("test", records[128:])):
            (tmp_path / f"{name}.{split}.jsonl").write_text("\n".join(part) + "\n")

    def make(**changes):
        from mtl_jax.config import default

        config = default.get_config()
        for name, field in (("texts", {"text": ("text",)}), ("sentences", {"words": "words"})):
            splits = {split: f"{name}.{split}.jsonl" for split in ("train", "dev", "test")}
            default.add_dataset(config, name, reader="jsonl", path=str(tmp_path), splits=splits, **field)
        default.add_task(config, "color", kind="classification", dataset="texts", label="color")
        default.add_task(
            config, "tags", kind="tagging", dataset="sentences", label="tags", options={"crf": True, "scheme": "iob2"}
        )
        default.add_task(config, "long", kind="classification", dataset="sentences", label="long")
        config.tokenizer.kind = "words"
        config.model.layer_type = "bilstm"
        config.model.num_layers = 1
        config.model.hidden_size = 8
        config.data.row_length = 16
        config.data.rows_per_block = 8
        config.optimizer.learning_rate = 1e-2
        config.training.steps = 12
        config.training.eval_every = 6
        config.training.checkpoint_every = 4
        config.training.log_every = 1
        config.evaluation.rows_per_batch = 8
        for field, value in changes.items():
            node = config
            *path, last = field.split("__")
            for key in path:
                node = node[key]
            assert len(path) > 1 or last in node, f"{field}: no such field"
            node[last] = value
        return config

    return make


@pytest.fixture
def differs(record_property):
    """differs(what, found, wanted, most): asserts |found − wanted| <= most; the end of the run lists the largest."""
    import numpy as np

    def check(what, actual, wanted, most):
        largest = float(np.max(np.abs(np.asarray(actual, np.float64) - np.asarray(wanted, np.float64)), initial=0.0))
        assert largest <= most, f"{what}: {largest:.3g} > {most:.3g}"
        record_property(f"difference: {what}", (largest, float(most)))

    return check


def pytest_collection_finish():
    """Tracing allocates much; each collection would walk through all modules that the tests have imported."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_terminal_summary(terminalreporter):
    """The table of the largest differences from references, each with what is allowed."""
    largest: dict[str, tuple[float, float]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name.startswith("difference: "):
                largest[name] = max(largest.get(name, (0.0, 0.0)), tuple(value))
    if largest:
        terminalreporter.section("largest differences (allowed)")
        for name, (actual, most) in sorted(largest.items()):
            terminalreporter.write_line(f"{name.removeprefix('difference: '):60} {actual:9.2e}  ({most:.0e})")
