"""Writes torchjd_goldens.json: Jacobians, and what TorchJD 0.18.0 aggregates them to.

    pip install torch torchjd[full]==0.18.0
    python tests/helpers/make_torchjd_goldens.py

PCGrad goes through the other tasks in a random order, so that only Jacobians of two tasks have one result.
"""

import json
import pathlib

import numpy as np
import torch
from torchjd import aggregation

FILE = pathlib.Path(__file__).with_name("torchjd_goldens.json")
METHODS = {
    "pcgrad": (aggregation.PCGrad(), (2,)),
    "cagrad": (aggregation.CAGrad(c=0.4), (2, 4)),
    "upgrad": (aggregation.UPGrad(), (2, 4)),
}


def main():
    rng, goldens = np.random.default_rng(0), []
    for tasks in (2, 4):
        for conflict in (0.0, 1.5):
            jacobian = rng.normal(size=(tasks, 18)) * rng.uniform(0.5, 2.0, (tasks, 1))
            jacobian -= conflict * jacobian.mean(axis=0)
            for method, (aggregator, counts) in METHODS.items():
                if tasks in counts:
                    result = aggregator(torch.from_numpy(jacobian)).tolist()
                    goldens.append({"method": method, "jacobian": jacobian.tolist(), "result": result})
    FILE.write_text(json.dumps(goldens, indent=1) + "\n")


if __name__ == "__main__":
    main()
