"""Train a whole grid of networks as one ensemble, measure them all along, lose nothing.

`train` is the one call behind the experiments of the book; what it returns is `Runs`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from ..data import Data
from ..networks.models import Architecture, Net
from ..scale import base_seed, device
from .disk import open_run
from .ensemble import Engine
from .measure import check_measures
from .optim import SGD, check_hyper
from .runs import Member, Runs, State
from .session import Session

__all__ = ["train"]

Grid = Mapping[str, Any] | Iterable[Mapping[str, Any]]

HYPER = ("seed", "lr", "weight_decay", "momentum", "init_norm", "noise")
"""Hyper-parameters in which the members of a grid may differ."""

_MEASUREMENTS = 50  # by default


def train(
    data: Data,
    arch: Architecture,
    opt: SGD,
    *,
    grid: Grid | None = None,
    measure_every: int | Iterable[int] | None = None,
    measure: str | Sequence[str | Callable[[Net], Mapping[str, float]]] | None = None,
    snapshots: bool = False,
    checkpoint_seconds: float = 30.0,
    engine: Literal["auto"] | Engine = "auto",
    progress: bool | None = None,
) -> Runs:
    r"""Train a network for every point of a grid, all of them as one ensemble, and record how they fare.

    The objective of a network is $\frac1N\sum_n\ell(f(x_n),y_n)+\lambda\sum_k\lVert W_k\rVert^2$ (under
    `norm="lm"`, $\lambda\rho^2$): see `sgd` for the convention.  Each network starts from, draws its batches
    from, and has its labels redrawn by its own seed, so that its result does not depend on the ensemble it
    is in (beyond the rounding of sums).  A network whose loss stops being finite is stopped, named in one
    warning and marked in the history; the others go on.

    With the variable ``NCLIB_RUNS`` naming a folder the state is saved there as training goes on.  The same
    call made again loads the finished run, or continues one that was cut off: on a CPU, with the same
    number of threads, to the same bits as if it had not been.

    Parameters
    ----------
    data : training and test set; moved to `nclib.device()` once, as one tensor.
    arch : from `mlp`, `convnet` or `resnet18`.
    opt : from `sgd`.
    grid : values of the hyper-parameters ``seed``, ``lr``, ``weight_decay``, ``momentum``, ``init_norm`` (a
        number, or a tuple with one per layer) and ``noise`` (share of training labels redrawn at random):
        ``dict(weight_decay=[0, 0.01], seed=range(8))`` stands for all sixteen combinations; a list of dicts
        for just those.  What is not there comes from `opt`; else seed = `nclib.base_seed()`,
        init_norm = 1, noise = 0.
    measure_every : epochs between measurements (the start is measured too), or the list of epochs after
        which to measure; the last is always measured.  Default: fifty times.
    measure : what to measure, by name:

        * "loss": ``loss`` (the objective, with weight decay), ``mse`` or ``cross_entropy`` (without) and
          ``error`` on the training set;
        * "test": ``test_mse`` or ``test_cross_entropy``, and ``test_error``;
        * "norms": ``rho``, ``rho_1`` ... ``rho_L`` of the folded network; with BN also the norms
          ``weight_norm_1`` ... of the weights themselves;
        * "margins": ``margin_min``, ``margin_mean``, ``margin_std`` and quantiles ``margin_q05``, ``_q25``,
          ``_q50``, ``_q75``, ``_q95`` of the normalised training margins;
        * "stable_rank": ``stable_rank_1`` ... ``stable_rank_L`` of the folded layers;
        * "collapse": the keys of `nclib.collapse`;

        or a function that takes a network (calibrated, in evaluation mode) and returns numbers by name.
        Default: the first four; a ResNet, which has no ρ, goes without margins.
    snapshots : keep the weights of every measurement, for ``runs.model(..., epoch=...)``.
    checkpoint_seconds : time between two states saved.
    engine : "auto" chooses by measurement; "stacked", "vmap" and "loop" are described in `nclib.training.ensemble`.
    progress : False shows no bar.

    Returns
    -------
    Runs : ``.history``, ``.members``, ``.final``, ``.model(...)``.

    Raises
    ------
    ValueError : an argument that does not fit; the message names it.
    OSError : runs are to be kept where nothing can be written.

    Notes
    -----
    Introduced in Chapter 1.

    Examples
    --------
    >>> from nclib.data import data
    >>> from nclib.networks.models import mlp
    >>> from nclib.training.optim import sgd
    >>> points = data("teacher", n=12)
    >>> grid = dict(weight_decay=[0, 0.1], seed=range(2))
    >>> runs = train(points, mlp(widths=(8,)), sgd(lr=0.1, epochs=20), grid=grid, measure_every=10)
    >>> runs.history[["weight_decay", "seed", "epoch", "status"]].tail(3)
        weight_decay  seed  epoch status
    9            0.1     1      0     ok
    10           0.1     1     10     ok
    11           0.1     1     20     ok
    """
    members = members_of(grid, opt)
    session = Session(
        data.to(device()), arch, opt, members, _measured(measure_every, opt.epochs),
        check_measures(measure, arch), snapshots, engine,
    )  # fmt: skip
    with open_run(f"{data.name}-{type(arch).__name__.lower()}", session.config) as folder:
        saved = folder.load() if folder else None
        if saved:
            session.restore(State.from_arrays(*saved))
        runs = session.results(folder)
        if session.state.finished:
            return runs
        session.run(folder, checkpoint_seconds, progress)
    _warn_of_divergence(runs)
    return runs


def members_of(grid: Grid | None, opt: SGD) -> list[Member]:
    """Every member's hyper-parameters: those of the grid over the defaults."""
    defaults = {
        "seed": base_seed(), "lr": opt.lr, "weight_decay": opt.weight_decay, "momentum": opt.momentum,
        "init_norm": 1.0, "noise": 0.0,
    }  # fmt: skip
    points = [defaults | dict(point) for point in _points(grid or {})]
    if not points:
        raise ValueError("grid: holds no member; give every hyper-parameter at least one value")
    unknown = [key for point in points for key in point if key not in HYPER]
    if unknown:
        raise ValueError(f"grid: {unknown[0]!r} is no hyper-parameter; write one of {', '.join(HYPER)}")
    return [{key: _value(key, point[key]) for key in HYPER} for point in points]


