"""Digits, MNIST, Fashion-MNIST and CIFAR-10 as arrays of bytes.

Digits come with scikit-learn.  The official files of the others are taken from the folder that ``NCLIB_DATA``
names, where they are only ever read; without it, they are downloaded once into this user's cache.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gzip
import logging
import math
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import lock, write
from ..screen import audience
from .raw import Raw

CACHE = "small-norm-large-margin"
TRIES = 5  # to download a file
TIMEOUT = 30.0  # seconds without a byte after which a try is given up


@dataclass(frozen=True)
class Source:
    """Where an image set comes from and what its files are called."""

    base_url: str
    folder: str  # in NCLIB_DATA and in the cache
    md5: dict[str, str]  # by file to download
    classes: tuple[str, ...]
    shape: tuple[int, int, int] = (1, 28, 28)  # of one image: channels, height, width
    counts: tuple[int, int] = (60_000, 10_000)  # training and test images


_IDX = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
_IDX_TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def _idx_files(*md5: str) -> dict[str, str]:
    return dict(zip((*_IDX, *_IDX_TEST), md5, strict=True))


_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_BATCH_TEST = "test_batch.bin"

SOURCES = {
    "mnist": Source(
        base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        folder="mnist",
        md5=_idx_files(
            "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "d53e105ee54ea40749a09fcbcd1e9432",
            "9fb629c4189551a2d022fa330f9573f3",
            "ec29112dd5afa0611ce80d1b7f02629c",
        ),
        classes=tuple("0123456789"),
    ),
    "fashion-mnist": Source(
        base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        folder="fashion-mnist",
        md5=_idx_files(
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "25c81989df183df01b3e8a0aad5dffbe",
            "bef4ecab320f06d8554ea6380940ec79",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
        classes=(
            *("t-shirt", "trouser", "pullover", "dress", "coat"),
            *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
        ),
    ),
    "cifar10": Source(
        base_url="https://www.cs.toronto.edu/~kriz/",
        folder="cifar-10-batches-bin",
        md5={"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        shape=(3, 32, 32),
        counts=(50_000, 10_000),
    ),
}


def load(name: str, *, verify: bool = True) -> Raw:
    """Read ``"digits"`` or an image set of `SOURCES` as bytes (N, C, H, W), after downloading it if need be.

    `verify` compares md5 checksums, or numbers of images where there is no official checksum (CIFAR-10's unpacked
    batches); False goes on with whatever can be read.  FileNotFoundError if NCLIB_DATA is set and lacks a file,
    ValueError if one is damaged or not the official one, ConnectionError or OSError if it cannot be downloaded
    or stored.
    """
    if name == "digits":
        return _digits()
    given = os.environ.get("NCLIB_DATA")
    folder = (Path(given).expanduser() if given else cache_folder()) / SOURCES[name].folder
    return (_load_batches if name == "cifar10" else _load_idx)(name, folder, bool(given), verify)


def cache_folder() -> Path:
    """Folder of downloaded files, in the place that the operating system has for caches."""
    import pooch

    return Path(pooch.os_cache(CACHE))


def _download(source: Source, folder: Path, verify: bool, ready: Callable[[], bool]) -> None:
    """Bring the official files into `folder` unless they are `ready`: each whole and right, or not there."""
    import pooch

    if ready():
        return  # before any lock: a shared cache may be read-only
    registry = {file: f"md5:{md5}" if verify else None for file, md5 in source.md5.items()}
    store = pooch.create(folder, source.base_url, registry=registry, retry_if_failed=TRIES - 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is downloading to {folder}; waiting for it"
        with lock(folder / ".lock", waiting=waiting) as alone, _quiet(pooch.get_logger()):
            for left in folder.glob("tmp*") if alone else ():  # pooch's, of a process that was killed
                left.unlink()
            for file in () if ready() else registry:
                _fetch(store, file)
    except ConnectionError:
        raise
    except OSError as error:
        what = f"cannot store {source.folder} in {folder.parent} ({error.strerror or error})"
        mend = "make the folder writable and leave room, or point NCLIB_DATA to a folder that holds the files"
        raise OSError(error.errno or errno.EACCES, f"{what}; {mend}") from error


def _fetch(store: Any, file: str) -> None:
    url, mend = store.base_url + file, "put the official file into a folder that NCLIB_DATA names"
    try:
        store.fetch(file, downloader=_receive)
    except ValueError as error:  # pooch's word for a wrong checksum
        what = f"the server sends a file whose md5 is not the official one ({TRIES} attempts)"
        raise ValueError(f"{url}: {what}; {mend}, or go on with verify=False") from error
    except OSError as error:
        if error.errno or isinstance(error, PermissionError):  # what the network raises has no number
            raise
        what = f"cannot download {url}: {error} ({TRIES} attempts)"
        raise ConnectionError(f"{what}; try again later, or {mend}") from error
    if file.endswith(".tar.gz"):
        _unpack(Path(store.path, file))


def _receive(url: str, target: Any, store: Any) -> None:
    """What pooch downloads with: words on stdout where somebody reads them, and a .gz that arrives as a .gz."""
    import pooch
    from tqdm import tqdm

    file, watched = url.rsplit("/", 1)[1], audience()
    if watched == "log":
        print(f"downloading {file} to {store.path}", flush=True)
    shown = {"desc": file, "unit": "B", "unit_scale": True, "file": sys.stdout, "disable": watched != "person"}
    headers = {"Accept-Encoding": "identity"}
    with tqdm(total=1, **shown) as bar:
        pooch.HTTPDownloader(bar, chunk_size=1 << 16, timeout=TIMEOUT, headers=headers)(url, target, store)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch's notices off stderr, where a strict build takes them for errors."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _unpack(archive: Path) -> None:
    """Write CIFAR-10's batches beside the archive, each whole or not at all, and remove it."""
    folder = archive.parent
    try:
        with tarfile.open(archive) as tar:
            for name in (*_BATCHES, _BATCH_TEST):
                member = tar.extractfile(f"{folder.name}/{name}")
                assert member is not None  # a regular file: it was looked up by name
                write(folder / name, member.read())
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, KeyError) as error:
        mend = "delete it and load again with verify=True"
        raise ValueError(f"{archive}: not the official archive ({error}); {mend}") from error
    archive.unlink()


