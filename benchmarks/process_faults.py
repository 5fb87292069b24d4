"""Faults while two processes ablate and predict: they end with the same files, or say clearly why not.

    python benchmarks/process_faults.py
    python benchmarks/process_faults.py --kills=10 --stops=5 --flips=4

An ablation (six lanes, a checkpoint every four steps) and a prediction (3,000 records) are run by two processes of two
CPU devices each without faults. Then, in turns for both:

    kill -9     of one of the two at a random moment; the other has to end by itself; both are started again, half of
                the times as one process
    SIGTERM     to one of the two at a random moment; both end, and are started again
    disk full   the folder of the results lies on a tmpfs that is too small, which is made larger when they have failed
                (needs the right to mount)
    cache       one bit of a file of the cache of data is flipped before they start

"equal": ablation.csv, or the file of predictions, is bitwise that without faults. "refused": it ended with status 2 and
a message. Anything else is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from benchmarks.faults import Case, judged_files, summary
from benchmarks.launching import CONFIG, EVERY, PATIENCE, STEPS, Ended, Launcher, child_of, flip
from benchmarks.record import Claim, save

LANES = """40, 10, 4
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.0, 0.1, 200.0))
    config.ablation.num_seeds, config.ablation.limits = 2, False"""
HEARTBEAT = 10
RECORDS = 3000


class Work(NamedTuple):
    """One of the two: its mode, flags, and the file that is compared, within the folder of the results."""

    mode: str
    flags: tuple[str, ...]
    file: str


class Pair(Launcher):
    """Two processes of two devices each."""

    def begin(self, work: Work, target: pathlib.Path, count: int = 2) -> list[subprocess.Popen]:
        """`target`: folder of the results."""
        flags = [flag.format(target=target) for flag in work.flags]
        if count == 1:
            return [self.start_mode(work.mode, flags, 2)]
        together = self.together(count, HEARTBEAT)
        return [self.start_mode(work.mode, [*flags, *together, f"--process={n}"], 2) for n in range(count)]

    def finish_work(self, work: Work, target: pathlib.Path, count: int = 2) -> list[Ended]:
        return [self.end(process) for process in self.begin(work, target, count)]


def interrupted(pair: Pair, work: Work, number: signal.Signals, seed: int, seconds: float, wanted: str) -> Case:
    """A fault at a random moment, then another start."""
    kind = "kill -9" if number == signal.SIGKILL else "SIGTERM"
    rng, target = random.Random(f"{kind} {work.mode} {seed}"), pair.folder / f"{work.mode}_{kind.split()[0]}_{seed}"
    victim, delay, count = rng.randrange(2), rng.uniform(0.3, 1.0) * seconds, 2 - seed % 2
    target.mkdir()
    processes = pair.begin(work, target)
    time.sleep(delay)
    if number == signal.SIGKILL:
        if worker := child_of(processes[victim].pid):
            os.kill(worker, signal.SIGKILL)
    else:
        processes[victim].send_signal(number)
    ends = [pair.end(process) for process in processes]
    detail = f"{work.mode}, process {victim} after {delay:.1f} s, then {count} processes"
    statuses = [ended.status for ended in ends]
    if any(status is None for status in statuses) or any("Traceback" in ended.output for ended in ends):
        outcome = "hang" if None in statuses else "traceback"
        return Case(kind, detail, outcome, str(statuses) + ends[1 - victim].output[-300:])
    ended = pair.finish_work(work, target, count)[0]
    return judged_files(kind, f"{detail} {statuses}", target / work.file, ended, wanted)


def full_disk(pair: Pair, work: Work, size: int, wanted: str) -> list[Case]:
    """On a tmpfs that holds a part of what is written; afterwards with room."""
    target = pair.folder / f"{work.mode}_small"
    target.mkdir()
    options = ("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(target))
    made = subprocess.run(options, capture_output=True, text=True)
    if made.returncode:
        return [Case("disk full", f"{work.mode}: {made.stderr.strip()}", "not run", "")]
    try:
        ended = pair.finish_work(work, target)
        cases = [judged_files("disk full", f"{work.mode}, {size} bytes", target / work.file, e, wanted) for e in ended]
        subprocess.run(["mount", "-o", f"remount,size={1 << 28}", str(target)], check=True)
        again = pair.finish_work(work, target)[0]
        return [*cases, judged_files("disk full", f"{work.mode}, then with room", target / work.file, again, wanted)]
    finally:
        subprocess.run(["umount", str(target)], check=False)


def damaged_cache(pair: Pair, work: Work, seed: int, wanted: str) -> Case:
    """One bit of a file of the cache."""
    rng, target = random.Random(f"cache {work.mode} {seed}"), pair.folder / f"{work.mode}_cache_{seed}"
    files = sorted(f for f in (pair.folder / "data").rglob("*") if f.is_file() and f.stat().st_size)
    file = rng.choice(files)
    place = rng.randrange(8 * file.stat().st_size)
    flip(file, place)
    target.mkdir()
    ended = pair.finish_work(work, target)[0]
    return judged_files("cache", f"{work.mode}, {file.name[:12]}, bit {place}", target / work.file, ended, wanted)


def campaign(pair: Pair, options: argparse.Namespace) -> list[Case]:
    run, source = pair.folder / "run", pair.folder / "input.jsonl"
    rng = random.Random(0)
    records = ([f"w{rng.randrange(300)}" for _ in range(8)] for _ in range(RECORDS))
    source.write_text("".join(json.dumps({"words": words}) + "\n" for words in records))
    if pair.finish(run).status:
        raise SystemExit("the run to predict with failed")
    works = [
        Work("ablate", (f"--config={pair.folder / 'lanes.py'}", "--workdir={target}"), "ablation.csv"),
        Work("predict", (f"--workdir={run}", f"--input={source}", "--output={target}/out.jsonl"), "out.jsonl"),
    ]
    cases = []
    for work in works:
        for name in ("first", "whole"):  # the first fills the caches, so that all take as long
            target = pair.folder / f"{work.mode}_{name}"
            target.mkdir()
            began = time.monotonic()
            ended = pair.finish_work(work, target)
            seconds = time.monotonic() - began
            if any(e.status for e in ended):
                raise SystemExit(f"{work.mode} without faults failed:\n{ended[0].output}\n{ended[1].output}")
        wanted = (target / work.file).read_text()
        print(f"{work.mode} without faults: {seconds:.1f} s", flush=True)
        for number, count in ((signal.SIGKILL, options.kills), (signal.SIGTERM, options.stops)):
            share = range(count // 2 + (count % 2 if work.mode == "ablate" else 0))
            cases += [interrupted(pair, work, number, seed, seconds, wanted) for seed in share]
        size = 100_000 if work.mode == "ablate" else len(wanted) // 2
        cases += full_disk(pair, work, size, wanted)
        cases += [damaged_cache(pair, work, seed, wanted) for seed in range(options.flips // 2)]
        print(f"{work.mode}: {[case.outcome for case in cases]}", flush=True)
        shutil.rmtree(target)
    return cases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 10), ("stops", 5), ("flips", 4)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        pair = Pair(pathlib.Path(temporary))
        lanes = CONFIG.replace(f"{STEPS}, 20, {EVERY}", LANES)
        assert lanes != CONFIG and PATIENCE > HEARTBEAT
        (pair.folder / "lanes.py").write_text(lanes)
        cases = campaign(pair, options)
    for case in cases:
        if case.outcome not in ("equal", "not run"):
            print(f"{case.outcome}: {case.kind}, {case.detail}: {case.said[:300]}")
    silent = sum(case.outcome in ("different", "traceback", "hang") for case in cases)
    claim = Claim(
        "faults of two processes that ended otherwise than equal or refused", "0", silent, silent, silent, not silent
    )
    notes = "Two processes of two CPU devices on one machine."
    save("process_faults", [claim], {"Faults of two processes": summary(cases)}, [c._asdict() for c in cases], notes)
    sys.exit(silent > 0)


if __name__ == "__main__":
    main()
