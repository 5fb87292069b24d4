"""The results of an ablation: its lanes, and the grid that they form."""

from __future__ import annotations

from typing import Any, NamedTuple

from mtl_jax.storage.summary import RunWarning, SplitScores

ENDS = ("single", "tied", "hard")  # limits of λ, and hard sharing
COUNTED_STATUSES = ("finished", "stopped early")  # lanes that means include; the others trained less, or not at all
LINES = ("sharing", *ENDS)
STATUSES = ("finished", "stopped early", "frozen: not finite", "dropped")


class Lane(NamedTuple):
    """One setting trained with one seed.

    line            "sharing": a point of the sweeps; or a limit: "single" (λ = 0), "tied" (λ → ∞), "hard" (one trunk)
    choices         name -> name of the alternative; {} without choices
    values          sweep -> its value; a limit has "learning_rate" and the sweeps other than λ. For the method
                    "hypergradient" the learned values
    seed            of initial values, dropout and the order of the batches
    status          "finished" | "stopped early" | "frozen: not finite" | "dropped" (by successive halving)
    step            steps taken by the parameters that were scored (the best on dev, or the last)
    steps           steps trained
    scores          {task: {split: {metric: value}}}; a task's first metric is its score, higher = better; None where
                    a value is not defined
    score           the tasks' first metrics on dev at `step` as one number (`Grid.selection`), by which settings are
                    chosen; None without one
    distance        mean over pairs of tasks of ‖Θi − Θj‖, relative to the mean ‖Θk‖, over the parameters that the tasks
                    do not share; None if they share all
    effective_rank  of the K deviations from the tasks' mean (Roy & Vetterli 2007: exp of the entropy of σ/Σσ),
                    from 0 to K − 1; None likewise
    left_out        steps of `steps` that changed nothing, because a loss or gradient was not finite
    remarks         {task: {split: sentence}} on predictions that are all alike
    effects         {penalty: its effect, see `training.penalty_effect.Effect`}
    curve           [{"step": n, "loss": {task: mean training loss since the entry before}, "dev": {task: {metric:
                    value}}}]; "dev" only where dev was scored
    run             folder of the lane as a run, relative to that of the ablation (of shards: the whole path); "" where
                    it was not kept
    """

    line: str
    choices: dict[str, str]
    values: dict[str, float]
    seed: int
    status: str
    step: int
    steps: int
    scores: SplitScores
    score: float | None
    distance: float | None
    effective_rank: float | None
    curve: list[dict[str, Any]]
    left_out: int
    remarks: dict[str, dict[str, str]]
    effects: dict[str, dict[str, float | None]]
    run: str = ""


class Grid(NamedTuple):
    """All results of one ablation.

    sweeps      name -> {"field": config field, "scale": "log" | "linear", "values": [...]}
    choices     name -> alternatives in order; those of one field over numbers have names that float() takes
    tasks       task -> its metrics; the first is the score
    lanes       all of them, including the limits at every learning rate
    references  exact optima for the figures: {"label": text, "choices": {}, "values": {}, "scores": as of a lane}
    notes       sentences for people
    method      {"name": "grid" | "halving" | "hypergradient", and its numbers}
    baselines   choice -> alternatives that the others are compared with
    costs       of each program without its limits {"choices": {choice: alternative}, "parameters": of one model,
                "step_seconds": median over calls, without the first, of the time of a step of one lane; None for a
                single call}
    warnings    what a reader of the scores has to know, see `storage.run_warnings`; combinations of choices have more,
                in `summarise`
    selection   what the score of a lane is, see `config.evaluation.selection`
    """

    sweeps: dict[str, dict[str, Any]]
    choices: dict[str, list[str]]
    tasks: dict[str, list[str]]
    lanes: list[Lane]
    references: list[dict[str, Any]]
    notes: list[str]
    method: dict[str, Any]
    baselines: dict[str, list[str]]
    costs: list[dict[str, Any]]
    warnings: list[RunWarning]
    selection: str = "mean"