def _load_idx(name: str, folder: Path, given: bool, verify: bool) -> Raw:
    source = SOURCES[name]
    md5 = {folder / file: known if verify else None for file, known in source.md5.items()}
    if not given:
        _download(source, folder, verify, lambda: all(_is_right(path, known) for path, known in md5.items()))
    for path, known in md5.items() if given else ():
        _check_given(name, path, known)

    def read(images: str, labels: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        x, marks = read_idx(folder / images), read_idx(folder / labels)
        if x.shape[1:] != source.shape[1:] or marks.shape != x.shape[:1]:
            what = f"images of shape {x.shape} and labels of shape {marks.shape} do not make {name}"
            raise ValueError(f"{folder / images}: {what}; replace both files by the official ones")
        return x[:, None], _check_labels(folder / labels, marks, len(source.classes))

    return Raw(source.classes, *read(*_IDX), *read(*_IDX_TEST), divisor=255.0)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Array of bytes in a gzipped idx file: two zeros, type 8, rank, the big-endian shape, the values."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error}); replace it by the official one") from error
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    start = 4 + 4 * rank
    if rank == 0 or len(content) < start:
        raise ValueError(f"{path}: not an idx file of bytes; replace it by the official one")
    shape = tuple(np.frombuffer(content, ">u4", rank, offset=4).tolist())
    if len(content) - start != math.prod(shape):
        what = f"{len(content) - start} values where the header says {shape}"
        raise ValueError(f"{path}: {what}; replace it by the official one")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _load_batches(name: str, folder: Path, given: bool, verify: bool) -> Raw:
    source = SOURCES[name]
    paths = [folder / file for file in (*_BATCHES, _BATCH_TEST)]
    if not given:
        _download(source, folder, verify, lambda: all(path.exists() for path in paths))
    for path in paths:
        _check_given(name, path, None)
    train, test = read_batches(paths[:-1], source.shape), read_batches(paths[-1:], source.shape)
    found, known = (f"{a} + {b}" for a, b in ((len(train), len(test)), source.counts))
    if verify and found != known:
        mend = "complete the folder, or write verify=False to go on with what is there"
        raise ValueError(f"{folder}: {found} images, where {name} has {known}; {mend}")
    if verify and given:
        _say_once(f"{name}: unpacked batches have no official checksum; sizes and labels are right")

    def split(rows: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = _check_labels(folder, rows[:, 0], len(source.classes))
        return rows[:, 1:].reshape(-1, *source.shape), labels

    return Raw(source.classes, *split(train), *split(test), divisor=255.0)


def read_batches(paths: list[Path], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Rows of one label byte and the image's bytes, channel by channel, of several files in turn."""
    width = 1 + math.prod(shape)
    sizes = [path.stat().st_size for path in paths]
    for path, size in zip(paths, sizes, strict=True):
        if size % width or not size:
            what = f"{size} bytes, not a multiple of {width} (a label and an image)"
            raise ValueError(f"{path}: {what}; the file is cut short: replace it")
    rows = np.empty((sum(sizes) // width, width), dtype=np.uint8)
    for path, own in zip(paths, np.split(rows, np.cumsum(sizes)[:-1] // width), strict=True):
        own[:] = np.fromfile(path, dtype=np.uint8).reshape(-1, width)
    return rows


def _is_right(path: Path, md5: str | None) -> bool:
    import pooch

    return path.is_file() and (md5 is None or pooch.file_hash(str(path), alg="md5") == md5)


def _check_given(name: str, path: Path, md5: str | None) -> None:
    """Make sure that a file of a user's folder is there and, with a checksum, that it is the official one."""
    if not path.is_file():
        mend = "put the official file there, or unset NCLIB_DATA to download it"
        raise FileNotFoundError(f"{path}: no such file, but {name!r} needs it; {mend}")
    if not _is_right(path, md5):
        mend = "replace the file, or write verify=False to go on with it as it is"
        raise ValueError(f"{path}: its md5 is not the official {md5}; {mend}")


def _check_labels(path: Path, labels: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    if len(labels) and labels.max() >= k:
        raise ValueError(f"{path}: label {labels.max()} where 0..{k - 1} are possible; replace the file")
    return labels.astype(np.int64)


@functools.cache
def _digits() -> Raw:
    """The 1,797 images of 8×8 pixels that scikit-learn carries; they have no official split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images[:, None].astype(np.uint8)  # whole numbers 0..16
    labels = bunch.target.astype(np.int64)
    return Raw(tuple("0123456789"), images, labels, images[:0], labels[:0], divisor=16.0)


@functools.cache
def _say_once(message: str) -> None:
    print(message)
