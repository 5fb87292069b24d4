"""The results of a run as they are written to JSON: types of summary.json and evaluation_*.json."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

MetricValues = dict[str, float | None]  # {metric: value}, None where a value is not defined
Scores = dict[str, MetricValues]  # of one split: {task: {metric: value}}
SplitScores = dict[str, dict[str, MetricValues]]  # {task: {split: {metric: value}}}


class RunWarning(TypedDict):
    """A sentence for the reader of the scores, its kind, and (where counted) how many cases out of how many."""

    kind: str
    text: str
    count: int | None
    total: int | None


class Evaluation(TypedDict):
    """The scores of one checkpoint.

    tasks       the metrics are those of the task and "loss", its mean loss as in training (class weights, label
                smoothing) without dropout, penalties and α
    means       {split: {"mean": of the tasks' first metrics, "tasks", "metrics"}}, see `scores.mean_by_split`
    examples    {task: {split: {"scored": examples, "total": examples before `limit`}}}
    ceilings    {task: {split: {metric: value}}}, see `scores.metric_ceilings`
    step        of the parameters that were scored
    warnings    what a reader of the scores has to know, see `run_warnings`
    other_data  data that the run's config does not name: {data set: {split: {"files": names, "records": number,
                "fingerprint": sha256}}}
    """

    tasks: SplitScores
    means: NotRequired[dict[str, dict[str, Any]]]
    examples: dict[str, dict[str, dict[str, int]]]
    ceilings: NotRequired[dict[str, dict[str, dict[str, float]]]]
    step: int
    warnings: list[RunWarning]
    other_data: NotRequired[dict[str, dict[str, dict[str, Any]]]]


class StartingPoint(TypedDict):
    """The run that another one began from.

    run, step  its folder, and the step of its parameters
    taken      layers and heads that are its as a whole, as far as no path of them is below
    partly     {path: which part}
    new        {reason: layers and heads of which something keeps its own initial values}
    """

    run: str
    step: int
    taken: list[str]
    partly: dict[str, str]
    new: dict[str, list[str]]


class Summary(Evaluation):
    """A finished run: the scores of the step that config.evaluation selects, and what the training did.

    seconds     wall-clock time of the run over all its starts, compilation and evaluation included
    distances   {"task | task": {"distance": ‖Θi − Θj‖, "relative": to the mean norm}}; empty where all is shared
    parameters  their number
    penalties   {penalty: its effect, see `penalty_effect.Effect`}
    skipped     {task or "shared": steps skipped because its loss or gradient was not finite}
    steps       {"made": steps of the run, "left_out": those that changed nothing}
    init_from   the run that it began from, where config.init_from names one
    """

    seconds: float
    distances: dict[str, dict[str, float]]
    parameters: int
    penalties: NotRequired[dict[str, dict[str, Any]]]
    skipped: dict[str, int]
    steps: dict[str, int]
    init_from: NotRequired[StartingPoint]
