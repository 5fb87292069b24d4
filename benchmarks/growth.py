"""What K tasks cost: compiling, program size, start, step time and memory, each as a curve over K.

    python benchmarks/growth.py
    python benchmarks/growth.py --tasks=4,16 --ways=hard --no-start
    python benchmarks/growth.py --trunk

The configs are those of `growth_config.py`: a BiLSTM of width 32 and two layers, a generated data set for each task.
Ways: hard sharing, columns with a penalty, and drawn blocks, where a step has the same tokens whatever K is. Each K
is a process of its own: CPU seconds of tracing and lowering, and of XLA's compilation, of one train step; lines of the
compiled program; its memory plan and the peak of the process; then steps of all K in turns. PyTorch, with a dict of
heads, a module for each column and the same shapes and tokens, takes its turns too, where it is installed. Last,
`launch.py` is started as a user does, with empty caches and with full ones, until its first step is logged. --trunk:
only the gradient of the trunk, without heads, labels and optimizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from growth_config import WAYS
from peers import in_turns, ratios
from record import Claim, save
from start import first_step
from workers import Worker

HERE = pathlib.Path(__file__).resolve().parent
CURVES = {  # of a measurement -> (label, key of the peer's)
    "compile": ("CPU seconds to lower and compile", ""),
    "lines": ("lines of the compiled program", ""),
    "first": ("seconds to the first step", ""),
    "cached": ("seconds to the first step, cached", ""),
    "token": ("microseconds a token", "peer_token"),
    "peak": ("peak memory, MiB", "peer_peak"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="4,16,64,256", help="K, several with commas")
    parser.add_argument("--ways", default=",".join(WAYS), help="with commas")
    parser.add_argument("--rounds", type=int, default=7, help="in which each K takes its turn")
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--trunk", action="store_true", help="without heads, labels and optimizer; no start, no peer")
    parser.add_argument("--no-start", action="store_true", help="leave out the starts of launch.py")
    options = parser.parse_args()
    counts = sorted(map(int, options.tasks.split(",")))
    has_peer = importlib.util.find_spec("torch") is not None and not options.trunk
    results, claims = {}, []
    for way in options.ways.split(","):
        results[way] = _measured(way, counts, options, has_peer)
        claims += _claims(way, counts, results[way])
    name = "growth_trunk" if options.trunk else "growth"
    notes = "" if has_peer or options.trunk else "PyTorch is not installed here and was left out (`make benchmark`)."
    save(name, claims, {_TITLES[way]: _rows(results[way]) for way in results}, results, notes)
    _draw(results, counts, HERE / "figures" / f"{name}.png")


_TITLES = {
    "hard": "Hard sharing",
    "columns": "Columns with L2 to the mean",
    "drawn": "One trunk, 4 drawn blocks a step",
}


def _measured(way: str, counts: list[int], options, has_peer: bool) -> dict[int, dict]:
    """{K: what was measured}"""
    ours, peers, results = {}, {}, {}
    for count in counts:
        ours[count] = Worker("growth_worker.py")
        one = ours[count]("load", way=way, tasks=count, trunk=options.trunk)
        print(f"{way}, K = {count}: {one}", file=sys.stderr, flush=True)
        results[count] = {**one, "compile": one["lower"] + one["compile"], "lower": one["lower"]}
        if has_peer:
            peers[count] = Worker("torch_growth.py")
            results[count]["peer_parameters"] = peers[count]("load", way=way, tasks=count)["parameters"]
    sides = {("", count): worker for count, worker in ours.items()}
    sides |= {("peer_", count): worker for count, worker in peers.items()}
    for worker in sides.values():
        worker("run", steps=2)  # warms up
    seconds = in_turns({s: lambda w=w: w("run", steps=options.steps) for s, w in sides.items()}, options.rounds)
    for (side, count), worker in sides.items():
        results[count][f"{side}seconds"] = seconds[side, count]
        results[count][f"{side}token"] = 1e6 * statistics.median(seconds[side, count]) / results[count]["tokens"]
        results[count][f"{side}peak"] = worker("peak") / 2**20
        worker.close()
    if not (options.no_start or options.trunk):
        for count in counts:
            with tempfile.TemporaryDirectory() as folder:
                config = f"benchmarks/growth_config.py:{way},{count}"
                results[count]["first"], results[count]["cached"] = (
                    first_step(config, pathlib.Path(folder), number) for number in range(2)
                )
    return results


def _claims(way: str, counts: list[int], results: dict[int, dict]) -> list[Claim]:
    low, high = counts[0], counts[-1]
    size = results[high]["compile"] / results[low]["compile"]
    what = f"{way}: CPU seconds of compiling, K = {high} / K = {low}"
    claims = [Claim(what, "≤ 1.5×", size, size, size, size <= 1.5)]
    tokens = results[high]["tokens"] / results[low]["tokens"]
    of_rounds = ratios([s / tokens for s in results[high]["seconds"]], results[low]["seconds"])
    what = f"{way}: step time a token, K = {high} / K = {low}"
    claims.append(Claim(what, "≤ 1.1×", *of_rounds, of_rounds[0] <= 1.1))
    if "first" in results.get(64, {}):
        first = results[64]["first"]
        what = f"{way}: seconds from command to first step, K = 64, nothing cached"
        claims.append(Claim(what, "≤ 60 s", first, first, first, first <= 60))
    return claims


def _rows(results: dict[int, dict]) -> list[tuple[str, ...]]:
    keys = [
        key
        for curve, (_, peer) in CURVES.items()
        for key in (curve, peer)
        if key and key in next(iter(results.values()))
    ]
    labels = {
        key: label
        for curve, (label, peer) in CURVES.items()
        for key, label in ((curve, label), (peer, f"PyTorch: {label}"))
    }
    header = ("K", "parameters", "memory plan, MiB", *(labels[key] for key in keys))
    return [
        header,
        *(
            (
                str(count),
                f"{one['parameters']:,}",
                f"{one['plan'] / 2**20:.1f}",
                *(f"{one[key]:,}" if isinstance(one[key], int) else f"{one[key]:.3g}" for key in keys),
            )
            for count, one in results.items()
        ),
    ]


def _draw(results: dict[str, dict[int, dict]], counts: list[int], file: pathlib.Path) -> None:
    """A panel for each curve, a line for each way of sharing; dashed: PyTorch."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    some = next(iter(results.values()))[counts[0]]
    curves = {key: labels for key, labels in CURVES.items() if key in some}
    figure, panels = pyplot.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for panel, (key, (label, peer)) in zip(panels.flat, curves.items(), strict=False):
        for number, (way, by_count) in enumerate(results.items()):
            for name, style in ((key, "o-"), (peer, "x--")):
                if name in by_count[counts[0]]:
                    legend = _TITLES[way] if style == "o-" else f"{_TITLES[way]}, PyTorch"
                    panel.plot(counts, [by_count[c][name] for c in counts], style, color=f"C{number}", label=legend)
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, map(str, counts))
        panel.set_ylim(bottom=0)
        panel.set_xlabel("tasks K")
        panel.set_title(label, fontsize=10)
    for panel in list(panels.flat)[len(curves) :]:
        panel.set_axis_off()
    panels.flat[list(curves).index("token")].legend(fontsize=7)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
