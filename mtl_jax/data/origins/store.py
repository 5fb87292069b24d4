"""The cache of downloaded data sets: one folder for each, complete or resumable, verified by hashes."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence

import filelock

from mtl_jax.data.files import array_cache
from mtl_jax.data.files.location import local_path
from mtl_jax.data.origins import downloads, git_files
from mtl_jax.data.origins.base import Origin, RemoteFile
from mtl_jax.errors import UserError

_MARKER = ".complete"  # holds the identity of what is there
_MAX_LISTED = 3


def folder_in_cache(name: str) -> pathlib.Path:
    """Where the data set `name` is put; the folder may not exist."""
    return array_cache.cache_folder() / "datasets" / name


def is_complete(name: str, origin: Origin) -> bool:
    """Whether the cache holds the data set as it was verified after its download."""
    folder = folder_in_cache(name)
    try:
        same = (folder / _MARKER).read_text(encoding="utf-8") == _identity(origin)
    except OSError:
        return False
    return same and all((folder / path).exists() for path in origin.contents())


def fetch(name: str, origin: Origin, other: Callable[[str], pathlib.Path], verify: bool = False) -> pathlib.Path:
    """The folder of the data set in the cache, downloaded where it is not complete.

    What is to be downloaded, how much and under which licence is printed on standard error before. What has arrived is
    kept when the download breaks. One process downloads, others wait.

    Args:
      other: the folder of another data set by name, for origins whose recipe needs it.
      verify: compares all files with their hashes although they were complete once.

    Raises UserError: the data set cannot be downloaded; the message names the files to put there by hand.
    """
    folder = folder_in_cache(name)
    if not verify and is_complete(name, origin):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.parent / f".{name}.lock"):
            if verify or not is_complete(name, origin):
                _complete(name, origin, folder, other)
    except OSError as error:
        raise UserError(
            f"{folder}: the cache folder cannot be written ({error.strerror or error}); choose another by MTL_JAX_CACHE"
        ) from error
    return folder


def announce(name: str, origin: Origin, count: int, size: int, folder: pathlib.Path) -> None:
    """Prints on standard error what is about to be downloaded."""
    files = f"{count:,} file{'s' if count > 1 else ''}{f', {megabytes(size)}' if size else ''}"
    print(
        f"origin {name!r}: downloading {files}, from {origin.homepage}; licence: {origin.licence}; to {folder}",
        file=sys.stderr,
    )


def _complete(name: str, origin: Origin, folder: pathlib.Path, other: Callable[[str], pathlib.Path]) -> None:
    (folder / _MARKER).unlink(missing_ok=True)
    missing_files = [file for file in origin.files if not _is_right(folder, file.path, file.sha256)]
    rest = {path: sha256 for path, sha256 in origin.contents().items() if path not in {f.path for f in origin.files}}
    missing = [path for path, sha256 in rest.items() if not _is_right(folder, path, sha256)]
    if missing_files or missing:
        _check_source(name, origin, folder)
        others = {needed: other(needed) for needed in (origin.recipe.needs if origin.recipe else ())}
        from_git = origin.git if missing and origin.git else None
        count = len(missing_files) + (from_git.count if from_git else 0)
        size = sum(file.size for file in missing_files) + (from_git.size if from_git else 0)
        if count:
            announce(name, origin, count, size, folder)
        try:
            _download(name, origin, folder, missing_files, others, bool(from_git))
        except UserError as error:
            raise UserError(f"origin {name!r}: {error}. {_by_hand(name, origin, folder)}") from error
    wrong = [path for path, sha256 in origin.contents().items() if not _is_right(folder, path, sha256)]
    if wrong:
        raise UserError(
            f"origin {name!r}: {folder / wrong[0]} is not what {origin.homepage} had when the hash was taken; "
            f"{_by_hand(name, origin, folder)}"
        )
    (folder / _MARKER).write_text(_identity(origin), encoding="utf-8")


def _download(
    name: str,
    origin: Origin,
    folder: pathlib.Path,
    files: Sequence[RemoteFile],
    others: dict[str, pathlib.Path],
    from_git: bool,
) -> None:
    if files:
        downloads.download(files, folder, name)
    for file in origin.files:
        if file.members:
            _unpack(folder / file.path, folder, file.members)
    if not from_git:
        return
    clone = git_files.checkout(origin.git, folder)
    try:
        top = clone / origin.git.top
        if origin.recipe:
            for path, content in origin.recipe.make(top, others).items():
                _write(folder / path, content)
        for path in origin.folders:
            _replace(top / path, folder / path)
    finally:
        shutil.rmtree(clone, ignore_errors=True)


def _check_source(name: str, origin: Origin, folder: pathlib.Path) -> None:
    """Raises UserError where there is nothing that could be downloaded."""
    if not origin.files and origin.git is None:
        raise UserError(
            f"origin {name!r}: it has to be put on this machine by hand ({origin.homepage}). "
            f"{_by_hand(name, origin, folder)}"
        )


def _by_hand(name: str, origin: Origin, folder: pathlib.Path) -> str:
    """Which files to put where."""
    urls = {file.path: file.url for file in origin.files if not _is_right(folder, file.path, file.sha256)}
    kept = {file.path for file in origin.files}
    missing = [path for path, sha in origin.contents().items() if path not in kept and not _is_right(folder, path, sha)]
    wanted = [f"{folder / path} (from {url})" for path, url in urls.items()]
    if not urls:
        wanted = [str(folder / path) for path in missing]
    more = (
        f" and {len(wanted) - _MAX_LISTED} more, see `python -m mtl_jax data show {name}`"
        if len(wanted) > _MAX_LISTED
        else ""
    )
    return (
        f"By hand: put {', '.join(wanted[:_MAX_LISTED])}{more}; or set MTL_JAX_DATA to a folder that has them below "
        f"{name}/"
    )


def _is_right(folder: pathlib.Path, path: str, sha256: str) -> bool:
    place = local_path(folder / path)
    return place.exists() and (not sha256 or place.sha256() == sha256)


def _identity(origin: Origin) -> str:
    """Changes where the origin names other content."""
    content = sorted(origin.contents().items()), [(f.path, f.url, f.sha256) for f in origin.files]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _write(target: pathlib.Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, target)


def _replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves a file or folder to a place where another may be."""
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _unpack(archive: pathlib.Path, folder: pathlib.Path, members: Sequence[str]) -> None:
    """Puts members of a zip or tar archive into the folder; ("*",): all. Each file appears in one step.

    Raises UserError where it is no archive, lacks a member, or a member would land outside the folder.
    """
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=".unpack-", dir=folder))
    try:
        with _open_archive(archive) as opened:
            names = opened.namelist() if isinstance(opened, zipfile.ZipFile) else opened.getnames()
            wanted = None if "*" in members else list(members)
            if lacking := [name for name in wanted or () if name not in names]:
                raise UserError(f"{archive}: the archive lacks {lacking[0]}; it holds {', '.join(names[:8])}")
            if isinstance(opened, zipfile.ZipFile):
                opened.extractall(temporary, wanted)
            else:
                chosen = None if wanted is None else [opened.getmember(name) for name in wanted]
                opened.extractall(temporary, chosen, filter="data")
        for file in _files_below(temporary):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{archive}: cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_archive(archive: pathlib.Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(archive) if zipfile.is_zipfile(archive) else tarfile.open(archive)


def _files_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def megabytes(size: int) -> str:
    """ "1.9 MB"."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"
