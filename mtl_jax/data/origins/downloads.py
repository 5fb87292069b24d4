"""Files by http: resumed where the connection broke, verified, and put in place in one step.

Proxies are those of the environment (`https_proxy`, `no_proxy`, …), as `urllib` reads them.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import os
import pathlib
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from mtl_jax.data.files.python_wheels import sha256_of_file
from mtl_jax.data.origins.base import RemoteFile
from mtl_jax.errors import UserError

SECONDS_WITHOUT_DATA = 30.0
ATTEMPTS = 5
SECONDS_BETWEEN = 1.0  # doubled after each attempt
_AT_ONCE = 8
_BLOCK = 1 << 16
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_MEANINGS = {
    401: "it wants a login",
    403: "access is refused; its terms may have to be accepted on the publisher's page first",
    404: "the publisher has moved or withdrawn it",
    410: "the publisher has withdrawn it",
}


class _Interrupted(Exception):
    """The transfer broke; another attempt may succeed."""


class _Stopped(Exception):
    """Another file failed, or Ctrl-C."""


def download(files: Sequence[RemoteFile], folder: pathlib.Path, name: str) -> None:
    """Puts the files into the folder, with a bar on standard error.

    What has arrived of a file is kept in `PATH.part`, and the next call goes on there. A file appears at its path only
    when its hash is right. A file without a known hash begins anew.

    Raises UserError: no network, an answer that is no file, another hash, a full disk. Files that are complete by then
    stay.
    """
    total = sum(file.size for file in files) if all(file.size for file in files) else None
    interval = 0.1 if sys.stderr.isatty() else 15.0
    with (
        tqdm(desc=name, total=total, unit="B", unit_scale=True, dynamic_ncols=True, mininterval=interval) as bar,
        concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool,
    ):
        lock, stop = threading.Lock(), threading.Event()
        futures = [pool.submit(_download_file, file, folder / file.path, _Progress(bar, lock, stop)) for file in files]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Progress:
    """The part of a bar that is about one file."""

    def __init__(self, bar: tqdm, lock: threading.Lock, stop: threading.Event):
        self._bar, self._lock, self._stop, self._count = bar, lock, stop, 0

    def pause(self, seconds: float) -> None:
        """Waits. Raises _Stopped."""
        if self._stop.wait(seconds):
            raise _Stopped

    def set(self, count: int) -> None:
        """So many bytes of the file are here. Raises _Stopped."""
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._bar.update(count - self._count)
            self._count = count


def _download_file(file: RemoteFile, target: pathlib.Path, progress: _Progress) -> None:
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(ATTEMPTS):
            resumed = _size(part) > 0
            try:
                _receive(file, part, progress)
            except _Interrupted as error:
                if attempt + 1 == ATTEMPTS:
                    raise UserError(
                        f"{file.url}: {error}, {ATTEMPTS} times; {_size(part):,} bytes are here, and the same command "
                        "goes on there"
                    ) from error
                progress.pause(SECONDS_BETWEEN * 2**attempt)
                continue
            actual = sha256_of_file(part)
            if actual == (file.sha256 or actual):
                os.replace(part, target)
                return
            part.unlink()
            if not resumed:  # otherwise the beginning may have been that of another version
                raise UserError(
                    f"{file.url}: the file has another hash: wanted sha256 {file.sha256}, found {actual}; it was not "
                    "kept"
                )
        raise UserError(f"{file.url}: it changed during the download, {ATTEMPTS} times; try again later")
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror or error}") from error


def _size(part: pathlib.Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _receive(file: RemoteFile, part: pathlib.Path, progress: _Progress) -> None:
    """Appends to `part` what it lacks. Raises _Interrupted where the transfer broke, UserError where it never works."""
    begin = _size(part) if file.sha256 else 0
    if file.size and begin >= file.size:
        return
    request = urllib.request.Request(file.url, headers={"User-Agent": "mtl_jax"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    opener = urllib.request.build_opener()  # with the proxies of the environment as it is now
    with _plain_errors(file.url, part), opener.open(request, timeout=SECONDS_WITHOUT_DATA) as answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            begin = 0  # the server sends the file from its beginning
        promised = answer.headers.get("Content-Length")
        count = begin
        with part.open("ab" if begin else "wb") as out:
            while block := answer.read1(_BLOCK):
                out.write(block)
                count += len(block)
                progress.set(count)
        if promised and count - begin < int(promised):
            raise _Interrupted(f"the connection broke after {count:,} bytes")


@contextlib.contextmanager
def _plain_errors(url: str, part: pathlib.Path) -> Iterator[None]:
    """Errors of urllib as _Interrupted, or as UserError where another attempt would not help."""
    try:
        yield
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink(missing_ok=True)
            raise _Interrupted("the server has less of the file than is here") from error
        if error.code in _TEMPORARY:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
        meaning = _MEANINGS.get(error.code)
        raise UserError(f"{url}: {error.code} {error.reason}{f': {meaning}' if meaning else ''}") from error
    except TimeoutError as error:
        raise _Interrupted(f"no data for {SECONDS_WITHOUT_DATA:.0f} seconds") from error
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, TimeoutError):
            raise _Interrupted(f"no answer for {SECONDS_WITHOUT_DATA:.0f} seconds") from error
        if isinstance(reason, ConnectionResetError | http.client.RemoteDisconnected):
            raise _Interrupted("the connection broke") from error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{url}: the certificate cannot be verified ({reason.verify_message}); behind a proxy with a "
                "certificate of its own, name that in SSL_CERT_FILE"
            ) from error
        raise UserError(f"{url}: no connection ({getattr(reason, 'strerror', None) or reason})") from error
    except (http.client.HTTPException, ConnectionError) as error:
        raise _Interrupted("the connection broke") from error
