"""XML files with an element for each example (RTE, SemEval)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from xml.parsers import expat

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_xml(location: Location, encoding: str, *, record: str, lists: Sequence[str] = ()) -> Iterator[Record | Note]:
    """One record for each element `record`, wherever it stands. Fields: its attributes, and its children by name.

    A child with neither attributes nor children is its text; another is an object of the same kind, whose fields are
    reached as "child.field". Several children of one name are a list. `text`: what stands in an element between tags,
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


class _Reading:
    """The open elements, outermost first: (name, line, fields, pieces of text, those between tags of its own)."""

    def __init__(self, record: str, lists: frozenset[str]):
        self.record, self.lists = record, lists
        self.names: set[str] = set()
        self.found: list[tuple[int, dict[str, Any]]] = []
        self.open: list[tuple[str, int, dict[str, Any], list[str], list[str]]] = []

    def start(self, name: str, attributes: dict[str, str], line: int) -> None:
        self.names.add(name)
        if self.open or name == self.record:  # what stands around the records is not kept
            self.open.append((name, line, dict(attributes), [], []))

    def text(self, piece: str) -> None:
        if self.open:
            self.open[-1][4].append(piece)
            for _, _, _, pieces, _ in self.open:
                pieces.append(piece)

    def end(self, name: str) -> None:
        if not self.open:
            return
        _, line, fields, pieces, own = self.open.pop()
        whole = "".join(pieces).strip()
        value: Any = fields
        if not fields:
            value = whole
        if "".join(own).strip():
            fields.setdefault("text", whole)
        if name == self.record:
            self.found.append((line, fields))
        if self.open:
            _into(self.open[-1][2], name, value, name in self.lists)


def _into(fields: dict[str, Any], name: str, value: Any, as_list: bool) -> None:
    """Puts a child into its parent: beside an attribute or children of the same name, as one more of a list."""
    before = fields.get(name)
    if isinstance(before, list):
        before.append(value)
    elif name in fields:
        fields[name] = [before, value]
    else:
        fields[name] = [value] if as_list else value
