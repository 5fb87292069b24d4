"""Everything that this project says of accelerators, measured on the card that is here, in eight minutes at most.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --only=parity,mfu
    python benchmarks/gpu.py --small           tiny shapes, on CPU too: to try the command

parity      losses of five steps on the accelerator and on the CPU: float32 within 1e-4, bfloat16 within twice what its
            rounding changes on the CPU
attention   forward and backward within segments: the project's own form, `jax.nn.dot_product_attention` by XLA and by
            cuDNN. The project takes its own form everywhere as yet
mfu         train steps of BERT-base and of an encoder of 135 million parameters (the shapes of SmolLM2-135M with
            attention in both directions and an MLP of two matrices; decoders wait for their family), bfloat16, rows of
            512: MFU, and from a trace the share of time in which the card works
lanes       a grid of 32 lanes in one program against one train step of the same model
growth      K = 4, 16, 64 tasks with a data set each, four drawn blocks a step: compilation, and time of a token
torch       BERT-base against transformers' BertModel with `torch.compile` (`steps.py`), where torch sees the card

Each part is a process of its own with a limit of time; one that fails is a row with the reason. All cards that are
visible are used, the rows of a batch over `data`. Every figure goes to benchmarks/results/gpu.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from record import Claim, save  # noqa: E402

FLOAT32, ROUNDING = 1e-4, 2.0  # allowed: of a loss; times what bfloat16 changes on the CPU
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12}  # as in `steps.py`
MESSAGE = 200  # characters of an error that are shown


class Part(NamedTuple):
    """measure (small) -> {"rows": table, "claims": fields of `Claim`s, ...}, JSON; seconds: its limit."""

    measure: Callable[[bool], dict[str, Any]]
    seconds: int


class Ended(NamedTuple):
    """What a part gave, or why it gave nothing."""

    found: dict[str, Any] | None
    reason: str
    seconds: float


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    parser.add_argument("--seconds", type=int, default=480, help="limit of all parts together")
    parser.add_argument("--part", choices=PARTS, help="measure one in this process, and print it as JSON")
    options = parser.parse_args()
    if options.part:
        answers, sys.stdout = sys.stdout, sys.stderr
        print(json.dumps(PARTS[options.part].measure(options.small)), file=answers)
        return
    end, ended = time.monotonic() + options.seconds, {}
    try:
        for name in options.only.split(","):
            command = [sys.executable, __file__, f"--part={name}", *(["--small"] if options.small else [])]
            ended[name] = run_part(command, min(PARTS[name].seconds, end - time.monotonic()))
            print(f"{name}: {ended[name].reason or 'done'}, {ended[name].seconds:.0f} s", file=sys.stderr, flush=True)
    finally:  # what was measured is not lost when the command is stopped
        _save(options, ended)
    sys.exit(any(one.reason and not one.reason.startswith("left out") for one in ended.values()))


def run_part(command: Sequence[str], seconds: float) -> Ended:
    """Runs a command that prints JSON, for so many seconds at most."""
    began = time.monotonic()
    if seconds < 1:
        return Ended(None, "no time was left", 0.0)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, start_new_session=True
        )
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return Ended(None, f"stopped after {seconds:.0f} s", time.monotonic() - began)
        finally:  # with the processes that it has started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        errors.seek(0)
        lines = [line for line in errors.read().splitlines() if line.strip()]
    taken = time.monotonic() - began
    if process.returncode:
        return Ended(None, f"failed: {lines[-1].strip()[:MESSAGE] if lines else process.returncode}", taken)
    results = json.loads(out)
    return Ended(results, results.get("left_out", ""), taken)


def _save(options, ended: dict[str, Ended]) -> None:
    tables = {"parts": [("part", "seconds", "outcome")]}
    claims = []
    for name, one in ended.items():
        tables["parts"].append((name, f"{one.seconds:.0f}", one.reason or "done"))
        if one.found and "rows" in one.found:
            tables[name] = one.found["rows"]
            claims += [Claim(**claim) for claim in one.found["claims"]]
    device = next((one.found["device"] for one in ended.values() if one.found and "device" in one.found), "?")
    numbers = {name: one._asdict() for name, one in ended.items()}
    notes = f"Devices: {device}." + (" Tiny shapes: the figures mean nothing." if options.small else "")
    save("gpu_small" if options.small else "gpu", claims, tables, numbers, notes)


def _claim(what: str, goal: str, values: Sequence[float], reached: bool) -> dict[str, Any]:
    middle = statistics.median(values)
    return Claim(what, goal, middle, min(values), max(values), bool(reached))._asdict()


# ---- parts: each in a process of its own, in which alone JAX is imported


def parity(small: bool) -> dict[str, Any]:
    """Losses by device and dtype, from `jax_steps.py` in one process for each."""
    import encoders
    from peers import CHECKED, EXACT, SHARED
    from workers import Worker

    rows, claims = [("model", "dtype", "largest difference", "allowed")], []
    for model in ("tiny",) if small else ("tiny", "bilstm"):
        losses = {}
        with tempfile.TemporaryDirectory() as folder:
            encoders.write_full_texts(model, f"{folder}/texts.jsonl", 8 * CHECKED, 32)
            shapes = {"model": model, "rows": 8, "length": 32, "dropout": 0.0, "attention_dropout": 0.0}
            for place in ("cpu", ""):  # the default platform
                side = Worker("jax_steps.py", {**SHARED, **EXACT, **({"JAX_PLATFORMS": place} if place else {})})
                for dtype in ("float32", "bfloat16"):
                    device = side("load", folder=folder, steps=CHECKED, dtype=dtype, **shapes)["device"]
                    losses[place, dtype] = side("losses", steps=CHECKED)
                side.close()
        rounding = _apart(losses["cpu", "bfloat16"], losses["cpu", "float32"])
        allowed = {"float32": FLOAT32, "bfloat16": ROUNDING * rounding + FLOAT32}
        for dtype, most in allowed.items():
            results = _apart(losses["", dtype], losses["cpu", "float32"])
            rows.append((model, dtype, f"{results:.1e}", f"{most:.1e}"))
            what = f"{model}, {dtype}: largest difference of a loss from the CPU's in float32"
            claims.append(_claim(what, f"≤ {most:.1e}", [results], results <= most))
    return {"rows": rows, "claims": claims, "device": device}


def _apart(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def attention(small: bool) -> dict[str, Any]:
    """Milliseconds forward and backward, of a fixed number of tokens in rows of several lengths."""
    import jax
    import jax.numpy as jnp

    from mtl_jax.models.attention import attend

    def named(implementation):
        def function(query, key, value, segment):
            mask = segment[:, None, :, None] == segment[:, None, None, :]
            return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)

        return function

    forms = {
        "the project's": lambda query, key, value, segment: attend(query, key, value, segment, None),
        "jax.nn, XLA": named("xla"),
        "jax.nn, cuDNN": named("cudnn"),
    }
    heads, width, tokens, lengths = (2, 8, 64, (16, 32)) if small else (12, 64, 1 << 14, (128, 512, 2048))
    rows, numbers = [("tokens a row", "form", "ms", "difference")], []
    for length in lengths:
        keys = jax.random.split(jax.random.key(0), 3)
        shape = (tokens // length, length, heads, width)
        inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
        segment = jnp.broadcast_to(1 + jnp.arange(length) // (length // 4), shape[:2]).astype(jnp.int32)
        expected = forms["the project's"](*(x.astype(jnp.float32) for x in inputs), segment)
        for name, form in forms.items():
            try:
                seconds, output = _timed(form, inputs, segment)
            except Exception as error:
                rows.append((str(length), name, "", f"no: {str(error).strip().splitlines()[0][:60]}"))
                continue
            difference = float(jnp.abs(output.astype(jnp.float32) - expected).max())
            numbers.append({"length": length, "form": name, "seconds": seconds, "difference": difference})
            rows.append((str(length), name, f"{1e3 * seconds:.3f}", f"{difference:.1e}"))
    return {"rows": rows, "claims": [], "numbers": numbers, "device": _device()}


def _timed(form, inputs, segment):
    """(seconds of a forward and backward pass, the output)"""
    import jax
    import jax.numpy as jnp

    def total(inputs):
        output = form(*inputs, segment)
        return jnp.sum(output.astype(jnp.float32) ** 2), output

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, output), _ = jax.block_until_ready(run(inputs))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(run(inputs))
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), output


def mfu(small: bool) -> dict[str, Any]:
    """Train steps with the host's part of a batch, as `launch.py` runs them."""
    import jax
    from jax_lanes import ceiling
    from jax_steps import Side

    best = ceiling(dtype="bfloat16")["flops"]
    peak = next((value for name, value in PEAKS.items() if name in jax.devices()[0].device_kind), None)
    rows = [("model", "rows", "ms a step", "tokens/s", "MFU", "of the best product", "card works")]
    claims, numbers, steps = [], {"best_product": best, "peak": peak}, 2 if small else 10
    for model in ("tiny",) if small else ("bert_base", "smollm2_135m"):
        for rows_of_device in (1,) if small else (32, 8, 2):
            side = Side()
            try:
                known = _load(side, model, rows_of_device * jax.device_count(), 32 if small else 512)
                side.run(2)
                break
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or rows_of_device == 2:
                    raise
        seconds = [side.run(steps) / steps for _ in range(3)]
        busy = side.busy(steps)
        time_of_step = statistics.median(seconds)
        rate = known["flops"] / time_of_step
        share = None if peak is None else rate / peak / jax.device_count()
        numbers[model] = {"seconds": seconds, "busy": busy, "known": known, "mfu": share}
        shown = ["" if value is None else f"{value:.1%}" for value in (share, rate / best, busy)]
        rows.append(
            (
                model,
                f"{known['texts'] // 4}",
                f"{1e3 * time_of_step:.1f}",
                f"{known['tokens'] / time_of_step:,.0f}",
                *shown,
            )
        )
        if share is not None:
            claims.append(_claim(f"{model}, bfloat16: MFU", "≥ 0.5", [share], share >= 0.5))
        if busy is not None:
            claims.append(_claim(f"{model}: share of time in which the card works", "≥ 0.95", [busy], busy >= 0.95))
    return {"rows": rows, "claims": claims, "numbers": numbers, "device": _device()}


