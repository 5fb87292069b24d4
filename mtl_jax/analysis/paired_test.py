"""Paired tests: are some runs better than others on the same examples?"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from mtl_jax.analysis.ablation.conclusions import p_value
from mtl_jax.analysis.tables import text_table
from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus, Split
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.records import field, find_field
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import make_evaluator, placement_from_config, restore_params
from mtl_jax.runs.build import build
from mtl_jax.storage.checkpoint import require_checkpoint

DRAWS = 10_000  # random signs, and bootstrap samples of groups


class PairedTest(NamedTuple):
    """The mean scores of two sides on the same examples.

    first, second  mean scores
    low, high      95 % interval of first − second: bootstrap of groups of examples (Efron 1979), by percentiles
    p              two-sided, by random signs of the groups' summed differences (Fisher 1935)
    examples, groups  their numbers; examples of one group are dependent, and have the same sign
    only_first, only_second  numbers of examples that only one side has right, and
    mcnemar        exact two-sided p of those two numbers (McNemar 1947); None where scores are not all 0 or 1, or
                   examples are in groups
    """

    first: float
    second: float
    low: float
    high: float
    p: float
    examples: int
    groups: int
    only_first: int | None
    only_second: int | None
    mcnemar: float | None


def paired_test(first: np.ndarray, second: np.ndarray, groups: Sequence[Hashable], draws: int = DRAWS) -> PairedTest:
    """Tests whether the mean of `first` − `second`, float[N] each, is 0.

    Args:
      first, second: scores of the same N examples; each may be a mean over runs.
      groups: [N] names; examples with equal names form one group.
      draws: random signs, and bootstrap samples of groups.

    Raises:
      UserError: there is no example.
    """
    if not len(first):
        raise UserError("no example has a label: nothing to compare")
    difference = np.asarray(first, float) - np.asarray(second, float)
    index = {name: n for n, name in enumerate(dict.fromkeys(groups))}
    group = np.asarray([index[name] for name in groups])
    total, size = np.bincount(group, difference), np.bincount(group).astype(float)
    rng = np.random.Generator(np.random.PCG64(0))
    count, sums, means = len(total), np.empty(draws), np.empty(draws)
    for draw in range(draws):
        sums[draw] = np.where(rng.integers(0, 2, count, np.int8), total, -total).sum()
        sample = rng.integers(0, count, count)
        means[draw] = total[sample].sum() / size[sample].sum()
    extreme = np.abs(sums) >= abs(total.sum()) * (1 - 1e-12) - 1e-12
    low, high = np.percentile(means, (2.5, 97.5))
    only_first = only_second = mcnemar = None
    if count == len(difference) and set(np.unique([first, second])) <= {0.0, 1.0}:
        only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
        different = only_first + only_second
        mcnemar = float(stats.binomtest(only_first, different).pvalue) if different else 1.0
    return PairedTest(
        float(np.mean(first)),
        float(np.mean(second)),
        float(low),
        float(high),
        float((1 + extreme.sum()) / (1 + draws)),
        len(difference),
        count,
        only_first,
        only_second,
        mcnemar,
    )


def example_scores(kind: str, gold: GoldLabels, predicted: Sequence[Any], is_soft: bool) -> np.ndarray:
    """float64[M], the score of each record: 1 where the label is right (all of a set), else 0; the fraction of its
    words that are right; −|error| of a number. NaN where there is no label.

    Args:
      kind: of the labels: "real" for numbers.
      gold: of the M records.
      predicted: of each record.
      is_soft: whether the gold labels are distributions, whose most likely class is compared.
    """
    scores = np.full(len(gold.offsets) - 1, np.nan)
    for record in range(len(scores)):
        value, known = gold.at_record(record)
        if not known.any():
            continue
        value = value.argmax(-1) if is_soft else value
        values = np.asarray(predicted[record]).reshape(value.shape)[known]
        if kind == "real":
            scores[record] = -np.abs(values - value[known]).mean()
        else:
            right = (values == value[known]).reshape(len(values), -1)
            scores[record] = right.all(axis=1).mean()
    return scores


class _Scored(NamedTuple):
    """One split of a task, scored by a run: places and group names [M] of the records, their scores float64[M]."""

    places: list[tuple[str, int]]
    groups: list[Hashable]
    scores: np.ndarray


def compare_runs(
    runs: Sequence[pathlib.Path],
    against: Sequence[pathlib.Path],
    config_of: Callable[[pathlib.Path], Config],
    split: str = "test",
    by: str = "",
) -> dict[str, PairedTest]:
    """{task: test} of `runs` against others, on the examples of one split; scores are means over each side's runs.

    Args:
      runs, against: folders of finished runs; those of several seeds form one side.
      config_of: (folder) -> its config.
      split: "test" or "dev".
      by: field of the records; examples with the same value form one group. For "", and in data sets without the
        field, each example is a group.

    Raises:
      UserError: no common task; runs that were scored on other examples; a field that some records lack.
    """
    configs = {workdir: config_of(workdir) for workdir in (*runs, *against)}
    _require_common_tasks(configs)
    for workdir, config in configs.items():
        require_checkpoint(workdir, config.evaluation.checkpoint)
    scored: dict[pathlib.Path, dict[str, _Scored]] = {}
    for workdir, config in configs.items():
        scored[workdir] = _score_run(workdir, config, split, by, next(iter(scored.items()), None))
    sides = [[scored[workdir] for workdir in side] for side in (runs, against)]
    all_runs = [*sides[0], *sides[1]]
    tasks = [task for task in all_runs[0] if all(task in by_task for by_task in all_runs)]
    if not tasks:
        raise UserError(f"the runs have no task in common that is scored on {split}")
    result = {}
    for task in tasks:
        first = all_runs[0][task]
        means = [np.mean([by_task[task].scores for by_task in side], axis=0) for side in sides]
        known = np.flatnonzero(np.isfinite(means[0]) & np.isfinite(means[1]))
        result[task] = paired_test(means[0][known], means[1][known], [first.groups[n] for n in known])
    return result


def describe(tests: Mapping[str, PairedTest]) -> str:
    """The tests as a table."""
    rows = []
    for task, t in tests.items():
        interval = f"{t.first - t.second:+.4f} ({t.low:+.4f} to {t.high:+.4f})"
        mcnemar = "" if t.mcnemar is None else f"{t.only_first} : {t.only_second}, {p_value(t.mcnemar)}"
        rows.append([task, t.examples, t.groups, f"{t.first:.4f}", f"{t.second:.4f}", interval, p_value(t.p), mcnemar])
    header = ["task", "examples", "groups", "runs", "against", "difference (95 %)", "by signs", "McNemar"]
    return text_table(header, rows)


def _require_common_tasks(configs: Mapping[pathlib.Path, Config]) -> None:
    """Raises UserError where no task is in all runs; a check that needs no data."""
    trained = {workdir: list(config.train_tasks or config.tasks) for workdir, config in configs.items()}
    if not set.intersection(*map(set, trained.values())):
        listed = "; ".join(f"{workdir}: {', '.join(tasks)}" for workdir, tasks in trained.items())
        raise UserError(f"the runs have no task in common: {listed}")


def _score_run(
    workdir: pathlib.Path, config: Config, split: str, by: str, first: tuple[pathlib.Path, dict[str, _Scored]] | None
) -> dict[str, _Scored]:
    """The scores of a run by task. `first`: folder and scores of another run, which must have the same examples."""
    experiment = build(config, soft_labels=False, finished=workdir)
    if first:
        _require_same_examples(workdir, experiment.corpus, split, *first)
    placement = placement_from_config(experiment)
    params = restore_params(experiment, placement, workdir, config.evaluation.checkpoint).params
    evaluator = make_evaluator(experiment, placement)
    by_task = {}
    for dataset, splits in experiment.corpus.splits.items():
        if split not in splits:
            continue
        records = splits[split].records
        grouped = by and find_field(records[0], by) is not None
        groups = [str(field(record, by)) if grouped else n for n, record in enumerate(records)]
        for task, values in evaluator.predict(params, dataset, split).values.items():
            scores = _scores(experiment.corpus, task, splits[split], values["value"])
            by_task[task] = _Scored([(record.file, record.line) for record in records], groups, scores)
    return by_task


def _require_same_examples(
    workdir: pathlib.Path, corpus: Corpus, split: str, other: pathlib.Path, scored: Mapping[str, _Scored]
) -> None:
    """Raises UserError where two runs score a common task on different examples; a check before any prediction."""
    for task, spec in corpus.specs.items():
        part = corpus.splits[spec.dataset].get(split)
        if part is None or task not in scored:
            continue
        if [(record.file, record.line) for record in part.records] != scored[task].places:
            raise UserError(f"{workdir}: other examples of {task} than in {other}: they cannot be paired")


def _scores(corpus: Corpus, task: str, split: Split, predicted: Sequence[Any]) -> np.ndarray:
    return example_scores(
        corpus.specs[task].kind, split.encoded.labels[task], predicted, corpus.vocabularies[task].soft
    )
