"""Lanes of one program against runs one after another, and against a PyTorch loop over the same grid.

    python benchmarks/ablation.py --model=bilstm --repeats=3
    python benchmarks/ablation.py --model=small --only=counted --runs=8

counted       start-up and compilation count: `launch.py --mode=ablate` with 32 lanes (8 λ × 4 seeds) against 32 ×
              `launch.py` with each λ and seed
not counted   seconds of training steps alone: the same lanes, compiled, against PyTorch in one process (the fastest of
              what `torch_ablation.py` tries), and in one process a core
Sides alternate; shown are medians, and the ratio peer / lanes. Numbers go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from record import CORES, Claim, save
from workers import Worker

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ("small", "bilstm", "transformer", "transformer4")
# of the ratio, on 2 cores; the transformer of 4 layers is for a GPU
GOALS = {
    "counted": {"small": 8.0, "bilstm": 3.0},
    "steps": {"small": 2.0, "bilstm": 1.4, "transformer": 1.0, "transformer4": 3.0},
}
STEPS = {"small": 64, "bilstm": 32, "transformer": 8, "transformer4": 8}  # of a lane, for one timing


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bilstm", choices=MODELS)
    parser.add_argument("--repeats", type=int, default=3, help="timings of each side")
    parser.add_argument("--only", choices=("counted", "steps"), help="one of the two measurements; default: both")
    parser.add_argument("--runs", type=int, default=32, help="counted: time so many of the 32 runs, and multiply")
    parser.add_argument("--steps", type=int, help=f"not counted: steps of a lane, default {STEPS}")
    parser.add_argument("--peer-lanes", type=int, default=8, help="not counted: lanes that PyTorch trains in a timing")
    options = parser.parse_args()
    tables, claims, numbers, notes = {}, [], {}, ""
    if options.only != "counted":
        tables["Training steps alone"], claim, numbers["steps"], notes = steps_alone(options)
        claims.append(claim)
    if options.only != "steps":
        tables["Start-up, compilation, evaluation and reports included"], claim, numbers["counted"] = counted(options)
        claims.append(claim)
    save(f"ablation_{options.model}", claims, tables, numbers, notes)


def counted(options) -> tuple[list, Claim, dict]:
    """Whole processes, from the command to its end."""
    config, lanes = f"--config=benchmarks/workloads.py:{options.model}", _lanes(options.model)
    chosen = lanes[:: max(1, len(lanes) // max(1, options.runs))][: options.runs]
    times = {"lanes": [], "runs": []}
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            times["lanes"].append(_launch(config, f"--workdir={folder}/lanes", "--mode=ablate"))
            whole = sum(
                _launch(
                    config,
                    f"--workdir={folder}/{i}",
                    f"--config.seed={seed}",
                    f"--config.penalties.p.strength={strength}",
                )
                for i, (seed, strength) in enumerate(chosen)
            )
        times["runs"].append(whole * len(lanes) / len(chosen))
        _progress("counted", repeat, options.repeats)
    ours, runs = (statistics.median(times[side]) for side in ("lanes", "runs"))
    note = "" if len(chosen) == len(lanes) else f", from {len(chosen)} of them times {len(lanes) / len(chosen):g}"
    rows = [
        ("", "seconds", "ratio"),
        (f"mtl_jax, {len(lanes)} lanes in one program", f"{ours:.1f}", ""),
        (f"mtl_jax, {len(lanes)} runs one after another{note}", f"{runs:.1f}", f"{runs / ours:.2f}"),
    ]
    claim = _claim(options.model, "counted", times["runs"], times["lanes"])
    return rows, claim, {"seconds": times, "runs_timed": len(chosen), "ratio": runs / ours}


def _claim(model: str, what: str, theirs: list[float], ours: list[float], bound: str = "") -> Claim:
    """Ratios of what was timed next to each other."""
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    median, goal = statistics.median(ratios), GOALS[what].get(model)
    name = {
        "counted": f"{model}: 32 runs of launch.py one after another / 32 lanes in one program",
        "steps": f"{model}: a PyTorch loop over the grid in one process / lanes, steps alone",
    }[what]
    reached = goal is None or median >= goal
    wanted = "none" if goal is None else f"≥ {goal:g}×"
    return Claim(name, wanted, median, min(ratios), max(ratios), reached, "" if reached else bound)


def _lanes(model) -> list[tuple[int, float]]:
    """(seed, λ) of every lane, as the plan has them."""
    code = (
        "import benchmarks.workloads as w, json; from mtl_jax.analysis.ablation import plan; "
        f"p = plan.make_plan(w.get_config({model!r}), lambda config: None); "
        "print(json.dumps([[s, x.values['strength']] for s in p.seeds for x in p.programs[0].settings]))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        raise SystemExit(out.stderr)
    return json.loads(out.stdout)


def _launch(*flags) -> float:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "launch.py", *flags], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"launch.py {' '.join(flags)}\n{done.stderr}")
    return time.perf_counter() - began


def steps_alone(options) -> tuple[list, Claim, dict, str]:
    """Training steps of programs that are compiled and warm."""
    with tempfile.TemporaryDirectory() as folder:
        data = f"{folder}/batches.pkl"
        ours = Worker("jax_lanes.py", {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})  # the sides share a GPU
        best = {"mtl_jax": ours("ceiling")}
        known = ours("load", model=options.model, data=data, steps=options.steps or STEPS[options.model])
        steps, lanes = known["steps"], known["lanes"]
        peer_lanes = lanes[:: max(1, len(lanes) // options.peer_lanes)][: options.peer_lanes]
        variant, threads, trials, peer_info = _fastest(options.model, data, peer_lanes[0], steps)
        count = 1 if peer_info["device"] == "cuda" else CORES
        peers = [Worker("torch_ablation.py") for _ in range(count)]
        for peer in peers:
            peer("load", model=options.model, data=data)
        best["PyTorch"] = peers[0]("ceiling", threads=count)
        flops = peers[0]("flops")

    def our_time():
        return ours("lanes", steps=steps) / (len(lanes) * steps)

    def peer_time(workers, threads):
        for number, worker in enumerate(workers):  # at the same time
            share = peer_lanes[number :: len(workers)]
            worker.start("lanes", variant=variant, threads=threads, lanes=share, steps=steps)
        return max([worker.answer() for worker in workers]) / (len(peer_lanes) * steps)

    layout, stacked, compiled = variant
    how = f"{layout}, columns {'stacked' if stacked else 'in a loop'}{', torch.compile' if compiled else ''}"
    one = f"PyTorch loop, threads: {threads}, {how}"
    sides = {"mtl_jax lanes": our_time, one: lambda: peer_time(peers[:1], threads)}
    if count > 1:
        sides[f"PyTorch loops, a process on each of {count} cores"] = lambda: peer_time(peers, 1)
    times = {side: [] for side in sides}
    for measure in sides.values():  # caches of shapes and kernels fill
        measure()
    for repeat in range(options.repeats):
        for side, measure in sides.items():
            times[side].append(measure())
        _progress("steps", repeat, options.repeats)
    memory = [ours("memory"), peers[0]("memory"), sum(peer("memory") for peer in peers)][: len(sides)]
    for worker in (ours, *peers):
        worker.close()
    return _report(options.model, known, peer_info, flops, best, times, memory, trials, len(peer_lanes))


def _fastest(model, data, lane, steps):
    """(variant, threads, seconds a step of all that was tried, what the side says of itself)."""
    trials, failed = {}, []
    worker = Worker("torch_ablation.py")
    info = worker("load", model=model, data=data)
    for variant in info["variants"]:
        for threads in (1, CORES) if info["device"] == "cpu" and CORES > 1 else (CORES,):
            asked = {"variant": variant, "threads": threads, "lanes": [lane], "steps": steps}
            try:
                seconds = min(worker("lanes", **asked) for _ in range(3))  # the first one warms up
            except RuntimeError as error:  # no compiler, or not supported
                failed.append(f"{variant} with {threads} threads: {str(error).strip().splitlines()[-1]}")
                continue
            trials[json.dumps([variant, threads])] = seconds / steps
    worker.close()
    for line in failed:
        print(f"left out: {line}")
    if not trials:
        raise SystemExit("no variant of the peer ran")
    return *json.loads(min(trials, key=trials.get)), trials, info


def _report(model, known, peer, flops, best, times, memory, trials, peer_lanes):
    median = {side: statistics.median(results) for side, results in times.items()}
    ours = next(iter(median.values()))
    top = max(results["flops"] for results in best.values())
    rows = [("side", "ms a lane-step", "ratio", "tokens/s", "peak memory", "bound")]
    rows += [
        (
            side,
            f"{1e3 * seconds:.3f}",
            f"{seconds / ours:.2f}" if seconds is not ours else "",
            f"{known['tokens'] / seconds:,.0f}",
            f"{bytes_ / 2**20:,.0f} MiB",
            _bound(flops, known["parameters"], seconds, top, best["PyTorch"]["bytes"]),
        )
        for (side, seconds), bytes_ in zip(median.items(), memory, strict=True)
    ]
    notes = (
        f"{model}: {known['parameters']:,} parameters, {known['tokens']:.0f} real tokens and {flops / 1e6:.1f} MFLOP "
        f"of products a step. "
        f"mtl_jax: {known['steps']} steps of {len(known['lanes'])} lanes on {known['device']}, read and compiled in "
        f"{known['build_seconds']:.1f} s; PyTorch {peer['version']}: {peer_lanes} lanes on {peer['device']}. "
        f"Ceilings: {top / 1e9:.0f} GFLOP/s (float32 product), {best['PyTorch']['bytes'] / 1e9:.0f} GB/s (a += b)."
    )
    for trial, seconds in sorted(trials.items(), key=lambda item: item[1]):
        print(f"  tried {trial}: {1e3 * seconds:.3f} ms")
    mine, loop = list(times.values())[:2]
    claim = _claim(model, "steps", loop, mine, rows[1][-1])
    numbers = {
        "seconds_a_lane_step": times,
        "ratios": {s: t / ours for s, t in median.items()},
        "peak_bytes": memory,
        "known": known,
        "peer": peer,
        "flops": flops,
        "ceilings": best,
        "trials": trials,
    }
    return rows, claim, numbers, notes


def _bound(flops, parameters, seconds, top_flops, top_bytes) -> str:
    """Which share of the time the products, and the passes of AdamW over its state, need at the machine's best.

    AdamW reads and writes value and two moments, and reads a gradient that was written: 8 passes of 4 bytes.
    """
    products, passes = flops / top_flops / seconds, 32 * parameters / top_bytes / seconds
    return f"products {products:.0%}, AdamW's memory {passes:.0%}"


def _progress(what, repeat, repeats):
    print(f"{what}: {repeat + 1} of {repeats}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