def _load(side, model: str, rows: int, length: int) -> dict[str, Any]:
    """Lets a side build the model, for so many full rows in bfloat16; what `jax_steps.Side.load` returns."""
    import encoders

    shapes = {"rows": rows, "length": length, "dropout": 0.1, "attention_dropout": 0.0, "dtype": "bfloat16"}
    with tempfile.TemporaryDirectory() as folder:
        encoders.write_full_texts(model, f"{folder}/texts.jsonl", 4 * rows, length)
        return side.load(folder=folder, steps=4, model=model, **shapes)


def lanes(small: bool) -> dict[str, Any]:
    """A step of all lanes of a grid, and one of the same model alone."""
    from jax_lanes import Side
    from rounds import Step

    rows, numbers, steps = [("model", "lanes", "ms a step of all", "ms alone", "lanes at the price of one")], [], 4
    for model in ("small",) if small else ("small", "transformer4_text"):
        side = Side()
        with tempfile.TemporaryDirectory() as folder:
            known = side.load(model=model, data=f"{folder}/batches.pkl", steps=steps)
        side.lanes(known["steps"])
        together = min(side.lanes(known["steps"]) for _ in range(3)) / known["steps"]
        alone = Step(side.built.experiment, side.built.spec)
        alone.run(2)
        single = min(alone.run(steps) for _ in range(3))
        count = len(known["lanes"])
        numbers.append({"model": model, "together": together, "alone": single, "lanes": count})
        times = (f"{1e3 * together:.2f}", f"{1e3 * single:.2f}", f"{count * single / together:.1f}")
        rows.append((model, str(count), *times))
    return {"rows": rows, "claims": [], "numbers": numbers, "device": _device()}


