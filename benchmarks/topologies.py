"""The same run on one device, on eight, on two processes of four, on meshes and by pmap: how far the results differ.

    python benchmarks/topologies.py

The small run of `launching.py` (two tasks, soft sharing, dropout, 60 steps, a float32 CNN), with SGD and with AdamW:
the largest absolute difference of a parameter at the end and of a training loss on the way, from those of one device.
SGD tells a gradient of the wrong size, which Adam hides.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.launching import Launcher, arrays_of
from benchmarks.record import Claim, save

OPTIMIZERS = {
    "SGD": ("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.1"),
    "AdamW": ("--config.optimizer.name=adamw",),
}
MESHES = {  # name -> flags, on eight devices of one process
    "8 devices": (),
    "8 devices, pmap": ("--config.training.placement=pmap",),
    "8 devices, 4 × data, 2 × task": ("--config.training.mesh.data=4", "--config.training.mesh.task=2"),
    "8 devices, 4 × data, 2 × model": ("--config.training.mesh.data=4", "--config.training.mesh.model=2"),
    "8 devices, 8 × fsdp": ("--config.training.mesh.data=1", "--config.training.mesh.fsdp=8"),
}


def main():
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows = [("topology", *(f"{name}: {what}" for name in OPTIMIZERS for what in ("parameters", "losses")))]
    numbers = {}
    with tempfile.TemporaryDirectory() as temporary:
        launcher = Launcher(pathlib.Path(temporary))
        for name, flags in OPTIMIZERS.items():
            numbers[name] = _differences(launcher, name, flags)
    for topology in numbers["SGD"]:
        rows.append((topology, *(f"{value:.1e}" for name in OPTIMIZERS for value in numbers[name][topology])))
    worst = max(value for results in numbers.values() for pair in results.values() for value in pair)
    save(
        "topologies",
        [Claim("largest difference from one device", "≤ 1e-5", worst, worst, worst, worst <= 1e-5)],
        {"Largest absolute differences from one device": rows},
        numbers,
    )


def _differences(launcher: Launcher, name: str, flags: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """{topology: largest difference of (parameters, losses) from the run on one device}"""
    one = launcher.folder / f"{name}_one"
    _require(launcher.end(launcher.start(one, *flags)))
    results = {}
    for number, (mesh, more) in enumerate(MESHES.items()):
        workdir = launcher.folder / f"{name}_{number}"
        _require(launcher.end(launcher.start(workdir, *flags, *more, devices=8)))
        results[mesh] = _apart(workdir, one)
    workdir = launcher.folder / f"{name}_both"
    for ended in [launcher.end(process) for process in launcher.start_both(workdir, *flags)]:
        _require(ended)
    results["2 processes × 4 devices"] = _apart(workdir, one)
    return results


def _require(ended) -> None:
    if ended.status:
        raise SystemExit(ended.output)


def _apart(workdir: pathlib.Path, other: pathlib.Path) -> tuple[float, float]:
    mine, theirs = ({k: v for k, v in arrays_of(w).items() if "params" in k} for w in (workdir, other))
    if not mine or mine.keys() != theirs.keys():
        raise SystemExit(f"{workdir} and {other} hold other parameters")
    parameters = max(float(np.abs(leaf - theirs[path]).max()) for path, leaf in mine.items())
    return parameters, float(np.abs(_losses(workdir) - _losses(other)).max())


def _losses(workdir: pathlib.Path) -> np.ndarray:
    """float64 [steps, K]"""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return np.asarray([list(line["loss"].values()) for line in lines if line["kind"] == "train"])


if __name__ == "__main__":
    main()
