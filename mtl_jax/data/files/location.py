"""One interface for files on disk and files inside a wheel."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import difflib
import fnmatch
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from mtl_jax.errors import UserError

_MAGIC = frozenset("*?[")
_VARIABLE = re.compile(r"\$(?:\w+|\{[^}]*\})", re.ASCII)  # as os.path.expandvars reads them
BYTE_ORDER_MARK = "\ufeff"  # the byte order mark
_CARRIAGE = re.compile(r"[^\r]*\r|[^\r]+")
_BLOCK = 1 << 20
_PACKED = {rb"\x1f\x8b\x08": gzip.open, rb"BZh[1-9]1AY&SY": bz2.open, rb"\xfd7zXZ\x00": lzma.open}
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)


@dataclasses.dataclass(frozen=True)
class Location:
    """A file or folder that may or may not exist.

    place  a path on disk or a member of an open zip archive
    name   its name in messages
    """

    place: pathlib.Path | zipfile.Path
    name: str

    def exists(self) -> bool:
        """Whether there is a file or folder."""
        if isinstance(self.place, zipfile.Path) and not self.place.at:
            return True  # the top of an archive, which zipfile calls missing
        try:
            return self.place.exists()
        except (OSError, ValueError):  # a name too long for the system, or with a NUL byte in it
            return False

    def is_file(self) -> bool:
        """Whether it is an existing file."""
        return self.exists() and self.place.is_file()

    def is_folder(self) -> bool:
        """Whether it is an existing folder."""
        return self.exists() and self.place.is_dir()

    def child(self, relative: str) -> Location:
        """The location `relative` to this folder; on disk an absolute path, `~` and `$VARIABLES` work as well.

        An existing literal name takes precedence: `$` and `~` are expanded only where there is none.
        """
        if isinstance(self.place, zipfile.Path):
            inside = posixpath.normpath(relative)
            if inside.startswith(("..", "/")):
                raise UserError(f"{self.name}: {relative!r} leads out of the archive")
            return self if inside == "." else Location(self.place / inside, f"{self.name}/{inside}")
        place = _resolved(self.place, relative)
        return Location(place, str(place))

    def folder(self) -> Location:
        """This folder, or the one around this file."""
        return self.parent() if self.is_file() else self

    def parent(self) -> Location:
        """The folder that contains this location."""
        return Location(self.place.parent, _parent_name(self))

    def children(self) -> list[Location]:
        """Everything in this folder, by name; hidden files are left out."""
        self.require_folder()
        try:
            places = [place for place in self.place.iterdir() if not place.name.startswith(".")]
        except OSError as error:
            raise UserError(f"{self.name}: cannot be listed: {error.strerror}") from error
        places.sort(key=lambda place: place.name)
        return [Location(place, f"{self.name.rstrip('/')}/{place.name}") for place in places]

    def files(self) -> list[Location]:
        """This file, or all files below this folder, by name."""
        if not self.is_folder():
            return [self]
        return [file for child in self.children() for file in child.files()]

    def glob(self, pattern: str) -> list[Location]:
        """Locations that match `pattern` (`*`, `?`, `[a-z]` in a name, `**` any depth), by name.

        Names take precedence over patterns: an existing literal part of the path is that file or folder. A pattern
        without wildcards gives its one location, whether it exists or not.
        """
        on_disk = isinstance(self.place, pathlib.Path)
        literal = _literal(self, pattern)
        if literal is not None:
            return [literal]
        if not _MAGIC & set(os.path.expandvars(pattern) if on_disk else pattern):
            return [self.child(pattern)]
        matches, rest = [self], pattern
        if on_disk:
            first = pattern.split("/")[0]
            if first.startswith("~") and _literal(self, first) is None:
                rest = os.path.expanduser(pattern)
            if anchor := pathlib.Path(rest).anchor:
                matches, rest = [self.child(anchor)], rest[len(anchor) :]
        for part in rest.split("/"):
            matches = [child for top in matches for child in _matching(top, part)]
        if not matches and on_disk:
            expand_path(pattern)  # raises where a variable is not set
        return matches

    def require(self) -> None:
        """Raises UserError, with the nearest existing names, where the location does not exist."""
        if self.exists():
            return
        top = self
        while not top.exists() and top.place != top.place.parent:
            top = Location(top.place.parent, _parent_name(top))
        missing = self.name[len(top.name) :].lstrip("/").split("/")[0]
        names = [child.place.name for child in top.children()] if top.is_folder() else []
        near = difflib.get_close_matches(missing, names, n=3, cutoff=0.5) or names[:8]
        there = f" {top.name} holds: {', '.join(near)}{' …' if len(near) < len(names) else ''}." if near else ""
        raise UserError(f"{self.name}: no such file or folder.{there}")

    def require_file(self) -> None:
        """Raises UserError where it is no existing file."""
        self.require()
        if not self.is_file():
            names = ", ".join(child.place.name for child in self.children()[:8])
            raise UserError(f"{self.name} is a folder; a file is needed here. It holds: {names}")

    def require_folder(self) -> None:
        """Raises UserError where it is no existing folder."""
        self.require()
        if not self.is_folder():
            raise UserError(f"{self.name} is a file; a folder is needed here")

    def open(self) -> BinaryIO:
        """The bytes of the file. Raises UserError where it is missing, a folder, or cannot be read."""
        self.require_file()
        try:
            return self.place.open("rb")
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise UserError(f"{self.name}: cannot be read: {error}") from error

    def content(self) -> bytes:
        """All bytes of the file; unpacked where gzip, bzip2 or xz packed it. Raises UserError where that fails."""
        with self._unpacked() as stream:
            return stream.read()

    @contextlib.contextmanager
    def _unpacked(self) -> Iterator[BinaryIO]:
        """The stream that `content` reads; errors of reading inside the block become UserErrors."""
        try:
            with self.open() as stream:
                begin = stream.read(10)
                stream.seek(0)
                opener = next((opener for magic, opener in _PACKED.items() if re.match(magic, begin, re.DOTALL)), None)
                if opener is None:
                    yield stream
                else:
                    with opener(stream) as inner:
                        yield inner
        except _UNREADABLE as error:
            raise UserError(f"{self.name}: cannot be read: {error}") from error

    def raw_lines(self, encoding: str) -> Iterator[str]:
        """Lines with their ends, split at "\\n", decoded; a byte order mark is dropped. Packed files as `content`.

        A file without any "\\n" is split at "\\r", the line end of old Macs. `encoding` may name several,
        "utf-8|cp1252": the first that decodes the whole file counts.
        """
        *preferred, encoding = encoding.split("|")
        encoding = next((candidate for candidate in preferred if self._decodes(candidate)), encoding)
        with self._unpacked() as stream:
            try:
                text = io.TextIOWrapper(stream, encoding=_tolerant(encoding), newline="\n")
            except (LookupError, TypeError, ValueError) as error:
                raise UserError(f"{self.name}: encoding={encoding!r} is not known: {error}") from error
            try:
                first = next(text, "").lstrip(BYTE_ORDER_MARK)
                self._check_encoding(first, encoding)
                yield from [first] if first.endswith("\n") else _CARRIAGE.findall(first)
                yield from text
            except UnicodeError as error:
                raise self._undecodable(encoding) from error

    def lines(self, encoding: str) -> Iterator[tuple[int, str]]:
        """(1-based number, line without its end) for each line.

        A byte order mark at the beginning of a line is dropped: files were concatenated there.
        """
        for number, line in enumerate(self.raw_lines(encoding), start=1):
            yield number, line.removesuffix("\n").rstrip("\r").lstrip(BYTE_ORDER_MARK)

    def text(self, encoding: str) -> str:
        """The complete file with its line ends."""
        return "".join(self.raw_lines(encoding))

    def size(self) -> int:
        """Bytes of the file, as they are stored; of a folder those of all files below it."""
        sizes = [
            file.place.stat().st_size
            if isinstance(file.place, pathlib.Path)
            else file.place.root.getinfo(file.place.at).file_size
            for file in self.files()
        ]
        return sum(sizes)

    def sha256(self) -> str:
        """Hash of the file's bytes, or of the names and bytes of all files below a folder. Hexadecimal."""
        digest = hashlib.sha256()
        is_folder = self.is_folder()
        for file in self.files():
            if is_folder:
                digest.update(file.name[len(self.name) :].encode("utf-8", "surrogateescape") + b"\0")
            with file.open() as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()

    def _decodes(self, encoding: str) -> bool:
        try:
            self.content().decode(_tolerant(encoding))
        except UnicodeError:
            return False
        except LookupError as error:
            raise UserError(f"{self.name}: encoding={encoding!r} is not known: {error}") from error
        return True

    def _check_encoding(self, first: str, encoding: str) -> None:
        """Raises UserError where the first line, read as `encoding`, shows that the file is UTF-8 or UTF-16."""
        bare = first.removeprefix("\xff\xfe").removeprefix("\xfe\xff")  # the mark of UTF-16 as Latin-1 reads it
        wide = [not bare[begin : begin + 80 : 2].strip("\0") for begin in (0, 1)]
        if first.startswith("\xef\xbb\xbf"):
            what, likely = "it begins with the byte order mark of UTF-8", "utf-8"
        elif len(bare) > 3 and sum(wide) == 1:
            what, likely = (
                "every second character is NUL",
                f"utf-16{'' if bare != first else '-le' if wide[1] else '-be'}",
            )
        else:
            return
        raise UserError(f"{self.name}:1: {what}, read as {encoding}; set `encoding` of the data set (perhaps {likely})")

    def _undecodable(self, encoding: str) -> UserError:
        """The error for a file that `encoding` does not decode, with the line where it stops."""
        content = self.content()
        try:
            content.decode(_tolerant(encoding))
            at = len(content)
        except UnicodeDecodeError as error:
            at = error.start
        except UnicodeError:
            at = 0
        line = content[:at].count(b"\n") + 1  # right for UTF-8 and its like; of UTF-16 at most a few lines off
        likely = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else f"cp1252, or {encoding}|cp1252"
        return UserError(
            f"{self.name}:{line}: byte {at} is not {encoding}; set `encoding` of the data set (perhaps {likely}: "
            "of several the first that decodes the whole file counts)"
        )


