"""The records that --mode=predict and --mode=attribute read, by the readers that training has.

How a file is read is decided once, before the first record: as the data set that the user names, by the reader that the
user names, as the data set of the run that the file is part of, or whose files have the same suffix; otherwise by its
suffix. Where two data sets of the run would read it differently, the user has to choose.
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

from ml_collections import ConfigDict

from mtl_jax.config.entries import Dataset
from mtl_jax.config.plain import to_plain
from mtl_jax.data import origins
from mtl_jax.data.datasets import split_locations
from mtl_jax.data.files.location import Location, local_path
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.jsonl import parse_json, read_jsonl
from mtl_jax.data.readers.options import check_options, declared_options, select_options
from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.errors import UserError

TEXTS = "texts"  # lines of text, a JSON object in a line where it begins with "{"; a JSON list of objects
TEXT = ""  # the field of a record of `TEXTS` that is a plain line
_READER_OF_SUFFIX = {
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
_COMPRESSED = (".gz", ".bz2", ".xz")
_LINE_READERS = ("csv", "lines", "conll", "conllu", "conllu_endings", "srl")  # their first lines reveal the format
_PREFIX_LINES = 40
_JSON_LIST_START = re.compile(r"\s*\[\s*(\{.*|)", re.DOTALL)


class Format(NamedTuple):
    """How a file is read: `reader` of `READERS`, or `TEXTS`; `dataset` of the run or "", `fields` of its
    text.
    """

    reader: str
    encoding: str
    options: Mapping[str, Any]
    dataset: str = ""
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"as the data set {self.dataset!r} (reader {self.reader!r})" if self.dataset else f"by {self.reader!r}"


class InputRequest(NamedTuple):
    """The input that the command line names: `source` is a file, a folder or "-"; the other fields may be ""."""

    source: str
    dataset: str = ""
    reader: str = ""
    split: str = ""


class OpenInput(NamedTuple):
    """An open input.

    items    records and notes, read lazily
    folder   base of relative paths in records
    several  whether the records may be of several files
    """

    items: Iterator[Record | Note]
    folder: Location
    several: bool = False


@contextlib.contextmanager
def open_input(request: InputRequest, datasets: Mapping[str, Dataset]) -> Iterator[OpenInput]:
    """Opens an input.

    Args:
      request: by the command line.
      datasets: entries of the run's config by name, of the data sets that its tasks read.

    Raises:
      UserError: no such file, data set or reader; an input that can be read in several ways. While records are taken:
        as the readers raise it, with file and line.
    """
    if not request.source:
        raise UserError("name the input by --input=FILE, or --input=- for the standard input")
    if request.source == "-" and not (request.dataset or request.reader not in ("", TEXTS)):
        yield OpenInput(_texts(_standard_input(), "-", None), local_path("."))
        return
    with contextlib.ExitStack() as stack:
        location = _spooled(stack) if request.source == "-" else local_path(request.source)
        form = choose_format(request, datasets, location)
        if form.dataset and not request.dataset and form.reader != _READER_OF_SUFFIX.get(_suffix(location.name)):
            print(f"{request.source} is read {form}; --reader overrides this", file=sys.stderr)
        folder = local_path(".") if request.source == "-" else location.folder()
        yield OpenInput(_read(form, location, request.split), folder, location.is_folder())


def choose_format(request: InputRequest, datasets: Mapping[str, Dataset], location: Location) -> Format:
    """How `location` is read; see the top of this file. Raises UserError as `open_input`."""
    formats = {name: _format(name, entry) for name, entry in datasets.items()}
    if request.dataset:
        if request.dataset not in formats:
            raise UserError(
                f"--dataset={request.dataset}: the run has no such data set; it has: {', '.join(formats)}."
                f"{suggestion(request.dataset, formats)}"
            )
        return formats[request.dataset]
    if request.reader == TEXTS:
        return Format(TEXTS, "utf-8", {})
    if request.reader:
        if request.reader not in READERS:
            known = [TEXTS, *READERS]
            raise UserError(
                f"--reader={request.reader}: no such reader; there are: {', '.join(known)}."
                f"{suggestion(request.reader, known)}"
            )
        return _only([form for form in formats.values() if form.reader == request.reader], request) or Format(
            request.reader, "utf-8", {}
        )
    location.require()
    containing = [formats[name] for name, entry in datasets.items() if location.place.resolve() in _files_of(entry)]
    if form := _only(containing, request):
        return form
    if location.is_folder():
        form = _only([formats[name] for name, entry in datasets.items() if _is_of_folders(entry)], request)
        if form is None:
            raise UserError(
                f"--input={request.source} is a folder; choose how it is read: --dataset=NAME or --reader=NAME"
            )
        return form
    return _by_suffix(request, datasets, formats, location)


def _by_suffix(
    request: InputRequest, datasets: Mapping[str, Dataset], formats: Mapping[str, Format], location: Location
) -> Format:
    suffix = _suffix(location.name)
    usual = Format(_READER_OF_SUFFIX.get(suffix, TEXTS), "utf-8", {})
    candidates = [
        formats[name]
        for name, entry in datasets.items()
        if suffix in _suffixes_of(entry) and ("split" not in declared_options(READERS[entry.reader]) or request.split)
    ]
    if usual.reader == TEXTS:  # lines are plain text unless they are those of a format
        candidates = [form for form in candidates if form.reader != "lines" or form.options]
    keys = {_key(form) for form in candidates}
    if keys == {_key(usual)}:
        return _only(candidates, request)
    fits = {key: _fits(next(form for form in candidates if _key(form) == key), location) for key in keys}
    if form := _only([form for form in candidates if fits[_key(form)]], request):
        return form
    return candidates[0] if candidates and usual.reader != TEXTS and not _fits(usual, location) else usual


def _only(forms: Sequence[Format], request: InputRequest) -> Format | None:
    """The single format of all these; None for an empty list. Raises UserError where they differ."""
    distinct = list({_key(form): form for form in forms}.values())
    if len(distinct) > 1:
        raise UserError(
            f"--input={request.source} can be read {' or '.join(map(str, distinct))}; choose by --dataset=NAME, or "
            f"--reader={TEXTS} for one text on each line"
        )
    if len({form.fields for form in forms}) > 1:  # records of several data sets
        return distinct[0]._replace(fields=())
    return distinct[0] if distinct else None


def _key(form: Format) -> str:
    return json.dumps([form.reader, form.encoding, form.options], sort_keys=True, default=str)


def _format(name: str, entry: Dataset) -> Format:
    options = select_options(READERS[entry.reader], ConfigDict(entry.options).to_dict())
    texts = entry.text or entry.words or entry.image
    fields = (texts,) if isinstance(texts, str) else tuple(texts)
    return Format(entry.reader, entry.encoding, options, name, fields)


def _read(form: Format, location: Location, split: str) -> Iterator[Record | Note]:
    if form.reader == TEXTS:
        return _texts(location.lines(form.encoding), location.name, location)
    reader = READERS[form.reader]
    if reader.generated:
        raise UserError(f"the reader {form.reader!r} reads no files; give its records in another format")
    check_options(reader, form.options)
    fields = {"fields": form.fields} if "fields" in declared_options(reader) else {}
    if "split" not in declared_options(reader):
        if split:
            raise UserError(f"--split={split}: the reader {form.reader!r} finds no splits in a file; leave it out")
        return reader(location, form.encoding, **form.options, **fields)
    if not split:
        raise UserError(f"the reader {form.reader!r} finds the splits inside a file; name one by --split=NAME")
    return reader(location, form.encoding, split=split, **form.options)


def _texts(lines: Iterator[tuple[int, str]], name: str, location: Location | None) -> Iterator[Record]:
    """Records of `TEXTS`; blank lines are skipped. Raises UserError as `read_jsonl` does."""
    lines = ((number, line) for number, line in lines if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if _JSON_LIST_START.fullmatch(first[1]):
        yield from _json_list(itertools.chain([first], lines), name, location)
        return
    for number, line in itertools.chain([first], lines):
        if line.lstrip().startswith("{"):
            yield Record(parse_json(line, f"{name}:{number}"), name, number)
        else:
            yield Record({TEXT: line.strip()}, name, number)


def _json_list(lines: Iterator[tuple[int, str]], name: str, location: Location | None) -> Iterator[Record]:
    if location is not None:
        yield from read_jsonl(location, "utf-8")
        return
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "list.json"
        file.write_text("\n".join(line for _, line in lines), encoding="utf-8", errors="surrogatepass")
        yield from read_jsonl(Location(file, name), "utf-8")


def _standard_input() -> Iterator[tuple[int, str]]:
    """(1-based number, line), each as soon as it arrives."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict", newline="\n")
    number = 0
    try:
        for number, line in enumerate(sys.stdin, start=1):
            yield number, line.removeprefix("\ufeff" if number == 1 else "").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(f"--input=-: not UTF-8 after line {number} ({error.reason})") from None


