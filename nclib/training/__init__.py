"""Train a whole grid of networks as one ensemble, measure them all along, lose nothing.

`train` is the one call behind the experiments of the book; what it returns is `Runs`.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

from .. import inputs
from ..data import Data
from ..networks.models import Architecture
from ..screen import bar
from .disk import RunFolder, open_run
from .ensemble import Ensemble, chunk_size, threads_for
from .measure import measure as measured
from .optim import SGD, Grid
from .runs import Engine, Function, Plan, Runs, State

_PACE = 1.0  # seconds between two looks at the clock


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

    With the variable ``NCLIB_RUNS`` naming a folder the state is saved there as training goes on (OSError where
    nothing can be written).  The same call made again loads the finished run, or continues one that was cut off:
    on a CPU, with the same number of threads, to the same bits as if it had not been.

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
    if not (isinstance(checkpoint_seconds, float) and checkpoint_seconds == math.inf):  # never
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
    named = "; ".join(
        f"member {row.member} at step {row.diverged_at} (seed={row.seed}, lr={row.lr:g}, init_norm={row.init_norm})"
        for row in bad.head(4).itertuples()
    )
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    what = f"{len(bad)} of {len(runs)} networks diverged (loss not finite) and were stopped: {named}{more}"
    warnings.warn(f"{what}. The history marks them; a smaller lr may help", RuntimeWarning, stacklevel=3)


class Session:
    """One training from start to finish: a plan, how far it is, its ensembles, its loop, its clock."""

    def __init__(self, plan: Plan, state: State) -> None:
        self.plan, self.state = plan, state

    def run(self, folder: RunFolder | None, checkpoint_seconds: float, show: bool) -> None:
        """Train to the end, measuring and saving on the way."""
        plan, state, epochs, count = self.plan, self.state, self.plan.opt.epochs, len(self.plan.members)
        what = f"train {count} network{'s' if count > 1 else ''}"
        with self.settings(), bar(epochs * count, what, start=state.epoch * count, show=show) as update:
            chunks = self._chunks()
            if 0 in plan.measured and not state.measured:
                chunks = self._measure(chunks)
            pace, saved = 1, time.monotonic()
            while state.epoch < epochs and chunks:
                target = plan.measured[bisect.bisect(plan.measured, state.epoch)]
                began = time.monotonic()
                if (state.diverged < 0).any():
                    self._advance(chunks, min(target, state.epoch + pace), update)
                else:
                    state.epoch = target
                if state.epoch == target:
                    chunks = self._measure(chunks)
                now = time.monotonic()
                # The pace only says how often to look at the clock; results do not depend on it.
                pace = max(1, min(2 * pace, 2**20, int(pace * _PACE / (now - began + 1e-9))))
                if folder and now - saved >= checkpoint_seconds and state.epoch < epochs:
                    self._gather(chunks)
                    folder.save(*state.to_arrays())
                    saved = time.monotonic()
        self._gather(chunks)
        state.epoch, state.finished = epochs, True
        if folder:  # the state last: once it says that all is done, nothing more is written
            folder.export("history.csv", Runs(plan, state, folder.path).history.to_csv(index=False))
            folder.save(*state.to_arrays())

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        """Threads and precision while this session runs."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = self.plan.opt.precision == "tf32"
        try:
            with threads_for(self.plan, self.state):
                yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before

    def _advance(self, chunks: Sequence[Ensemble], stop: int, update: Callable[[int, str], None]) -> None:
        """Train every chunk from the state's epoch to the end of epoch `stop`, and note who diverged."""
        state = self.state
        first = state.epoch * self.plan.steps_per_epoch
        for number, chunk in enumerate(chunks, start=1):
            if len(chunk.numbers) > 1 or state.diverged[chunk.numbers[0]] < 0:
                finite = chunk.advance(state.epoch, stop).isfinite()
                if not bool(finite.all()):
                    for member, column in zip(chunk.numbers, finite.T.cpu().numpy(), strict=True):
                        if state.diverged[member] < 0 and not column.all():
                            state.diverged[member] = first + int(column.argmin())
            done = state.epoch + (stop - state.epoch) * number / len(chunks)
            bad = int((state.diverged >= 0).sum())
            update(round(done * len(self.plan.members)), f"{bad} diverged" if bad else "")
        state.epoch = stop

    def _measure(self, chunks: Sequence[Ensemble]) -> list[Ensemble]:
        """Add a measurement to the state; returns the chunks without the members that have diverged."""
        state, row = self.state, dict[str, Any]()
        for chunk in chunks:
            finite, columns = measured(chunk)
            for name, values in columns.items():
                row.setdefault(name, np.full(len(self.plan.members), np.nan))[chunk.numbers] = values.cpu().numpy()
            for member, good in zip(chunk.numbers, finite.tolist(), strict=True):
                if not good and state.diverged[member] < 0:
                    state.diverged[member] = state.epoch * self.plan.steps_per_epoch
        state.measured.append(state.epoch)
        state.columns.append(row)
        if self.plan.snapshots:
            self._gather(chunks)
            state.snapshots[state.epoch] = {name: p.clone() for name, p in state.params.items()}
        if not any(state.diverged[member] >= 0 for chunk in chunks for member in chunk.numbers):
            return list(chunks)
        self._gather(chunks)
        return self._chunks()

    def _chunks(self) -> list[Ensemble]:
        """Ensembles of the members that had not diverged at the last measurement, from the state."""
        # Up to a measurement a member that diverged stays where it is, so that those beside it see sums of
        # the same shape, and the same rounding, wherever training was cut off and resumed.
        plan, at = self.plan, self.state.diverged
        last = self.state.measured[-1] * plan.steps_per_epoch if self.state.measured else -1
        numbers, size = range(len(plan.members)), chunk_size(plan)
        parts = [numbers[start : start + size] for start in numbers[::size]]
        alive = [[i for i in part if at[i] < 0 or at[i] > last] for part in parts]
        return [Ensemble(plan, self.state, part) for part in alive if part]

    def _gather(self, chunks: Sequence[Ensemble]) -> None:
        """Copy parameters and momenta from the ensembles to the state; a member that diverged has none."""
        for chunk in chunks:
            for mine, theirs in ((self.state.params, chunk.params), (self.state.momenta, chunk.momenta)):
                for name, stacked in mine.items():
                    stacked[chunk.numbers] = theirs[name].detach()
                    stacked[self.state.diverged >= 0] = torch.nan