def expand_path(path: str) -> str:
    """`path` with `~` and environment variables replaced. Raises UserError for a variable that is not set."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    if unset := next((match[0] for match in _VARIABLE.finditer(expanded) if match[0] in path), ""):
        raise UserError(f"path {path!r}: no file is called so, and the environment variable {unset} is not set")
    return expanded


def local_path(path: str | os.PathLike[str]) -> Location:
    """A file or folder on disk, as `Location.child` of the current folder."""
    place = _resolved(pathlib.Path(), os.fspath(path))
    return Location(place, str(place))


def archive_root(path: pathlib.Path) -> Location:
    """The top folder of a zip archive (a wheel is one). Raises UserError where it is none."""
    try:
        return Location(zipfile.Path(zipfile.ZipFile(path)), path.name)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable wheel or zip file: {error}") from error


def _resolved(folder: pathlib.Path, relative: str) -> pathlib.Path:
    """The path `relative` to `folder`, where parts that do not exist literally are expanded."""
    if not ("$" in relative or relative.startswith("~")) or os.path.lexists(folder / relative):
        return folder / relative
    place = folder
    for number, part in enumerate(pathlib.PurePath(relative).parts):
        literal = place / part
        if os.path.lexists(literal) or not ("$" in part or (part.startswith("~") and number == 0)):
            place = literal
        else:
            place = place / expand_path(part)
    return place


def _literal(top: Location, relative: str) -> Location | None:
    """The existing location with this literal name below `top`; None without one."""
    if isinstance(top.place, pathlib.Path):
        place = Location(top.place / relative, str(top.place / relative))
    elif posixpath.normpath(relative).startswith(("..", "/")):
        return None
    else:
        place = top.child(relative)
    return place if place.exists() else None


def _matching(top: Location, part: str) -> list[Location]:
    """The location named `part` in a folder, or without one those that match it."""
    literal = _literal(top, part)
    if literal is not None:
        return [literal]
    if part == "**":
        return _folders(top)
    if isinstance(top.place, pathlib.Path) and (expanded := os.path.expandvars(part)) != part:
        return top.glob(expanded) if _MAGIC & set(expanded) or _literal(top, expanded) is not None else []
    if not _MAGIC & set(part) or not top.is_folder():
        return []
    return [child for child in top.children() if fnmatch.fnmatchcase(child.place.name, part)]


def _tolerant(encoding: str) -> str:
    """UTF-8 that drops a byte order mark, under any spelling of its name; other encodings as they are."""
    return "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding


def _parent_name(location: Location) -> str:
    """How the folder around `location` is called; the top of an archive keeps the archive's name."""
    if isinstance(location.place, pathlib.Path):
        return str(location.place.parent)
    return location.name.rpartition("/")[0]


def _folders(top: Location) -> list[Location]:
    """`top` and every folder below it."""
    if not top.is_folder():
        return []
    return [top, *(folder for child in top.children() if child.is_folder() for folder in _folders(child))]
