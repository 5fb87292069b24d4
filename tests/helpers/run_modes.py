"""One of several processes that runs modes one after the other: FOLDER NUMBER COUNT PORT."""

import contextlib
import io
import json
import pathlib
import sys

from mtl_jax import modes
from mtl_jax.runtime import cpu_devices, distributed


def run_all(folder: pathlib.Path, target: str) -> dict[str, str]:
    """Every mode on folder/run; results in folder/<target>_<mode>. Returns what each printed."""
    out = {name: str(folder / f"{target}_{name}") for name in modes.MODES}
    scope: dict = {}
    exec((folder / "config.py").read_text(), scope)
    calls = [
        ("predict", {"workdir": folder / "run", "input": folder / "input.jsonl", "output": out["predict"]}),
        ("attribute", {"workdir": folder / "run", "input": folder / "input.txt", "output": out["attribute"]}),
        ("merge", {"runs": [folder / "run"], "output": out["merge"]}),
        ("adapt", {"runs": [folder / "run"], "config": scope["adaptation"](), "output": out["adapt"]}),
        ("relate", {"workdir": out["relate"], "config": scope["relatedness"]()}),
        ("train", {"workdir": out["train"], "config": scope["distillation"](folder / "run")}),
    ]
    printed = {}
    for mode, given in calls:
        defaults = dict.fromkeys(("workdir", "input", "dataset", "reader", "split", "output", "by"), "")
        defaults |= {"config": None, "checkpoint": None, "tasks": (), "runs": (), "against": (), "shard": None}
        given = {key: str(value) if isinstance(value, pathlib.Path) else value for key, value in given.items()}
        options = {**defaults, **given, "mode": mode}
        with contextlib.redirect_stdout(io.StringIO()) as text:
            assert modes.MODES[mode](modes.Options(**options)) in (None, 0), mode
        printed[mode] = text.getvalue()
    return printed


def main(folder: str, number: str, count: str, port: str) -> None:
    cpu_devices.use_all_cores()
    distributed.initialize(f"127.0.0.1:{port}", int(count), int(number), 100, 100)
    with distributed.ending_together(lambda error: (repr(error), 1)):
        printed = run_all(pathlib.Path(folder), "several")
        (pathlib.Path(folder) / f"printed_{number}.json").write_text(json.dumps(printed))


if __name__ == "__main__":
    main(*sys.argv[1:])
