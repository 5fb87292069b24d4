"""Downloads from a local server that breaks off, stalls, moves files and sends other ones."""

import concurrent.futures
import hashlib
import random
import socket
import subprocess
import sys
import time

import fault_server
import pytest

from mtl_jax.data import datasets, origins
from mtl_jax.data.origins import downloads, store
from mtl_jax.data.origins.base import Origin, RemoteFile
from mtl_jax.errors import UserError

BODY = random.Random(0).randbytes(200_000)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """The server, with one file; short waits, an empty cache and no folder of data."""
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN", 0.01)
    monkeypatch.setattr(downloads, "SECONDS_WITHOUT_DATA", 0.5)
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MTL_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with fault_server.running() as running:
        running.files["a.bin"] = BODY
        yield running


def remote(server, path="a.bin", content=None, **changes) -> RemoteFile:
    content = server.files[path] if content is None else content
    file = RemoteFile(path, server.url(path), hashlib.sha256(content).hexdigest(), len(content))
    return file._replace(**changes)


def test_a_file_arrives(server, tmp_path, capfd):
    downloads.download([remote(server)], tmp_path, "a")
    assert (tmp_path / "a.bin").read_bytes() == BODY and not list(tmp_path.glob("*.part"))
    assert "200k/200k" in capfd.readouterr().err  # the bar


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_broken_transfer_goes_on_where_it_was(server, tmp_path, fault):
    server.faults["a.bin"] = [fault, fault]
    downloads.download([remote(server)], tmp_path, "a")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["", "bytes=100000-", "bytes=150000-"]


def test_a_server_that_cannot_resume(server, tmp_path):
    server.faults["a.bin"] = ["cut", "no range"]
    downloads.download([remote(server)], tmp_path, "a")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_the_next_command_goes_on(server, tmp_path):
    server.faults["a.bin"] = ["cut"] * downloads.ATTEMPTS
    with pytest.raises(
        UserError, match=r"a\.bin: the connection broke after .* bytes, 5 times; 193,750 bytes are here"
    ):
        downloads.download([remote(server)], tmp_path, "a")
    assert not (tmp_path / "a.bin").exists()
    server.requests.clear()
    downloads.download([remote(server)], tmp_path, "a")
    assert (tmp_path / "a.bin").read_bytes() == BODY and server.requests == [("a.bin", "bytes=193750-")]


