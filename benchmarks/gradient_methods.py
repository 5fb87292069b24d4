"""Methods that combine K gradients: a step over the plain sum, mtl_jax against LibMTL and TorchJD.

    python benchmarks/gradient_methods.py --layer=transformer
    python benchmarks/gradient_methods.py --layer=bilstm --tasks=8

K tasks share all layers: two transformer layers of width 256, or two BiLSTM layers of 128, over 2,000 words; AdamW. Two
settings: "own", 4 rows of 64 tokens of each task's own; "shared", 16 rows that all tasks read. Texts fill their rows,
there is no dropout, and both sides start from the same values. First the losses of all sides on the same batch are
compared (1e-4) and so are the combined gradients (relative to their norm, see APART). Then all sides take turns; shown
are medians of the ratios to the side's own plain sum in the same round, and the bytes that a step takes beyond
parameters, AdamW's moments and data. Of the ways to call a peer the fastest in a trial is kept. In "shared" the last
method stands there three times more: with `config.aggregation.jacobian` = "taps" and "vjp", the two ways to the K
gradients of which mtl_jax takes the faster one by itself, and with `config.aggregation.level = "representation"`: it
compares the gradients of what the shared layers give out, as MGDA-UB does (Sener & Koltun 2018), and takes one backward
pass through them. `--peers=none` times mtl_jax alone.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from record import CORES, Claim, save
from workers import Worker

GOALS = {"own": 1.3, "shared": 5.7}  # "shared": products of one forward and K = 8 backward passes
METHODS = ("mgda", "pcgrad", "cagrad", "nash_mtl", "upgrad", "imtl_g", "aligned_mtl")
FEW = ("pcgrad", "cagrad", "upgrad")  # at other K: functions of the Gram matrix cost alike
OURS, OF_REPRESENTATIONS = "mtl_jax", "mtl_jax, of representations"
WAYS = {  # side -> fields of config.aggregation
    OURS: {},
    "mtl_jax, taps": {"jacobian": "taps"},
    "mtl_jax, pullbacks": {"jacobian": "vjp"},
    OF_REPRESENTATIONS: {"level": "representation"},
}
# how far the combined gradients may be apart. None: the side draws its order (PCGrad), or stops early: TorchJD's MGDA
# after 100 steps of Frank-Wolfe, LibMTL's at a weight of 0.999, Nash-MTL after 20 of its convex programs
APART = {"sum": 1e-4, "cagrad": 1e-3, "upgrad": 1e-3, "imtl_g": 1e-3, "aligned_mtl": 1e-3}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="transformer", choices=("transformer", "bilstm"))
    parser.add_argument("--settings", default="own,shared")
    parser.add_argument("--tasks", default="4,8,16", help="K, several with commas")
    parser.add_argument("--methods", help=f"with commas; default: all at K = 8, {', '.join(FEW)} at others")
    parser.add_argument("--rows", type=int, default=0, help="default: 4 a task in 'own', 16 in 'shared'")
    parser.add_argument("--tokens", type=int, default=64, help="of a text, which fills a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of a side in a round")
    parser.add_argument("--peers", default="all", choices=("all", "none"))
    parser.add_argument("--threads", type=int, default=CORES, help="of PyTorch")
    options = parser.parse_args()
    results = []
    for setting in options.settings.split(","):
        for tasks in map(int, options.tasks.split(",")):
            results += _measured(options, setting, tasks)
    claims = [claim for setting in options.settings.split(",") for claim in _claims(options.layer, setting, results)]
    notes = (
        'Ratios are to the side\'s own plain sum. Bound of "shared": one forward and K backward passes are '
        "(1 + 2K)/3 of the plain step's products, 5.7 at K = 8; below it go AdamW and small products that K cotangents "
        "make larger."
    )
    name = "gradient_methods" + ("" if options.layer == "transformer" else f"_{options.layer}")
    name += "" if "8" in options.tasks.split(",") else f"_{options.tasks.replace(',', '_')}"
    save(name, claims, _tables(options.layer, results), results, notes)


def _measured(options, setting: str, tasks: int) -> list[dict]:
    chosen = METHODS if tasks == 8 else FEW
    methods = ("sum", *(options.methods.split(",") if options.methods else chosen))
    rows = options.rows or {"own": 4, "shared": 16}[setting]
    ours = Worker("jax_methods.py")
    peer = None if options.peers == "none" else Worker("torch_methods.py", {"OMP_NUM_THREADS": str(options.threads)})
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "side.npz")
        shape = {"layer": options.layer, "setting": setting, "tasks": tasks, "rows": rows, "tokens": options.tokens}
        known = ours("load", **shape, file=file)
        variants = {}
        if peer:
            variants = peer("load", file=file, known=known, setting=setting, threads=options.threads)["variants"]
        sides = {(method, OURS): {"apart": 0.0} for method in methods}
        if setting == "shared":
            # the same gradient in two ways, and another one, on purpose
            sides |= {(methods[-1], side): {"apart": None} for side in WAYS if side != OURS}
        temporaries = {
            (method, side): ours("compile", method=method, **WAYS[side])["temporaries"] for method, side in sides
        }
        for method in methods:
            gradients = os.path.join(folder, f"{method}.npz")
            losses = ours("gradients", method=method, file=gradients)["losses"]
            for variant, trial in _kept(peer, method, variants.get(method, ()), gradients, losses, known).items():
                sides[method, variant] = trial
        results = _timed(options, ours, peer, sides)
    for one in results:
        one |= {"layer": options.layer, "setting": setting, "tasks": tasks}
        one["bytes"] = temporaries.get((one["method"], one["side"]), one["bytes"])
    ours.close()
    if peer:
        peer.close()
    print(f"{setting}, K = {tasks}: measured", file=sys.stderr)
    return results


def _kept(peer, method: str, variants, gradients: str, losses, known) -> dict[str, dict]:
    """{variant: difference of gradients}: of each library the fastest in a trial that gives the same gradient."""
    best: dict[str, tuple[float, str, dict]] = {}
    for variant in variants:
        try:
            parameters = peer("choose", method=method, variant=variant)
            compared = peer("compare", file=gradients)
            seconds = min(peer("run", steps=1) for _ in range(2))
        except RuntimeError as error:
            print(f"{method}, {variant} does not run: {str(error).strip().splitlines()[-1]}", file=sys.stderr)
            continue
        if parameters != known["parameters"]:
            sys.exit(f"{variant} has {parameters} parameters, mtl_jax {known['parameters']}")
        if max(abs(a - b) for a, b in zip(compared["losses"], losses, strict=True)) > 1e-4:
            sys.exit(f"{method}, {variant}: losses {compared['losses']}, of mtl_jax {losses}")
        if compared["apart"] > APART.get(method, float("inf")):
            print(f"{method}, {variant}: gradient {compared['apart']:.1e} away, left out", file=sys.stderr)
            continue
        library = variant.split(",")[0]
        if library not in best or seconds < best[library][0]:
            best[library] = (seconds, variant, {"apart": compared["apart"]})
    return {variant: trial for _, variant, trial in best.values()}


def _timed(options, ours, peer, sides) -> list[dict]:
    """Rounds in which every side takes its turn, the plain sums among them."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in sides}
    size = {}
    for number in range(options.rounds + 1):
        for method, side in sides:
            if side in WAYS:
                spent = ours("run", method=method, steps=options.steps, **WAYS[side])
            else:  # AdamW's moments are made anew, in a step that is not counted
                peer("choose", method=method, variant=side)
                peer("run", steps=1)
                spent = peer("run", steps=options.steps)
                if not number:
                    size[method, side] = peer("memory")
            if number:  # the first warms up
                seconds[method, side].append(spent)
    results = []
    for (method, side), spent in seconds.items():
        first = seconds["sum", OURS if side in WAYS else "plain"]
        ratios = [a / b for a, b in zip(spent, first, strict=True)]
        results.append(
            {
                "method": method,
                "side": side,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "ms": 1e3 * statistics.median(spent) / options.steps,
                "bytes": size.get((method, side)),
                "apart": sides[method, side]["apart"],
            }
        )
    return results


