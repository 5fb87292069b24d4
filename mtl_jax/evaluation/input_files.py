"""The records that --mode=predict and --mode=attribute read, by the readers that training has.

How a file is read is decided once, before the first record: as the data set that is named, by the reader that is named,
as that data set of the run which the file is part of, or whose files have its ending; else by its ending. Where two
data sets of the run would read it differently, the user says which.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import pathlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.datasets import split_locations
from mtl_jax.data.files.location import Location, local_path
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.jsonl import parse_json, read_jsonl
from mtl_jax.data.readers.options import check_options, declared_options, select_options
from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.errors import UserError

TEXTS = "texts"  # lines of text, a JSON object in a line where it begins with "{"; a JSON list of objects
TEXT = ""  # the field of a record of `TEXTS` that is a plain line
_BY_ENDING = {
    ".json": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".conllu": "conllu",
}
_PACKED = (".gz", ".bz2", ".xz")
_OF_LINES = ("csv", "lines", "conll", "conllu", "conllu_endings", "srl")  # formats whose first lines say what they are
_PREFIX = 40  # so many lines
_LIST = re.compile(r"\s*\[\s*(\{.*|)", re.DOTALL)  # how a JSON list of objects begins


class Format(NamedTuple):
    """How a file is read: `reader` of `READERS`, or `TEXTS`; `dataset` of the run ("": none), `fields` of its texts."""

    reader: str
    encoding: str
    options: Mapping[str, Any]
    dataset: str = ""
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"as the data set {self.dataset!r} (reader {self.reader!r})" if self.dataset else f"by {self.reader!r}"


class Asked(NamedTuple):
    """What the command line says of the input: `source` is a file, a folder or "-"; the others may be ""."""

    source: str
    dataset: str = ""
    reader: str = ""
    split: str = ""


class Input(NamedTuple):
    """An open input.

    items    records and notes, read as they are taken
    folder   what relative paths in records start from
    several  whether the records may be of several files
    """

    items: Iterator[Record | Note]
    folder: Location
    several: bool = False


@contextlib.contextmanager
def opened(asked: Asked, datasets: Mapping[str, Any]) -> Iterator[Input]:
    """The input that is asked for.

    Args:
      asked: by the command line.
      datasets: entries of the run's config by name, of the data sets that its tasks read.

    Raises:
      UserError: no such file, data set or reader; an input that can be read in several ways. While records are taken:
        as the readers, with file and line.
    """
    if not asked.source:
        raise UserError("name the texts by --input=FILE, or --input=- for the standard input")
    if asked.source == "-" and not (asked.dataset or asked.reader not in ("", TEXTS)):
        yield Input(_texts(_standard_input(), "-", None), local_path("."))
        return
    with contextlib.ExitStack() as stack:
        location = _spooled(stack) if asked.source == "-" else local_path(asked.source)
        form = choose(asked, datasets, location)
        if form.dataset and not asked.dataset and form.reader != _BY_ENDING.get(_ending(location.name)):
            print(f"{asked.source} is read {form}; --reader says otherwise", file=sys.stderr)
        folder = local_path(".") if asked.source == "-" else location.folder()
        yield Input(_read(form, location, asked.split), folder, location.is_folder())


def choose(asked: Asked, datasets: Mapping[str, Any], location: Location) -> Format:
    """How `location` is read; see the head of this file. Raises UserError as `opened`."""
    formats = {name: _format(name, entry) for name, entry in datasets.items()}
    if asked.dataset:
        if asked.dataset not in formats:
            raise UserError(
                f"--dataset={asked.dataset}: the run has no such data set; it has: {', '.join(formats)}."
                f"{suggestion(asked.dataset, formats)}"
            )
        return formats[asked.dataset]
    if asked.reader == TEXTS:
        return Format(TEXTS, "utf-8", {})
    if asked.reader:
        if asked.reader not in READERS:
            known = [TEXTS, *READERS]
            raise UserError(
                f"--reader={asked.reader}: no such reader; there are: {', '.join(known)}."
                f"{suggestion(asked.reader, known)}"
            )
        return _only([form for form in formats.values() if form.reader == asked.reader], asked) or Format(
            asked.reader, "utf-8", {}
        )
    location.require()
    own = [formats[name] for name, entry in datasets.items() if location.place.resolve() in _files_of(entry)]
    if form := _only(own, asked):
        return form
    if location.is_folder():
        form = _only([formats[name] for name, entry in datasets.items() if _is_of_folders(entry)], asked)
        if form is None:
            raise UserError(f"--input={asked.source} is a folder; say how it is read: --dataset=NAME or --reader=NAME")
        return form
    return _by_ending(asked, datasets, formats, location)


def _by_ending(asked, datasets, formats, location) -> Format:
    ending = _ending(location.name)
    usual = Format(_BY_ENDING.get(ending, TEXTS), "utf-8", {})
    candidates = [
        formats[name]
        for name, entry in datasets.items()
        if ending in _endings_of(entry) and ("split" not in declared_options(READERS[entry["reader"]]) or asked.split)
    ]
    if usual.reader == TEXTS:  # a text a line is what --input is unless its lines are those of a format
        candidates = [form for form in candidates if form.reader != "lines" or form.options]
    keys = {_key(form) for form in candidates}
    if keys == {_key(usual)}:
        return _only(candidates, asked)
    fits = {key: _fits(next(form for form in candidates if _key(form) == key), location) for key in keys}
    if form := _only([form for form in candidates if fits[_key(form)]], asked):
        return form
    return candidates[0] if candidates and usual.reader != TEXTS and not _fits(usual, location) else usual


def _only(forms: Sequence[Format], asked: Asked) -> Format | None:
    """The one way to read that all of these are; None for none. Raises UserError where they differ."""
    distinct = list({_key(form): form for form in forms}.values())
    if len(distinct) > 1:
        raise UserError(
            f"--input={asked.source} can be read {' or '.join(map(str, distinct))}; say which by --dataset=NAME, or "
            f"--reader={TEXTS} for a text in each line"
        )
    if len({form.fields for form in forms}) > 1:  # records of several data sets
        return distinct[0]._replace(fields=())
    return distinct[0] if distinct else None


def _key(form: Format) -> str:
    return json.dumps([form.reader, form.encoding, form.options], sort_keys=True, default=str)


def _format(name: str, entry: Mapping[str, Any]) -> Format:
    options = entry["options"].to_dict() if hasattr(entry["options"], "to_dict") else dict(entry["options"])
    options = select_options(READERS[entry["reader"]], options)
    texts = entry["text"] or entry["words"] or entry["image"]
    fields = (texts,) if isinstance(texts, str) else tuple(texts)
    return Format(entry["reader"], entry["encoding"], options, name, fields)


def _read(form: Format, location: Location, split: str) -> Iterator[Record | Note]:
    if form.reader == TEXTS:
        return _texts(location.lines(form.encoding), location.name, location)
    reader = READERS[form.reader]
    if reader.generated:
        raise UserError(f"the reader {form.reader!r} reads no files; give its texts in another format")
    check_options(reader, form.options)
    given = {"fields": form.fields} if "fields" in declared_options(reader) else {}
    if "split" not in declared_options(reader):
        if split:
            raise UserError(f"--split={split}: the reader {form.reader!r} finds no splits in a file; leave it out")
        return reader(location, form.encoding, **form.options, **given)
    if not split:
        raise UserError(f"the reader {form.reader!r} finds the splits inside of one place; name one by --split=NAME")
    return reader(location, form.encoding, split=split, **form.options)


def _texts(lines: Iterator[tuple[int, str]], name: str, location: Location | None) -> Iterator[Record]:
    """Records of `TEXTS`; blank lines are skipped. Raises UserError as `read_jsonl` does."""
    lines = ((number, line) for number, line in lines if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if _LIST.fullmatch(first[1]):
        yield from _list(itertools.chain([first], lines), name, location)
        return
    for number, line in itertools.chain([first], lines):
        if line.lstrip().startswith("{"):
            yield Record(parse_json(line, f"{name}:{number}"), name, number)
        else:
            yield Record({TEXT: line.strip()}, name, number)


def _list(lines, name, location) -> Iterator[Record]:
    if location is not None:
        yield from read_jsonl(location, "utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "list.json"
        file.write_text("\n".join(line for _, line in lines), encoding="utf-8", errors="surrogatepass")
        yield from read_jsonl(Location(file, name), "utf-8")


def _standard_input() -> Iterator[tuple[int, str]]:
    """(1-based number, line), each as soon as it is there."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline="\n")
    number = 0
    try:
        for number, line in enumerate(sys.stdin, start=1):
            yield number, line.removeprefix("\ufeff" if number == 1 else "").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"--input=-: not UTF-8 after line {number} ({error.reason})") from None


