"""Claims: a theorem's prediction against a measurement, checked in public.

A claim shows one sentence (verdict, prediction, measurement, criterion), writes itself to the chapter's ledger
``_build/claims/<chapter>.json``, and raises when it does not hold, so that a notebook with a false claim fails.
"""

from __future__ import annotations

import html
import json
import math
import os
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .. import files, inputs
from ..scale import base_seed, device_name, scale_name
from ..screen import shell
from .plots import confidence_interval, style

if TYPE_CHECKING:
    from .results import Result

#: Under this type a claim stands among the outputs of its notebook.
MIME = "application/vnd.nclib.claim+json"

#: A line of the ledger, as `claim` makes it; all of it JSON.
Record = dict[str, Any]


class ClaimFailed(AssertionError):
    """A measurement contradicts what the theorem predicts."""


_chapter = "notebook"
_records: list[Record] = []


def chapter(name: str) -> None:
    """Open a chapter: start its ledger anew, set the house style, and show on what and from which seed it runs.

    The `name` is the file's without its ending, e.g. ``"02_minimum_norm"``; ValueError for a path.

    Examples
    --------
    >>> chapter("../elsewhere")
    Traceback (most recent call last):
        ...
    ValueError: name='../elsewhere': a chapter is named like its file, e.g. '02_minimum_norm'
    """
    if not (isinstance(name, str) and len(name) < 100 and name.replace("_", "").replace("-", "").isalnum()):
        raise ValueError(f"name={inputs.shown(name)}: a chapter is named like its file, e.g. '02_minimum_norm'")
    import scipy  # not needed where nothing runs

    global _chapter
    _chapter = name
    style()
    _records.clear()
    _write()
    facts = {"scale": scale_name(), "device": device_name(), "base seed": base_seed()}
    facts |= {"threads": torch.get_num_threads(), "Python": python_version()}
    facts |= {"PyTorch": torch.__version__.partition("+")[0], "NumPy": np.__version__, "SciPy": scipy.__version__}
    line = " · ".join(f"{name} {value}" for name, value in facts.items())
    _show(line, f'<p class="nc-facts">{html.escape(line)}</p>')


def claim(
    theorem: str,
    statement: str,
    *,
    measured: ArrayLike,
    predicted: ArrayLike | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    at_most: ArrayLike | None = None,
    at_least: ArrayLike | None = None,
    between: tuple[float, float] | None = None,
    seeds: int | None = None,
    mean: bool = False,
    source: Result | None = None,
) -> None:
    """Check a theorem's prediction against a measurement; raise when it fails.

    Exactly one criterion is given. With $m$ the measurement and $p$ the prediction:

    ==============  =================================================================
    ``rtol=r``      $|m-p| \\le r\\,|p|$
    ``atol=a``      $|m-p| \\le a$
    ``at_most=u``   $m \\le u$
    ``at_least=l``  $m \\ge l$
    ``between=…``   $l \\le m \\le u$
    ==============  =================================================================

    An array of measurements passes when *every* entry does. With ``mean=True`` the claim is about the mean
    over seeds, and passes when the mean's whole 95 % confidence interval (Student's t) meets the criterion.

    Parameters
    ----------
    theorem
        Label of the theorem in the book, e.g. ``"thm-equilibrium"``.
    statement
        What is claimed, in a short sentence.
    measured
        A number, or an array whose first axis runs over independent seeds.
    predicted
        What the theorem predicts; any shape that broadcasts against `measured`.
    seeds
        How many independent seeds stand behind `measured`, where its first axis does not say it: 1 for an array
        from one seed; or S where that axis holds several values of each of S seeds, one seed after the other.
    mean
        Claim something of the mean over seeds, not of every entry.
    source
        The stored result that `measured` was computed from: its scale and its device stand in the ledger.

    Raises
    ------
    ClaimFailed
        If the claim does not hold. It is in the ledger all the same.
    ValueError, TypeError
        If the criterion is missing, doubled or malformed, or the shapes do not match.

    Examples
    --------
    >>> claim("thm-example", "two and two", predicted=4, measured=2 + 2, rtol=1e-12)
    HOLDS  thm-example: two and two. Predicted 4; measured 4; off by 0, allowed 1e-12.
    """
    for key, text in (("theorem", theorem), ("statement", statement)):
        if not isinstance(text, str):
            raise TypeError(f"{key}={text!r}: expected words")
    if source is not None and not hasattr(source, "manifest"):
        raise TypeError(f"source: expected what nc.result returned, got {type(source).__name__}")
    m = _numbers("measured", measured, finite=False)
    p = None if predicted is None else _numbers("predicted", predicted)
    rows = len(m) if m.ndim else 1
    seeds = rows if seeds is None else inputs.count("seeds", seeds)
    if seeds < 1 or rows % seeds:
        shape = f"an array of shape {m.shape}" if m.ndim else "a number"
        raise ValueError(f"seeds={seeds}: measured is {shape}; its first axis must run over the seeds")
    if inputs.flag("mean", mean) and seeds == 1:
        raise ValueError("mean=True needs several seeds; give measured an entry for each")
    with np.errstate(over="ignore", invalid="ignore"):
        interval = confidence_interval(m.reshape(seeds, -1).mean(1)) if seeds > 1 else None
    tested = np.array(interval) if mean else m
    given = dict(rtol=rtol, atol=atol, at_most=at_most, at_least=at_least, between=between)
    deviation, tolerance, passed = _judge(tested, p, {k: v for k, v in given.items() if v is not None})
    record = Record(
        chapter=_chapter,
        theorem=theorem,
        statement=statement,
        predicted=tolerance if p is None else _plain(p),
        measured=_plain(m),
        deviation=finite(deviation),
        tolerance=tolerance,
        seeds=seeds,
        confidence_interval=None if interval is None else [finite(v) for v in interval],
        scale=scale_name() if source is None else source.scale,
        device=device_name() if source is None else source.device,
        base_seed=base_seed(),
        passed=passed,
    )
    _records.append(record)
    _write()
    verdict = "HOLDS" if passed else "FAILS"
    _show(f"{verdict}  {theorem}: {statement}. {numbers(record)}", sentence(record), record)
    if not passed:
        where = f"scale {record['scale']}, device {record['device']}, base seed {record['base_seed']}"
        raise ClaimFailed(
            f"{theorem} ({_chapter}): {statement}\n"
            f"  predicted {number(record['predicted'])}\n"
            f"  measured  {number(record['measured'])}\n"
            f"  {criterion(record)} does not hold ({where}).\n"
            "  Either the theory, the experiment or the tolerance is wrong: find out which before changing any."
        )


