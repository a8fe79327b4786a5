"""Training runs on disk: named by what was computed, written whole or not at all, never unpickled.

A run lives in a folder of its own under the folder that ``NCLIB_RUNS`` names (unset: nothing is written).
The name is a hash of the configuration, the data and the code, so that a result is found again exactly if
running it again would give the same.  In the folder:

``state.safetensors``  the truth: weights, momenta, history, and a checksum over all of it, in one file that
    is replaced atomically.  A process killed at any moment leaves the old one or the new one.
``config.json``, ``history.csv``  for people; they are never read back.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import functools
import hashlib
import importlib.resources
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["RunFolder", "code_version", "data_version", "identity", "open_run", "runs_folder"]

FORMAT = 1
STATE = "state.safetensors"
Arrays = dict[str, NDArray[Any]]

# The code that decides what a run computes: these modules and all that they import, but for those that only
# carry results about or bring data, which are known by their contents.
_ROOTS = ("training.session", "data.raw")
_ASIDE = {"data", "scale", "screen", "training.runs", "training.disk"}


def runs_folder() -> Path | None:
    """The folder in which runs are kept, from ``NCLIB_RUNS``; None if it is unset or empty.

    Examples
    --------
    >>> folder = runs_folder()
    """
    name = os.environ.get("NCLIB_RUNS")
    return Path(name).expanduser() if name else None


@functools.cache
def code_version() -> str:
    """Hash of the code that decides results: this package's modules, without comments and docstrings.

    Examples
    --------
    >>> len(code_version())
    16
    """
    digest = hashlib.sha256()
    for name, tree in sorted(_modules().items()):
        digest.update(f"{name} {_meaning(tree)}".encode())
    return digest.hexdigest()[:16]


def _modules() -> dict[str, ast.Module]:
    """The syntax trees of the modules that decide results, by their names within this package."""
    # As resources, not as files: the package may lie in a zip.
    package = importlib.resources.files("nclib")
    found: dict[str, ast.Module] = {}
    queue = list(_ROOTS)
    while queue:
        name = queue.pop()
        if name in found or name in _ASIDE:
            continue
        *folders, module = name.split(".")
        file = package.joinpath(*folders, f"{module}.py")
        if not file.is_file():
            folders.append(module)
            file = package.joinpath(*folders, "__init__.py")
        found[name] = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(found[name]):
            if isinstance(node, ast.ImportFrom) and node.level and node.module:
                queue.append(".".join([*folders[: len(folders) + 1 - node.level], node.module]))
    return found


def _meaning(tree: ast.Module) -> str:
    """Code as Python understands it: without comments, layout and docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            del body[0]
    return ast.dump(tree, annotate_fields=False)


