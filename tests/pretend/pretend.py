"""A device named "pretend" for PyTorch: host memory and the CPU's operations, and a GPU's refusals.

A test on it finds what otherwise only a reader with a GPU would: operands on two devices, `.numpy()` of a tensor on
the device, a generator of the wrong kind, a result that comes back elsewhere.  Numbers are the CPU's, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("pretend.cpp")
BUILDS = SOURCE.parents[2] / "_build" / "pretend"


def name() -> str:
    """The device to test on: what NCLIB_TEST_DEVICE names, else a GPU where there is one, else "pretend"."""
    return os.environ.get("NCLIB_TEST_DEVICE") or ("cuda" if torch.cuda.is_available() else "pretend")


def why_not() -> str | None:
    """What is missing for that device; None where nothing is."""
    if name() == "pretend" and not shutil.which("c++"):
        return "there is no c++ to compile the pretend device with"
    return None


def device() -> torch.device:
    """That device, ready."""
    if name() == "pretend" and not hasattr(torch, "pretend"):
        _load()
    return torch.device(name())


def _load() -> None:
    """Make the pretend device known to PyTorch, compiled where it has not been (half a minute)."""
    torch.ops.load_library(_library())
    torch.utils.rename_privateuse1_backend("pretend")
    module = types.ModuleType("torch.pretend")
    vars(module).update(
        is_available=lambda: True, device_count=lambda: 1, current_device=lambda: 0,
        _is_in_bad_fork=lambda: False, manual_seed_all=lambda seed: None,
    )  # fmt: skip
    torch._register_device_module("pretend", module)
    # Autograd starts a thread for every device at the first backward pass of the process, which may be past.
    torch.autograd.set_multithreading_enabled(False)


def _library() -> Path:
    """The compiled device, kept for this source and this PyTorch."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = BUILDS / f"{key}.so"
    if not library.exists():
        BUILDS.mkdir(parents=True, exist_ok=True)
        headers = [f"-isystem{path}" for path in cpp_extension.include_paths()]
        linked = [*(f"-L{path}" for path in cpp_extension.library_paths()), "-lc10", "-ltorch_cpu"]
        with tempfile.TemporaryDirectory(dir=BUILDS) as folder:
            made = Path(folder) / library.name
            options = ["-std=c++20", "-O2", "-shared", "-fPIC", *headers]
            subprocess.run(["c++", *options, str(SOURCE), "-o", str(made), *linked], check=True)
            made.replace(library)
    return library
