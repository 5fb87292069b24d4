"""An ablation of 64 lanes in 1, 2 and 4 processes of one CPU device: the same table, and its time.

    python benchmarks/process_ablation.py
    python benchmarks/process_ablation.py --steps=300 --processes=1,2,4

Eight strengths × eight seeds of two small tasks, soft sharing. Each number of processes runs it once without faults,
and once with one process killed in the middle, after which as many are started again. Tables are compared bitwise. CPU
seconds are those of all processes; seconds are by the clock, on however many cores the machine has.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import resource
import signal
import sys
import tempfile
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.launching import CONFIG, EVERY, STEPS, Launcher, child_of
from benchmarks.record import Claim, save

STRENGTHS = (0.0, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0, 200.0)
SEEDS = 8


class Measured(NamedTuple):
    """One ablation: seconds by the clock, CPU seconds of all processes, its table."""

    seconds: float
    cpu_seconds: float
    table: str


def config_text(steps: int) -> str:
    lanes = f"""{steps}, {steps // 2}, {max(1, steps // 10)}
    default.add_sweep(config, "strength", field="penalties.l2.strength", points={STRENGTHS})
    config.ablation.num_seeds, config.ablation.limits = {SEEDS}, False"""
    text = CONFIG.replace(f"{STEPS}, 20, {EVERY}", lanes)
    assert text != CONFIG
    return text


def start(launcher: Launcher, workdir: pathlib.Path, count: int):
    flags = [f"--config={launcher.folder / 'lanes.py'}", f"--workdir={workdir}"]
    if count == 1:
        return [launcher.start_mode("ablate", flags, 1)]
    together = launcher.together(count, 10)
    return [launcher.start_mode("ablate", [*flags, *together, f"--process={n}"], 1) for n in range(count)]


def finish(launcher: Launcher, processes: list) -> None:
    for ended in [launcher.end(process) for process in processes]:
        if ended.status:
            raise SystemExit(f"status {ended.status}:\n{ended.output}")


def measure(launcher: Launcher, count: int, killed: bool) -> Measured:
    """Runs the ablation by so many processes; `killed`: the last of them dies after half of the checkpoints."""
    workdir = launcher.folder / f"{count}_{killed}"
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    processes = start(launcher, workdir, count)
    if killed:
        while not any(int(p.name) > 0 for p in workdir.glob("programs/*/turn_*/checkpoints/*") if p.name.isdigit()):
            if any(process.poll() is not None for process in processes):
                raise SystemExit("it ended before the first checkpoint")
            time.sleep(0.02)
        os.kill(processes[0].pid if count == 1 else child_of(processes[-1].pid), signal.SIGKILL)
        for process in processes:
            launcher.end(process)
        if (workdir / "ablation.csv").exists():
            raise SystemExit("it was complete before the kill; raise --steps")
        processes = start(launcher, workdir, count)
    finish(launcher, processes)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(time.monotonic() - began, cpu, (workdir / "ablation.csv").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--processes", default="1,2,4")
    options = parser.parse_args()
    counts = [int(count) for count in options.processes.split(",")]
    rows, numbers, tables = [("processes", "seconds", "CPU seconds", "with one killed")], [], []
    with tempfile.TemporaryDirectory() as temporary:
        launcher = Launcher(pathlib.Path(temporary))
        (launcher.folder / "lanes.py").write_text(config_text(options.steps))
        for count in counts:
            finish(launcher, start(launcher, launcher.folder / f"first_{count}", count))  # fills the caches
            whole, cut = (measure(launcher, count, killed) for killed in (False, True))
            tables += [whole.table, cut.table]
            rows.append((str(count), f"{whole.seconds:.0f}", f"{whole.cpu_seconds:.0f}", f"{cut.seconds:.0f}"))
            numbers.append({"processes": count, "whole": whole[:2], "killed": cut[:2]})
            print(rows[-1], "tables equal so far:", len(set(tables)) == 1, flush=True)
    different = len(set(tables)) - 1
    lanes = len(STRENGTHS) * SEEDS
    what = f"tables of {lanes} lanes that differ, in {options.processes} processes, whole and with one killed"
    claim = Claim(what, "0", different, different, different, not different)
    save("process_ablation", [claim], {f"An ablation of {lanes} lanes, {options.steps} steps": rows}, numbers)
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