def _is_docstring(node: ast.AST) -> bool:
    constant = node.value if isinstance(node, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


def data_version(*tensors: Tensor) -> str:
    """Hash of the contents, shapes and types of tensors.

    Examples
    --------
    >>> import torch
    >>> data_version(torch.zeros(2)) == data_version(torch.zeros(2))
    True
    >>> data_version(torch.zeros(2)) == data_version(torch.zeros(2, 1))
    False
    """
    return _digest({str(i): t.detach().cpu().contiguous().numpy() for i, t in enumerate(tensors)})


def identity(config: Mapping[str, Any]) -> str:
    """Hash of a configuration made of what JSON knows; the order of the keys does not matter.

    Examples
    --------
    >>> identity({"a": 1, "b": [2.0]}) == identity({"b": [2.0], "a": 1})
    True
    """
    return hashlib.sha256(_canonical(config).encode()).hexdigest()


@contextlib.contextmanager
def open_run(name: str, config: Callable[[], Mapping[str, Any]]) -> Iterator[RunFolder | None]:
    """The folder of a run, held by this process alone; None if runs are not kept.

    A finished run is handed out without waiting and without writing, so that a read-only folder will do.
    Where another process is at work on the same run, wait for it; if that one dies, this one takes over.

    Parameters
    ----------
    name : start of the folder's name, for people.
    config : returns all that the result depends on; not called where no runs are kept.

    Raises
    ------
    OSError
        If ``NCLIB_RUNS`` names a place where no run can be written.
    """
    base = runs_folder()
    if base is None:
        yield None
        return
    values = config()
    key = identity(values)
    run = RunFolder(base / f"{name}-{key[:16]}", key)
    if run.finished():
        yield run
        return
    try:
        run.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(run.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OSError(
            error.errno,
            f"NCLIB_RUNS={str(base)!r}: no run can be written there ({error.strerror}); "
            "name another folder, or unset the variable to keep no runs",
        ) from error
    try:
        if _lock(lock, run.path.name):
            run.sweep()
        _write_atomically(run.path / "config.json", _pretty({"key": key, **values}), fatal=False)
        yield run
    finally:
        os.close(lock)  # which releases it, as does the death of the process


class RunFolder:
    """Where one run is kept; made by `open_run`."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._warned = False
        self._finished: tuple[Arrays, dict[str, Any]] | None = None

    def finished(self) -> bool:
        """Whether a whole and finished result lies here."""
        with contextlib.suppress(OSError, ValueError):
            state = _read(self.path / STATE, self.key)
            self._finished = state if state[1].get("finished") else None
        return self._finished is not None

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """The last state saved and what was noted with it; None if there is none.

        A file that is damaged or belongs to another run is renamed to end in ``.corrupt``, with a warning
        that names it.
        """
        if self._finished:
            return self._finished
        file = self.path / STATE
        try:
            return _read(file, self.key)
        except FileNotFoundError:
            return None
        except ValueError as error:
            aside = _free_name(file)
            os.replace(file, aside)
            warnings.warn(f"{file}: {error}; set aside as {aside.name}, the run starts afresh", stacklevel=3)
            return None

    def save(self, arrays: Mapping[str, Tensor | NDArray[Any]], notes: Mapping[str, Any]) -> bool:
        """Replace the state by this one.  Where that fails, warn once, keep the old one and return False."""
        from safetensors.numpy import save

        plain = {
            name: np.ascontiguousarray(a.detach().cpu().numpy() if isinstance(a, Tensor) else a)
            for name, a in arrays.items()
        }
        text = _canonical({**notes, "key": self.key, "format": FORMAT})
        header = {"notes": text, "sha256": _digest(plain, text)}
        return self._try(STATE, save(plain, metadata=header))

    def export(self, file: str, text: str) -> bool:
        """Write a file for people beside the state."""
        return self._try(file, text.encode())

    def _try(self, file: str, content: bytes) -> bool:
        try:
            _write_atomically(self.path / file, content)
        except OSError as error:
            if not self._warned:
                warnings.warn(
                    f"{self.path / file}: could not be saved ({error.strerror}); training goes on, and what "
                    "was saved before stays. Make room, or name another folder in NCLIB_RUNS",
                    stacklevel=3,
                )
            self._warned = True
            return False
        return True

    def sweep(self) -> None:
        """Remove what killed processes left half written."""
        for file in self.path.glob(".*.tmp"):
            with contextlib.suppress(OSError):
                file.unlink()


def _read(file: Path, key: str) -> tuple[Arrays, dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = file.read_bytes()
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        notes: dict[str, Any] = json.loads(header["notes"])
        arrays = load(content)
        intact = header["sha256"] == _digest(arrays, header["notes"])
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"damaged, or not written by nclib ({type(error).__name__})") from error
    if not intact:
        raise ValueError("damaged: its checksum is wrong")
    if notes["key"] != key or notes["format"] != FORMAT:
        raise ValueError("it belongs to another run")
    return arrays, notes


def _digest(arrays: Mapping[str, NDArray[Any]], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write_atomically(file: Path, content: bytes, *, fatal: bool = True) -> None:
    """Write aside, force to disk, rename: whoever reads finds the old file or the new one."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.replace(aside, file)
        _sync_folder(file.parent)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        if fatal:
            raise


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock(handle: int, name: str) -> bool:
    """Wait for the lock; False where the file system has none, and two processes write the same twice."""
    try:
        import fcntl
    except ImportError:
        return False
    said = False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return False
            if not said:
                print(f"{name}: another process is training this run; waiting for it", flush=True)
            said = True
            time.sleep(0.1)
        else:
            return True


def _free_name(file: Path) -> Path:
    names = (file.with_name(f"{file.name}{'' if i == 0 else f'.{i}'}.corrupt") for i in range(10_000))
    return next(name for name in names if not name.exists())


def _canonical(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _pretty(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
