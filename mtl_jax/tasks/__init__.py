"""Kinds of tasks: a head, a loss and metrics each. `make_task` builds a task from its config and checks every field.

A new kind is a subclass of `Task` in a file, and a line in `TASK_KINDS`.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.tasks import losses, options
from mtl_jax.tasks.base import Features, Labels, Params, Task, TaskData
from mtl_jax.tasks.classification import Classification, Multilabel
from mtl_jax.tasks.completion import Completion
from mtl_jax.tasks.gan_classification import AdversarialClassification
from mtl_jax.tasks.generation import Generation
from mtl_jax.tasks.grounded_classification import GroundedClassification
from mtl_jax.tasks.masked_lm import MaskedLM
from mtl_jax.tasks.metrics import METRICS
from mtl_jax.tasks.multiple_choice import MultipleChoice
from mtl_jax.tasks.regression import Regression
from mtl_jax.tasks.relation import Relation
from mtl_jax.tasks.span import Span
from mtl_jax.tasks.tagging import Tagging
from mtl_jax.tasks.tags import marks_spans, no_spans_reason

__all__ = ["METRICS", "TASK_KINDS", "Features", "Labels", "Params", "Task", "TaskData", "make_task"]


TASK_KINDS: dict[str, type[Task]] = {
    "classification": Classification,
    "gan_classification": AdversarialClassification,
    "grounded_classification": GroundedClassification,
    "multilabel": Multilabel,
    "regression": Regression,
    "tagging": Tagging,
    "generation": Generation,
    "completion": Completion,
    "span": Span,
    "relation": Relation,
    "multiple_choice": MultipleChoice,
    "masked_lm": MaskedLM,
}


def make_task(
    name: str,
    settings: Mapping[str, Any],
    level: str,
    names: Sequence[str] = (),
    counts: Sequence[int] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Task:
    """The task `name` from its config section.

    settings  {"kind": one of TASK_KINDS, option: value}; the options are the fields of the kind's class
    level     "text" | "word" | "predicate" | ..., the level of its labels in the data
    names     the classes of train, in the order of their ids
    counts    how often train has each class; only class_weights="balanced" reads it
    given     values of `Task.from_data`

    Raises `UserError` naming `config.tasks.<name>.options.<field>`, or `.kind`, `.label`, `.metrics`.
    """
    settings = dict(settings.items())
    names = tuple(names)
    if "kind" not in settings:
        raise options.option_error(name, "kind", f"is missing; one of {', '.join(map(repr, TASK_KINDS))}")
    options.require_choice(name, "kind", settings["kind"], TASK_KINDS)
    kind = TASK_KINDS[settings.pop("kind")]
    given_fields = ("name", "names", "level", *kind.from_data)
    fields = [field.name for field in dataclasses.fields(kind) if field.name not in given_fields]
    for field in settings:
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It has {', '.join(fields)}."
            raise options.option_error(name, field, f"this kind of task has no such option. {hint}")
    if "class_weights" in settings:
        settings["class_weights"] = _class_weights(name, settings["class_weights"], names, counts)
    if "metrics" in settings and not settings["metrics"]:
        del settings["metrics"]  # the kind's own
    elif "metrics" in settings:
        spans = (given or {}).get("spans")
        settings["metrics"] = _metrics(name, settings["metrics"], kind, names, spans)
    return kind(name=name, names=names, level=level, **settings, **(given or {}))


def _class_weights(task: str, value: Any, names: tuple[str, ...], counts: Sequence[int] | None) -> tuple[float, ...]:
    if value is None or (isinstance(value, str) and not value):
        return ()
    if isinstance(value, str):
        options.require_choice(task, "class_weights", value, ["balanced"])
        if counts is None or len(counts) != len(names):
            raise options.option_error(
                task, "class_weights", "'balanced' needs the label counts of train, which are not known"
            )
        return losses.balanced_weights(tuple(int(c) for c in counts))
    if hasattr(value, "items"):
        weights = dict(value.items())
        for label in weights:
            options.require_choice(task, "class_weights", label, names)
        return tuple(weights.get(label, 1.0) for label in names)
    if not isinstance(value, Sequence):
        problem = f"{value!r} should be 'balanced', one weight for each class, or {{class: weight}}"
        raise options.option_error(task, "class_weights", problem)
    return tuple(value)


def _metrics(task: str, value: Any, kind: type[Task], names: tuple[str, ...], spans: bool | None) -> tuple[str, ...]:
    metrics = (value,) if isinstance(value, str) else tuple(value)
    for metric in metrics:
        options.require_choice(task, "metrics", metric, [m for m in METRICS if kind.predicts in METRICS[m].predictions])
        if METRICS[metric].spans and not marks_spans(names, spans):
            raise options.option_error(task, "metrics", f"{metric!r} reads spans, but {no_spans_reason(names)}")
        if METRICS[metric].binary and len(names) != 2:
            others = [m for m in METRICS if kind.predicts in METRICS[m].predictions and not METRICS[m].binary]
            problem = (
                f"{metric!r} is that of the second of two classes, train has {len(names)}; take {', '.join(others)}"
            )
            raise options.option_error(task, "metrics", problem)
    if metrics and not METRICS[metrics[0]].increasing:
        problem = f"the first metric is the task's score, more must be better; put {metrics[0]!r} after another"
        raise options.option_error(task, "metrics", problem)
    return metrics
