"""Claims: a theorem's prediction against a measurement, checked in public.

A claim prints one row (prediction, measurement, tolerance, verdict), writes itself to the chapter's ledger
``_build/claims/<chapter>.json``, and raises when it does not hold, so that a notebook with a false claim fails.
"""

from __future__ import annotations

import html
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..scale import base_seed, device_name, scale_name

if TYPE_CHECKING:
    from .results import Result

MIME = "application/vnd.nclib.claim+json"


class Record(TypedDict):
    """One line of the ledger (all of it JSON)."""

    chapter: str
    theorem: str
    statement: str
    predicted: float | list[float | None] | str | None
    measured: float | list[float | None] | None
    deviation: float | None
    tolerance: str
    seeds: int
    confidence_interval: list[float | None] | None
    scale: str
    device: str
    base_seed: int
    passed: bool


class ClaimFailed(AssertionError):
    """A measurement contradicts what the theorem predicts."""


_chapter = "notebook"
_records: list[Record] = []


def chapter(name: str) -> None:
    """Open a chapter: start its ledger anew, set the house style, and show on what and from which seed it runs.

    Parameters
    ----------
    name
        The chapter's file name without its ending, e.g. ``"02_minimum_norm"``.

    Raises
    ------
    ValueError
        If `name` is not a plain file name.

    Examples
    --------
    >>> chapter("../elsewhere")
    Traceback (most recent call last):
        ...
    ValueError: name='../elsewhere': a chapter is named like its file, e.g. '02_minimum_norm'
    """
    if not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"name={name!r}: a chapter is named like its file, e.g. '02_minimum_norm'")
    from .plots import style

    global _chapter
    _chapter = name
    style()
    _records.clear()
    _write()
    facts = {
        "scale": scale_name(),
        "device": device_name(),
        "base seed": str(base_seed()),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__.partition("+")[0],
        "NumPy": np.__version__,
    }
    line = " · ".join(f"{key} {value}" for key, value in facts.items())
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
    seeds: int = 1,
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
        A number, or an array whose first axis runs over seeds when ``seeds > 1``.
    predicted
        What the theorem predicts; any shape that broadcasts against `measured`.
    rtol, atol, at_most, at_least, between
        The criterion.
    seeds
        How many independent seeds stand behind `measured`.
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
    HOLDS  thm-example: two and two | predicted 4 | measured 4 | relative error 0 <= 1e-12 | 1 seed
    """
    m = _numbers("measured", measured)
    p = None if predicted is None else _numbers("predicted", predicted)
    if seeds < 1 or (seeds > 1 and (m.ndim == 0 or len(m) != seeds)):
        shape = "a number" if m.ndim == 0 else f"an array of shape {m.shape}"
        raise ValueError(f"seeds={seeds}: measured is {shape}; its first axis must run over the seeds")
    if mean and seeds < 2:
        raise ValueError("mean=True needs several seeds; write seeds=len(measured)")
    interval = _confidence_interval(m) if seeds > 1 else None
    tested = np.array(interval) if mean and interval else m
    deviation, tolerance, passed = _judge(tested, p, rtol, atol, at_most, at_least, between)
    record = Record(
        chapter=_chapter,
        theorem=theorem,
        statement=statement,
        predicted=tolerance if p is None else _plain(p),
        measured=_plain(m),
        deviation=_finite(deviation),
        tolerance=tolerance,
        seeds=seeds,
        confidence_interval=None if interval is None else [_finite(v) for v in interval],
        scale=scale_name() if source is None else source.scale,
        device=device_name() if source is None else source.device,
        base_seed=base_seed(),
        passed=passed,
    )
    _records.append(record)
    _write()
    _show(_as_text(record), claims_html([record]), record)
    if not passed:
        raise ClaimFailed(
            f"{theorem} ({_chapter}): {statement}\n"
            f"  predicted {_brief(record['predicted'])}\n"
            f"  measured  {_brief(record['measured'])}\n"
            f"  {_criterion(record)} does not hold "
            f"(scale {record['scale']}, device {record['device']}, base seed {record['base_seed']}).\n"
            "  Either the theory, the experiment or the tolerance is wrong: find out which before changing any."
        )


def claims() -> list[Record]:
    """The claims checked so far in the open chapter, in order (copies).

    Examples
    --------
    >>> isinstance(claims(), list)
    True
    """
    return [record.copy() for record in _records]


def claims_table() -> None:
    """Show every claim of the open chapter so far, one row each.

    Examples
    --------
    >>> chapter("00_example")  # doctest: +ELLIPSIS
    scale ...
    >>> claim("thm-example", "one is one", predicted=1, measured=1, rtol=1e-12)  # doctest: +ELLIPSIS
    HOLDS ...
    >>> claims_table()
    HOLDS  thm-example: one is one | predicted 1 | measured 1 | relative error 0 <= 1e-12 | 1 seed
    """
    _show("\n".join(_as_text(r) for r in _records), claims_html(_records))


def claims_html(records: Sequence[Record]) -> str:
    """Render ledger records as an accessible HTML table.

    Parameters
    ----------
    records
        As read from a ledger.

    Returns
    -------
    str
        A ``<table class="nc-claims">``; the verdict is a word, never a colour alone.

    Examples
    --------
    >>> claims_html([]).startswith('<div class="nc-claims-box"')
    True
    """
    titles = ("Verdict", "Theorem", "Claim", "Predicted", "Measured", "Criterion", "Seeds")
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    rows = []
    for r in records:
        verdict = "✓ holds" if r["passed"] else "✗ fails"
        cells = [
            verdict,
            r["theorem"],
            r["statement"],
            "—" if r["predicted"] == r["tolerance"] else _brief(r["predicted"]),
            _brief(r["measured"]) + _interval_text(r),
            _criterion(r),
            str(r["seeds"]),
        ]
        body = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{"holds" if r["passed"] else "fails"}">{body}</tr>')
    label = f"Claim: {records[0]['statement']}" if len(records) == 1 else f"{len(records)} claims"
    return (
        f'<div class="nc-claims-box" tabindex="0" role="region" aria-label="{html.escape(label)}">'
        f'<table class="nc-claims"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _numbers(name: str, value: ArrayLike) -> NDArray[np.float64]:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}={value!r} is not numeric; write a number or an array of numbers") from error
    if array.size == 0:
        raise ValueError(f"{name} is empty: nothing was measured; check the selection that made it")
    return array


def _judge(
    m: NDArray[np.float64],
    p: NDArray[np.float64] | None,
    rtol: float | None,
    atol: float | None,
    at_most: ArrayLike | None,
    at_least: ArrayLike | None,
    between: tuple[float, float] | None,
) -> tuple[float, str, bool]:
    """Worst deviation (how far the criterion is from being exceeded, in its own unit), its text, the verdict."""
    given = dict(rtol=rtol, atol=atol, at_most=at_most, at_least=at_least, between=between)
    named = [key for key, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(f"give one criterion of rtol, atol, at_most, at_least, between; given: {named or 'none'}")
    key = named[0]
    if key in ("rtol", "atol"):
        if p is None:
            raise ValueError(f"{key} compares with a prediction; write predicted=…")
        tolerance = float(given[key])  # type: ignore[arg-type]
        if not tolerance >= 0:
            raise ValueError(f"{key}={tolerance}: a tolerance is a number >= 0")
        _broadcast("predicted", p, m)
        error = np.abs(m - p)
        if key == "rtol":
            if (p == 0).any():
                raise ValueError("rtol with a prediction of 0 can't hold; write atol=… instead")
            error = error / np.abs(p)
        worst = float(np.max(error)) if np.isfinite(error).all() else math.nan
        return worst, f"{key} {tolerance:g}", worst <= tolerance
    low, high = -math.inf, math.inf
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    if between is not None:
        low, high = map(float, between)
        if not low <= high:
            raise ValueError(f"between={between}: the first number must not exceed the second")
        text = f"between {low:g} and {high:g}"
        lower, upper = np.array(low), np.array(high)
    elif at_most is not None:
        lower, upper = np.array(low), _numbers("at_most", at_most)
        text = f"at most {_brief(_plain(upper))}"
    else:
        assert at_least is not None
        lower, upper = _numbers("at_least", at_least), np.array(high)
        text = f"at least {_brief(_plain(lower))}"
    _broadcast("the bound", lower, m)
    _broadcast("the bound", upper, m)
    if not np.isfinite(m).all():
        return math.nan, text, False
    # The extreme entry: the largest when an upper bound can fail, else the smallest.
    worst = float(m.min()) if np.isinf(upper).all() else float(m.max())
    return worst, text, bool(((m >= lower) & (m <= upper)).all())


def _broadcast(name: str, a: NDArray[np.float64], m: NDArray[np.float64]) -> None:
    try:
        shape = np.broadcast_shapes(a.shape, m.shape)
    except ValueError:
        shape = ()
    if shape != m.shape:
        raise ValueError(f"{name} has shape {a.shape}, which does not broadcast to measured's {m.shape}")


def _confidence_interval(m: NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean over the first axis (Student's t), other axes averaged first."""
    from scipy.stats import t

    per_seed = m.reshape(len(m), -1).mean(1)
    half = float(t.ppf(0.975, len(per_seed) - 1) * per_seed.std(ddof=1) / math.sqrt(len(per_seed)))
    centre = float(per_seed.mean())
    return centre - half, centre + half


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(array: NDArray[np.float64]) -> float | list[float | None] | None:
    values = [_finite(v) for v in array.ravel()]
    return values[0] if array.ndim == 0 or array.size == 1 else values


