"""NLVR (Suhr et al. 2017): a sentence, a picture of three boxes, and whether the sentence is true of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.generated_statements import is_tower, normalized, statements_about
from mtl_jax.data.readers.jsonl import read_records
from mtl_jax.data.records import Note, Record, where
from mtl_jax.errors import UserError

BOXES = ((0, 0, 100, 100), (150, 0, 100, 100), (300, 0, 100, 100))  # x, y, width, height in a picture of 400 × 100
_COLORS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}


def read_nlvr(
    location: Location,
    encoding: str,
    *,
    orders: int = 1,
    statements: int = 0,
    added_to: Sequence[str] = (),
    single: bool = False,
    balanced: bool = True,
    seed: int = 0,
) -> Iterator[Record | Note]:
    """The records of one folder of pictures, SPLIT/images/NUMBER, as SPLIT/SPLIT.json has them.

    All pictures of one sentence are in one such folder, so that splits of folders share no presentation. Fields:
    sentence, label, identifier, presentation (the first part of the identifier), image (the three boxes, each a part
    of the picture), kinds (its contents: "yellow circle", …), tower ("yes" | "no").

    Args:
      orders: 1 to 6: records of each picture, with its boxes in so many orders, which leave the label as it is. The
        order as drawn comes first.
      statements: above 0: the number of generated statements that replace NLVR's sentences, true or false by the
        pictures' structured representations; see `generated_statements`. None of them is a sentence of NLVR. Each
        is about one order.
      added_to: folders, as "dev/0", that get generated statements in addition to NLVR's sentences; others get only
        NLVR's.
      single: records of single boxes instead, without sentence: image, identifier, and details, the contents of the
        box ("2 black", "top blue", "yellow on black", …).
      balanced: whether each generated statement is about two pictures, true of one and false of the other, so that
        words alone are not informative; else it is about any one picture.
      seed: of the generated statements.

    Raises UserError where the JSON file is missing, a record lacks a field, or `orders` is out of range.
    """
    if not 1 <= orders <= 6:
        raise UserError(f"options.orders: there are 1 to 6 orders of three boxes, found {orders}")
    location.require_folder()
    images = location.parent()
    split = images.parent()
    file = split.child(f"{split.place.name}.json")
    if not file.is_file():
        raise UserError(
            f"{location.name}: the reader 'nlvr' needs folders such as dev/images/0, next to dev/dev.json; "
            f"there is no {file.name}"
        )
    records = list(read_records(file, encoding, fields=("sentence",)))
    records = [_checked(r) for r in records if str(r.fields.get("directory")) == location.place.name]
    pictures = [_fields(record, location, split.place.name) for record in records]
    if single:
        yield from _single_boxes(records, pictures)
        return
    name = f"{split.place.name}/{location.place.name}"
    permutations = list(itertools.permutations(range(3)))[:orders]
    examples = []
    if not statements or added_to:
        pairs = [(n, record.fields["sentence"], record.fields["label"]) for n, record in enumerate(records)]
        examples = [(*pair, order) for pair in pairs for order in permutations]
    if statements and (not added_to or name in added_to):
        written = _sentences(split.parent(), encoding)
        made = statements_about([_boxes(record) for record in records], statements, f"{name}/{seed}", written, balanced)
        examples += [(*statement, permutations[number % orders]) for number, statement in enumerate(made)]
    for n, sentence, label, order in examples:
        image = [pictures[n]["image"][box] for box in order]
        fields = pictures[n] | {"sentence": sentence, "label": label, "image": image}
        yield Record(fields, records[n].file, records[n].line)


def _single_boxes(records: Sequence[Record], pictures: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
    """A record for each box of each picture."""
    for record, picture in zip(records, pictures, strict=True):
        boxes = _boxes(record)
        for box, image in zip(boxes, picture["image"], strict=True):
            details = _details(box, is_tower(boxes))
            fields = {"identifier": picture["identifier"], "image": image, "details": details}
            yield Record(fields, record.file, record.line)


def _sentences(top: Location, encoding: str) -> frozenset[str]:
    """The sentences of all splits."""
    files = [folder.child(f"{folder.place.name}.json") for folder in top.children() if folder.is_folder()]
    return frozenset(
        normalized(_checked(record).fields["sentence"])
        for file in files
        if file.is_file()
        for record in read_records(file, encoding, fields=("sentence",))
    )


def _checked(record: Record) -> Record:
    for name in ("sentence", "label", "identifier", "structured_rep"):
        if name not in record.fields:
            raise UserError(f"{where(record)}: no field {name!r}, which a record of NLVR has")
    for name in ("sentence", "identifier"):
        if not isinstance(record.fields[name], str):
            raise UserError(f"{where(record)}: field {name!r} has to be a string, found {record.fields[name]!r}"[:200])
    return record


def _fields(record: Record, folder: Location, split: str) -> dict[str, Any]:
    identifier = record.fields["identifier"]
    file = folder.child(f"{split}-{identifier}-0.png")
    boxes = _boxes(record)
    return {
        "identifier": identifier,
        "presentation": f"{split} {identifier.partition('-')[0]}",
        "image": [f"{file.place}#xywh={x},{y},{width},{height}" for x, y, width, height in BOXES],
        "kinds": sorted({f"{item['color']} {item['type']}" for box in boxes for item in box}),
        "tower": "yes" if is_tower(boxes) else "no",
    }


def _details(box: Sequence[Mapping[str, Any]], of_tower: bool) -> list[str]:
    """The contents of a box, as short descriptions."""
    order = sorted(box, key=lambda item: item["y_loc"])
    colors = [item["color"] for item in order]
    details = {f"{len(box)} items", f"{len(set(colors))} colors"}
    details |= {f"{colors.count(color)} {color}" for color in colors}
    details |= {f"{item['color']} {item['type']}" for item in box}
    if order and of_tower:
        details |= {f"top {colors[0]}", f"base {colors[-1]}"}
        details |= {f"{upper} on {lower}" for upper, lower in itertools.pairwise(colors)}
    return sorted(details)


def _boxes(record: Record) -> Sequence[Sequence[Mapping[str, Any]]]:
    """Items by box, their colors by name."""
    try:
        boxes = [
            [dict(item, color=_COLORS[item["color"].lower()]) for item in box]
            for box in record.fields["structured_rep"]
        ]
        for item in (item for box in boxes for item in box):
            numbers = [item[name] for name in ("x_loc", "y_loc", "size")]
            if not isinstance(item["type"], str) or not all(isinstance(number, int | float) for number in numbers):
                raise TypeError(f"an item of type {item['type']!r} with x_loc, y_loc, size {numbers}")
        return boxes
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where(record)}: structured_rep is not as NLVR has it: {error!r}"[:300]) from error