def _spooled(stack: contextlib.ExitStack) -> Location:
    """The standard input as a file, for readers that look twice."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    file = pathlib.Path(folder) / "input"
    with file.open("wb") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
    return Location(file, "-")


def _fits(form: Format, location: Location) -> bool:
    """Whether a file can be read so: up to its first record; of a format of lines its first lines."""
    if form.reader == TEXTS:
        return True
    try:
        if form.reader not in _OF_LINES:
            return _has_record(_read(form, location, ""))
        lines = location.raw_lines(form.encoding)
        with tempfile.TemporaryDirectory() as folder, contextlib.closing(lines):
            file = pathlib.Path(folder) / "first"
            file.write_text("".join(itertools.islice(lines, _PREFIX)), encoding="utf-8")
            return _has_record(_read(form._replace(encoding="utf-8"), Location(file, location.name), ""))
    except UserError:
        return False


def _has_record(items: Iterator[Record | Note]) -> bool:
    return any(isinstance(item, Record) for item in items)


def _ending(name: str) -> str:
    path = pathlib.PurePath(name)
    return (path.with_suffix("") if path.suffix in _PACKED else path).suffix.lower()


def _endings_of(entry: Mapping[str, Any]) -> set[str]:
    """Endings of the files of a data set, as its entry names them."""
    values = [[value] if isinstance(value, str) else value for value in dict(entry["splits"]).values()]
    parts = [part for value in values for part in value]
    names = [re.sub(r"\[[^\]]*:[^\]]*\]$", "", part) for part in parts]  # without the slices of records
    return {_ending(name) for name in [*names, entry["path"]] if name} - {""}


def _files_of(entry: Mapping[str, Any]) -> set[pathlib.Path]:
    """The files and folders of a data set on this machine; none where they are gone, or in an archive."""
    found = set()
    if entry["wheel"]:
        return found
    try:
        location, template = split_locations.locate_splits(entry["reader"], _plain(entry))
        if location is None:
            return found
        for parts in split_locations.wanted_splits(entry["reader"], _plain(entry), location, template).values():
            for part in parts:
                stem = re.sub(r"\[[^\]]*:[^\]]*\]$", "", part)
                found |= {place.place.resolve() for place in location.glob(stem)}
    except UserError:  # the data are elsewhere
        return set()
    return found


def _is_of_folders(entry: Mapping[str, Any]) -> bool:
    return any(path.is_dir() for path in _files_of(entry))


def _plain(value: Any) -> Any:
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value
