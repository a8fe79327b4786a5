"""Training runs on disk: named by what was computed, written whole or not at all, never unpickled.

A run lives in a folder of its own under the folder that ``NCLIB_RUNS`` names (unset: nothing is written).
The name is a hash of the plan, the data and the code, so that a result is found again exactly if running it
again would give the same.  In the folder:

``state.safetensors``  the truth: weights, momenta, history, and a checksum over all of it, in one file that
    is replaced atomically.  A process killed at any moment leaves the old one or the new one.
``config.json``, ``history.csv``  for people; they are never read back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import importlib.resources
import importlib.util
import json
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..files import canonical, fingerprint, lock, write

STATE = "state.safetensors"
Arrays = dict[str, NDArray[Any]]


@contextlib.contextmanager
def open_run(name: str, config: Callable[[], Mapping[str, Any]]) -> Iterator[RunFolder | None]:
    """The folder of a run, held by this process alone; None if runs are not kept.

    A finished run is handed out without waiting and without writing, so that a read-only folder will do.
    Where another process is at work on the same run, wait for it; if that one dies, this one takes over.
    The folder's name starts with `name`, for people; `config` returns all that the result depends on, and is not
    called where no runs are kept.
    """
    base = os.path.expanduser(os.environ.get("NCLIB_RUNS", ""))
    if not base:
        yield None
        return
    values = config()
    key = fingerprint(values)
    safe = re.sub(r"[^\w-]+", "_", name)[:60]
    run = RunFolder(Path(base) / f"{safe}-{key[:16]}", key)
    if run.finished():
        yield run
        return
    with contextlib.ExitStack() as stack:
        waiting = f"{run.path.name}: another process is training this run; waiting for it"
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(run.path / "lock", waiting=waiting))
        except OSError as error:
            what = f"NCLIB_RUNS={base!r}: no run can be written there ({error.strerror})"
            mend = "name another folder, or unset the variable to keep no runs"
            raise OSError(error.errno, f"{what}; {mend}") from error
        with contextlib.suppress(OSError):
            if held:  # what killed processes left half written
                for file in run.path.glob(".*.tmp"):
                    file.unlink()
            write(run.path / "config.json", json.dumps({"key": key, **values}, indent=1, ensure_ascii=False) + "\n")
        yield run


class RunFolder:
    """Where one run is kept; made by `open_run`."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self._warned = False
        self._finished: tuple[Arrays, dict[str, Any]] | None = None

    def finished(self) -> bool:
        """Whether a whole and finished result lies here."""
        with contextlib.suppress(OSError, ValueError):
            state = read(self.path / STATE, self.key)
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
            return read(file, self.key)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            names = (file.with_name(f"{file.name}{'' if i == 0 else f'.{i}'}.corrupt") for i in range(10_000))
            aside = next(name for name in names if not name.exists())
            done = f"set aside as {aside.name}"
            try:
                os.replace(file, aside)
            except OSError as refused:
                done = f"could not be set aside ({refused.strerror}), so nothing can be saved there"
            warnings.warn(f"{file}: {error}; {done}, the run starts afresh", stacklevel=3)
            return None

    def save(self, arrays: Mapping[str, Tensor | NDArray[Any]], notes: Mapping[str, Any]) -> None:
        """Replace the state by this one; where that fails, warn once and keep the old one."""
        from safetensors.numpy import save

        plain = {name: _array(a) for name, a in arrays.items()}
        text = canonical({**notes, "key": self.key})
        self.export(STATE, save(plain, metadata={"notes": text, "sha256": _checksum(plain, text)}))

    def export(self, file: str, content: bytes | str) -> None:
        """Write a file; where that fails, warn once."""
        try:
            write(self.path / file, content)
        except OSError as error:
            if not self._warned:
                what = f"{self.path / file}: could not be saved ({error.strerror}); training goes on"
                mend = "what was saved before stays. Make room, or name another folder in NCLIB_RUNS"
                warnings.warn(f"{what}, and {mend}", stacklevel=3)
            self._warned = True


