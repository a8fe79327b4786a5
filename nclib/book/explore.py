"""Figures to play with, in the book's pages, in Jupyter and in Colab: no server, no network, no library.

Each function here returns an `Explorable`: one HTML output that carries its data, a small script and a static
picture.  Where the script runs it takes the picture's place, with native controls for mouse, touch, keyboard and
screen reader; where it does not, the picture stays.
"""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import inputs
from ..files import fingerprint
from .plots import checked

if TYPE_CHECKING:
    import pandas as pd

    from ..data import Data

_Draw = Callable[[Any], None]  # on axes
_DIGITS = 4  # of numbers in a page's data; what is drawn is coarser
_FITTED = 1e-6  # a squared error below this is drawn as this


class Explorable:
    """A figure to play with: plain data for the script, and what draws the picture for where no script runs."""

    def __init__(self, spec: dict[str, Any], draw: _Draw, caption: str, alt: str, name: str) -> None:
        self.spec, self.name = spec, inputs.text("name", name)
        self.caption, self.alt = inputs.text("caption", caption), inputs.text("alt", alt)
        self._picture = _picture(draw)

    def __repr__(self) -> str:
        return f"Explorable({self.spec['kind']!r}): {self.alt}"

    def _repr_html_(self) -> str:
        data = json.dumps(self.spec, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        data = data.replace("</", r"<\/")  # nothing in it may end the script element
        name = self.name or "explore-" + fingerprint(data + self.caption)[:10]
        files = importlib.resources.files(__package__)
        style, script = ((files / f"explore.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
        return (
            f'<figure class="nc-explore" id="{name}" role="group" aria-label="{html.escape(self.alt)}">'
            f'<div class="nc-static"><img alt="{html.escape(self.alt)}" src="{self._picture}"></div>'
            f"<figcaption><strong>To play with.</strong> {html.escape(self.caption)}</figcaption>"
            f"<style>{style}</style>"
            f'<script type="application/json">{data}</script>'
            f'<script>{script}ncExplore.start("{name}");</script></figure>'
        )


def explore_flow(
    problem: Data,
    widths: Sequence[int],
    *,
    weight_decay: Sequence[float],
    rho0: Sequence[float],
    time: float,
    caption: str,
    alt: str,
    name: str = "",
    seed: int = 0,
    start: int = 0,
) -> Explorable:
    r"""The flow of (ρ, V) from several initial norms: without weight decay, and beside it with a λ to choose.

    The reader may look at the norm, at the smallest normalised margin and at the mean squared error; in words stand
    the spread of the norms, largest over smallest, at the start and at both ends.

    Parameters
    ----------
    problem
        Two classes.
    widths, time, seed
        As in `nclib.flow`, from one initial direction.
    weight_decay, start
        The values of λ > 0 between which the reader chooses, and the position of the one chosen at first.
    rho0
        The initial norms.
    caption, alt, name
        What the figure says, a description for those who can't see it, and its anchor in the page.

    Examples
    --------
    >>> from nclib.data import data
    >>> points = data("teacher", n=4, d=2)
    >>> explore_flow(points, (4,), weight_decay=[0.01], rho0=[0.1, 1], time=5, caption="…", alt="Two flows.")
    Explorable('flow'): Two flows.
    """
    from ..theory.flow import flow

    decays = inputs.each("weight_decay", inputs.array("weight_decay", weight_decay), inputs.positive)
    norms = inputs.each("rho0", inputs.array("rho0", rho0), inputs.positive)
    start = inputs.count("start", start, 0, len(decays) - 1)
    every = [0.0, *decays]
    run = flow(problem, widths, weight_decay=every, rho0=norms, seed=seed, time=time, records=60)
    late = run.history[run.history["t"] > 0]
    late = late.assign(mse=late["mse"].clip(lower=_FITTED))
    measures = {"rho": "norm ρ", "margin_min": "smallest margin", "mse": "squared error"}
    curves = {key: rows.sort_values("t") for key, rows in late.groupby(["weight_decay", "rho0"])}
    times = curves[0.0, norms[0]]["t"]
    ends = run.final.groupby("weight_decay")
    spread = (ends["rho"].max() / ends["rho"].min()).map("{:.2f}".format)
    apart = f"{max(norms) / min(norms):.4g}"
    spec = {
        "kind": "flow",
        "decays": decays,
        "norms": norms,
        "start": start,
        "t": _numbers(times),
        "measures": [
            {"label": label, "log": m != "margin_min", "range": [float(late[m].min()), float(late[m].max())]}
            for m, label in measures.items()
        ],
        "curves": [  # of each λ, the first of them 0: for each measure the curve of each start
            [[_numbers(curves[decay, norm][m]) for norm in norms] for m in measures] for decay in every
        ],
        "apart": apart,
        "spread": [spread[decay] for decay in every],
        "told": [_told(apart, spread, ends, decay) for decay in decays],
    }

    def draw(axes: Any) -> None:
        for norm in norms:
            for decay, line in ((0.0, ":"), (decays[start], "-")):
                label = f"λ = {decay:g}" if norm == norms[0] else None
                axes.loglog(times, curves[decay, norm]["rho"], line, color="C0", label=label)
        axes.set(xlabel="time t", ylabel=measures["rho"])
        axes.legend()

    return Explorable(spec, draw, caption, alt, name)


def _told(apart: str, spread: pd.Series, ends: Any, decay: float) -> str:
    low, high, margin = ends["rho"].min(), ends["rho"].max(), ends["margin_min"].mean()
    return (
        f"The initial norms are {apart} times apart. Without weight decay the norms end {spread[0.0]} times apart, "
        f"from {low[0.0]:.3g} to {high[0.0]:.3g}; with λ = {decay:g} they end {spread[decay]} times apart, at "
        f"{low[decay]:.3g}, with a smallest margin of {margin[decay]:.3g} and a squared error of "
        f"{ends['mse'].mean()[decay]:.2g}."
    )


def explore_curves(
    frame: pd.DataFrame,
    *,
    x: str,
    measures: Mapping[str, str],
    controls: Mapping[str, str],
    told: Callable[[pd.DataFrame], str],
    caption: str,
    alt: str,
    name: str = "",
    log: str = "",
    log_measures: Sequence[str] = (),
    predicted: Mapping[str, str] | None = None,
    legend: Mapping[str, str] | None = None,
    start: Sequence[int] = (),
) -> Explorable:
    """Curves of a sweep, one of which the reader picks out with sliders.

    Parameters
    ----------
    frame
        Tidy, one row for each point of each curve; rows of a curve agree in all `controls`.
    x
        Column of the horizontal axis.
    measures
        Columns that can be shown, with their labels; the reader chooses where there are several.
    controls
        Columns with sliders, and their labels.
    told
        From the rows of one curve, a sentence that says what it shows (also to a screen reader).
    caption, alt, name
        As in `explore_flow`.
    log, log_measures
        ``"x"`` for a logarithmic horizontal axis, and the measures drawn on a logarithmic axis.
    predicted
        For a measure, the column that holds what the theorem predicts, one value a curve.
    legend
        Words for ``"chosen"``, ``"others"`` and ``"predicted"``.
    start
        Positions of the sliders at first.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"t": [0, 1, 0, 1], "rho": [1.0, 2.0, 3.0, 2.5], "start": [1, 1, 3, 3]})
    >>> explore_curves(frame, x="t", measures={"rho": "norm ρ"}, controls={"start": "initial norm"},
    ...                told=lambda rows: f"It ends at {rows.rho.iloc[-1]}.", caption="…", alt="Two curves.")
    Explorable('curves'): Two curves.
    """
    if not callable(told):
        raise ValueError(f"told={inputs.shown(told)}: expected a function of the chosen rows that returns a text")
    predicted, legend = ({} if given is None else given for given in (predicted, legend))
    for key, given in (
        ("measures", measures),
        ("controls", controls),
        ("predicted", predicted),
        ("legend", legend),
    ):
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise ValueError(f"{key}={given!r}: expected names and what they are called, e.g. {{'rho': 'norm ρ'}}")
    checked(frame, {"x": [x], "measures": measures, "controls": controls, "predicted": predicted.values()})
    if not measures or not controls:
        raise ValueError("measures and controls: name at least one column of each, with its label")
    values = [sorted(frame[name].unique().tolist()) for name in controls]
    positions = list(start) or [0] * len(values)
    if len(positions) != len(values) or any(not 0 <= p < len(v) for p, v in zip(positions, values, strict=True)):
        raise ValueError(f"start={tuple(start)}: one position for each of the {len(values)} controls")
    series = []
    for at, rows in frame.groupby(list(controls), sort=True):
        rows = rows.sort_values(x)
        one = {
            "at": [_plain(v) for v in at],
            "x": _numbers(rows[x]),
            "y": [_numbers(rows[name]) for name in measures],
            "told": told(rows),
        }
        if predicted:
            ends = {name: _numbers(rows[column])[-1] for name, column in predicted.items()}
            one["predicted"] = [ends.get(name) for name in measures]
        series.append(one)
    words = {"chosen": "chosen", "others": "the others", **legend}
    if predicted:
        words.setdefault("predicted", "predicted")
    spec = {
        "kind": "curves",
        "x": {"label": x, "log": "x" in log},
        "measures": [{"label": label, "log": name in log_measures} for name, label in measures.items()],
        "controls": [
            {"label": label, "values": [_plain(v) for v in choices], "start": position}
            for label, choices, position in zip(controls.values(), values, positions, strict=True)
        ],
        "series": series,
        "legend": words,
    }
    first = next(iter(measures))
    wanted = [_plain(v[p]) for v, p in zip(values, positions, strict=True)]

    def draw(axes: Any) -> None:
        for one in series:
            mine = one["at"] == wanted
            y = [math.nan if v is None else v for v in one["y"][0]]
            axes.plot(one["x"], y, **(dict(color="C0", lw=2, zorder=3) if mine else dict(color="#b9b4a8", lw=0.8)))
        scales = {
            "xscale": "log" if "x" in log else "linear",
            "yscale": "log" if first in log_measures else "linear",
        }
        axes.set(xlabel=x, ylabel=measures[first], **scales)

    return Explorable(spec, draw, caption, alt, name)


def replay(
    frames: ArrayLike,
    groups: Sequence[int] | NDArray[Any],
    *,
    names: Sequence[str],
    at: Sequence[int | float | str],
    told: Sequence[str],
    title: str,
    caption: str,
    alt: str,
    name: str = "",
    means: ArrayLike | None = None,
) -> Explorable:
    """Points that move through frames, with a button to play and pause and a slider through time.

    Parameters
    ----------
    frames
        (T, P, 2), the places of P points in T frames.
    groups
        (P,), the group (class) of each point, 0, 1, …
    names
        One for each group.
    at, told
        (T,), what the slider says of each frame, its epoch, and a sentence on it (also for a screen reader).
    title
        What is seen.
    caption, alt, name
        As in `explore_flow`.
    means
        (T, G, 2), a hollow mark and a line from the origin for the class mean of each group.

    Examples
    --------
    >>> replay([[[0, 1], [1, 0]], [[0, 2], [2, 0]]], [0, 1], names=["a", "b"], at=[0, 1], told=["…", "…"],
    ...        title="Two points", caption="…", alt="Two points move apart.")
    Explorable('replay'): Two points move apart.
    """
    places, members = inputs.array("frames", frames), inputs.labels("groups", groups)
    at = inputs.entries("at", at, "a place for each frame")
    told = inputs.entries("told", told, "a text for each frame")
    if places.ndim != 3 or 0 in places.shape or places.shape[2] != 2 or members.shape != places.shape[1:2]:
        raise ValueError(f"frames has shape {places.shape} and groups {members.shape}; expected (T, P, 2) and (P,)")
    if len(at) != len(places) or len(told) != len(places):
        raise ValueError(
            f"at and told have {len(at)} and {len(told)} entries; give each of {len(places)} frames one"
        )
    if members.dtype.kind != "i" or members.min() < 0:
        raise ValueError(f"groups holds {members.dtype} from {members.min()}; write whole numbers 0, 1, …")
    if len(names) != int(members.max()) + 1:
        raise ValueError(f"names has {len(names)} entries; the groups are 0..{int(members.max())}")
    centres = None if means is None else inputs.array("means", means)
    if centres is not None and centres.shape != (len(places), len(names), 2):
        raise ValueError(f"means has shape {centres.shape}; expected {(len(places), len(names), 2)}")
    reach = 1.08 * max(float(np.abs(places).max()), 0.0 if centres is None else float(np.abs(centres).max()))
    spec = {
        "kind": "replay",
        "frames": [[_numbers(point) for point in frame] for frame in places],
        "group": members.tolist(),
        "groups": list(names),
        "at": [_plain(v) for v in at],
        "told": told,
        "title": inputs.text("title", title),
        "label": "epoch",
        "axes": ["", ""],
        "legend": "class mean",
        "x": [-reach, reach],
        "y": [-reach, reach],
    }
    if centres is not None:
        spec["means"] = [[_numbers(point) for point in frame] for frame in centres]

    def draw(ax: Any) -> None:
        for group, name in enumerate(names):
            chosen = places[-1][members == group]
            ax.scatter(chosen[:, 0], chosen[:, 1], s=14, marker="os^DP"[group % 5], label=name)
        ax.set(xlim=spec["x"], ylim=spec["y"], aspect="equal", xticks=[], yticks=[])
        ax.legend()

    return Explorable(spec, draw, caption, alt, name)


def _picture(draw: _Draw) -> str:
    """The picture as a data address; its figure is closed, so that a notebook doesn't show it a second time."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(5.2, 3.4))
    draw(ax)
    out = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "nclib", "svg.fonttype": "path"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _plain(value: Any) -> Any:
    """A NumPy scalar as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


def _numbers(values: Any) -> list[float | None]:
    """Rounded numbers; what is not finite becomes None, for JSON has no word for it."""
    return [float(f"{v:.{_DIGITS}g}") if math.isfinite(v) else None for v in np.asarray(values, dtype=float)]
