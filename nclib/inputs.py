"""What people have, as what we compute with: one function for each kind of argument, used at every entrance.

Each takes the argument's name first and raises ValueError that names it and says what to write.
Array-likes are NumPy arrays of any strides and byte order, read-only or memory-mapped; tensors of any floating
type on any device, with or without gradients; nested lists; and pandas' Series, DataFrame, Index and Categorical,
whose values count and whose index does not.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

T = TypeVar("T")
Array = NDArray[np.float64]
Arrays = ArrayLike | Tensor

_MOST = 2**53  # of anything that is counted
SEED = 2**64  #: seeds are whole numbers below it: what both NumPy's and PyTorch's generators take


def count(name: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number (of Python or NumPy, not a truth value) from `least` to `most`."""
    top = _MOST if most is None else most
    try:
        number = least - 1 if getattr(value, "ndim", 0) else operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool | np.bool_) or not least <= number <= top:
        upto = f" and <= {top}" if most is not None or number > top else ""
        expected = f"a whole number >= {least}{upto}; write e.g. {name}={least}"
        raise ValueError(f"{name}={shown(value)}: expected {expected}")
    return number


def seed(name: str, value: Any) -> int:
    """A seed: a whole number in [0, 2⁶⁴)."""
    return count(name, value, 0, SEED - 1)


def counts(name: str, value: Any, example: str, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """Whole numbers from `least` to `most`, as a tuple."""
    expected = f"whole numbers >= {least}{'' if most is None else f' and <= {most}'}, e.g. {name}={example}"
    parts = entries(name, value, expected)
    try:
        return tuple(count(name, one, least, most) for one in parts)
    except ValueError:
        raise ValueError(f"{name}={shown(value)}: expected {expected}") from None


def entries(name: str, value: Any, expected: str) -> list[Any]:
    """What a sequence holds, one after the other."""
    try:
        if isinstance(value, str | bytes | dict | set):
            raise TypeError
        return list(value)
    except Exception:  # whatever an object's own iteration raises
        raise ValueError(f"{name}={shown(value)}: expected {expected}") from None


def choice(name: str, value: Any, options: Sequence[str], more: str = "") -> str:
    """One of some words; `more` says what else there is to write."""
    if not (isinstance(value, str) and value in options):
        near = difflib.get_close_matches(str(value).lower(), options, n=1) if isinstance(value, str) else []
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(map(repr, options))
        raise ValueError(f"{name}={shown(value)}: unknown; {hint}write one of {known}{more}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False, of Python or NumPy: anything else, such as "no", would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={shown(value)}: expected True or False")
    return bool(value)


def text(name: str, value: Any) -> str:
    """A text."""
    if not isinstance(value, str):
        raise ValueError(f"{name}={shown(value)}: expected a text")
    return value


def dtype(name: str, value: Any) -> torch.dtype:
    """A floating-point type that networks can have."""
    known = torch.float16, torch.bfloat16, torch.float32, torch.float64
    if isinstance(value, torch.dtype) and value in known:
        return value
    raise ValueError(f"{name}={shown(value)}: expected a floating-point type, e.g. {name}=torch.float64")


def device(name: str, value: Any) -> torch.device | None:
    """A device that is there; None stays None."""
    if value is None:
        return None
    try:
        found = torch.device(value)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError):
        raise ValueError(f"{name}={shown(value)}: no device of this machine; write e.g. cpu or cuda:1") from None
    return found


def instance(name: str, value: Any, kind: type[T], write: str) -> T:
    """What one of this package's own functions returned; `write` is an example of its call."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}={shown(value)}: expected what nclib makes; write e.g. {name}={write}")
    return value


def number(name: str, value: Any, expected: str, inside: Callable[[float], bool] = lambda _: True) -> float:
    """A finite number for which `inside` holds; `expected` says in words which numbers those are."""
    try:
        found = math.nan if isinstance(value, bool | np.bool_ | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = math.nan
    if not (math.isfinite(found) and inside(found)):
        raise ValueError(f"{name}={shown(value)}: expected {expected}")
    return found


def positive(name: str, value: Any) -> float:
    """A number above 0."""
    return number(name, value, "a positive number", lambda v: v > 0)


def each(name: str, value: Any, check: Callable[..., T], *limits: Any, least: int = 1) -> list[T]:
    """One value, or a sequence of at least so many of them, as a list, each checked within the limits."""
    try:
        found = list(np.ravel(np.asarray(value, dtype=object)))
    except Exception as error:  # whatever an object's own conversion raises
        raise ValueError(f"{name}: expected one value or a list of them ({error})") from error
    if len(found) < least:
        raise ValueError(f"{name} is empty; write one value or several")
    return [check(name, one, *limits) for one in found]


def array(name: str, value: Any, expected: str = "an array of numbers", *, finite: bool = True) -> Array:
    """Real numbers as a float64 array, the caller's own memory where that is float64 already."""
    found = _real(name, plain(name, value, expected), expected)
    if finite and not (good := np.isfinite(found)).all():
        raise _not_finite(name, "", np.argwhere(~good), expected)
    return found


