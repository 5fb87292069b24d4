"""What is known of where a data set comes from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class RemoteFile(NamedTuple):
    """A file that its publisher offers by http or https.

    path     where it is put, below the folder of the data set
    url      http or https
    sha256   hexadecimal; "": unknown, so the file is taken as it comes
    size     bytes; 0: unknown
    members  of a zip or tar archive: the files that are unpacked, with their paths; ("*",): all
    """

    path: str
    url: str
    sha256: str = ""
    size: int = 0
    members: tuple[str, ...] = ()


class GitFiles(NamedTuple):
    """Many small files of a git repository, of which only these are transferred.

    url       of the repository
    commit    full hash, by which git verifies what it receives
    patterns  the files, as in .gitignore
    top       folder of the repository whose content becomes the folder of the data set
    count     number of files
    size      bytes of the files
    """

    url: str
    commit: str
    patterns: tuple[str, ...]
    top: str
    count: int
    size: int


class Recipe(NamedTuple):
    """Files that are made from the downloaded ones.

    make     (folder of the downloaded files, folder by name of another data set) -> {path: content}
    needs    names of the other data sets
    results  {path: sha256} of what it makes
    """

    make: Callable[[pathlib.Path, Mapping[str, pathlib.Path]], Mapping[str, bytes]]
    needs: tuple[str, ...]
    results: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a data set comes from, under which licence, and how to verify it.

    title     what it is, with its authors
    licence   a name, or "research use" where the publisher grants no more
    homepage  of the publisher
    files     single files
    git       files of a repository
    folders   {folder or file from `git`: sha256 of it, as `Location.sha256`}
    recipe    files that are made of both; those of `git` are then not kept
    wheel     {"name", "version", "sha256"} of a wheel that holds the files; instead of the others
    size      bytes of the wheel
    places    folders where packages of operating systems put it
    entry     fields of a data-set entry that read it, for a look at its records
    """

    title: str
    licence: str
    homepage: str
    files: tuple[RemoteFile, ...] = ()
    git: GitFiles | None = None
    folders: Mapping[str, str] = dataclasses.field(default_factory=dict)
    recipe: Recipe | None = None
    wheel: Mapping[str, str] = dataclasses.field(default_factory=dict)
    size: int = 0
    places: tuple[str, ...] = ()
    entry: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def contents(self) -> dict[str, str]:
        """{path: its sha256, "" where only the archive around it has one} of everything that readers look for."""
        of_files = {file.path: file.sha256 for file in self.files if not file.members}
        members = {member: "" for file in self.files for member in file.members if member != "*"}
        made = dict(self.recipe.results) if self.recipe else {}
        return {**of_files, **members, **self.folders, **made}

    def download_size(self) -> int:
        """Bytes of all that is transferred; 0 where that is unknown."""
        sizes = [self.size] if self.wheel else [file.size for file in self.files]
        sizes += [self.git.size] if self.git else []
        return sum(sizes) if all(sizes) else 0

    def download_count(self) -> int:
        """Number of files that are transferred."""
        return bool(self.wheel) + len(self.files) + (self.git.count if self.git else 0)
