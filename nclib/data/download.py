"""Download one file so that it is whole and right under its name, or not there at all.

``pooch`` verifies the checksum and moves the file into place; this module adds what it lacks: resuming
what an earlier attempt left, retrying with growing pauses, and a lock between processes.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

# What a stalled connection loses of bytes received: a chunk is handed on only when it is full.
CHUNK = 1 << 13
# An attempt that brought this many bytes does not count against `tries`: a bad line may need many.
PROGRESS = 1 << 20
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class _Transient(Exception):
    """A failure that may be gone at the next attempt."""


class _Refused(OSError):
    """What the disk said, explained."""


def fetch(
    url: str,
    path: Path,
    *,
    md5: str | None,
    timeout: float = 30.0,
    tries: int = 5,
    pause: float = 1.0,
) -> Path:
    """Return `path` after making sure that the file is there, complete and verified.

    Bytes arrive in ``.<name>.part`` beside it, which survives a break and is resumed by the next call, in
    this process or another.  Processes that want the same file wait for the first one.

    Parameters
    ----------
    url : str
        Where the file comes from (http or https).
    path : Path
        Where it goes; the folder is made if need be.
    md5 : str or None
        Its checksum; None takes what comes.
    timeout : float
        Seconds without a byte after which an attempt is given up.
    tries : int
        Attempts in a row that may fail.
    pause : float
        Seconds before the second attempt; doubled before each further one, up to 30.

    Returns
    -------
    Path

    Raises
    ------
    ConnectionError
        If the server cannot be reached, refuses, or breaks off each time.
    ValueError
        If what arrives has another checksum each time.
    OSError
        If the folder cannot be written to or the disk is full.
    """
    import pooch

    if path.exists() and (md5 is None or pooch.file_hash(str(path), alg="md5") == md5):
        return path  # before any lock: a shared cache may be read-only
    with storing(path), lock(path) as part, _quiet(pooch.get_logger()):
        _retrieve(url, path, part, md5, timeout, tries, pause)
    return path


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Make the folder of `path`, and say what to do where the disk refuses it or anything after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (ConnectionError, _Refused):
        raise
    except OSError as error:
        text = (
            f"cannot store {path.name} in {path.parent} ({error.strerror or error}); make the folder "
            f"writable and leave room, or point NCLIB_DATA to a folder that already holds the files"
        )
        raise _Refused(error.errno or errno.EIO, text) from error


@contextlib.contextmanager
def lock(path: Path) -> Iterator[Path]:
    """Hold the lock of `path` and yield the name of its partial file.

    The lock is the operating system's, on an open file: it goes with the process, even a killed one.  On a
    file system without locks every process takes a partial file of its own, which is slower but as safe.
    """
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        try:
            _acquire(file)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            yield path.with_name(f".{path.name}.{os.getpid()}.part")
        else:
            yield path.with_name(f".{path.name}.part")  # closing the file releases the lock


def _retrieve(url: str, path: Path, part: Path, md5: str | None, timeout: float, tries: int, pause: float) -> None:
    """Let pooch fetch the file through `_receive`, again and again until `tries` attempts failed in a row."""
    import pooch

    known = None if md5 is None else f"md5:{md5}"
    receive = partial(_receive, part=part, timeout=timeout)
    if _unseen():
        print(f"downloading {path.name} to {path.parent}", flush=True)  # stdout: strict builds fail on stderr
    failures = 0
    while True:
        before = _size(part)
        try:
            pooch.retrieve(url, known, fname=path.name, path=path.parent, downloader=receive)
            return
        except (_Transient, ValueError) as error:  # ValueError is pooch's word for a wrong checksum
            failures = 1 if _size(part) - before >= PROGRESS else failures + 1
            if failures >= tries:
                raise _last_word(url, error, tries) from error
        time.sleep(min(30.0, pause * 2 ** (failures - 1)))


def _last_word(url: str, error: Exception, tries: int) -> Exception:
    if isinstance(error, _Transient):
        return ConnectionError(
            f"cannot download {url}: {error} ({tries} attempts); try again later (what has arrived is kept), "
            f"or put the file into a folder that NCLIB_DATA names"
        )
    return ValueError(
        f"{url}: the server sends a file whose md5 is not the official one ({tries} attempts); put the "
        f"official file into a folder that NCLIB_DATA names, or go on with verify=False"
    )


def _receive(url: str, target: str | BinaryIO, _: Any, *, part: Path, timeout: float) -> None:
    """Fill `part` from where it stands, then hand it over as `target` (a pooch downloader)."""
    import requests  # comes with pooch
    import urllib3

    have = _size(part)
    headers = {"Accept-Encoding": "identity"}  # a .gz must arrive as a .gz
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            if response.status_code == 416:  # nothing beyond what is there: complete, or not this file
                total = _total(response.headers, 0)
                if total != have:
                    part.unlink()
                    raise _Transient(f"{have} bytes kept from before do not fit the file; starting again")
            elif response.status_code in (200, 206):
                if response.status_code == 200:
                    have = 0  # the server does not resume
                total = _total(response.headers, have)
                _store(response.raw, part, have, total)
            elif response.status_code in RETRY_STATUS:
                raise _Transient(f"the server answered {response.status_code} {response.reason}")
            else:
                raise ConnectionError(
                    f"cannot download {url}: the server answered {response.status_code} {response.reason}; "
                    f"put the file into a folder that NCLIB_DATA names"
                )
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise _Transient(str(error)) from error
    if total is not None and _size(part) != total:
        wrong = _size(part)
        if wrong > total:
            part.unlink()
        raise _Transient(f"{wrong} of {total} bytes arrived")
    os.replace(part, str(target))  # from here on pooch looks after it: a wrong checksum deletes it


def _store(raw: Any, part: Path, have: int, total: int | None) -> None:
    """Append the body to the first `have` bytes of `part`, with a progress bar where somebody looks."""
    from tqdm import tqdm

    name = part.name.strip(".").removesuffix(".part")
    with (
        part.open("r+b" if have else "wb") as file,
        tqdm(
            total=total,
            initial=have,
            desc=name,
            unit="B",
            unit_scale=True,
            file=sys.stdout,
            disable=_unseen(),
        ) as bar,
    ):
        file.seek(have)
        for chunk in raw.stream(CHUNK, decode_content=False):
            file.write(chunk)
            bar.update(len(chunk))


def _total(headers: Any, have: int) -> int | None:
    """Size of the whole file by the headers of a full, partial or refused answer; None if they don't say."""
    span = headers.get("Content-Range", "")  # "bytes 10-99/100", "bytes */100"
    if "/" in span:
        total = span.rsplit("/", 1)[1]
        return int(total) if total.isdigit() else None
    length = headers.get("Content-Length", "")
    return have + int(length) if length.isdigit() else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unseen() -> bool:
    """Whether nobody watches: output to a file or pipe, and no notebook."""
    return not (sys.stdout.isatty() or "ipykernel" in sys.modules)


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keep pooch's notices off stderr, where a strict build takes them for errors."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


if sys.platform == "win32":
    import msvcrt

    def _acquire(file: BinaryIO) -> None:
        file.seek(0)
        while True:
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
                return
            except OSError as error:  # it gives up after ten seconds
                if error.errno != errno.EDEADLOCK:
                    raise

else:
    import fcntl

    def _acquire(file: BinaryIO) -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
