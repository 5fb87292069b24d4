"""Files of slow readers: what is kept of them is what the reader gives, as long as nothing changed."""

import dataclasses
import functools

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import array_cache, parse_cache
from mtl_jax.data.files.location import local_path
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


@pytest.fixture(autouse=True)
def kept_always(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parse_cache, "MIN_SECONDS", 0.0)


@pytest.fixture
def calls(monkeypatch):
    """What the reader "conll" was called for."""
    actual = []

    @functools.wraps(READERS["conll"].func)
    def reader(location, encoding, **options):
        actual.append((location.name, encoding, options))
        yield from original(location, encoding, **options)

    original = READERS["conll"]
    monkeypatch.setitem(READERS, "conll", dataclasses.replace(original, func=reader))
    return actual


def read(file, **entry):
    return datasets.read_dataset("d", {"reader": "conll", "path": str(file), "words": "words", **entry}, 0)


def test_read_once_until_something_changes(tmp_path, calls):
    file = tmp_path / "train.txt"
    file.write_text("Ärger B-X\nim O\n\n# c\nZug I-X\n# c\nda O\n", encoding="utf-8")
    first, again = (read(file, options={"comment": "#"}) for _ in range(2))
    assert first == again and len(calls) == 1
    items = list(READERS["conll"](local_path(file), "utf-8", comment="#"))
    fresh = [item._replace(fields={**item.fields, "file": "train.txt"}) for item in items if isinstance(item, Record)]
    assert again.splits["train"] == fresh
    assert [list(r.lines) for r in again.splits["train"]] == [[1, 2], [5, 7]]
    calls.clear()
    file.write_text("Zug I-X\n", encoding="utf-8")
    read(file)
    read(file, encoding="cp1252")
    moved = file.rename(tmp_path / "moved.txt")  # records name their file
    assert {record.file for record in read(moved).splits["train"]} == {str(moved)}
    moved.write_text("anders O\n")
    assert read(moved).splits["train"][0].fields["words"] == ["anders"]
    assert len(calls) == 4


def test_other_code_reads_anew(tmp_path, calls, monkeypatch):
    (tmp_path / "a.txt").write_text("a O\n")
    read(tmp_path / "a.txt")
    monkeypatch.setattr(parse_cache, "code_digest", lambda: "of another version")
    read(tmp_path / "a.txt")
    assert len(calls) == 2


def test_what_is_damaged_or_fails_is_read_again(tmp_path, calls):
    file = tmp_path / "a.txt"
    file.write_text("a O O\n")
    for _ in range(2):
        with pytest.raises(UserError, match="3 columns"):
            read(file)
    file.write_text("a O\n")
    first = read(file)
    (remaining,) = (array_cache.cache_folder() / "encoded").iterdir()
    content = bytearray(remaining.read_bytes())
    content[len(content) // 2] ^= 1
    remaining.write_bytes(content)
    assert read(file) == first and len(calls) == 4


def test_bytes_that_are_no_text_and_notes_come_back():
    items = [Record({"words": ["\udcff", "\x00", "日"], "n": 3, "none": None}, "f", 7), Note("odd", "f", 2)]
    actual = [parse_cache.cached_items({"a": 1}, "f", lambda given=given: given) for given in (items, ["not asked"])]
    assert actual == [items, items]


def test_what_is_soon_read_is_not_kept(monkeypatch):
    monkeypatch.setattr(parse_cache, "MIN_SECONDS", 60.0)
    assert parse_cache.cached_items({}, "f", lambda: [Note("odd", "f", 1)]) == [Note("odd", "f", 1)]
    assert not (array_cache.cache_folder() / "encoded").exists()


FILES = {"conllu": "ewt/*-dev.conllu", "conllu_endings": "ewt/*-dev.conllu"} | dict.fromkeys(
    ("srl", "srl_questions", "srl_pairs"), "ewt_srl/*dev*"
)


@pytest.mark.parametrize("name", sorted(FILES))
def test_slow_readers_yield_what_can_be_kept(data_dir, name):
    """Of real files: nothing that JSON would change."""
    (place,) = local_path(data_dir).glob(FILES[name])
    items = list(READERS[name](place, "utf-8"))
    assert items and parse_cache.cached_items({"reader": name}, place.name, lambda: items) == items


def test_every_slow_reader_is_looked_at():
    assert {name for name, reader in READERS.items() if reader.cached} == FILES.keys() | {"conll"}
