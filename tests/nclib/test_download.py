"""Official image sets from a local server that misbehaves, from a cache and from a given folder."""

import contextlib
import dataclasses
import errno
import gc
import gzip
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pooch
import pytest
from conftest import ROOT
from test_files import read_only_folder  # noqa: F401

from nclib.data import data, images

# What pooch asks of `requests` leaves a connection that broke off to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:.*<socket.socket:pytest.PytestUnraisableExceptionWarning")

FIRST = "train-images-idx3-ubyte.gz"


def md5(content):
    return hashlib.md5(content).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files` by name; `script` names one misbehaviour for each request to come, then all is well."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.script = []
        self.requests = []
        self.gate = threading.Event()  # what a stalled answer waits for

    def url(self, folder):
        return f"http://127.0.0.1:{self.server_port}/{folder}"

    def handle_error(self, request, client_address):
        """A client that goes away is what some tests want: no traceback."""


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        """Keep quiet."""

    def do_GET(self):
        server, name = self.server, self.path[1:]
        server.requests.append(name)
        act = server.script.pop(0) if server.script else "fine"
        if isinstance(act, int) or name not in server.files:
            self.send_error(act if isinstance(act, int) else 404)
            return
        content = server.files[name]
        if act == "corrupt":
            content = content[:500] + bytes([content[500] ^ 1]) + content[501:]
        self.send_response(200)
        if act != "no length":
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.wfile.flush()
        if act == "reset":
            self.connection.shutdown(2)
        elif act == "stall":
            server.gate.wait(60)
        if act in ("fine", "corrupt", "no length") or server.gate.is_set():
            self.wfile.write(content[half:])


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


@pytest.fixture(scope="module", autouse=True)
def _collected():
    """Connections that broke off are gone before the next file of tests begins."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """How long pooch would have waited between two tries."""
    waited = []
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=waited.append))
    return waited


def strangers(folder):
    """What lies in a folder beside locks."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


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
    for index, name in enumerate((*images._BATCHES, images._BATCH_TEST)):
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
    monkeypatch.setattr(images, "cache_folder", lambda: tmp_path / "cache")
    images._say_once.cache_clear()
    mnist, cifar = mnist_files(), cifar_archive(cifar_files())
    server.files = {f"mnist/{name}": content for name, content in mnist.items()}
    server.files["cifar-10-binary.tar.gz"] = cifar
    changes = {
        "mnist": dict(base_url=server.url("mnist/"), md5={name: md5(c) for name, c in mnist.items()}),
        "cifar10": dict(base_url=server.url(""), md5={"cifar-10-binary.tar.gz": md5(cifar)}, counts=(20, 4)),
    }
    for name, change in changes.items():
        changed = dataclasses.replace(images.SOURCES[name], **change)
        monkeypatch.setitem(images.SOURCES, name, changed)
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


# --------------------------------------------------------------------------------------------- downloads


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_download_once_then_read_the_cache(world, tmp_path, name, capfd):
    first = data(name, unit_norm=False)
    assert np.array_equal((first.x * 255).round().byte().numpy(), pixels(name))
    asked = len(world.requests)
    again = data(name, unit_norm=False)
    assert len(world.requests) == asked == (4 if name == "mnist" else 1)
    assert np.array_equal(first.x, again.x)
    folder = tmp_path / "cache" / images.SOURCES[name].folder
    assert strangers(folder) == sorted(mnist_files() if name == "mnist" else cifar_files())  # and no archive
    out, err = capfd.readouterr()
    assert out == "".join(f"downloading {file} to {folder}\n" for file in images.SOURCES[name].md5)
    assert err == ""


@pytest.mark.parametrize("fault", [500, 503, 429, "corrupt", "reset", "truncate", "stall"])
def test_two_failures_then_success(world, fault, pauses, monkeypatch):
    monkeypatch.setattr(images, "TIMEOUT", 0.5)
    world.script = [fault, fault]
    assert np.array_equal((data("mnist", unit_norm=False).x * 255).round().byte().numpy(), pixels("mnist"))
    assert world.requests[:4] == [f"mnist/{FIRST}"] * 3 + ["mnist/train-labels-idx1-ubyte.gz"]
    assert pauses == [1, 2]


def test_a_server_that_does_not_say_how_much_will_come_does_no_harm(world):
    world.script = ["no length"]
    assert len(data("mnist").x) == 20


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("truncate", "IncompleteRead"), (403, "403 Client Error: Forbidden"), (503, "503 Server Error")],
)
def test_lasting_failure_is_an_error_and_leaves_nothing(world, tmp_path, fault, reason):
    world.script = [fault] * 5
    message = rf"cannot download {world.url('mnist/')}{FIRST}: .*{reason}.* \(5 attempts\); try again later, or put"
    with pytest.raises(ConnectionError, match=message) as caught:
        data("mnist")
    assert "\n" not in str(caught.value)
    assert strangers(tmp_path / "cache" / "mnist") == []


def test_no_server_at_all(world, tmp_path, monkeypatch):
    nobody = dataclasses.replace(images.SOURCES["mnist"], base_url="http://127.0.0.1:9/")
    monkeypatch.setitem(images.SOURCES, "mnist", nobody)
    with pytest.raises(ConnectionError, match=rf"cannot download http://127\.0\.0\.1:9/{FIRST}: .*\(5 attempts\)"):
        data("mnist")
    assert strangers(tmp_path / "cache" / "mnist") == []


def test_lasting_corruption_is_an_error_and_leaves_nothing(world, tmp_path):
    world.script = ["corrupt"] * 5
    with pytest.raises(ValueError, match=r"md5 is not the official one \(5 attempts\); .* verify=False") as caught:
        data("mnist")
    assert "\n" not in str(caught.value)
    assert strangers(tmp_path / "cache" / "mnist") == []
    foreign = idx(np.zeros((20, 28, 28), np.uint8))
    world.files[f"mnist/{FIRST}"] = foreign
    assert data("mnist", unit_norm=False, verify=False).x.max() == 0


def test_a_damaged_file_in_the_cache_is_replaced(world, tmp_path, capfd):
    data("mnist")
    (tmp_path / "cache" / "mnist" / FIRST).write_bytes(b"half")
    capfd.readouterr()
    data("mnist")
    assert capfd.readouterr().out == f"downloading {FIRST} to {tmp_path / 'cache' / 'mnist'}\n"
    assert (tmp_path / "cache" / "mnist" / FIRST).read_bytes() == mnist_files()[FIRST]
    assert len(world.requests) == 5


def test_progress_bar_goes_to_stdout_where_somebody_looks(world, capfd, monkeypatch):
    monkeypatch.setattr(images, "audience", lambda: "person")
    data("cifar10")
    out, err = capfd.readouterr()
    assert "cifar-10-binary.tar.gz: 100%" in out
    assert err == ""


def test_a_notebook_that_a_program_executes_shows_nothing(world, capfd, monkeypatch):
    monkeypatch.setattr(images, "audience", lambda: "program")
    data("mnist")
    assert capfd.readouterr() == ("", "")


def test_pooch_logger_is_as_before(world):
    before = pooch.get_logger().level
    data("mnist")
    assert pooch.get_logger().level == before


# --------------------------------------------------------------------------------------------- processes

CHILD = """
import dataclasses, sys
from pathlib import Path
from nclib.data import data, images
images.cache_folder = lambda: Path(sys.argv[2])
changes = dict(base_url=sys.argv[1], md5={"cifar-10-binary.tar.gz": sys.argv[3]}, counts=(20, 4))
images.SOURCES["cifar10"] = dataclasses.replace(images.SOURCES["cifar10"], **changes)
print("ready", flush=True)
print(len(data("cifar10").x), flush=True)
"""


@contextlib.contextmanager
def child(server, cache):
    archive = md5(server.files["cifar-10-binary.tar.gz"])
    command = [sys.executable, "-c", CHILD, server.url(""), str(cache), archive]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.01)


def test_two_processes_download_once(world, tmp_path):
    world.script = ["stall"]
    cache = tmp_path / "cache"
    with child(world, cache) as first, child(world, cache) as second:
        wait_for(lambda: world.requests)
        time.sleep(2)  # time for the other one to ask too, if it did not wait
        world.gate.set()
        outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    waits = [
        f"another process is downloading to {cache / 'cifar-10-batches-bin'}; waiting for it" in o for o in outputs
    ]
    assert sorted(waits) == [False, True]
    assert [output.splitlines()[-1] for output in outputs] == ["20", "20"]
    assert len(world.requests) == 1


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_leaves_no_lock_and_nothing_in_the_way(world, tmp_path):
    world.script = ["stall"]
    folder = tmp_path / "cache" / "cifar-10-batches-bin"
    with child(world, tmp_path / "cache") as process:
        wait_for(lambda: world.requests and strangers(folder))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(strangers(folder)) == 1
    assert len(data("cifar10").x) == 20
    assert strangers(folder) == sorted(cifar_files())


def test_several_threads_unpack_once(world):
    world.script = ["stall"]
    results = []
    threads = [threading.Thread(target=lambda: results.append(len(data("cifar10").x))) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: world.requests)
    time.sleep(0.1)
    world.gate.set()
    for thread in threads:
        thread.join()
    assert results == [20] * 3
    assert len(world.requests) == 1


# -------------------------------------------------------------------------------------------------- disk


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_read_only_cache(world, read_only_folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr(images, "cache_folder", lambda: read_only_folder)
    message = (
        rf"cannot store mnist in {read_only_folder} \(Permission denied\); make the folder writable .*NCLIB_DATA"
    )
    with pytest.raises(PermissionError, match=message) as caught:
        data("mnist")
    assert "\n" not in str(caught.value)
    assert world.requests == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become nobody")
def test_a_cache_that_is_read_only_is_read(world, tmp_path):
    data("mnist")
    data("cifar10")
    asked = len(world.requests)
    above = [folder for folder in tmp_path.parents if "pytest-of" in folder.as_posix()]
    for path in (*above, tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755)
    os.seteuid(65534)
    try:
        assert len(data("mnist").x) == len(data("cifar10").x) == 20
    finally:
        os.seteuid(0)
    assert len(world.requests) == asked


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(world, tmp_path, monkeypatch):
    monkeypatch.setattr(pooch.core, "temporary_file", lambda path: contextlib.nullcontext("/dev/full"))
    message = r"cannot store mnist in .*No space left on device.* leave room"
    with pytest.raises(OSError, match=message) as caught:
        data("mnist")
    assert caught.value.errno == errno.ENOSPC
    assert len(world.requests) == 1
    assert strangers(tmp_path / "cache" / "mnist") == []


def test_disk_that_fills_while_unpacking(world, tmp_path, monkeypatch):
    def full(file, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(images, "write", full)
        with pytest.raises(OSError, match=r"cannot store cifar-10-batches-bin in .*No space left") as caught:
            data("cifar10")
        assert caught.value.errno == errno.ENOSPC
    assert strangers(tmp_path / "cache" / "cifar-10-batches-bin") == ["cifar-10-binary.tar.gz"]
    assert len(data("cifar10").x) == 20
    assert len(world.requests) == 1


def test_folder_that_is_a_file(world, tmp_path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot store mnist"):
        data("mnist")


def test_an_archive_that_is_not_the_official_one(world, tmp_path):
    files = cifar_files()
    del files["test_batch.bin"]
    world.files["cifar-10-binary.tar.gz"] = cifar_archive(files)
    with pytest.raises(ValueError, match=r"not the official archive .*; delete it and load again"):
        data("cifar10", verify=False)
    world.files["cifar-10-binary.tar.gz"] = cifar_archive(cifar_files())
    assert len(data("cifar10").x) == 20  # the wrong archive is recognised and fetched anew


def test_incomplete_folder_in_the_cache_is_made_anew(world, tmp_path):
    folder = tmp_path / "cache" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    (folder / "data_batch_1.bin").write_bytes(b"half")
    assert len(data("cifar10").x) == 20


# ----------------------------------------------------------------------------------------- a given folder


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
    with pytest.raises(ValueError, match=r"n=7: expected a whole number >= 3 and <= 6; write e\.g\. n=3"):
        data("mnist", classes=(3, 8, 1), n=7)


def test_checksum_of_a_given_folder(given):
    path = given / "mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(idx(np.zeros(10, dtype=np.uint8)))
    with pytest.raises(ValueError, match=rf"{path}: its md5 is not the official \w+; .* verify=False to go on"):
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


def test_table_of_sources():
    for source in images.SOURCES.values():
        assert source.base_url.endswith("/")
        assert all(re.fullmatch(r"[0-9a-f]{32}", value) for value in source.md5.values())
        assert len(source.classes) == 10
    assert "amazonaws" in images.SOURCES["mnist"].base_url


# --------------------------------------------------------------------------------------------- real data

# Means of all training pixels, as the literature quotes them.
MEANS = {"mnist": (0.1307,), "fashion-mnist": (0.2860,), "cifar10": (0.4914, 0.4822, 0.4465)}


@pytest.mark.parametrize("name", MEANS)
def test_real_data(name):
    folder = os.environ.get("NCLIB_DATA")
    if not folder:
        pytest.skip("NCLIB_DATA names no folder with real data")
    source = images.SOURCES[name]
    if not (Path(folder).expanduser() / source.folder).is_dir():
        pytest.skip(f"NCLIB_DATA has no {source.folder}")
    loaded = data(name, unit_norm=False)
    assert (len(loaded.x), len(loaded.x_test)) == source.counts
    assert loaded.x.mean(dim=(0, 2, 3)).tolist() == pytest.approx(MEANS[name], abs=5e-5)
    assert loaded.labels_test.bincount().min() > 890
    pair = data(name, classes=(1, 2), n=1000, standardise=True)
    assert pair.labels.bincount().tolist() == [500, 500]
    assert (pair.x.double().flatten(1).norm(dim=1) - 1).abs().max() < 2e-7
