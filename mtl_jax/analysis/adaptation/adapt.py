"""--mode=adapt: finished runs on new tasks, from k examples of each class.

1. Of each run the layers are taken: what its tasks share, the mean of their columns, or the column of one task. Beside
   the runs stand the values that the first of them began from.
2. For each k the learning rate and the number of steps of each of them are chosen on dev splits, by supports that are
   drawn for that alone: of `config.adapt.tuned_on`, tasks that are not reported, or else of the reported tasks.
3. Then each adapts to the reported tasks, to the same random supports, and is scored on test. Intervals and tests are
   over draws, of the mean over tasks: they say nothing of other tasks, or of runs of other seeds.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.analysis.adaptation.episodes import Episode, draw_supports, make_episode, score
from mtl_jax.analysis.adaptation.lanes import Learner
from mtl_jax.analysis.intervals import interval, paired_difference, with_corrected_p
from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.data import corpus as corpora
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference
from mtl_jax.evaluation.ranking import rank
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.inputs import label_specs, load_encoder, max_length
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.storage import artifacts, run_warnings
from mtl_jax.storage.checkpoint import require_checkpoint
from mtl_jax.storage.workdir import write_json
from mtl_jax.training.placement import require_platform

INITIAL_VALUES = "initial values"  # the name of what the first run began from


class Source(NamedTuple):
    """Where adaptation begins.

    config   of the run, with the new tasks in place of its own
    kept     tokenizer and architecture
    layers   {path: leaves [1, ...]}, or [draws, 1, ...] with `by_draw`
    """

    config: Any
    kept: artifacts.Artifacts
    layers: Any
    by_draw: bool


class AdaptedTask(NamedTuple):
    """What learns one task: the learner, its data, what scores predictions, and what was odd about the data."""

    learner: Learner
    episode: Episode
    classes: tuple[str, ...]
    score: Callable[[str, np.ndarray], float]  # (split, predictions int[records]) -> the task's first metric
    warnings: list[dict[str, Any]]


def adapt(
    given: Any,
    runs: Mapping[pathlib.Path, Any],
    checkpoint: str | None,
    out: pathlib.Path,
    check: Callable[[Any], None],
) -> dict[str, Any]:
    """Adapts runs to the tasks of a config, and writes out/adapt.json.

    Args:
      given: a config of which datasets, tasks, adapt and seed are read; the model is that of the runs.
      runs: {folder: its config, which was checked}.
      checkpoint: "best", "last" or a step; None: what config.evaluation.checkpoint of the run says.
      out: folder, is made.
      check: `mtl_jax.checks.check` against it.

    Returns:
      what adapt.json holds:
        runs      {name: folder, None of the initial values}
        tasks, tuned_on, shots, steps, rates, metric, against
        chosen    {name: {k: {"rate", "steps", "dev": mean score}}}
        scores    {name: {k: {task: [score on test of each draw]}}} at the chosen steps
        mean      {name: {k: interval of the mean over tasks}}
        by_task   {name: {k: {task: interval}}}
        curves    {name: {k: [interval of the mean over tasks after each of `steps`]}} at the chosen rate
        differences  {name: {k: paired difference to `against`}}, p corrected by Holm over all of them
        warnings  what a reader of the scores has to know of the data, see `training.run_warnings`

    Raises:
      UserError: no such run or checkpoint; tasks that have no classes, splits or examples enough.
    """
    sources = _sources(given, runs, checkpoint, check)
    config = next(iter(sources.values())).config
    chosen = config.adapt
    reported = [task for task in config.tasks if task not in chosen.tuned_on]
    tuning = list(chosen.tuned_on) or reported
    against = chosen.against or INITIAL_VALUES
    learned: dict[Any, dict[str, AdaptedTask]] = {}
    steps = tuple(sorted(set(chosen.steps)))
    found: dict[str, Any] = {
        "runs": {
            name: None if name == INITIAL_VALUES else str(run) for name, run in zip(sources, (*runs, None), strict=True)
        },
        "tasks": reported,
        "tuned_on": list(chosen.tuned_on),
        "shots": list(chosen.shots),
        "steps": list(steps),
        "rates": list(chosen.rates),
        "draws": chosen.draws,
        "against": against,
        "seed": config.seed,
        **{field: {name: {} for name in sources} for field in ("chosen", "scores", "mean", "by_task", "curves")},
    }
    adaptations = len(tuning) * chosen.tuning_draws * len(chosen.rates) + len(reported) * chosen.draws
    with progress_bar("adapting", "run", len(sources) * len(chosen.shots) * adaptations) as bar:
        for name, source in sources.items():
            tasks = learned.setdefault(_architecture(source), {})
            for task in dict.fromkeys((*tuning, *reported)):
                tasks.setdefault(task, _adapted(source, task))
            for shots in chosen.shots:
                tuned = [
                    _scores(tasks[t], source, shots, chosen.tuning_draws, "dev", "tune", chosen.rates, bar)
                    for t in tuning
                ]
                mean = np.mean([scores.mean(axis=0) for scores in tuned], axis=0)  # [rates, steps]
                places = np.ndindex(*mean.T.shape)
                number, rate = min(places, key=lambda at: (-rank(mean.T[at], None)[0], at))  # of equals, few steps
                tested = {
                    t: _scores(tasks[t], source, shots, chosen.draws, "test", "test", [chosen.rates[rate]], bar)[:, 0]
                    for t in reported
                }  # {task: [draws, steps]}
                k = str(shots)
                curves = np.mean(list(tested.values()), axis=0)
                scores = {t: values[:, number].tolist() for t, values in tested.items()}
                found["chosen"][name][k] = {
                    "rate": chosen.rates[rate],
                    "steps": steps[number],
                    "dev": float(mean[rate, number]),
                }
                found["scores"][name][k] = scores
                found["mean"][name][k] = interval(curves[:, number].tolist())._asdict()
                found["by_task"][name][k] = {t: interval(values)._asdict() for t, values in scores.items()}
                found["curves"][name][k] = [interval(values.tolist())._asdict() for values in curves.T]
    found["metric"] = next(iter(learned.values()))[reported[0]].learner.metric
    found["warnings"] = run_warnings.by_severity(
        entry for tasks in learned.values() for adapted in tasks.values() for entry in adapted.warnings
    )
    found["differences"] = _differences(found["scores"], against)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "adapt.json", found)
    return found


def _differences(scores: Mapping[str, Any], against: str) -> dict[str, Any]:
    """{name: {k: paired difference over draws of the mean over tasks}}, corrected together."""

    def means(name, k):
        return dict(enumerate(np.mean(list(scores[name][k].values()), axis=0).tolist()))

    pairs = [(name, k) for name in scores if name != against for k in scores[name]]
    found = with_corrected_p([paired_difference(means(name, k), means(against, k)) for name, k in pairs])
    result: dict[str, Any] = {}
    for (name, k), difference in zip(pairs, found, strict=True):
        result.setdefault(name, {})[k] = difference._asdict()
    return result


def _sources(given, runs, checkpoint, check) -> dict[str, Source]:
    """What there is to adapt, by name."""
    if twice := sorted({run.name for run in runs if [other.name for other in runs].count(run.name) > 1}):
        raise UserError(f"--runs: two folders are named {twice[0]!r}; tables tell runs apart by that name")
    if INITIAL_VALUES in {run.name for run in runs}:
        raise UserError(f"--runs: a folder is named {INITIAL_VALUES!r}, as what every run begins from; rename it")
    if given.adapt.against not in ("", INITIAL_VALUES, *(run.name for run in runs)):
        names = ", ".join(map(repr, (*(run.name for run in runs), INITIAL_VALUES)))
        raise UserError(f"config.adapt.against: {given.adapt.against!r} is none of {names}")
    sources: dict[str, Source] = {}
    configs = {}
    for run, own in runs.items():  # all that can be wrong before anything is loaded
        configs[run] = _composed(own, given, run)
        check(configs[run])
        _require_classes(configs[run])
        _require_column(given.adapt.column, own)
        require_checkpoint(run, checkpoint or own.evaluation.checkpoint)
    for run, own in runs.items():
        config = configs[run]
        if not sources:
            require_platform(config.training.platform)
        kept = artifacts.load(run)
        experiment, params = inference.load_model(own, run, (checkpoint or own.evaluation.checkpoint,))
        layers = _layers(experiment, params, config.adapt.column)
        sources[run.name] = Source(config, kept, layers, False)
    return sources | {INITIAL_VALUES: _initial(next(iter(sources.values())))}


def _composed(own: Any, given: Any, run: pathlib.Path) -> Any:
    """The config of a run with the new tasks in place of its own, and every layer shared."""
    for field in ("mixer", "adapter"):
        if own.sharing[field]:
            raise UserError(
                f"{run}: config.sharing.{field} = {own.sharing[field]!r}: no column stands alone that a new task could "
                "begin from"
            )
    config = default.get_config()
    for field in ("datasets", "tasks", "adapt", "seed"):
        config[field] = given[field]
    for field in ("tokenizer", "model", "evaluation", "training"):
        config[field] = own[field]
    config.sharing.readout, config.sharing.readout_options = own.sharing.readout, own.sharing.readout_options
    for field in ("seed", "row_length", "max_unseen_labels"):
        config.data[field] = own.data[field]
    return config


def _require_classes(config: Any) -> None:
    for name, task in config.tasks.items():
        if task.kind != "classification":
            raise UserError(
                f"config.tasks.{name}.kind: {task.kind!r}, but --mode=adapt draws examples of each class: "
                "'classification'"
            )


def _require_column(column: str, own: Any) -> None:
    """Raises UserError where a run has no column of the task that is asked for."""
    tasks = tuple(own.train_on) or tuple(own.tasks)
    if column and column not in tasks:
        raise UserError(f"config.adapt.column: {column!r} is none of the run's tasks {', '.join(tasks)}")


def _layers(experiment: Experiment, params: Any, column: str) -> Any:
    """{path: leaves [1, ...]}: the mean of the owners of each layer, or what one task uses."""
    k = list(experiment.tasks).index(column) if column else None

    def taken(path, leaf):
        return leaf.mean(axis=0, keepdims=True) if k is None else leaf[experiment.owners[path][k]][None]

    return {
        path: jax.tree.map(lambda leaf, p=path: np.asarray(taken(p, leaf)), params[path]) for path in experiment.owners
    }


def _initial(source: Source) -> Source:
    """What a run begins from: published values, or random ones, others for each draw."""
    config = source.config
    encoder = load_encoder(config)
    some = next(iter(config.tasks))
    experiment = _alone(source, some, encoder.params if encoder else None)
    draws = 1 if encoder else max(config.adapt.draws, config.adapt.tuning_draws)
    made = [jax.device_get(experiment.init_params(config.seed + draw)) for draw in range(draws)]
    layers = [{path: tree for path, tree in params.items() if path != "heads"} for params in made]
    if encoder:
        return source._replace(layers=layers[0])
    return source._replace(layers=jax.tree.map(lambda *leaves: np.stack(leaves), *layers), by_draw=True)


def _alone(source: Source, task: str, pretrained_params: Any = None) -> Experiment:
    """The experiment of one new task."""
    config, kept = source.config, source.kept
    data = corpora.load(
        config.datasets,
        label_specs(config),
        kept.tokenizer,
        row_length=config.data.row_length,
        max_length=max_length(config, kept.architecture),
        pack=False,
        overflow="truncate",
        seed=config.data.seed,
        tasks=(task,),
        max_unseen_labels=config.data.max_unseen_labels,
    )
    return assemble(config, data, kept.architecture, pretrained_params)


def _adapted(source: Source, task: str) -> AdaptedTask:
    experiment = _alone(source, task)
    data = experiment.corpus
    found = make_episode(data, task)

    def scored(split, predicted):
        return score(data, experiment.spec.objective, task, split, predicted)

    return AdaptedTask(
        Learner(experiment, found), found, data.vocabularies[task].names, scored, run_warnings.data_warnings(data)
    )


def _architecture(source: Source) -> str:
    """What runs have to have in common to share data and programs."""
    config = to_plain(source.config)
    return repr([config["model"], config["sharing"], config["data"], source.kept.tokenizer.fingerprint])


def _scores(adapted: AdaptedTask, source: Source, shots, draws, split, purpose, rates, bar) -> np.ndarray:
    """float[draws, rates, steps]: the task's first metric on a split."""
    layers = source.layers
    if source.by_draw:
        layers = jax.tree.map(lambda leaf: leaf[:draws], layers)
    few = draw_supports(adapted.episode, adapted.classes, shots, draws, source.config.seed, purpose)
    said = adapted.learner.predictions(split, layers, source.by_draw, few, rates)
    bar.update(draws * len(rates))
    return np.asarray([[[adapted.score(split, p) for p in by_step] for by_step in by_rate] for by_rate in said])
