"""Labels of multiple choice: which of a record's choices is the right one."""

from __future__ import annotations

import string

import numpy as np

from mtl_jax import unicode
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.raw_labels import RawLabels, is_missing, missing_value_advice
from mtl_jax.data.records import Record, find_field, where
from mtl_jax.errors import UserError


def collect_choices(inputs: RecordInputs, spec: LabelSpec) -> RawLabels:
    """The number of the right choice of each record, from 0; None where it is missing.

    A label is a number from 0, the text of a choice, a letter ("A" is the first), or a number as a string; with
    `spec.classes` it is one of these names and means its index ("1", "2" where numbers begin at 1).

    Raises:
      UserError: by file and line: no such choice; an ambiguous label.
    """
    if inputs.choices is None:
        raise UserError(
            f"task {spec.task}: data set {spec.dataset} has no choices; name their field, or a field for each, as "
            "`choices` of the data set"
        )
    pairs = zip(inputs.records, inputs.choices, strict=True)
    values = [_number(find_field(record, spec.field), choices, spec, record) for record, choices in pairs]
    return RawLabels(values, np.arange(len(values) + 1, dtype=np.int64), inputs.records)


def _number(raw, choices: list[str], spec: LabelSpec, record: Record) -> int | None:
    if isinstance(raw, str):
        raw = raw.strip()
    if is_missing(raw, spec):
        return None
    numbers = set()
    if spec.classes:
        if str(raw) in spec.classes:
            numbers.add(spec.classes.index(str(raw)))
    elif isinstance(raw, int) and not isinstance(raw, bool):
        numbers.add(raw)
    elif isinstance(raw, str):
        numbers |= {n for n, choice in enumerate(choices) if unicode.nfc(choice.strip()) == unicode.nfc(raw)}
        if len(raw) == 1 and raw in string.ascii_uppercase:
            numbers.add(string.ascii_uppercase.index(raw))
        if raw.isdecimal():
            numbers.add(int(raw))
    if len(numbers) > 1:
        both = f"label {raw!r} can mean the choices {sorted(numbers)}, counted from 0"
        raise _error_at(record, spec, f"{both}; write a number, or name the labels in order as `classes` of the task")
    if not numbers or not 0 <= min(numbers) < len(choices):
        none = f"label {raw!r} is none of the {len(choices)} choices: {', '.join(choices)}"[:300]
        raise _error_at(record, spec, none + missing_value_advice(raw, spec))
    return numbers.pop()


def _error_at(record: Record, spec: LabelSpec, message: str) -> UserError:
    return UserError(f"{where(record)}: task {spec.task}: {message}")
