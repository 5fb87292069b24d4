"""--mode=adapt: finished runs on new tasks, from k examples of each class.

1. Each run gives its layers: those that its tasks share, the mean of their columns, or the column of one task. The
   initial values of the first run are compared with them.
2. For each k the learning rate and the number of steps of each are chosen on dev, by supports that are drawn for that
   alone: of `config.adaptation.tuning_tasks`, tasks that are not reported, or else of the reported tasks.
3. Then each adapts to the reported tasks, to the same random supports, and is scored on test. Intervals and tests are
   over draws, of the mean over tasks: they do not generalise to other tasks, or to runs of other seeds.
4. What was learned from the first support (or from each) is saved as the folder of a run, see `saved_runs`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from tqdm import tqdm

from mtl_jax.analysis.adaptation.episodes import Score, draw_supports, make_episode, make_score
from mtl_jax.analysis.adaptation.lanes import Learner
from mtl_jax.analysis.adaptation.saved_runs import Adapted, save_run
from mtl_jax.analysis.adaptation.sources import INITIAL_VALUES, Source, load_sources, task_experiment
from mtl_jax.analysis.intervals import interval, paired_difference, with_corrected_p
from mtl_jax.config.sections import Config
from mtl_jax.evaluation.ranking import rank
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.storage import run_warnings
from mtl_jax.storage.summary import RunWarning
from mtl_jax.storage.workdir import write_json

ByShots = dict[str, dict[str, Any]]  # {name: {k: ...}}


class AdaptResult(TypedDict):
    """What adapt.json holds.

    runs         {name: folder, None of the initial values}
    tasks, tuned_on, shots, steps, rates, draws, against, seed, metric
                 what was adapted to, and how
    chosen       {name: {k: {"rate", "steps", "dev": mean score}}}
    scores       {name: {k: {task: [score on test of each draw]}}} at the chosen steps
    mean         {name: {k: interval of the mean over tasks}}
    by_task      {name: {k: {task: interval}}}
    curves       {name: {k: [interval of the mean over tasks after each of `steps`]}} at the chosen rate
    differences  {name: {k: paired difference to `against`}}, p corrected by Holm over all of them
    saved        {name: {k: {task: folders of the adapted models, below that of the file, by draw}}}
    warnings     what a reader of the scores has to know of the data, see `storage.run_warnings`
    """

    runs: dict[str, str | None]
    tasks: list[str]
    tuned_on: list[str]
    shots: list[int]
    steps: list[int]
    rates: list[float]
    draws: int
    against: str
    seed: int
    chosen: ByShots
    scores: ByShots
    mean: ByShots
    by_task: ByShots
    curves: ByShots
    metric: str
    warnings: list[RunWarning]
    differences: ByShots
    saved: ByShots


class _Task(NamedTuple):
    """A new task: its learner, the score of predictions for each split, and warnings about the data."""

    learner: Learner
    scores: dict[str, Score]
    warnings: list[RunWarning]


class _Sampling(NamedTuple):
    """The supports that are drawn, for which purpose, and the split on which predictions are scored."""

    shots: int
    draws: int
    purpose: str
    split: str


def adapt(
    given: Config,
    runs: Mapping[pathlib.Path, Config],
    checkpoint: str | None,
    out: pathlib.Path,
    check: Callable[[Config], object],
) -> AdaptResult:
    """Adapts runs to the tasks of a config, and writes out/adapt.json.

    Args:
      given: a config of which datasets, tasks, adapt and seed are read; the model is that of the runs.
      runs: {folder: its config, which was checked}.
      checkpoint: "best", "last" or a step; None: config.evaluation.checkpoint of the run.
      out: folder; it is created.
      check: `mtl_jax.checks.check`.

    Returns:
      what is written.

    Raises:
      UserError: no such run or checkpoint; tasks without classes, splits or enough examples.
    """
    sources = load_sources(given, runs, checkpoint, check)
    config = next(iter(sources.values())).config
    settings = config.adaptation
    reported = [task for task in config.tasks if task not in settings.tuning_tasks]
    tuning = list(settings.tuning_tasks) or reported
    names = dict(zip(sources, (*map(str, runs), None), strict=True))
    result = _empty_result(config, names, reported)
    tasks_by_key: dict[str, dict[str, _Task]] = {}
    adaptations = (
        len(tuning) * settings.num_tuning_supports * len(settings.learning_rates)
        + len(reported) * settings.num_supports
    )
    with progress_bar("adapting", "run", len(sources) * len(settings.shots) * adaptations) as bar:
        for name, source in sources.items():
            tasks = tasks_by_key.setdefault(source.program_key(), {})
            for task in (*tuning, *reported):
                if task not in tasks:
                    tasks[task] = _make_task(source, task)
            for shots in settings.shots:
                tuned = [tasks[task] for task in tuning]
                tested = {task: tasks[task] for task in reported}
                _adapt_source(result, name, source, shots, tuned=tuned, tested=tested, bar=bar)
                if name != INITIAL_VALUES and settings.keep:
                    _save(result, name, source, shots, tested=tested, out=out)
    metrics = {task.learner.metric for tasks in tasks_by_key.values() for task in tasks.values()}
    result["metric"] = metrics.pop() if len(metrics) == 1 else "score"
    result["warnings"] = run_warnings.by_severity(
        [
            *_new_parts(sources),
            *(warning for tasks in tasks_by_key.values() for task in tasks.values() for warning in task.warnings),
        ]
    )
    result["differences"] = _differences(result["scores"], result["against"])
    if distributed.is_first():
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "adapt.json", result)
    return result


def _empty_result(config: Config, runs: Mapping[str, str | None], reported: Sequence[str]) -> AdaptResult:
    settings = config.adaptation
    return {
        "runs": dict(runs),
        "tasks": list(reported),
        "tuned_on": list(settings.tuning_tasks),
        "shots": list(settings.shots),
        "steps": sorted(set(settings.steps)),
        "rates": list(settings.learning_rates),
        "draws": settings.num_supports,
        "against": settings.baseline or INITIAL_VALUES,
        "seed": config.seed,
        "chosen": {name: {} for name in runs},
        "scores": {name: {} for name in runs},
        "mean": {name: {} for name in runs},
        "by_task": {name: {} for name in runs},
        "curves": {name: {} for name in runs},
        "metric": "",
        "warnings": [],
        "differences": {},
        "saved": {name: {} for name in runs},
    }


def _adapt_source(
    result: AdaptResult,
    name: str,
    source: Source,
    shots: int,
    *,
    tuned: Sequence[_Task],
    tested: Mapping[str, _Task],
    bar: tqdm,
) -> None:
    """Chooses rate and steps on dev, adapts to the reported tasks, and writes the scores into the result."""
    settings, rates, steps, k = source.config.adaptation, result["rates"], result["steps"], str(shots)
    tuning = _Sampling(shots, settings.num_tuning_supports, "tune", "dev")
    on_dev = [_scores(task, source, tuning, rates, bar).mean(axis=0) for task in tuned]
    mean = np.mean(on_dev, axis=0)  # [rates, steps]
    # the best score; of equals the fewest steps
    number, rate = min(np.ndindex(*mean.T.shape), key=lambda index: (-rank(mean.T[index], None)[0], index))
    testing = _Sampling(shots, settings.num_supports, "test", "test")
    on_test = {task: _scores(t, source, testing, [rates[rate]], bar)[:, 0] for task, t in tested.items()}
    scores = {task: values[:, number].tolist() for task, values in on_test.items()}
    curves = np.mean(list(on_test.values()), axis=0)  # [draws, steps]
    result["chosen"][name][k] = {"rate": rates[rate], "steps": steps[number], "dev": float(mean[rate, number])}
    result["scores"][name][k] = scores
    result["mean"][name][k] = interval(curves[:, number].tolist())._asdict()
    result["by_task"][name][k] = {task: interval(values)._asdict() for task, values in scores.items()}
    result["curves"][name][k] = [interval(values.tolist())._asdict() for values in curves.T]


def _differences(scores: ByShots, against: str) -> ByShots:
    """{name: {k: paired difference over draws of the mean over tasks}}, corrected together."""

    def means(name: str, k: str) -> dict[int, float]:
        return dict(enumerate(np.mean(list(scores[name][k].values()), axis=0).tolist()))

    pairs = [(name, k) for name in scores if name != against for k in scores[name]]
    corrected = with_corrected_p([paired_difference(means(name, k), means(against, k)) for name, k in pairs])
    result: ByShots = {}
    for (name, k), difference in zip(pairs, corrected, strict=True):
        result.setdefault(name, {})[k] = difference._asdict()
    return result


def _save(
    result: AdaptResult, name: str, source: Source, shots: int, *, tested: Mapping[str, _Task], out: pathlib.Path
) -> None:
    """Writes the adapted models of one run, and their folders into the result."""
    settings, k = source.config.adaptation, str(shots)
    draws = range(settings.num_supports if settings.keep == "all" else 1)
    chosen = result["chosen"][name][k]
    folders = result["saved"][name][k] = {}
    for task, adapted in tested.items():
        supports = _supports(adapted, source, _Sampling(shots, settings.num_supports, "test", "test"))
        setting = Adapted(source, task, shots, chosen["rate"], chosen["steps"])
        folders[task] = [f"runs/{name}/{k}_shots/{task}/draw_{draw}" for draw in draws]
        for draw, folder in enumerate(folders[task]):
            save_run(out / folder, setting, adapted.learner, supports[draw], draw)


def _new_parts(sources: Mapping[str, Source]) -> list[RunWarning]:
    """What a new task begins with that is not of its run."""
    return [
        run_warnings.warning(run_warnings.OTHER, f"{name}: {', '.join(parts)} begin with initial values: {reason}")
        for name, source in sources.items()
        for reason, parts in source.new.items()
    ]


def _make_task(source: Source, task: str) -> _Task:
    experiment = task_experiment(source, task)
    data = experiment.corpus
    episode = make_episode(data, task)
    scores = {split: make_score(data, experiment.spec.objective, episode, split) for split in ("dev", "test")}
    return _Task(Learner(experiment, episode), scores, run_warnings.data_warnings(data))


def _supports(task: _Task, source: Source, sampling: _Sampling) -> np.ndarray:
    """int32[draws, examples], rows of train."""
    shots, draws, purpose, _ = sampling
    return draw_supports(task.learner.episode, shots, draws=draws, seed=source.config.seed, purpose=purpose)


def _scores(task: _Task, source: Source, sampling: _Sampling, rates: Sequence[float], bar: tqdm) -> np.ndarray:
    """float[draws, rates, steps]: the task's first metric."""
    layers = source.first_draws(sampling.draws)
    rows = _supports(task, source, sampling)
    predicted = task.learner.predictions(sampling.split, layers, source.by_draw, rows, rates)
    bar.update(sampling.draws * len(rates))
    score, shape = task.scores[sampling.split], predicted.sums.shape[:3]
    return np.asarray(
        [score(predicted.values[index], predicted.sums[index]) for index in np.ndindex(shape)], np.float64
    ).reshape(shape)
