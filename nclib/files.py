"""Files that are whole or not there, their fingerprints, and a lock between processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def write(file: Path, content: bytes | str) -> None:
    """Write aside, force to disk, rename: whoever reads finds the old file or the new one, never half of one.

    The folder is made if need be.  Where the disk refuses (OSError), nothing is left behind.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as out:
            out.write(content.encode() if isinstance(content, str) else content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, file)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    with contextlib.suppress(OSError):  # the rename itself; not every system lets a folder be opened
        handle = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def canonical(value: Any) -> str:
    """What JSON knows as text, whatever the order of the keys; TypeError for anything else."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def fingerprint(content: Any) -> str:
    """SHA-256, as 64 hexadecimal digits, of bytes, of a text, or of anything that `canonical` takes."""
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else canonical(content)).encode()
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def lock(file: Path, *, waiting: str = "") -> Iterator[bool]:
    """Hold the lock `file` between processes; True, or False on a file system that has no locks.

    The system releases it when its process dies.  Where another process holds it, say `waiting` once and wait.
    OSError if `file` cannot be made.
    """
    from filelock import FileLock, Timeout

    held = FileLock(file, fallback_to_soft=False)  # a soft lock would outlive its process
    try:
        try:
            held.acquire(blocking=False)
        except Timeout:
            if waiting:
                print(waiting, flush=True)
            held.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield held.is_locked
    finally:
        held.release()