def _spooled(stack: contextlib.ExitStack) -> Location:
    """The standard input as a file, for readers that read it twice."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    file = pathlib.Path(folder) / "input"
    with file.open("wb") as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
    return Location(file, "-")


def _fits(form: Format, location: Location) -> bool:
    """Whether a file can be read in this format up to its first record; of a format of lines, its first lines."""
    if form.reader == TEXTS:
        return True
    try:
        if form.reader not in _LINE_READERS:
            return _has_record(_read(form, location, ""))
        lines = location.raw_lines(form.encoding)
        with tempfile.TemporaryDirectory() as folder, contextlib.closing(lines):
            file = pathlib.Path(folder) / "first"
            file.write_text("".join(itertools.islice(lines, _PREFIX_LINES)), encoding="utf-8")
            return _has_record(_read(form._replace(encoding="utf-8"), Location(file, location.name), ""))
    except UserError:
        return False


def _has_record(items: Iterator[Record | Note]) -> bool:
    return any(isinstance(item, Record) for item in items)


def _suffix(name: str) -> str:
    path = pathlib.PurePath(name)
    return (path.with_suffix("") if path.suffix in _COMPRESSED else path).suffix.lower()


def _suffixes_of(entry: Dataset) -> set[str]:
    """Suffixes of the files of a data set, as its entry names them."""
    values = [[value] if isinstance(value, str) else value for value in dict(entry.splits).values()]
    parts = [part for value in values for part in value]
    names = [_without_slice(part) for part in parts]
    return {_suffix(name) for name in [*names, entry.path] if name} - {""}


def _without_slice(path: str) -> str:
    """The path without a slice of records, as in "a.csv[:100]"."""
    return re.sub(r"\[[^\]]*:[^\]]*\]$", "", path)


def _files_of(entry: Dataset) -> set[pathlib.Path]:
    """The files and folders of a data set on this machine; none where they are missing, or in an archive."""
    if entry.wheel or (entry.origin and not origins.is_here(entry.origin)):
        return set()
    files = set()
    try:
        plain = to_plain(entry)
        location, template = split_locations.locate_splits(entry.reader, plain)
        if location is None:
            return set()
        for parts in split_locations.wanted_splits(entry.reader, plain, location, template).values():
            for part in parts:
                files |= {match.place.resolve() for match in location.glob(_without_slice(part))}
    except UserError:  # the data are not on this machine
        return set()
    return files


def _is_of_folders(entry: Dataset) -> bool:
    return any(path.is_dir() for path in _files_of(entry))
