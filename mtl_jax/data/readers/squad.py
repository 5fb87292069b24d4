"""SQuAD's own files: articles, paragraphs, and questions on each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mtl_jax.data.files import Location
from mtl_jax.data.readers.jsonl import kind, parse_json
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_squad(location: Location, encoding: str) -> Iterator[Record | Note]:
    """One record a question of {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}.

    Fields: question, context, title, id; answers: a list of {"text", "answer_start"}, empty where the question is
    marked as impossible (`is_impossible`, SQuAD 2.0), absent where the file has none (a test set). Record.line is the
    number of the question.

    Raises UserError at the place in the file: a key that is missing, or has a value of another type.
    """
    whole = parse_json(location.text(encoding), location.name)
    number = 0
    for a, article in enumerate(_list(whole, "data", location.name)):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{location.name}: data[{a}]")):
            place = f"{location.name}: data[{a}].paragraphs[{p}]"
            context = _text(paragraph, "context", place)
            for q, question in enumerate(_list(paragraph, "qas", place)):
                number += 1
                fields = {
                    "question": _text(question, "question", f"{place}.qas[{q}]"),
                    "context": context,
                    "title": article.get("title", ""),
                    "id": question.get("id", str(number)),
                }
                if question.get("is_impossible"):
                    fields["answers"] = []
                elif "answers" in question:
                    fields["answers"] = _list(question, "answers", f"{place}.qas[{q}]")
                yield Record(fields, location.name, number)


def _list(value: Any, key: str, place: str) -> list[Any]:
    return _of(value, key, list, "a list", place)


def _text(value: Any, key: str, place: str) -> str:
    return _of(value, key, str, "a string", place)


def _of(value: Any, key: str, wanted: type, name: str, place: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{place}: has to be an object with {key!r}, found {kind(value)}")
    if not isinstance(value.get(key), wanted):
        raise UserError(f"{place}: {key!r} has to be {name}, found {kind(value.get(key))}")
    return value[key]