def sentence(record: Record) -> str:
    """A claim as a paragraph of HTML; the verdict is a word, never a colour alone."""
    kind, verdict = ("holds", "✓ holds") if record["passed"] else ("fails", "✗ fails")
    ran = f"{record['scale']}, {record['device']}"
    elsewhere = "" if ran == f"{scale_name()}, {device_name()}" else f" (Stored result: {ran}.)"
    return (
        f'<p class="nc-claim {kind}"><strong>{verdict}</strong> '
        f'<span class="nc-label">{html.escape(record["theorem"])}</span>: '
        f"{html.escape(record['statement'], quote=False)}. "
        f'<span class="nc-numbers">{html.escape(numbers(record) + elsewhere, quote=False)}</span></p>'
    )


def numbers(record: Record) -> str:
    """What was predicted, what was measured, and by how much they differ, as a sentence."""
    p, m, seeds = record["predicted"], record["measured"], record["seeds"]
    behind = f" in {seeds} seeds" if seeds > 1 else ""
    kind, _, limit = record["tolerance"].partition(" ")
    if kind not in ("rtol", "atol"):
        return f"Measured {number(m)}{behind}; must be {record['tolerance']}."
    measured, most = number(m), ""
    if isinstance(m, list):
        mean, most = spread(record) if len(set(np.ravel(p))) == 1 else "", " at most"
        measured = f"{mean or f'{measured}, {len(m)} values'}{behind}"
    said = f"Predicted {number(p)}; measured {measured}"
    if record["deviation"] is None:
        return f"{said}."
    return f"{said}; off by{most} {_size(record['deviation'], kind)}, allowed {_size(float(limit), kind)}."


def _size(error: float, kind: str) -> str:
    """A relative error in per cent where that can be read, any other as it is."""
    if kind == "rtol" and error >= 1e-6:
        return f"{100 * error:.{2 if error < 1 else 3}g} %"
    return f"{error:.2g}"


