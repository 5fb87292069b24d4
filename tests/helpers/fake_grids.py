"""Ablations that look like real ones, made up by formula."""

import math

import numpy as np

from mtl_jax.analysis.ablation.records import Grid, Lane

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)


def lane(
    score, line="sharing", seed=0, values=None, choices=None, status="finished", tasks=("pos",), test=None, **rest
):
    """A lane of which only what is named matters; every task has the same score."""
    scores = {
        t: {"dev": {"accuracy": score, "loss": 1.0}, "test": {"accuracy": score if test is None else test}}
        for t in tasks
    }
    fields = {"step": 10, "steps": 10, "distance": 0.5, "effective_rank": 1.0, "curve": []}
    fields |= {"left_out": 0, "remarks": {}, "effects": {}}
    return Lane(line, choices or {}, values or {}, seed, status, scores=scores, score=score, **fields | rest)


def grid(lanes, sweeps=None, choices=None, tasks=("pos",), method="grid", references=(), baselines=None):
    """A grid around lanes; its one sweep, λ, has the values that they have."""
    if sweeps is None:
        values = sorted({x.values["strength"] for x in lanes if "strength" in x.values})
        sweeps = {"strength": {"field": "penalties.l2.strength", "scale": "log", "values": values}}
    tasks = {task: ["accuracy", "loss"] for task in tasks}
    return Grid(
        sweeps, choices or {}, tasks, lanes, list(references), ["a note"], {"name": method}, baselines or {}, [], []
    )


def realistic(tasks=5, points=8, seeds=5, choices=None, second=False, trouble=True, ends=True, curve=8):
    """A whole ablation: scores rise to an optimum in λ and fall; ends at five rates; some lanes frozen or dropped."""
    names = [f"task{k}" for k in range(tasks)]
    strengths = np.geomspace(1e-4, 10.0, points).tolist()
    dropouts = [0.0, 0.1, 0.2, 0.4, 0.6] if second else [None]
    choices = choices or {}
    rng = np.random.default_rng(0)
    lanes, references = [], []
    combinations = [{}]
    for name, alternatives in choices.items():
        combinations = [c | {name: a} for c in combinations for a in alternatives]

    def make(line, combination, values, seed, height, distance, status="finished"):
        scores = {
            t: {
                split: {
                    "accuracy": float(height + 0.02 * math.sin(3 * k) + 0.008 * rng.standard_normal()),
                    "loss": float(2 * (1 - height)),
                }
                for split in ("dev", "test")
            }
            for k, t in enumerate(names)
        }
        frozen = status.startswith("frozen")
        steps = {"dropped": 100, "frozen: not finite": 60}.get(status, 200)
        entries = []
        for i in range(curve):
            step = 200 * (i + 1) // curve
            if step > steps:
                break
            entry = {"step": step, "loss": {t: 2 * (1 - height) + 2 * math.exp(-step / 40) for t in names}}
            if i % 2:
                part = 1 - math.exp(-step / 50)
                entry["dev"] = {t: {"accuracy": scores[t]["dev"]["accuracy"] * part} for t in names}
            entries.append(entry)
        score = float(np.mean([scores[t]["dev"]["accuracy"] for t in names]))
        lanes.append(
            Lane(
                line,
                combination,
                values,
                seed,
                status,
                steps,
                steps,
                {} if frozen else scores,
                None if frozen else score,
                distance,
                None if distance is None else distance * (tasks - 1),
                entries,
                60 if frozen else 0,
                {},
                {},
            )
        )

    for c, combination in enumerate(combinations):
        gain, best = 0.06 / (1 + c), 10 ** (-2 + 0.3 * c % 2)
        for seed in range(seeds):
            for strength in strengths:
                for dropout in dropouts:
                    height = 0.7 + gain * math.exp(-(math.log10(strength / best) ** 2)) + 0.01 * seed
                    values = {"strength": strength}
                    if dropout is not None:
                        values["dropout"] = dropout
                        height -= (dropout - 0.2) ** 2 / 4
                    status = "finished"
                    if trouble and strength == strengths[-1] and seed < 2:
                        status = "frozen: not finite"
                    if trouble and strength == strengths[1] and seed == 0:
                        status = "dropped"
                    make("sharing", combination, values, seed, height, 1 / (1 + 10 * strength), status)
            for rate in RATES if ends else ():
                for line, height, distance in (("single", 0.70, 1.0), ("tied", 0.69, 0.0), ("hard", 0.71, None)):
                    height += -0.01 * abs(math.log2(rate / 2)) + 0.01 * seed
                    make(line, combination, {"learning_rate": 1e-3 * rate}, seed, height, distance)
        for strength in strengths:
            height = 0.72 + gain * math.exp(-(math.log10(strength / best) ** 2))
            scores = {t: {"dev": {"accuracy": height}} for t in names}
            references.append(
                {"label": "exact optimum", "choices": combination, "values": {"strength": strength}, "scores": scores}
            )
    sweeps = {"strength": {"field": "penalties.l2.strength", "scale": "log", "values": strengths}}
    if second:
        sweeps["dropout"] = {"field": "model.dropout", "scale": "linear", "values": dropouts}
    return Grid(
        sweeps,
        choices,
        {t: ["accuracy", "loss"] for t in names},
        lanes,
        references,
        ["ten lanes at once"],
        {"name": "grid"},
        {},
        [],
        [],
    )