def tensor(name: str, value: Any, expected: str = "an array of numbers", *, like: Tensor | None = None) -> Tensor:
    """Real numbers as a tensor of the floating type and on the device of `like`, or in float64 where it is."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex():
        found = value.detach()
    else:
        found = torch.from_numpy(np.array(_real(name, plain(name, value, expected), expected)))
    cast = found.to(*((found.device, torch.float64) if like is None else (like.device, like.dtype)))
    if not (cast.is_meta or bool(cast.isfinite().all())):
        raise _not_finite(name, f" in {cast.dtype}", (~cast.isfinite()).nonzero(), expected)
    return cast


def _not_finite(name: str, kind: str, where: Any, expected: str) -> ValueError:
    at = tuple(where[0].tolist())
    return ValueError(f"{name}: holds NaN or infinity{kind}, first at {at}; expected {expected}, all finite")


def labels(name: str, value: Any, n: int | None = None) -> NDArray[Any]:
    """Labels as a new array (N,) of int64 or of strings; whole floating-point numbers count as integers."""
    expected = "one integer or string for each input, shape (N,)"
    found = plain(name, value, expected)
    if found.dtype.kind in "OT" and found.ndim == 1 and all(isinstance(one, str) for one in found):
        found = found.astype(str)
    if found.dtype.kind != "U":
        real = found if found.dtype.kind in "biu" else _real(name, found, expected)
        found = real.astype(np.int64, copy=True) if _whole(real) else real
    if found.dtype.kind not in "iU" or found.ndim != 1:
        raise ValueError(f"{name}: got shape {found.shape} of {found.dtype}; expected {expected}")
    if n is not None and len(found) != n:
        raise ValueError(f"{name}: {len(found)} labels for {n} inputs; give one for each row")
    return found


def _whole(real: NDArray[Any]) -> bool:
    """Whether int64 holds every one of these numbers exactly."""
    if real.dtype.kind == "f":
        return bool(np.isfinite(real).all() and (real == np.round(real)).all() and (np.abs(real) < 2**53).all())
    return real.dtype.kind != "u" or int(real.max(initial=0)) < 2**63


def plain(name: str, value: Any, expected: str) -> NDArray[Any]:
    """Anything array-like as a NumPy array of whatever type it has."""
    if isinstance(value, Tensor):
        found = value.detach().to_dense() if value.layout != torch.strided else value.detach()
        return (found.double() if found.is_floating_point() else found).numpy(force=True)
    if value is None or isinstance(value, str | bytes | dict | set) or callable(value):
        raise ValueError(f"{name}={shown(value)}: expected {expected}")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        masked = np.ma.getmaskarray(value).sum()
        raise ValueError(f"{name}: {masked} entries are masked; fill them or leave them out")
    if isinstance(value, list | tuple) and any(isinstance(part, Tensor) for part in value):
        value = [part.detach().cpu().double().numpy() if isinstance(part, Tensor) else part for part in value]
    try:
        return np.asarray(value)
    except Exception as error:  # whatever an object's own conversion raises
        raise ValueError(f"{name}: {shown(value)} is no array ({error}); expected {expected}") from error


def _real(name: str, found: NDArray[Any], expected: str) -> Array:
    if found.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            found = np.array(found.tolist(), dtype=np.float64)  # perhaps of lists
    if found.dtype.kind not in "buif":
        raise ValueError(f"{name}: got shape {found.shape} of {found.dtype}; expected {expected}")
    return found.astype(np.float64, copy=False)


def shown(value: Any) -> str:
    """A value in at most 60 characters of one line, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
