"""All benchmarks for a CPU one after another, and what they found as one page: `make benchmark`.

    python benchmarks/all.py
    python benchmarks/all.py --only=steps_bert_mini,packing
    python benchmarks/all.py --page

The commands are shortened to take half an hour together on 2 cores; by itself, without the options given here, each
measures more: other K and meshes, `torch.compile`, more methods and rounds. RESULTS.md gets a section for each file in
benchmarks/results/; sections of what was measured elsewhere stay. --page measures nothing. Nothing else should run on
the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import time

import record

HERE = pathlib.Path(__file__).resolve().parent
THREADS = f"--threads={record.CORES}"  # of PyTorch; by itself each command tries fewer too
# name of the results -> (title, command); one row for each that is run
BENCHMARKS = {
    "steps_bert_mini": ("Equal shapes: BERT-mini", f"steps.py --model=bert_mini --no-compile {THREADS} --rounds=3"),
    "steps_minilm": ("Equal shapes: MiniLM", f"steps.py --model=minilm --no-compile {THREADS} --rounds=3"),
    "steps_bilstm": ("Equal shapes: BiLSTM", f"steps.py --model=bilstm {THREADS} --rounds=15"),
    "packing": ("Real text", f"packing.py --no-compile --texts=90 {THREADS}"),
    "penalties": ("Penalties", "penalties.py --tasks=4 --rounds=13 --steps=1"),
    "gradient_methods": ("Gradient methods", "gradient_methods.py --tasks=8 --methods=upgrad --rounds=5 --steps=1"),
    "ablation_small": ("A grid, small models", "ablation.py --model=small --only=steps --repeats=1"),
    "ablation_bilstm": ("A grid, BiLSTM", "ablation.py --model=bilstm --only=steps --repeats=1 --peer-lanes=2"),
    "memory": ("Memory", "memory.py --tasks=1,4"),
    "collectives": ("Devices", "collectives.py --tasks=4 --meshes=task,model"),
    "start": ("Start", "start.py --repeats=2 --config=configs/quickstart.py:soft"),
}
# too long for half an hour, or not about speed: run by themselves, or by --only
OTHERS = {
    "penalties_16": ("Penalties, K = 16", "penalties.py --tasks=16 --rounds=9 --steps=1"),
    "gradient_methods_4_16": (
        "Gradient methods, K = 4 and 16",
        "gradient_methods.py --tasks=4,16 --methods=upgrad --rounds=7 --steps=1",
    ),
    "gradient_methods_bilstm": (
        "Gradient methods, BiLSTM",
        "gradient_methods.py --layer=bilstm --tasks=8 --methods=upgrad --rounds=5 --steps=1",
    ),
    "faults": ("Faults", "faults.py"),
    "process_faults": ("Faults of two processes", "process_faults.py"),
    "process_ablation": ("An ablation in several processes", "process_ablation.py"),
    "growth": ("Growth in the number of tasks", "growth.py"),
    "growth_data_words": ("Growth in the number of records", "growth_data.py"),
    "growth_trunk": ("Growth in the number of tasks: the trunk alone", "growth.py --trunk"),
    "scoring": ("Scoring and predicting", "scoring.py"),
    "sharing_snips": ("Ways of sharing, SNIPS", "sharing.py"),
    "sharing_ewt": ("Ways of sharing, UD EWT", "sharing.py --table=ewt"),
    "experts_bilstm": ("Shared and private columns, K = 16", "experts.py"),
    "topologies": ("One device and several", "topologies.py"),
    "on_paper": ("On paper: large trunks on machines that are not here", "on_paper.py"),
    "gpu": ("One card", "gpu.py"),
}
PLOTS = ("packing", "gradient_methods", "ablation_small", "ablation_bilstm")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="names, with commas")
    parser.add_argument("--page", action="store_true", help="write RESULTS.md from benchmarks/results, measure nothing")
    options = parser.parse_args()
    known, names = BENCHMARKS | OTHERS, options.only.split(",")
    if unknown := set(names) - known.keys():
        raise SystemExit(f"{', '.join(sorted(unknown))}: no benchmark; there are {', '.join(known)}")
    failed = [] if options.page else [name for name in names if not _measure(name, known[name][1])]
    results = {
        name: json.loads(file.read_text()) for name in known if (file := record.FOLDER / f"{name}.json").exists()
    }
    for name in PLOTS:
        if name in results:
            _plot(results[name], known[name][0], HERE / "figures" / f"{name}.png")
    page = HERE / "RESULTS.md"
    titles = {name: title for name, (title, _) in known.items()}
    page.write_text(_page(page.read_text() if page.exists() else "", results, titles))
    print(f"\n{page}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _measure(name: str, command: str) -> bool:
    began = time.monotonic()
    print(f"\n== {name}", flush=True)
    file, *arguments = shlex.split(command)
    done = subprocess.run([sys.executable, str(HERE / file), *arguments], cwd=HERE.parent)
    print(f"== {name}: {time.monotonic() - began:.0f} s, status {done.returncode}", flush=True)
    return not done.returncode


def _page(before: str, results: dict[str, dict], titles: dict[str, str]) -> str:
    """RESULTS.md with the sections of `results` written anew; the others stay as they are in `before`."""
    sections = dict(re.findall(r"^## (.*)\n((?:(?!## ).*\n?)*)", before, re.MULTILINE))
    sections |= {titles[name]: _section(name, titles[name], one) for name, one in results.items()}
    ordered = [title for title in titles.values() if title in sections]
    ordered += [title for title in sections if title not in ordered]
    lines = ["# What was measured", "", "Each section names its command and its machine. `make benchmark` and"]
    lines += ["`python benchmarks/all.py` replace the sections of what they measure, and leave the others."]
    for title in ordered:
        lines += ["", f"## {title}", "", sections[title].strip("\n")]
    return "\n".join(lines) + "\n"


def _section(name: str, title: str, one: dict) -> str:
    """Command, machine, claims, tables and figure of one benchmark."""
    machine = one["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    lines = [f"    {one['command']}", ""]
    lines.append(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}; {versions}.")
    if one["claims"]:
        lines += [
            "",
            "| claim | goal | median (lowest to highest) | reached | what bounds it |",
            "|---|---|---|---|---|",
        ]
    for claim in (record.Claim(**fields) for fields in one["claims"]):
        reached = "yes" if claim.reached else "**no**"
        lines.append(_row((claim.what, claim.goal, record.figure(claim), reached, claim.bound)))
    for heading, (header, *rows) in one["tables"].items():
        lines += ["", f"**{heading}**", "", _row(header), "|---" * len(header) + "|", *map(_row, rows)]
    if one["notes"]:
        lines += ["", one["notes"]]
    if (HERE / "figures" / f"{name}.png").exists():
        lines += ["", f"![{title}](figures/{name}.png)"]
    return "\n".join(lines)


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _plot(results: dict, title: str, file: pathlib.Path) -> None:
    """The claims of a benchmark: median and spread as a point with a bar, the goal as a mark."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    claims = [record.Claim(**fields) for fields in results["claims"]]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.5 * len(claims)), layout="constrained")
    for place, claim in enumerate(reversed(claims)):
        axes.errorbar(
            claim.measured,
            place,
            xerr=[[claim.measured - claim.low], [claim.high - claim.measured]],
            fmt="o",
            color="tab:blue" if claim.reached else "tab:red",
            capsize=3,
        )
        if goal := re.search(r"\d+(\.\d+)?", claim.goal):
            axes.plot(float(goal[0]), place, marker="|", markersize=16, color="black")
    words = [textwrap.fill(claim.what, 60) for claim in reversed(claims)]
    axes.set_yticks(range(len(claims)), words, fontsize=8)
    axes.set_ylim(-0.6, len(claims) - 0.4)
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.set_xlabel("ratio; |: the goal, blue: reached")
    axes.set_title(title)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