def _claims(layer: str, setting: str, results) -> list[Claim]:
    counts = sorted({one["tasks"] for one in results if one["setting"] == setting})
    sides = [OURS, OF_REPRESENTATIONS] if setting == "shared" else [OURS]
    return [_claim(layer, setting, n, side, results) for n in counts if setting == "own" or n == 8 for side in sides]


def _claim(layer: str, setting: str, count: int, side: str, results) -> Claim:
    of_setting = [one for one in results if (one["setting"], one["tasks"]) == (setting, count)]
    ours = [one for one in of_setting if one["side"] == side and one["method"] != "sum"]
    middle = statistics.median(one["ratio"] for one in ours)
    every = [ratio for one in ours for ratio in one["ratios"]]
    reached = middle <= GOALS[setting]
    words = {"own": "each task with rows of its own", "shared": "one batch that all tasks read"}[setting]
    bound = ""
    if not reached and side == OURS:
        bound = {
            "own": "K gradients are written and read where the plain step has one",
            "shared": f"products: one forward and K backward passes are {(1 + 2 * count) / 3:.1f}× the plain step's",
        }[setting]
    of = ", of representations" if side == OF_REPRESENTATIONS else ""
    what = f"{layer}, K = {count}, {words}: method{of} / plain sum, median over the methods"
    return Claim(what, f"≤ {GOALS[setting]}×", middle, min(every), max(every), reached, bound)


def _tables(layer: str, results) -> dict[str, list[tuple[str, ...]]]:
    tables = {}
    for setting in dict.fromkeys(one["setting"] for one in results):
        rows = [("K", "method", "side", "ms a step", "ratio", "lowest to highest", "MiB of a step", "gradient apart")]
        for one in (one for one in results if one["setting"] == setting):
            locked = f"{one['bytes'] / 2**20:.0f}" if one["bytes"] is not None else ""
            spread = f"{min(one['ratios']):.2f} to {max(one['ratios']):.2f}"
            rows.append(
                (
                    str(one["tasks"]),
                    one["method"],
                    one["side"],
                    f"{one['ms']:.1f}",
                    f"{one['ratio']:.2f}",
                    spread,
                    locked,
                    "" if one["apart"] is None else f"{one['apart']:.0e}",
                )
            )
        tables[f"{layer}, {setting}"] = rows
    return tables


if __name__ == "__main__":
    main()