def test_a_part_of_another_version_is_dropped(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    downloads.download([remote(server)], tmp_path, "a")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    (tmp_path / "b.bin.part").write_bytes(b"x" * 300_000)  # longer than the file
    server.files["b.bin"] = BODY
    downloads.download([remote(server, "b.bin", size=0)], tmp_path, "b")
    assert (tmp_path / "b.bin").read_bytes() == BODY


def test_another_file_is_not_kept(server, tmp_path):
    wanted = remote(server, content=b"y")
    with pytest.raises(UserError, match=f"another hash: wanted sha256 {wanted.sha256}, found {remote(server).sha256}"):
        downloads.download([wanted], tmp_path, "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "message", "requests"),
    [
        (404, "404 Not Found: the publisher has moved or withdrawn it", 1),
        (403, "403 Forbidden: access is refused; its terms may have to be accepted", 1),
        (503, "the server answers 503 Service Unavailable, 5 times", 5),
    ],
)
def test_a_refusal(server, tmp_path, status, message, requests):
    server.faults["a.bin"] = [status] * 9
    with pytest.raises(UserError, match=message):
        downloads.download([remote(server)], tmp_path, "a")
    assert len(server.requests) == requests


def test_no_connection(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no connection \(Connection refused\)"):
        downloads.download([RemoteFile("a", url, "0" * 64, 1)], tmp_path, "a")
    assert time.monotonic() - began < 10  # it is not tried again


def test_the_proxy_of_the_environment(server, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", server.url(""))
    file = RemoteFile("a", "http://example.invalid/a", hashlib.sha256(BODY).hexdigest(), len(BODY))
    server.files["http://example.invalid/a"] = BODY  # what a proxy is asked for
    downloads.download([file], tmp_path, "a")
    assert (tmp_path / "a").read_bytes() == BODY


def test_one_failure_of_many_keeps_what_is_complete(server, tmp_path):
    server.files |= {f"{n}.bin": bytes([n]) * 50 for n in range(30)}
    files = [remote(server, f"{n}.bin") for n in range(30)]
    server.faults["29.bin"] = [404]
    with pytest.raises(UserError, match=r"29\.bin: 404"):
        downloads.download(files, tmp_path, "a")
    complete = {path.name for path in tmp_path.glob("*.bin")}
    assert complete and "29.bin" not in complete
    server.requests.clear()
    origin = Origin("t", "l", "h", files=tuple(files))
    folder = store.folder_in_cache("many")
    folder.parent.mkdir(parents=True)
    tmp_path.joinpath("x").mkdir()
    folder.mkdir()
    for name in complete:
        (tmp_path / name).rename(folder / name)
    store.fetch("many", origin, origins.folder)
    assert {path for path, _ in server.requests} == {f"{n}.bin" for n in range(30)} - complete


def known(server, name="words", **fields) -> Origin:
    server.files |= {"train.txt": b"a b\n" * 50, "test.txt": b"b c\n" * 20}
    files = (remote(server, "train.txt"), remote(server, "test.txt"))
    return Origin(title="Words", licence="CC0 1.0", homepage=server.url(""), files=files, **fields)


ENTRY = {"reader": "lines", "origin": "words", "splits": {"train": "train.txt", "test": "test.txt"}, "text": ("text",)}


def test_a_data_set_is_downloaded_once_and_announced(server, monkeypatch, capfd):
    monkeypatch.setitem(origins.ORIGINS, "words", known(server))
    data = datasets.read_dataset("d", ENTRY, 0)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 50, "test": 20}
    assert f"origin 'words': downloading 2 files, 0.3 kB, from {server.url('')}; licence: CC0 1.0; to " in (
        capfd.readouterr().err
    )
    count = len(server.requests)
    datasets.read_dataset("d", ENTRY, 0)
    assert len(server.requests) == count and not capfd.readouterr().err


def test_files_of_a_persons_own_come_first(server, monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(origins.ORIGINS, "words", known(server))
    own = tmp_path / "data" / "words"
    own.mkdir(parents=True)
    (own / "train.txt").write_text("mine\n")
    assert len(datasets.read_dataset("d", ENTRY, 0).splits["train"]) == 50
    assert "is not used: it lacks test.txt" in caplog.text
    (own / "test.txt").write_text("mine\n")
    assert len(datasets.read_dataset("d", ENTRY, 0).splits["train"]) == 1


def test_what_to_put_where_without_a_network(server, monkeypatch, tmp_path):
    origin = known(server)
    monkeypatch.setitem(origins.ORIGINS, "words", origin)
    server.faults["train.txt"] = server.faults["test.txt"] = [404] * 9
    with pytest.raises(UserError) as error:
        datasets.read_dataset("d", ENTRY, 0)
    folder = tmp_path / "cache" / "datasets" / "words"
    for name in ("train.txt", "test.txt"):
        assert f"{folder / name} (from {server.url(name)})" in str(error.value)
    assert "or set MTL_JAX_DATA to a folder that has them below words/" in str(error.value)
    for name in ("train.txt", "test.txt"):  # as the message says
        (folder / name).write_bytes(server.files[name])
    server.requests.clear()
    assert len(datasets.read_dataset("d", ENTRY, 0).splits["train"]) == 50 and not server.requests
    server.faults.clear()
    (folder / "train.txt").write_bytes(b"damaged")
    store.fetch("words", origin, origins.folder, verify=True)
    assert (folder / "train.txt").read_bytes() == server.files["train.txt"]


def test_two_processes_download_once(server, tmp_path):
    server.seconds = 0.002
    url = f"{server.url('a.bin')}#sha256={hashlib.sha256(BODY).hexdigest()}"
    code = "import sys; from mtl_jax.data import origins; print(origins.locate(sys.argv[1], {}).name)"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        command = [sys.executable, "-c", code, url]
        done = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(2)))
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    assert done[0].stdout == done[1].stdout and server.requests == [("a.bin", "")]