def _points(grid: Grid) -> Iterable[Mapping[str, Any]]:
    if not isinstance(grid, Mapping):
        return grid
    axes = [[v] if isinstance(v, int | float | str | tuple) else list(v) for v in grid.values()]
    return (dict(zip(grid, values, strict=True)) for values in itertools.product(*axes))


def _value(key: str, value: Any) -> Any:
    """One value in a type that JSON and equality are at home with."""
    if key == "seed":
        if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < 0:
            raise ValueError(f"seed={value!r}: expected a whole number >= 0, e.g. seed=range(8)")
        return int(value)
    if key == "init_norm":
        return tuple(map(float, value)) if isinstance(value, Sequence) else float(value)
    return check_hyper(key, value)


def _measured(every: int | Iterable[int] | None, epochs: int) -> list[int]:
    """Epochs after which to measure, the last one among them."""
    if every is None:
        every = max(1, epochs // _MEASUREMENTS)
    if not isinstance(every, int):
        chosen = {int(epoch) for epoch in every}
    elif every >= 1:
        chosen = set(range(0, epochs, every))
    else:
        chosen = {-1}
    if any(not 0 <= epoch <= epochs for epoch in chosen):
        raise ValueError(
            f"measure_every={every!r}: expected a number of epochs >= 1, or epochs between 0 and {epochs}, "
            "e.g. measure_every=10"
        )
    return sorted(chosen | {epochs})


def _warn_of_divergence(runs: Runs) -> None:
    bad = runs.members[runs.members["status"] == "diverged"]
    if not len(bad):
        return
    named = [
        f"member {row.member} at step {row.diverged_at} (seed={row.seed}, lr={row.lr:g}, init_norm={row.init_norm})"
        for row in bad.head(4).itertuples()
    ]
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    warnings.warn(
        f"{len(bad)} of {len(runs)} networks diverged (loss not finite) and were stopped: "
        f"{'; '.join(named)}{more}. The history marks them; a smaller lr may help",
        RuntimeWarning,
        stacklevel=3,
    )
