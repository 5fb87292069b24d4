"""Faults while a run trains, and in what it leaves: it ends with the same parameters, or says clearly why not.

    python benchmarks/faults.py
    python benchmarks/faults.py --kills=20 --stops=5 --deaths=4 --flips=60 --cuts=20 --jobs=2

A small run (two tasks, soft sharing, dropout, AdamW, dynamic weights, a checkpoint every five steps) is trained once
without faults. Then:

    kill -9      at a random moment of the run, every second time while a checkpoint is written; started again, killed
                 again, five times in a row, then left alone
    SIGTERM      at a random moment; it has to end with status 143
    dead peer    one of two processes of a run gets kill -9; the other has to end with status 3 and a message, and both,
                 started again, with the parameters of two processes without faults
    bit flips    one bit of a file under checkpoints/ or best/ of a run that was stopped half way; then it goes on
    truncations  such a file loses its end
    deletions    such a file is gone
    disk full    the folder lies on a tmpfs that is too small, which is made larger when the run has failed (needs the
                 right to mount)
    read-only    the same tmpfs, mounted read-only

"equal": the arrays of the last checkpoint, metrics.jsonl and summary.json (without seconds) are bitwise those of the
run without faults. "refused": it ended with status 2 and a message. Anything else is an error: "different" (silent),
"traceback", "hang".
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import hashlib
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
from collections.abc import Callable
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))


from benchmarks.launching import PATIENCE, STEPS, Ended, Launcher, arrays_of, child_of, flip
from benchmarks.record import Claim, save


class Case(NamedTuple):
    """kind of fault | where | "equal", "refused", "different", "traceback", "hang", "not run" | what was said last"""

    kind: str
    detail: str
    outcome: str
    said: str


def result_of(workdir: pathlib.Path) -> str:
    """sha256 over what a finished run leaves: arrays of its last checkpoint, metrics, summary without seconds."""
    digest = hashlib.sha256()
    for name, leaf in sorted(arrays_of(workdir).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    digest.update((workdir / "metrics.jsonl").read_bytes())
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["seconds"]
    digest.update(json.dumps(summary, sort_keys=True).encode())
    return digest.hexdigest()


def judged(kind: str, detail: str, workdir: pathlib.Path, ended: Ended, wanted: str) -> Case:
    """What became of a run that had a fault and should be finished now."""
    complete = (workdir / "summary.json").exists
    return _judged(kind, detail, ended, lambda: complete() and result_of(workdir) == wanted)


def judged_files(kind: str, detail: str, file: pathlib.Path, ended: Ended, wanted: str) -> Case:
    """As `judged`, of a command that leaves one file with this content."""
    return _judged(kind, detail, ended, lambda: file.exists() and file.read_text() == wanted)


def _judged(kind: str, detail: str, ended: Ended, is_equal: Callable[[], bool]) -> Case:
    message = (ended.output.strip().splitlines() or [""])[-1]
    if ended.status is None:
        outcome = "hang"
    elif "Traceback" in ended.output:
        outcome = "traceback"
    elif ended.status == 2 and "error:" in ended.output:
        outcome = "refused"
    elif ended.status == 0 and is_equal():
        outcome = "equal"
    else:
        outcome = "different"
    return Case(kind, detail, outcome, message)


def damage(workdir: pathlib.Path, kind: str, rng: random.Random) -> str:
    """Flips a bit of, truncates or deletes one file of the checkpoints; arrays every second time. Says which."""
    files = [f for name in ("checkpoints", "best") for f in sorted((workdir / name).rglob("*")) if f.is_file()]
    arrays = [f for f in files if f.parent.name == "d"]
    file = rng.choice(arrays if arrays and rng.random() < 0.5 else files)
    raw = file.read_bytes()
    where = str(file.relative_to(workdir))
    if kind == "deletion" or not raw:
        file.unlink()
        return where
    if kind == "truncation":
        file.write_bytes(raw[: rng.randrange(len(raw))])
        return where
    place = rng.randrange(8 * len(raw))
    flip(file, place)
    return f"{where}, bit {place}"


def damaged(
    half: pathlib.Path, folder: pathlib.Path, kind: str, seed: int, finish: Callable[[pathlib.Path], Ended], wanted: str
) -> Case:
    """A copy of a half-finished run is damaged and goes on."""
    workdir = folder / f"{kind}_{seed}"
    shutil.copytree(half, workdir)
    detail = damage(workdir, kind, random.Random(f"{kind} {seed}"))
    case = judged(kind, detail, workdir, finish(workdir), wanted)
    if case.outcome in ("equal", "refused"):
        shutil.rmtree(workdir)
    return case


def after(seconds: float) -> Callable[[], bool]:
    began = time.monotonic()
    return lambda: time.monotonic() - began > seconds


def writing(workdir: pathlib.Path, passed: int, delay: float) -> Callable[[], bool]:
    """True so many seconds after a checkpoint has begun to be written, of those behind the first `passed`."""
    seen: set[str] = set()
    began: list[float] = []

    def moment():
        for name in ("checkpoints", "best"):
            if (workdir / name).is_dir():
                seen.update(f"{name}/{f.name}" for f in (workdir / name).iterdir() if "tmp" in f.name)
        if len(seen) > passed and not began:
            began.append(time.monotonic())
        return bool(began) and time.monotonic() - began[0] > delay

    return moment


def kills(launcher: Launcher, count: int, seconds: float, wanted: str, in_a_row: int = 5) -> list[Case]:
    """Runs that are killed `in_a_row` times, then finished; each kill is a case, with the outcome of its run."""
    results, number = [], 0
    while number < count:
        workdir, details = launcher.folder / f"kill_{number}", []
        for n in range(min(in_a_row, count - number)):
            rng = random.Random(f"kill {number + n}")
            if (number + n) % 2:
                passed, delay = rng.randrange(3), rng.uniform(0, 0.03)
                moment = writing(workdir, passed, delay)
                detail = f"{1e3 * delay:.0f} ms after checkpoint {passed + 1} was begun"
            else:
                delay = rng.uniform(0, seconds)
                moment, detail = after(delay), f"after {delay:.1f} s"
            ended = launcher.cut(workdir, signal.SIGKILL, moment)
            details.append(detail if ended.status == -signal.SIGKILL else f"{detail}: it had ended")
            if ended.status not in (0, -signal.SIGKILL):
                return [*results, judged("kill -9", detail, workdir, ended, wanted)]
        last = judged("kill -9", "", workdir, launcher.finish(workdir), wanted)
        results += [last._replace(detail=detail) for detail in details]
        number += len(details)
    return results


def stops(launcher: Launcher, count: int, seconds: float, wanted: str) -> list[Case]:
    results = []
    for number in range(count):
        workdir, delay = launcher.folder / f"stop_{number}", random.Random(f"stop {number}").uniform(0.4, 1.0) * seconds
        ended = launcher.cut(workdir, signal.SIGTERM, after(delay))
        detail = f"after {delay:.1f} s"
        if ended.status in (-signal.SIGTERM, 128 + signal.SIGTERM, 0):  # by itself while imported, stopped, done before
            ended = launcher.finish(workdir)
        results.append(judged("SIGTERM", detail, workdir, ended, wanted))
    return results


def deaths(launcher: Launcher, count: int) -> list[Case]:
    """One of two processes dies behind a random step; both are started again."""
    whole, results = launcher.folder / "both", []
    if count and any(ended.status for ended in launcher.finish_both(whole)):
        raise SystemExit("two processes without faults failed")
    for number in range(count):
        rng, workdir = random.Random(f"death {number}"), launcher.folder / f"death_{number}"
        dying, step = rng.randrange(2), rng.randrange(STEPS)
        detail = f"process {dying} behind step {step}"
        processes = launcher.start_both(workdir)
        passed = reached(workdir, step)
        deadline = time.monotonic() + PATIENCE
        while processes[dying].poll() is None and not passed() and time.monotonic() < deadline:
            time.sleep(0.001)
        if victim := child_of(processes[dying].pid):
            os.kill(victim, signal.SIGKILL)
        ends = [launcher.end(process) for process in processes]
        left = ends[1 - dying]
        if left.status == 3 and "another process of this run has stopped responding" in left.output:
            again = launcher.finish_both(workdir)
            results.append(judged("dead peer", detail, workdir, again[0], result_of(whole)))
        elif left.status == 0:
            results.append(judged("dead peer", f"{detail}: it had ended", workdir, left, result_of(whole)))
        else:
            outcome = "hang" if left.status is None else "traceback"
            results.append(Case("dead peer", detail, outcome, (left.output.strip().splitlines() or [""])[-1]))
    return results


def reached(workdir: pathlib.Path, step: int) -> Callable[[], bool]:
    """True when as many steps stand in the metrics."""

    def moment():
        try:
            return (workdir / "metrics.jsonl").read_bytes().count(b'"train"') > step
        except OSError:
            return False

    return moment


def full_disk(launcher: Launcher, size: int, wanted: str) -> list[Case]:
    """On a tmpfs that holds half of what a run leaves; afterwards with room, and read-only."""
    place = launcher.folder / "small"
    place.mkdir()

    def mount(*options):
        return subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)

    made = mount("-t", "tmpfs", "-o", f"size={size // 2}", "tmpfs")
    if made.returncode:
        return [Case(kind, made.stderr.strip(), "not run", "") for kind in ("disk full", "read-only")]
    try:
        first = judged("disk full", f"{size // 2} bytes", place / "run", launcher.finish(place / "run"), wanted)
        mount("-o", f"remount,size={4 * size}")
        again = judged("disk full", "then with room", place / "run", launcher.finish(place / "run"), wanted)
        mount("-o", "remount,ro")
        closed = judged("read-only", "", place / "other", launcher.finish(place / "other"), wanted)
    finally:
        subprocess.run(["umount", str(place)], check=False)
    return [first, again, closed]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 20), ("stops", 5), ("deaths", 4), ("flips", 60), ("cuts", 20), ("jobs", 2)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cases = campaign(Launcher(pathlib.Path(temporary)), options)
    for case in cases:
        if case.outcome not in ("equal", "not run"):
            print(f"{case.outcome}: {case.kind}, {case.detail}: {case.said[:200]}")
    silent = sum(case.outcome in ("different", "traceback", "hang") for case in cases)
    claim = Claim("faults that ended otherwise than equal or refused", "0", silent, silent, silent, not silent)
    notes = (
        '"traceback": such lines were printed, by a thread of the library that reads arrays, though the run may have '
        "gone on."
    )
    save("faults", [claim], {"Faults": summary(cases)}, [case._asdict() for case in cases], notes)
    sys.exit(silent > 0)


def campaign(launcher: Launcher, options: argparse.Namespace) -> list[Case]:
    whole, half = launcher.folder / "whole", launcher.folder / "half"
    launcher.finish(launcher.folder / "first")  # fills the caches, so that all runs take as long
    began = time.monotonic()
    ended = launcher.finish(whole)
    seconds = time.monotonic() - began
    if ended.status != 0:
        raise SystemExit(f"the run without faults failed:\n{ended.output}")
    wanted = result_of(whole)
    print(f"without faults: {seconds:.1f} s", flush=True)
    cases = kills(launcher, options.kills, seconds, wanted)
    print(f"{len(cases)} kills", flush=True)
    cases += stops(launcher, options.stops, seconds, wanted)
    cases += deaths(launcher, options.deaths)
    print("dead peers", flush=True)
    size = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file())
    cases += full_disk(launcher, size, wanted)
    print("signals and disks", flush=True)
    launcher.cut(half, signal.SIGTERM, writing(half, 6, 0.0))
    wanting = [("bit flip", n) for n in range(options.flips)]
    wanting += [(("truncation", "deletion")[n % 2], n) for n in range(options.cuts)]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        cases += pool.map(lambda one: damaged(half, launcher.folder, *one, launcher.finish, wanted), wanting)
    return cases


def summary(cases: list[Case]) -> list[tuple[str, ...]]:
    """Cases of each kind by outcome."""
    outcomes = ("equal", "refused", "different", "traceback", "hang", "not run")
    counts: dict[str, collections.Counter] = {}
    for case in cases:
        counts.setdefault(case.kind, collections.Counter())[case.outcome] += 1
    return [("fault", "cases", *outcomes)] + [
        (kind, str(sum(results.values())), *(str(results[o] or "") for o in outcomes))
        for kind, results in counts.items()
    ]


if __name__ == "__main__":
    main()
