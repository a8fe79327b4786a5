"""Train a whole grid of networks as one ensemble, measure them all along, lose nothing.

`train` is the one call behind the experiments of the book; what it returns is `Runs`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

from .. import inputs
from ..data import Data
from ..networks.models import Architecture
from .disk import open_run
from .optim import SGD, Grid
from .runs import Engine, Function, Plan, Runs, State
from .session import Session


def train(
    data: Data,
    arch: Architecture,
    opt: SGD,
    *,
    grid: Grid | None = None,
    measure_every: int | Iterable[int] | None = None,
    measure: str | Sequence[str | Function] | None = None,
    snapshots: bool = False,
    checkpoint_seconds: float = 30.0,
    engine: Literal["auto"] | Engine = "auto",
    progress: bool = True,
) -> Runs:
    r"""Train a network for every point of a grid, all of them as one ensemble, and record how they fare.

    The objective is that of `sgd`.  Each network starts from, draws its batches from, and has its labels redrawn
    by its own seed, so that its result does not depend on the ensemble it is in (beyond the rounding of sums).
    A network whose loss stops being finite is stopped, named in one warning and marked in the history; the others
    go on.

    With the variable ``NCLIB_RUNS`` naming a folder the state is saved there as training goes on.  The same
    call made again loads the finished run, or continues one that was cut off: on a CPU, with the same
    number of threads, to the same bits as if it had not been.

    Parameters
    ----------
    data
        Training and test set; moved to `nclib.device()` once, as one tensor.
    arch
        From `mlp`, `convnet` or `resnet18`.
    opt
        From `sgd`.
    grid
        Values of the hyper-parameters ``seed``, ``lr``, ``weight_decay``, ``momentum``, ``init_norm`` (a number, or
        a tuple with one per layer) and ``noise`` (share of training labels redrawn at random):
        ``dict(weight_decay=[0, 0.01], seed=range(8))`` stands for all sixteen combinations; a list of dicts for
        just those.  What is not there comes from `opt`; else seed = ``NCLIB_SEED``, init_norm = 1, noise = 0.
    measure_every
        Epochs between measurements (the start is measured too), or the list of epochs after which to measure;
        the last is always measured.  Default: fifty times.
    measure
        What to measure, by name:

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
    snapshots
        Keep the weights of every measurement, for ``runs.model(..., epoch=...)``.
    checkpoint_seconds
        Time between two states saved.
    engine
        "auto" chooses by measurement; "stacked", "vmap" and "loop" are described in `nclib.training.ensemble`.
    progress
        False shows no bar.

    Raises
    ------
    ValueError
        An argument that does not fit; the message names it.
    OSError
        Runs are to be kept where nothing can be written.

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
    inputs.flag("progress", progress)
    if checkpoint_seconds != math.inf:
        inputs.number("checkpoint_seconds", checkpoint_seconds, "a number of seconds >= 0", lambda s: s >= 0)
    plan = Plan.of(
        data, arch, opt,
        grid=grid, measure_every=measure_every, measure=measure, snapshots=snapshots, engine=engine,
    )  # fmt: skip
    state = plan.start()
    with open_run(f"{data.name}-{type(arch).__name__.lower()}", plan.config) as folder:
        saved = folder.load() if folder else None
        if saved:
            state = State.from_arrays(*saved, plan.data.x)
        runs = Runs(plan, state, folder.path if folder else None)
        if state.finished:
            return runs
        Session(plan, state).run(folder, checkpoint_seconds, progress)
    _warn_of_divergence(runs)
    return runs


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
