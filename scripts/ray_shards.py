"""Shards of an ablation (or of relate, or predict) as tasks of a Ray cluster. Not run here.

    pip install ray
    python scripts/ray_shards.py --shards=8 --gpus=1 --mode=ablate --config=configs/ablate_lambda.py --workdir=/shared/x
    python launch.py --mode=report --workdir=/shared/x

Every other flag is one of launch.py. A shard that was preempted, or whose machine is lost, starts again and resumes.
"""

import argparse
import pathlib
import subprocess
import sys

import ray

PREEMPTED = 143  # 128 + SIGTERM


class PreemptedError(Exception):
    """A shard was stopped after a checkpoint."""


@ray.remote(max_retries=10, retry_exceptions=[PreemptedError])
def run_shard(root: str, flags: list[str]) -> int:
    """Runs one shard in a process of its own; returns its status."""
    status = subprocess.run([sys.executable, "launch.py", *flags], cwd=root, check=False).returncode
    if status == PREEMPTED:
        raise PreemptedError(flags[-1])
    return status


def main() -> None:
    """Starts all shards and waits for them; the status is the largest of theirs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--cpus", type=float, default=1, help="of each shard")
    parser.add_argument("--gpus", type=float, default=0, help="of each shard")
    options, flags = parser.parse_known_args()
    ray.init()
    root = str(pathlib.Path(__file__).resolve().parents[1])
    task = run_shard.options(num_cpus=options.cpus, num_gpus=options.gpus)
    shards = [task.remote(root, [*flags, f"--shard={i}/{options.shards}"]) for i in range(options.shards)]
    sys.exit(max(ray.get(shards)))


if __name__ == "__main__":
    main()
