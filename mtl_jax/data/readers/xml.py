"""XML files with an element for each example (RTE, SemEval)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any
from xml.parsers import expat

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_xml(location: Location, encoding: str, *, record: str, lists: Sequence[str] = ()) -> Iterator[Record | Note]:
    """One record for each element `record`, at any depth. Fields: its attributes, and its children by name.

    A child with neither attributes nor children is its text; another is an object of the same kind, whose fields are
    reached as "child.field". Several children of one name are a list. `text`: the text of an element between tags,
    its children's text included, where there is any and nothing else is called so.

        RTE             record="pair"; text=("t", "h"), label="entailment"
        SemEval ABSA    record="sentence", lists=("aspectTerm",); text=("text",), "aspectTerms.aspectTerm"

    Args:
      record: name of the element, as it is written, prefix of a namespace included.
      lists: children that are lists even where there is one.

    Raises UserError at the line: XML that is not well-formed, entities that the file itself declares, no such element.
    """
    reading = _Reading(record, frozenset(lists))
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = lambda name, attributes: reading.start(name, attributes, parser.CurrentLineNumber)
    parser.EndElementHandler = reading.end
    parser.CharacterDataHandler = reading.text

    def refuse(why):
        def handler(name, *_):
            raise UserError(f"{location.name}:{parser.CurrentLineNumber}: the entity {name!r} {why}")

        return handler

    parser.EntityDeclHandler = refuse("is declared in the file, which could grow without bound; it is not read")
    parser.SkippedEntityHandler = refuse("is not known")
    try:
        parser.Parse(location.text(encoding), True)
    except expat.ExpatError as error:
        what = expat.errors.messages.get(error.code, str(error))
        raise UserError(f"{location.name}:{error.lineno}: not well-formed XML: {what}") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{location.name}: not well-formed XML: {error}") from error
    if not reading.found:
        known = ", ".join(sorted(reading.names)[:20])
        raise UserError(f"{location.name}: no element {record!r} (options.record); there are {known}")
    for line, fields in reading.found:
        yield Record(fields, location.name, line)


@dataclasses.dataclass
class _Element:
    """An open element.

    text         pieces of text of the element and its descendants
    direct_text  those of the element itself
    """

    line: int
    fields: dict[str, Any]
    text: list[str] = dataclasses.field(default_factory=list)
    direct_text: list[str] = dataclasses.field(default_factory=list)


class _Reading:
    """The records found so far, and the open elements, outermost first."""

    def __init__(self, record: str, lists: frozenset[str]):
        self.record, self.lists = record, lists
        self.names: set[str] = set()
        self.found: list[tuple[int, dict[str, Any]]] = []
        self.open: list[_Element] = []

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        self.names.add(name)
        if self.open or name == self.record:  # elements outside of records are skipped
            self.open.append(_Element(line, dict(attributes)))

    def text(self, piece: str) -> None:
        if self.open:
            self.open[-1].direct_text.append(piece)
            for element in self.open:
                element.text.append(piece)

    def end(self, name: str) -> None:
        if not self.open:
            return
        element = self.open.pop()
        text = "".join(element.text).strip()
        value: Any = element.fields or text
        if "".join(element.direct_text).strip():
            element.fields.setdefault("text", text)
        if name == self.record:
            self.found.append((element.line, element.fields))
        if self.open:
            _add_field(self.open[-1].fields, name, value, name in self.lists)


def _add_field(fields: dict[str, Any], name: str, value: Any, as_list: bool) -> None:
    """Puts a child into its parent: as one more of a list where there are attributes or children of the same name."""
    before = fields.get(name)
    if isinstance(before, list):
        before.append(value)
    elif name in fields:
        fields[name] = [before, value]
    else:
        fields[name] = [value] if as_list else value