def read(file: Path, key: str) -> tuple[Arrays, dict[str, Any]]:
    """A state and its notes; ValueError if it is damaged or another run's."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = file.read_bytes()
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        notes: dict[str, Any] = json.loads(header["notes"])
        arrays = load(content)
        intact, own = header["sha256"] == _checksum(arrays, header["notes"]), notes["key"] == key
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"damaged, or not written by nclib ({type(error).__name__})") from error
    if not intact:
        raise ValueError("damaged: its checksum is wrong")
    if not own:
        raise ValueError("it belongs to another run")
    return arrays, notes


def _checksum(arrays: Arrays, text: str) -> str:
    return fingerprint([text, {name: digest(array) for name, array in arrays.items()}])


# ------------------------------------------------------------------------------- what a result depends on


@functools.cache
def code_version() -> str:
    """Hash of all modules of this package."""

    def sources(folder: Any, path: str) -> Iterator[tuple[str, str]]:
        for entry in folder.iterdir():
            if entry.is_dir():
                yield from sources(entry, f"{path}{entry.name}/")
            elif entry.name.endswith(".py"):
                yield path + entry.name, entry.read_text(encoding="utf-8")

    # As resources, not as files: the package may lie in a zip.
    return fingerprint(dict(sources(importlib.resources.files("nclib"), "")))


def digest(values: Tensor | NDArray[Any] | np.generic) -> list[Any]:
    """Type, shape and hash of numbers, be they a tensor or an array."""
    array = _array(values)
    kind = str(values.dtype) if isinstance(values, Tensor) else str(array.dtype.descr)
    return [kind, array.shape, hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()]


def _array(values: Tensor | NDArray[Any] | np.generic) -> NDArray[Any]:
    if isinstance(values, Tensor):  # NumPy has no bfloat16
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy(force=True)
    return np.asarray(values, order="C")


def meaning(function: Any, argument: str = "measure") -> Any:
    """What a function does, for JSON: its code, and by value all that it reads besides its arguments.

    Names, comments and layout do not matter.  ValueError names what it reads whose value cannot be told.
    """
    try:
        return _meaning(function, "the function", [])
    except (_NotTold, RecursionError) as error:
        read = error if isinstance(error, _NotTold) else "what holds itself"
        what = f"it reads {read}, whose value cannot be made part of a run's name on disk"
        mend = "pass a function that reads numbers, texts, arrays, tensors and functions only, or unset NCLIB_RUNS"
        raise ValueError(f"{argument}={function!r}: {what}; {mend}") from None


class _NotTold(Exception):
    """Raised with the name and the type of what a function reads."""


def _meaning(value: Any, name: str, inside: list[Any]) -> Any:
    """The value as JSON; `inside` are the functions that it was found in, one in the other."""

    def each(**parts: Any) -> dict[str, Any]:
        return {key: _meaning(part, f"{key} of {name}", inside) for key, part in parts.items()}

    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    owner = getattr(value, "__self__", None)
    if value is None or (isinstance(value, _PLAIN) and _installed(kind)):
        return [kind, repr(value)]
    if isinstance(value, np.generic) or type(value) in (Tensor, torch.nn.Parameter, np.ndarray, np.memmap):
        with contextlib.suppress(TypeError):  # objects, and types that NumPy does not know
            return [kind, *digest(value)]
    elif callable(value) and owner is not None and not isinstance(owner, ModuleType):  # a bound method
        return [value.__name__, each(owner=owner, function=getattr(value, "__func__", None))]
    elif isinstance(value, functools.partial):
        return [kind, each(func=value.func, args=value.args, keywords=value.keywords)]
    elif isinstance(value, ModuleType) and _installed(value.__name__):
        return [kind, value.__name__]
    elif callable(value) and (address := _address(value)):
        return address
    elif isinstance(value, FunctionType):
        if value in inside:
            return [kind, inside.index(value)]
        inside = [*inside, value]
        read = each(defaults=value.__defaults__, kwdefaults=value.__kwdefaults__, attributes=value.__dict__)
        read |= {key: _meaning(part, key, inside) for key, part in _reads(value).items()}
        return [_instructions(value.__code__), read]
    elif isinstance(value, Mapping) and _installed(kind):
        made = each(factory=getattr(value, "default_factory", None))
        return [kind, made, [each(key=key, value=part) for key, part in value.items()]]
    elif isinstance(value, list | tuple | set | frozenset) and _installed(kind):
        parts = [_meaning(part, f"an entry of {name}", inside) for part in value]
        return [kind, parts if isinstance(value, list | tuple) else sorted(parts, key=canonical)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type) and _installed(kind):
        return [kind, each(**{f.name: getattr(value, f.name) for f in dataclasses.fields(value)})]
    raise _NotTold(f"{name} ({kind})")


_PLAIN = (str, bytes, int, float, complex, range, slice, np.dtype, torch.dtype, torch.device)


def _installed(module: str) -> bool:
    """Whether a module is Python's, this package's or one that pip put there, and known by its name."""
    root = module.partition(".")[0]
    if root == "nclib":
        return True
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(root)
        origin = Path((spec and spec.origin) or ".")
        known = root in sys.stdlib_module_names and (
            origin.name in ("built-in", "frozen") or origin.is_relative_to(sysconfig.get_path("stdlib"))
        )  # a file of the user's may have the name of one of Python's
        return known or not {"site-packages", "dist-packages"}.isdisjoint(origin.parts)
    return False


def _address(value: Any) -> list[str] | None:
    """The module and the name by which an installed function or class is imported; None for anything else."""
    home = getattr(value, "__self__", None)  # of a builtin function
    if not isinstance(home, ModuleType):
        home = sys.modules.get(getattr(value, "__module__", None) or type(value).__module__)
    for name in (getattr(value, "__qualname__", ""), getattr(value, "__name__", "")):
        found = functools.reduce(lambda thing, part: getattr(thing, part, None), name.split("."), home)
        if found is value and home and _installed(home.__name__):
            return [home.__name__, name]
    return None


def _reads(function: FunctionType) -> dict[str, Any]:
    """Variables that a function, or one defined in it, reads from the functions and the module around it."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            raise _NotTold(f"{name} (which has no value yet)") from None
    for step in (step for code in _codes(function.__code__) for step in dis.get_instructions(code)):
        if step.opname == "IMPORT_NAME" and not _installed(step.argval):
            raise _NotTold(f"{step.argval or 'a module of its own package'} (module)")
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            if step.argval in function.__globals__:
                found[step.argval] = function.__globals__[step.argval]
            elif step.argval in _UNSEEN:
                raise _NotTold(f"what {step.argval} finds")
    return found


_UNSEEN = ("eval", "exec", "globals", "vars", "open", "input", "__import__")  # builtins that read anything


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Code, and that of the functions defined in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _instructions(code: CodeType) -> list[Any]:
    """What the interpreter does: all of the code but the names of files and functions, and line numbers."""

    def constant(value: Any) -> Any:
        if isinstance(value, CodeType):
            return _instructions(value)
        # The order of a set changes from process to process.
        return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)

    counts = code.co_argcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    constants = [constant(value) for value in code.co_consts]
    return [code.co_code.hex(), code.co_exceptiontable.hex(), counts, names, constants]