def number(value: object) -> str:
    """A number to five digits; a list as its range."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        finite = [v for v in value if v is not None]
        if len(finite) < len(value):
            return f"{len(value) - len(finite)} of {len(value)} not finite"
        low, high = number(min(finite)), number(max(finite))
        return low if low == high else f"{low} … {high}"
    return "not finite" if value is None else f"{value:.5g}"


def criterion(record: Record) -> str:
    """The criterion of a claim and how much of it was used."""
    kind, _, limit = record["tolerance"].partition(" ")
    if kind not in ("rtol", "atol"):
        return str(record["tolerance"])
    found = "not finite" if record["deviation"] is None else f"{record['deviation']:.2g}"
    return f"{'relative error' if kind == 'rtol' else 'error'} {found} {'≤' if record['passed'] else '>'} {limit}"


def spread(record: Record) -> str:
    """The mean over the seeds and its interval, e.g. ``2.050 ± 0.060``; nothing for one seed."""
    interval = record["confidence_interval"]
    if not interval or None in interval:
        return ""
    centre, half = (interval[0] + interval[1]) / 2, (interval[1] - interval[0]) / 2
    digits = 1 - math.floor(math.log10(half)) if half > 0 else 5
    if not -3 < digits < 6:
        return f"{centre:.4g} ± {half:.2g}"
    return f"{centre:.{max(digits, 0)}f} ± {half:.{max(digits, 0)}f}"


def _numbers(name: str, value: Any, *, finite: bool = True) -> NDArray[np.float64]:
    found = inputs.array(name, value, "a number or an array of numbers", finite=finite)
    if found.size == 0:
        raise ValueError(f"{name} is empty: nothing was measured; check the selection that made it")
    return found


def _judge(m: NDArray[np.float64], p: NDArray[np.float64] | None, given: dict[str, Any]) -> tuple[float, str, bool]:
    """Worst deviation (how far the criterion is from being exceeded, in its own unit), its text, the verdict."""
    if len(given) != 1:
        found = ", ".join(given) or "none"
        raise ValueError(f"give one criterion of rtol, atol, at_most, at_least, between; given: {found}")
    ((key, value),) = given.items()
    if key in ("rtol", "atol"):
        if p is None:
            raise ValueError(f"{key} compares with a prediction; write predicted=…")
        value = inputs.number(key, value, "a tolerance, a number >= 0", lambda v: v >= 0)
        _broadcast("predicted", p, m)
        with np.errstate(over="ignore"):
            error = np.abs(m - p)
        if key == "rtol":
            if (p == 0).any():
                raise ValueError("rtol with a prediction of 0 can't hold; write atol=… instead")
            error = error / np.abs(p)
        worst = float(np.max(error)) if np.isfinite(error).all() else math.nan
        return worst, f"{key} {value:g}", bool(worst <= value)
    limits = _numbers(key, value)
    if key == "between" and limits.shape != (2,):
        raise ValueError(f"between={value}: write two numbers, (low, high)")
    low, high = limits if key == "between" else (limits, math.inf) if key == "at_least" else (-math.inf, limits)
    if key == "between" and not low <= high:
        raise ValueError(f"between={value}: the first number must not exceed the second")
    lower, upper = np.asarray(low), np.asarray(high)
    if key == "between":
        text = f"between {low:g} and {high:g}"
    else:
        _broadcast(key, limits, m)
        text = f"{key.replace('_', ' ')} {number(_plain(limits))}"
    if not np.isfinite(m).all():
        return math.nan, text, False
    # The extreme entry: the largest when an upper bound can fail, else the smallest.
    worst = float(m.min() if np.isinf(upper).all() else m.max())
    return worst, text, bool(((m >= lower) & (m <= upper)).all())


def _broadcast(name: str, a: NDArray[np.float64], m: NDArray[np.float64]) -> None:
    try:
        np.broadcast_to(a, m.shape)
    except ValueError:
        raise ValueError(f"{name} has shape {a.shape}, which does not broadcast to measured's {m.shape}") from None


def finite(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return float(value) if math.isfinite(value) else None


def _plain(array: NDArray[np.float64]) -> float | list[float | None] | None:
    values = [finite(v) for v in array.ravel()]
    return values[0] if len(values) == 1 else values


def _show(text: str, markup: str, record: Record | None = None) -> None:
    """Display in a notebook, print elsewhere."""
    if shell() is None:
        print(text)
        return
    from IPython.display import display

    claimed = {} if record is None else {MIME: record}
    display({"text/plain": text, "text/html": markup, **claimed}, raw=True)


def _write() -> None:
    """Rewrite the ledger, in ``$NCLIB_CLAIMS`` or in ``_build/claims`` of the book (where ``_toc.yml`` is)."""
    here = Path.cwd()
    book = next((folder for folder in (here, *here.parents) if (folder / "_toc.yml").exists()), here)
    target = Path(os.environ.get("NCLIB_CLAIMS") or book / "_build" / "claims") / f"{_chapter}.json"
    try:
        files.write(target, json.dumps(_records, indent=1, ensure_ascii=False, allow_nan=False))
    except OSError as error:
        failed = f"the claims ledger {target} can't be written ({error.strerror})"
        raise OSError(f"{failed}; set NCLIB_CLAIMS to a folder that can") from error
