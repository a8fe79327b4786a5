"""One house style for every figure, and the one line plot that most of them are.

Colours are seaborn's colour-blind-safe palette; lines also differ in dash, so that no figure depends on colour
alone. Figures stand on their own pale paper and so read the same on a light and a dark page.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from ..inputs import array, choice, count, number
from ..screen import shell

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#fdfcf9"
INK = "#22252b"

#: Axis labels: the symbol of the notation page and the word.
LABELS = {
    "t": "time $t$",
    "epoch": "epoch",
    "rho": r"norm $\rho$",
    "rho0": r"initial norm $\rho_0$",
    "rho_eq": r"predicted norm $\mu/(M+\lambda)$",
    "weight_decay": r"weight decay $\lambda$",
    "lambda_t": r"$\lambda t$",
    "mu": r"mean margin $\mu$",
    "sigma_over_mu": r"relative spread of the margins $\sigma/\mu$",
    "mse": r"training loss $\langle(\rho f_n-y_n)^2\rangle$",
    "loss": r"regularised loss $\mathcal{L}$",
    "excess": r"$\mathcal{L}-\mathcal{L}_{\min}$, relative",
    "margin": r"normalised margin $m_n$",
    "margin_min": r"smallest margin $\min_n m_n$",
    "angle": "angle (degrees)",
    "dt": r"step $dt$",
    "step": "step",
    "effective_rate": r"effective rate $\eta/\|W\|^2$",
}


def style() -> None:
    """Set the house style for all figures from here on (`nclib.chapter` does this).

    Notebooks show figures as SVG, or in the formats that ``NCLIB_FIGURES`` names (``svg,pdf``), whatever backend
    the surroundings name; ``%matplotlib`` after this call chooses another.
    """
    import seaborn as sns

    ipython = shell()
    if getattr(ipython, "kernel", None) is not None:
        ipython.enable_matplotlib("inline")
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            **{f"{part}.facecolor": PAPER for part in ("figure", "savefig", "axes")},
            **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), INK),
            "figure.figsize": (6.4, 3.8),
            "axes.grid": True,
            "grid.color": "#dedbd2",
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "nclib",  # the same figure gives the same file
            "pdf.fonttype": 42,  # letters stay letters
        },
    )
    if ipython is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        formats = os.environ.get("NCLIB_FIGURES", "svg").split(",")
        # Without a date the same figure gives the same file; only SVG can leave it out by this name.
        set_matplotlib_formats(*formats, **({"metadata": {"Date": None}} if formats == ["svg"] else {}))


def panels(n: int = 1, *, height: float = 3.6) -> tuple[Figure, Any]:
    """A figure with a row of `n` axes, 1 to 3, that fits the page; its height is in inches.

    Returns
    -------
    figure, axes
        One axes for ``n=1``, else an array of them.

    Examples
    --------
    >>> figure, axes = panels(2)
    >>> len(axes)
    2
    """
    n = count("n", n, 1, 3)
    height = number("height", height, "inches, a number > 0 and <= 50", lambda v: 0 < v <= 50)
    import matplotlib.pyplot as plt

    return plt.subplots(1, n, figsize=((6.4, 9.0, 11.0)[n - 1], height))


def confidence_interval(values: ArrayLike) -> tuple[float, float]:
    """95 % interval (low, high) of a mean by Student's t; both NaN for a single value, and where a value is NaN.

    It is right for few seeds, and without a bootstrap's randomness.

    Examples
    --------
    >>> low, high = confidence_interval([1.0, 2.0, 3.0])
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    from scipy.stats import t

    sample = array("values", values, finite=False)
    if sample.ndim != 1 or len(sample) == 0:
        raise ValueError(f"values has shape {sample.shape}; write one number for each seed, (S,), S ≥ 1")
    if len(sample) < 2:
        return math.nan, math.nan
    with np.errstate(over="ignore", invalid="ignore"):
        half = float(t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
        centre = float(sample.mean())
    return centre - half, centre + half


def lines(frame: pd.DataFrame, *, x: str, y: str, log: str = "", ax: Axes | None = None, **kwargs: Any) -> Axes:
    """Line plot of a tidy frame: mean over the rest, band = 95 % confidence interval of that mean.

    On a logarithmic y axis the mean is the geometric one and its interval is taken in logarithms.

    Parameters
    ----------
    frame
        Tidy data, e.g. ``runs.history``.
    x, y
        Columns.
    log
        Axes to draw in logarithmic scale: ``""``, ``"x"``, ``"y"`` (where all must be positive) or ``"xy"``.
    ax
        Where to draw; by default the current axes.
    **kwargs
        Passed to `seaborn.lineplot` (``hue``, ``style``, ``units``, …).

    Examples
    --------
    >>> import pandas as pd
    >>> ax = lines(pd.DataFrame({"t": [1, 2], "rho": [1.0, 2.0]}), x="t", y="rho")
    >>> ax.get_ylabel()
    'norm $\\\\rho$'
    """
    import matplotlib.pyplot as plt
    import pandas as pd
    import seaborn as sns
    from matplotlib.axes import Axes

    given = (kwargs.get(key) for key in ("hue", "style", "units"))
    checked(frame, {"x": [x], "y": [y], "hue, style or units": [name for name in given if isinstance(name, str)]})
    choice("log", log, ("", "x", "y", "xy", "yx"))
    if ax is not None and not isinstance(ax, Axes):
        raise ValueError(f"ax: expected axes, e.g. of nc.panels(), got {type(ax).__name__}")
    if not pd.api.types.is_numeric_dtype(frame[y]):
        raise ValueError(f"y={y!r}: this column holds {frame[y].dtype}; name one of numbers")
    if "y" in log and (frame[y] <= 0).any():
        raise ValueError(f"column {y!r} is not positive everywhere; draw its size, or leave 'y' out of log={log!r}")
    if isinstance(kwargs.get("hue"), str) and "palette" not in kwargs:
        kwargs["palette"] = sns.color_palette("colorblind", frame[kwargs["hue"]].nunique())
    # There the mean that the eye expects is the geometric one; on an axis drawn so already seaborn takes it itself.
    if "y" in log and (ax or plt.gca()).get_yscale() != "log":
        kwargs.setdefault("estimator", lambda values: float(np.exp(np.log(values).mean())))
        kwargs.setdefault("errorbar", _geometric_interval)
    kwargs.setdefault("errorbar", confidence_interval)
    drawn: Axes = sns.lineplot(frame, x=x, y=y, ax=ax, **kwargs)
    drawn.set(xlabel=LABELS.get(x, x), ylabel=LABELS.get(y, y))
    drawn.set(**{f"{axis}scale": "log" for axis in log})
    legend = drawn.get_legend()
    if legend is not None and legend.get_title().get_text() in LABELS:
        legend.set_title(LABELS[legend.get_title().get_text()])
    return drawn


def checked(frame: Any, columns: Mapping[str, Iterable[Any]]) -> None:
    """An error unless it is a table that has, for each argument, the columns that it names."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"frame: expected a table such as runs.history, got {type(frame).__name__}")
    for argument, names in columns.items():
        for column in names:
            if not isinstance(column, str) or column not in frame:
                known = ", ".join(map(str, frame))
                raise ValueError(f"{argument}={column!r}: frame has no such column; it has {known}")


def _geometric_interval(values: ArrayLike) -> tuple[float, float]:
    low, high = np.exp(confidence_interval(np.log(values)))
    return float(low), float(high)
