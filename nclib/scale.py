"""The one switch between a laptop and a GPU, the device, and the seeds.

Everything a run takes from its surroundings is read here, from five environment variables:

=================  =====================================================  ==========
variable           meaning                                                default
=================  =====================================================  ==========
``NCLIB_SCALE``    ``quick`` (two CPU cores) or ``full`` (a GPU)          ``quick``
``NCLIB_SEED``     the base seed from which all randomness derives        ``0``
``NCLIB_DEVICE``   ``cpu``, ``cuda``, ``cuda:1``, ``mps``                 best there is
``NCLIB_DATA``     a folder that already holds the data sets              a cache
``NCLIB_RUNS``     a folder in which finished runs are kept               none
=================  =====================================================  ==========
"""

from __future__ import annotations

import os
from typing import TypeVar

import numpy as np
import torch

from . import inputs

T = TypeVar("T")


def scale_name() -> str:
    """Name of the scale at which this process runs, ``"quick"`` or ``"full"``."""
    return inputs.choice("NCLIB_SCALE", os.environ.get("NCLIB_SCALE") or "quick", ("quick", "full"))


def scale(*, quick: T, full: T) -> T:
    """Pick the value that belongs to the scale of this run, which ``NCLIB_SCALE`` names (else ValueError).

    A chapter has one code path; only sizes, times and numbers of seeds differ between the scales.

    Examples
    --------
    >>> scale(quick=5, full=5)
    5
    """
    return quick if scale_name() == "quick" else full


def device() -> torch.device:
    """Device on which training runs: ``NCLIB_DEVICE`` when set, else CUDA, else the CPU.

    Apple's ``mps`` must be asked for by name, since it has no float64.  ValueError if ``NCLIB_DEVICE`` names a
    device that PyTorch does not know or that is not there.

    Examples
    --------
    >>> device().type in ("cpu", "cuda", "mps")
    True
    """
    name = os.environ.get("NCLIB_DEVICE")
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = inputs.device("NCLIB_DEVICE", name)
    if found is None or found.type == "meta":  # which is there, but holds no numbers
        raise ValueError(f"NCLIB_DEVICE={name!r}: nothing trains there; unset it or write cpu")
    return found


def device_name() -> str:
    """Human name of `device`, for provenance: ``"cpu"``, or the GPU's product name."""
    found = device()
    return torch.cuda.get_device_name(found) if found.type == "cuda" else found.type


def base_seed() -> int:
    """The seed from which every other seed of this process derives (``NCLIB_SEED``, default 0)."""
    text = os.environ.get("NCLIB_SEED") or "0"
    if not text.isdecimal() or len(text) > 20 or int(text) >= inputs.SEED:
        raise ValueError(f"NCLIB_SEED={text!r}: the base seed is a whole number in [0, 2**64); write NCLIB_SEED=0")
    return int(text)


def seeds(n: int, stream: int = 0) -> list[int]:
    """Derive `n` ≥ 1 independent seeds from the base seed; raises ValueError for fewer.

    Each is in [0, 2³²); the first `k` of ``seeds(n, s)`` are ``seeds(k, s)``.  Experiments that must not share
    randomness use different streams.

    Examples
    --------
    >>> seeds(3)[:2] == seeds(2)
    True
    >>> seeds(2, stream=1) == seeds(2, stream=2)
    False
    """
    sequence = np.random.SeedSequence([base_seed(), inputs.seed("stream", stream)])
    return [int(child.generate_state(1)[0]) for child in sequence.spawn(inputs.count("n", n, 1))]
