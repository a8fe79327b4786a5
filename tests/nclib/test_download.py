"""Downloads against a local server that misbehaves, and the parsers of the official files."""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from nclib.data import data, download, image_sets
from nclib.data.download import fetch

BODY = np.random.default_rng(0).bytes(100_000)


def md5(content):
    return hashlib.md5(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files` by name; `script` names one misbehaviour for each request to come, then all is well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"file.bin": BODY}
        self.script = []
        self.ranges = True
        self.requests = []
        self.gate = threading.Event()  # what a stalled answer waits for

    def url(self, name="file.bin"):
        return f"http://127.0.0.1:{self.server_port}/{name}"

    def handle_error(self, request, client_address):
        """A client that goes away is what some tests want: no traceback."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """Keep quiet."""

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.requests.append((self.path[1:], wanted))
        act = server.script.pop(0) if server.script else "fine"
        content = server.files.get(self.path[1:])
        if isinstance(act, int) or content is None:
            self.send_error(act if isinstance(act, int) else 404)
            return
        if act == "corrupt":
            content = content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if act != "no length":
            self.send_header("Content-Length", str(len(content) - start))
        if act == "encoded":  # a server that takes .gz for an encoding of the file inside
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        rest = content[start:]
        if act == "reset":
            self.wfile.write(rest[:1000])
            self.wfile.flush()
            self.connection.shutdown(2)
            return
        if act in ("truncate", "stall"):
            half = len(rest) // 2
            self.wfile.write(rest[:half])
            self.wfile.flush()
            if act == "stall":
                server.gate.wait(20)
            rest = rest[half:] if act == "stall" and server.gate.is_set() else b""
        self.wfile.write(rest)


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


def get(server, path, **options):
    settings = {"md5": md5(BODY), "timeout": 20, "tries": 3, "pause": 0.01} | options
    return fetch(server.url(), path, **settings)


def strangers(folder):
    """What lies in a folder beside locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# --------------------------------------------------------------------------------------------- downloads


def test_plain_download_lands_whole_and_is_not_repeated(server, tmp_path, capfd):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert get(server, path) == path
    assert path.read_bytes() == BODY
    assert get(server, path) == path
    assert len(server.requests) == 1
    assert strangers(path.parent) == ["file.bin"]
    out, err = capfd.readouterr()
    assert out == f"downloading file.bin to {path.parent}\n"
    assert err == ""


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["truncate", "stall", "reset"])
def test_a_broken_transfer_is_resumed_where_the_server_can(server, tmp_path, fault, ranges):
    server.script, server.ranges = [fault], ranges
    get(server, tmp_path / "file.bin", timeout=1)
    assert (tmp_path / "file.bin").read_bytes() == BODY
    (_, first), (_, second) = server.requests
    assert first is None
    have = int(re.fullmatch(r"bytes=(\d+)-", second)[1])
    assert 0 < have <= len(BODY) // 2
    assert strangers(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("fault", [500, 503, 429, "corrupt", "reset"])
def test_two_failures_then_success(server, tmp_path, fault):
    server.script = [fault, fault]
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert len(server.requests) == 3


@pytest.mark.parametrize("act", ["no length", "encoded"])
def test_odd_headers_do_no_harm(server, tmp_path, act):
    server.files["file.bin"] = packed = gzip.compress(BODY)
    server.script = [act]
    get(server, tmp_path / "file.bin", md5=md5(packed))
    assert (tmp_path / "file.bin").read_bytes() == packed
    assert len(server.requests) == 1


def test_pauses_grow(server, tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    server.script = [500] * 7
    get(server, tmp_path / "file.bin", tries=8, pause=1.0)
    assert pauses == [1, 2, 4, 8, 16, 30, 30]


def test_progress_renews_the_attempts(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS", 1000)
    server.script = ["truncate"] * 6
    get(server, tmp_path / "file.bin", tries=2)
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_lasting_truncation_is_an_error_and_keeps_what_came(server, tmp_path):
    server.script = ["truncate"] * 3
    with pytest.raises(ConnectionError, match=r"cannot download .*file\.bin: .*\(3 attempts\); try again later"):
        get(server, tmp_path / "file.bin")
    assert strangers(tmp_path) == [".file.bin.part"]
    kept = (tmp_path / ".file.bin.part").stat().st_size
    get(server, tmp_path / "file.bin")
    assert server.requests[-1] == ("file.bin", f"bytes={kept}-")
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_lasting_corruption_is_an_error_and_leaves_nothing(server, tmp_path):
    server.script = ["corrupt"] * 3
    with pytest.raises(ValueError, match=r"md5 is not the official one \(3 attempts\); .* verify=False"):
        get(server, tmp_path / "file.bin")
    assert strangers(tmp_path) == []
    server.script = ["corrupt"]
    get(server, tmp_path / "file.bin", md5=None)
    assert len((tmp_path / "file.bin").read_bytes()) == len(BODY)


@pytest.mark.parametrize("kept", [BODY[:70_000][::-1], BODY[::-1], BODY + b"too long"])
def test_a_foreign_partial_file_does_not_survive(server, tmp_path, kept):
    (tmp_path / ".file.bin.part").write_bytes(kept)
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert strangers(tmp_path) == ["file.bin"]


def test_a_complete_partial_file_is_not_fetched_again(server, tmp_path):
    (tmp_path / ".file.bin.part").write_bytes(BODY)
    get(server, tmp_path / "file.bin")
    assert server.requests == [("file.bin", f"bytes={len(BODY)}-")]
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_a_damaged_file_in_the_cache_is_replaced(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(BODY[:-1])
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY


def test_refusals_are_not_repeated(server, tmp_path):
    server.script = [403]
    with pytest.raises(ConnectionError, match=r"the server answered 403 Forbidden; put the file into a folder"):
        get(server, tmp_path / "file.bin")
    assert len(server.requests) == 1
    assert strangers(tmp_path) == []


def test_no_server_at_all(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"cannot download http://127\.0\.0\.1:9/x: .*\(2 attempts\)"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", md5=None, tries=2, pause=0.01)
    assert strangers(tmp_path) == []


def test_progress_bar_goes_to_stdout_where_somebody_looks(server, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(download, "_unseen", lambda: False)
    get(server, tmp_path / "file.bin")
    out, err = capfd.readouterr()
    assert "file.bin: 100%" in out
    assert err == ""


def test_pooch_logger_is_as_before(server, tmp_path):
    import pooch

    before = pooch.get_logger().level
    get(server, tmp_path / "file.bin")
    assert pooch.get_logger().level == before


# --------------------------------------------------------------------------------------------- processes

CHILD = """
import sys
from pathlib import Path
from nclib.data.download import fetch
print("ready", flush=True)
fetch(sys.argv[1], Path(sys.argv[2]), md5=sys.argv[3], timeout=20, pause=0.01)
print("done", flush=True)
"""


@contextlib.contextmanager
def child(server, path):
    command = [sys.executable, "-c", CHILD, server.url(), str(path), md5(BODY)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 20 s"
        time.sleep(0.01)


def test_two_processes_download_once(server, tmp_path):
    server.script = ["stall"]
    path = tmp_path / "file.bin"
    with child(server, path) as first, child(server, path) as second:
        wait_for(lambda: server.requests)
        time.sleep(0.3)  # time for the other one to ask too, if it did not wait
        assert not path.exists()
        server.gate.set()
        assert first.wait(20) == second.wait(20) == 0
    assert path.read_bytes() == BODY
    assert len(server.requests) == 1
    assert strangers(tmp_path) == ["file.bin"]


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_leaves_no_lock_and_a_resumable_part(server, tmp_path):
    server.script = ["stall"]
    path = tmp_path / "file.bin"
    with child(server, path) as process:
        part = tmp_path / ".file.bin.part"
        wait_for(lambda: part.exists() and part.stat().st_size > 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not path.exists()
    kept = part.stat().st_size
    get(server, path)
    assert path.read_bytes() == BODY
    assert server.requests[-1] == ("file.bin", f"bytes={kept}-")


def test_without_file_locks_everybody_works_alone(server, tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(download, "_acquire", refuse)
    (tmp_path / ".file.bin.part").write_bytes(b"somebody else's")
    get(server, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == BODY
    assert server.requests == [("file.bin", None)]
    assert (tmp_path / ".file.bin.part").read_bytes() == b"somebody else's"


# -------------------------------------------------------------------------------------------------- disk


@pytest.fixture
def read_only_folder():
    """A folder in which this process cannot write, even when the tests are run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("name", ["file.bin", "deeper/file.bin"])
def test_read_only_folder(server, read_only_folder, name):
    path = read_only_folder / name
    message = rf"cannot store file\.bin in {path.parent} \(Permission denied\); make the folder writable"
    with pytest.raises(OSError, match=message) as caught:
        get(server, path)
    assert caught.value.errno == errno.EACCES
    assert "\n" not in str(caught.value)
    assert server.requests == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(server, tmp_path):
    (tmp_path / ".file.bin.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot store file\.bin .*No space left on device.* leave room") as caught:
        get(server, tmp_path / "file.bin")
    assert caught.value.errno == errno.ENOSPC
    assert len(server.requests) == 1
    assert not (tmp_path / "file.bin").exists()


def test_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot store file\.bin"):
        get(server, tmp_path / "cache" / "file.bin")


# ------------------------------------------------------------------------------- image sets, made up small


def idx(array):
    """An array of bytes as a gzipped idx file."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


def mnist_files(train=20, test=10):
    rng = np.random.default_rng(1)
    files = {}
    for prefix, count in (("train", train), ("t10k", test)):
        files[f"{prefix}-images-idx3-ubyte.gz"] = idx(rng.integers(1, 256, (count, 28, 28), dtype=np.uint8))
        files[f"{prefix}-labels-idx1-ubyte.gz"] = idx(np.arange(count, dtype=np.uint8) % 10)
    return files


def cifar_files(each=4):
    rng = np.random.default_rng(2)
    files = {}
    for index, name in enumerate((*image_sets._BATCHES, image_sets._BATCH_TEST)):
        pixels = rng.integers(1, 256, (each, 3072), dtype=np.uint8)
        labels = ((np.arange(each) + each * index) % 10).astype(np.uint8)
        files[name] = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
    return files


def cifar_archive(files, folder="cifar-10-batches-bin"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(stream.getvalue(), mtime=0)  # the same bytes whenever it is made


@pytest.fixture
def world(server, tmp_path, monkeypatch):
    """The official sets in miniature: on the server, not yet in the cache, and no NCLIB_DATA."""
    monkeypatch.delenv("NCLIB_DATA", raising=False)
    monkeypatch.setattr(image_sets, "cache_folder", lambda: tmp_path / "cache")
    image_sets._say_once.cache_clear()
    mnist, cifar = mnist_files(), cifar_archive(cifar_files())
    server.files = {f"mnist/{name}": content for name, content in mnist.items()}
    server.files["cifar-10-binary.tar.gz"] = cifar
    changes = {
        "mnist": dict(base_url=server.url("mnist/"), md5={name: md5(c) for name, c in mnist.items()}),
        "cifar10": dict(base_url=server.url(""), md5={"cifar-10-binary.tar.gz": md5(cifar)}, counts=(20, 4)),
    }
    for name, change in changes.items():
        changed = dataclasses.replace(image_sets.SOURCES[name], **change)
        monkeypatch.setitem(image_sets.SOURCES, name, changed)
    return server


@pytest.fixture
def given(world, tmp_path, monkeypatch):
    """A user's folder with all files, named by NCLIB_DATA."""
    folder = tmp_path / "given"
    for sub, files in (("mnist", mnist_files()), ("cifar-10-batches-bin", cifar_files())):
        (folder / sub).mkdir(parents=True)
        for name, content in files.items():
            (folder / sub / name).write_bytes(content)
    monkeypatch.setenv("NCLIB_DATA", str(folder))
    return folder


def pixels(name):
    """What a set should hold, straight from the bytes of its files."""
    if name == "mnist":
        content = gzip.decompress(mnist_files()["train-images-idx3-ubyte.gz"])
        return np.frombuffer(content[16:], np.uint8).reshape(20, 1, 28, 28)
    together = b"".join(content for file, content in cifar_files().items() if file.startswith("data"))
    return np.frombuffer(together, np.uint8).reshape(20, 3073)[:, 1:].reshape(20, 3, 32, 32)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_download_once_then_read_the_cache(world, tmp_path, name):
    first = data(name, unit_norm=False)
    assert np.array_equal((first.x * 255).round().byte().numpy(), pixels(name))
    asked = len(world.requests)
    again = data(name, unit_norm=False)
    assert len(world.requests) == asked == (4 if name == "mnist" else 1)
    assert np.array_equal(first.x, again.x)
    folders = {"mnist": ["mnist"], "cifar10": ["cifar-10-batches-bin"]}  # neither archive nor leftovers
    assert strangers(tmp_path / "cache") == folders[name]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_given_folder_is_used_in_place_and_left_alone(world, given, tmp_path, name, capsys):
    before = {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    loaded = data(name, unit_norm=False)
    assert np.array_equal((loaded.x * 255).round().byte().numpy(), pixels(name))
    assert before == {path: path.stat().st_mtime_ns for path in given.rglob("*")}
    assert world.requests == []
    assert not (tmp_path / "cache").exists()
    data(name)
    notice = "cifar10: unpacked batches have no official checksum; sizes and labels are right\n"
    assert capsys.readouterr().out == (notice if name == "cifar10" else "")


def test_channel_order_and_class_names(given):
    loaded = data("cifar10", classes=("automobile", 2), unit_norm=False)
    assert loaded.classes == ("automobile", "bird")
    assert loaded.labels.tolist() == [0, 1, 0, 1]
    batch = np.frombuffer(cifar_files()["data_batch_1.bin"], np.uint8).reshape(4, 3073)
    green = (loaded.x[0, 1] * 255).round().byte().numpy()
    assert np.array_equal(green.ravel(), batch[1, 1 + 1024 : 1 + 2048])


def test_official_test_set_and_balanced_subset(given):
    loaded = data("mnist", classes=(3, 8, 1), n=3, n_test=2, flat=True)
    assert loaded.x.shape == (3, 784)
    assert loaded.labels.bincount().tolist() == [1, 1, 1]
    assert len(loaded.labels_test) == 2
    with pytest.raises(ValueError, match=r"n=7: mnist with classes .* has 6 training points; write n=6 or less"):
        data("mnist", classes=(3, 8, 1), n=7)


def test_checksum_of_a_given_folder(given):
    path = given / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(idx(np.zeros(10, dtype=np.uint8)))
    with pytest.raises(ValueError, match=rf"{path}: md5 \w+ is not the official \w+; .* verify=False to go on"):
        data("mnist")
    assert data("mnist", verify=False).labels_test.tolist() == [0] * 10


def test_missing_file_of_a_given_folder(given):
    path = given / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"{path}: no such file, .*'cifar10'.* unset NCLIB_DATA to download"
    ):
        data("cifar10")


def test_missing_given_folder(given, monkeypatch):
    monkeypatch.setenv("NCLIB_DATA", str(given / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no such file"):
        data("mnist")


def test_folder_with_some_images_only(given, capsys):
    for path in (given / "cifar-10-batches-bin").iterdir():
        rows = np.frombuffer(path.read_bytes(), np.uint8).reshape(-1, 3073)
        path.write_bytes(rows[:2].tobytes())
    with pytest.raises(ValueError, match=r"10 \+ 2 images, where cifar10 has 20 \+ 4; .* verify=False to go on"):
        data("cifar10")
    assert len(data("cifar10", verify=False).x) == 10
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("mnist/train-images-idx3-ubyte.gz", lambda c: c[:-20], r"damaged gzip file .*; replace it"),
        ("mnist/train-images-idx3-ubyte.gz", lambda c: b"<html>", r"damaged gzip file"),
        ("mnist/train-images-idx3-ubyte.gz", lambda c: gzip.compress(b"<html>"), r"not an idx file of bytes"),
        ("mnist/train-images-idx3-ubyte.gz", lambda c: gzip.compress(b"\0\0\x08\x03\0"), r"not an idx file"),
        ("mnist/train-images-idx3-ubyte.gz", lambda c: gzip.compress(b""), r"not an idx file of bytes"),
        (
            "mnist/train-images-idx3-ubyte.gz",
            lambda c: gzip.compress(gzip.decompress(c)[:-1]),
            r"15679 values where the header says \(20, 28, 28\)",
        ),
        (
            "mnist/train-images-idx3-ubyte.gz",
            lambda c: idx(np.zeros((20, 8, 8), np.uint8)),
            r"images of shape \(20, 8, 8\) and labels of shape \(20,\) do not make mnist",
        ),
        (
            "mnist/train-labels-idx1-ubyte.gz",
            lambda c: idx(np.zeros(19, np.uint8)),
            r"labels of shape \(19,\) do not make mnist",
        ),
        (
            "mnist/train-labels-idx1-ubyte.gz",
            lambda c: idx(np.full(20, 10, np.uint8)),
            r"label 10 where 0\.\.9 are possible",
        ),
        ("cifar-10-batches-bin/test_batch.bin", lambda c: c[:-1], r"12291 bytes, not a multiple of 3073"),
        ("cifar-10-batches-bin/test_batch.bin", lambda c: b"", r"0 bytes, not a multiple of 3073"),
        (
            "cifar-10-batches-bin/test_batch.bin",
            lambda c: b"\x0b" + c[1:],
            r"label 11 where 0\.\.9 are possible",
        ),
    ],
)
def test_damaged_files_are_named(given, file, change, message):
    path = given / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        data("mnist" if "mnist" in file else "cifar10", verify=False)
    assert str(path.parent) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unpacking_that_fails_leaves_nothing_under_the_final_name(world, tmp_path, monkeypatch):
    files = cifar_files()
    del files["test_batch.bin"]
    world.files["cifar-10-binary.tar.gz"] = cifar_archive(files)
    with pytest.raises(ValueError, match=r"not the official archive .*; delete it and load again"):
        data("cifar10", verify=False)
    assert strangers(tmp_path / "cache") == ["cifar-10-binary.tar.gz"]
    world.files["cifar-10-binary.tar.gz"] = cifar_archive(cifar_files())
    assert len(data("cifar10").x) == 20  # the wrong archive is recognised and fetched anew


def test_incomplete_folder_in_the_cache_is_made_anew(world, tmp_path):
    folder = tmp_path / "cache" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(b"half")
    assert len(data("cifar10").x) == 20


def test_disk_that_fills_while_unpacking(world, tmp_path, monkeypatch):
    def full(source, target, length):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(image_sets.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match=r"cannot store cifar-10-batches-bin in .*No space left") as caught:
            data("cifar10")
        assert caught.value.errno == errno.ENOSPC
    assert strangers(tmp_path / "cache") == ["cifar-10-binary.tar.gz"]
    assert len(data("cifar10").x) == 20
    assert len(world.requests) == 1


def test_several_threads_unpack_once(world, tmp_path):
    world.script = ["stall"]
    results = []

    def load():
        results.append(len(data("cifar10").x))

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: world.requests)
    time.sleep(0.1)
    world.gate.set()
    for thread in threads:
        thread.join()
    assert results == [20] * 3
    assert len(world.requests) == 1


def test_table_of_sources():
    for source in image_sets.SOURCES.values():
        assert source.base_url.endswith("/")
        assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in source.md5.values())
        assert len(source.classes) == 10
    assert "amazonaws" in image_sets.SOURCES["mnist"].base_url


# --------------------------------------------------------------------------------------------- real data

# Means of all training pixels, as the literature quotes them.
MEANS = {"mnist": (0.1307,), "fashion-mnist": (0.2860,), "cifar10": (0.4914, 0.4822, 0.4465)}


@pytest.mark.parametrize("name", MEANS)
def test_real_data(name):
    folder = os.environ.get("NCLIB_DATA")
    if not folder:
        pytest.skip("NCLIB_DATA names no folder with real data")
    source = image_sets.SOURCES[name]
    if not (Path(folder).expanduser() / source.folder).is_dir():
        pytest.skip(f"NCLIB_DATA has no {source.folder}")
    loaded = data(name, unit_norm=False)
    assert (len(loaded.x), len(loaded.x_test)) == source.counts
    assert loaded.x.mean(dim=(0, 2, 3)).tolist() == pytest.approx(MEANS[name], abs=5e-5)
    assert loaded.labels_test.bincount().min() > 890
    pair = data(name, classes=(1, 2), n=1000, standardise=True)
    assert pair.labels.bincount().tolist() == [500, 500]
    assert (pair.x.double().flatten(1).norm(dim=1) - 1).abs().max() < 2e-7