def growth(small: bool) -> dict[str, Any]:
    """Compilation and time of a token by the number of tasks."""
    from rounds import Step

    from mtl_jax import checks
    from mtl_jax.runs.build import build

    rows, numbers = [("K", "s to trace and compile", "µs a token")], []
    for tasks in (2, 4) if small else (4, 16, 64):
        config = _many_tasks(tasks, small)
        checks.check(config)
        experiment = build(config)
        began = time.perf_counter()
        step = Step(experiment)
        compiled = time.perf_counter() - began
        step.run(2)
        tokens = experiment.batches(0).batch(0).tokens.size
        seconds = min(step.run(5) for _ in range(3)) / tokens
        numbers.append({"tasks": tasks, "compile_seconds": compiled, "seconds_a_token": seconds})
        rows.append((str(tasks), f"{compiled:.1f}", f"{1e6 * seconds:.2f}"))
    ratio = numbers[-1]["seconds_a_token"] / numbers[0]["seconds_a_token"]
    what = f"time of a token, K = {numbers[-1]['tasks']} / K = {numbers[0]['tasks']}"
    return {
        "rows": rows,
        "claims": [_claim(what, "≤ 1.1×", [ratio], ratio <= 1.1)],
        "numbers": numbers,
        "device": _device(),
    }


def _many_tasks(tasks: int, small: bool):
    """K classifications with a data set each, all layers shared, four drawn blocks a step."""
    from ml_collections import ConfigDict

    from mtl_jax.config import default

    config = default.get_config()
    for k in range(tasks):
        fields = {"kind": "text", "features": 200, "tokens": 30, "noise": 0.05, "rho": 0.6, "task": k}
        fields |= {"examples": {"train": 100, "dev": 10, "test": 10}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=fields)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.num_layers, config.model.hidden_size, config.model.num_heads = (1, 16, 2) if small else (6, 512, 8)
    config.model.intermediate_size = 4 * config.model.hidden_size
    config.model.dtype = "bfloat16"
    config.data.row_length, config.data.rows_per_block = (32, 2) if small else (256, 16)
    config.data.mixing, config.data.blocks_per_batch = "size", 4
    return config


def torch(small: bool) -> dict[str, Any]:
    """`steps.py` on BERT-base; the table that it writes."""
    if importlib.util.find_spec("torch") is None:
        return {"left_out": "left out: torch is not installed"}
    import torch

    if not torch.cuda.is_available() or small:
        return {"left_out": "left out: torch sees no GPU" if not small else "left out: --small"}
    shapes = ["--model=bert_base", "--length=512", "--rows=32", "--dtype=bfloat16", "--rounds=3"]
    subprocess.run([sys.executable, f"{ROOT}/benchmarks/steps.py", *shapes], check=True, stdout=sys.stderr)
    results = json.loads((ROOT / "benchmarks/results/steps_bert_base_bfloat16.json").read_text())
    (table,) = results["tables"].values()
    return {"rows": table, "claims": results["claims"], "numbers": results["numbers"]}


def _device() -> str:
    import jax

    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


PARTS = {
    "parity": Part(parity, 90),
    "attention": Part(attention, 60),
    "mfu": Part(mfu, 120),
    "lanes": Part(lanes, 90),
    "growth": Part(growth, 90),
    "torch": Part(torch, 200),
}


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main()
