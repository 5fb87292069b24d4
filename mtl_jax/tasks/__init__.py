"""Kinds of tasks: a head, a loss and metrics each. `make` builds a task from its config and checks every field.

A new kind is one file with a class like `Classification` and one line in KINDS.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.tasks import losses, options
from mtl_jax.tasks.base import Features, Labels, Params, Task
from mtl_jax.tasks.classification import Classification, Multilabel
from mtl_jax.tasks.gan_classification import AdversarialClassification
from mtl_jax.tasks.generation import Generation
from mtl_jax.tasks.grounded_classification import GroundedClassification
from mtl_jax.tasks.masked_lm import MaskedLM
from mtl_jax.tasks.metrics import METRICS, SPAN_METRICS
from mtl_jax.tasks.multiple_choice import MultipleChoice
from mtl_jax.tasks.regression import Regression
from mtl_jax.tasks.relation import Relation
from mtl_jax.tasks.span import Span
from mtl_jax.tasks.tagging import Tagging
from mtl_jax.tasks.tags import marks_spans, no_spans

__all__ = ["METRICS", "TASK_KINDS", "Features", "Labels", "Params", "Task", "TaskKind", "make"]


class TaskKind(NamedTuple):
    """A kind of task.

    task      its class
    predicts  what it predicts, see `Metric.of`
    labels    what its labels are: "class", "set", "real", "tokens", "choice", "span", "hidden", see
              `mtl_jax.data.labels`
    levels    the levels that its labels may have, the default first
    given     fields of its class that the data give, beside name, names and level; they are no options
    """

    task: type
    predicts: str
    labels: str = "class"
    levels: tuple[str, ...] = ("text",)
    given: tuple[str, ...] = ()


TASK_KINDS: dict[str, TaskKind] = {
    "classification": TaskKind(Classification, "ids"),
    "gan_classification": TaskKind(AdversarialClassification, "ids"),
    "grounded_classification": TaskKind(GroundedClassification, "ids"),
    "multilabel": TaskKind(Multilabel, "sets", labels="set"),
    "regression": TaskKind(Regression, "values", labels="real"),
    "tagging": TaskKind(Tagging, "tags", levels=("word", "predicate"), given=("spans",)),
    "generation": TaskKind(Generation, "texts", labels="tokens", levels=("sequence",), given=("join", "source")),
    "span": TaskKind(Span, "answers", labels="span", levels=("span",)),
    "relation": TaskKind(Relation, "ids", levels=("pair",)),
    "multiple_choice": TaskKind(MultipleChoice, "ids", labels="choice", levels=("choice",)),
    "masked_lm": TaskKind(MaskedLM, "hidden", labels="hidden", levels=("token",), given=("mask_token", "table_width")),
}


def make(
    name: str,
    settings: Mapping[str, Any],
    level: str,
    names: Sequence[str] = (),
    counts: Sequence[int] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Task:
    """The task `name` from its config section.

    settings  {"kind": one of KINDS, option: value}; the options are the fields of the kind's class
    level     "text" | "word" | "predicate" | ..., the level of its labels in the data
    names     the classes of train, in the order of their ids
    counts    how often train has each class; only class_weights="balanced" reads it
    given     values of `TaskKind.given`

    Raises `UserError` naming `config.tasks.<name>.options.<field>`, or `.kind`, `.label`, `.metrics`.
    """
    settings = dict(settings.items())
    names = tuple(names)
    if "kind" not in settings:
        raise options.fail(name, "kind", f"is missing; one of {', '.join(map(repr, TASK_KINDS))}")
    options.choice(name, "kind", settings["kind"], TASK_KINDS)
    kind = TASK_KINDS[settings.pop("kind")]
    fields = [f.name for f in dataclasses.fields(kind.task) if f.name not in ("name", "names", "level", *kind.given)]
    for field in settings:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(fields)}."
            raise options.fail(name, field, f"this kind of task has no such option. {hint}")
    if "class_weights" in settings:
        settings["class_weights"] = _class_weights(name, settings["class_weights"], names, counts)
    if "metrics" in settings and not settings["metrics"]:
        del settings["metrics"]  # the kind's own
    elif "metrics" in settings:
        spans = (given or {}).get("spans")
        settings["metrics"] = _metrics(name, settings["metrics"], kind, names, spans)
    return kind.task(name=name, names=names, level=level, **settings, **(given or {}))


def _class_weights(task: str, value: Any, names: tuple[str, ...], counts: Sequence[int] | None) -> tuple[float, ...]:
    if value is None or (isinstance(value, str) and not value):
        return ()
    if isinstance(value, str):
        options.choice(task, "class_weights", value, ["balanced"])
        if counts is None or len(counts) != len(names):
            raise options.fail(task, "class_weights", "'balanced' needs the label counts of train, which are not known")
        return losses.balanced(tuple(int(c) for c in counts))
    if hasattr(value, "items"):
        weights = dict(value.items())
        for label in weights:
            options.choice(task, "class_weights", label, names)
        return tuple(weights.get(label, 1.0) for label in names)
    if not isinstance(value, Sequence):
        problem = f"{value!r} should be 'balanced', one weight for each class, or {{class: weight}}"
        raise options.fail(task, "class_weights", problem)
    return tuple(value)


def _metrics(task: str, value: Any, kind: TaskKind, names: tuple[str, ...], spans: bool | None) -> tuple[str, ...]:
    metrics = (value,) if isinstance(value, str) else tuple(value)
    for metric in metrics:
        options.choice(task, "metrics", metric, [m for m in METRICS if kind.predicts in METRICS[m].of])
        if metric in SPAN_METRICS and not marks_spans(names, spans):
            raise options.fail(task, "metrics", f"{metric!r} reads spans, but {no_spans(names)}")
        if metric == "f1" and len(names) != 2:
            problem = f"'f1' is that of the second of two classes, train has {len(names)}; take macro_f1 or micro_f1"
            raise options.fail(task, "metrics", problem)
    if metrics and not METRICS[metrics[0]].increasing:
        problem = f"the first metric is the task's score, more must be better; put {metrics[0]!r} behind another"
        raise options.fail(task, "metrics", problem)
    return metrics