def _brief(value: object) -> str:
    """A number to 4 digits; a list as its range."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        finite = [v for v in value if v is not None]
        if len(finite) < len(value):
            return f"{len(value) - len(finite)} of {len(value)} not finite"
        low, high = f"{min(finite):.4g}", f"{max(finite):.4g}"
        return low if low == high else f"{low} … {high}"
    return "not finite" if value is None else f"{value:.4g}"


def _interval_text(record: Mapping[str, Any]) -> str:
    interval = record["confidence_interval"]
    if interval is None or None in interval:
        return ""
    low, high = interval
    return f"; mean {(low + high) / 2:.4g} ± {(high - low) / 2:.1g} (95% CI)"


def _criterion(record: Mapping[str, Any]) -> str:
    tolerance = record["tolerance"]
    kind, _, number = tolerance.partition(" ")
    if kind in ("rtol", "atol"):
        found = "not finite" if record["deviation"] is None else f"{record['deviation']:.2g}"
        name = "relative error" if kind == "rtol" else "error"
        return f"{name} {found} {'<=' if record['passed'] else '>'} {number}".replace("<=", "≤")
    return str(tolerance)


def _as_text(record: Record) -> str:
    word = "HOLDS" if record["passed"] else "FAILS"
    plural = "" if record["seeds"] == 1 else "s"
    return (
        f"{word}  {record['theorem']}: {record['statement']} | predicted {_brief(record['predicted'])} | "
        f"measured {_brief(record['measured'])}{_interval_text(record)} | "
        f"{_criterion(record).replace('≤', '<=')} | {record['seeds']} seed{plural}"
    )


def _show(text: str, markup: str, record: Record | None = None) -> None:
    """Display in a notebook, print elsewhere."""
    bundle: dict[str, Any] = {"text/plain": text, "text/html": markup}
    if record is not None:
        bundle[MIME] = record
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(text)
        return
    if get_ipython() is None:
        print(text)
    else:
        display(bundle, raw=True)


def _ledger() -> Path:
    """``$NCLIB_CLAIMS``, or ``_build/claims`` in the book's folder (the one with ``_toc.yml``), or here."""
    named = os.environ.get("NCLIB_CLAIMS")
    if named:
        return Path(named)
    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if (p / "_toc.yml").exists()), here)
    return root / "_build" / "claims"


def _write() -> None:
    """Rewrite the chapter's ledger, atomically: a reader never sees half a file."""
    folder = _ledger()
    target = folder / f"{_chapter}.json"
    partial = target.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(_records, indent=1, ensure_ascii=False, allow_nan=False), "utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise OSError(
            f"the claims ledger {target} can't be written ({error.strerror}); set NCLIB_CLAIMS to a folder that can"
        ) from error
