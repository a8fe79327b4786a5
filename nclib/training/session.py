"""One call of `nclib.train` from start to finish: its members, its loop, its clock."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import inspect
import math
import textwrap
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor

from ..data import Data
from ..networks.models import Architecture
from ..screen import Bar, bar
from .disk import RunFolder, code_version, data_version
from .ensemble import Engine, Ensemble, choose, chunk_size, threads_for
from .measure import Function, measure
from .optim import SGD, targets
from .runs import Member, Runs, State, with_noise
from .stacked import can_stack

__all__ = ["Session"]

_PACE = 1.0  # seconds between two looks at the clock
_ONE_DNN_BLOCK = 16  # channels, at most: 8 with AVX2


class Chunk(NamedTuple):
    """Members that train together, by number, and the ensemble they form."""

    members: list[int]
    ensemble: Ensemble


class Session:
    """What one call of `nclib.train` was asked for, and how far it is; parameters as there."""

    def __init__(
        self,
        data: Data,
        arch: Architecture,
        opt: SGD,
        members: Sequence[Member],
        measured: Sequence[int],
        measures: Sequence[str | Function],
        snapshots: bool,
        engine: str,
    ) -> None:
        self.data, self.arch, self.opt, self.members = data, arch, opt, members
        self.measured, self.measures, self.snapshots = measured, measures, snapshots
        self.engine = _engine(engine, arch, opt, data.x.device)
        self.outputs = opt.outputs(len(data.classes))
        opt.decays(arch)  # raises where the two do not fit
        self.batch, self.steps_per_epoch = _batches(opt, arch, len(data.x))
        self.state = self._start()
        self.x = data.x
        if self.engine == "loop" and data.x.dim() == 4 and self._bears_channels_last():  # a quarter faster on a CPU
            self.x = data.x.contiguous(memory_format=torch.channels_last)
        self.y = self._targets()
        self.y_test = targets(data.labels_test, self.outputs, len(data.classes), data.x.dtype)

    def _bears_channels_last(self) -> bool:
        """Whether no layer is a strided 1×1 convolution of fewer channels than oneDNN takes at a time.

        With samples channels-last, oneDNN computes that layer's gradient beyond the end of its room (PyTorch
        2.13: wrong numbers, or a crash).
        """
        shapes = self.arch.shapes(self.data.input_shape, self.outputs)
        return not any(s.stride > 1 and s.weight[2:] == (1, 1) and s.weight[1] < _ONE_DNN_BLOCK for s in shapes)

    def _start(self) -> State:
        """Every member as its own seed makes it."""
        x = self.data.x
        nets = [
            self.arch.build(self.data.input_shape, self.outputs, m["init_norm"], m["seed"], x.dtype)
            for m in self.members
        ]
        self.net = nets[0].to(x.device)
        named = [dict(net.named_parameters()) for net in nets]
        params = {name: torch.stack([p[name].detach().to(x.device) for p in named]) for name in named[0]}
        momenta = {name: torch.zeros_like(p) for name, p in params.items()}
        return State(params, momenta, np.full(len(self.members), -1))

    def _targets(self) -> Tensor:
        """Targets (N, K), or (M, N, K) where label noise makes them differ."""

        def coded(data: Data) -> Tensor:
            return targets(data.labels, self.outputs, len(data.classes), data.x.dtype)

        if not any(m["noise"] for m in self.members):
            return coded(self.data)
        return torch.stack([coded(with_noise(self.data, m["noise"], m["seed"])) for m in self.members])

    def config(self) -> dict[str, Any]:
        """All that the result depends on, for JSON."""
        data = self.data
        return {
            "data": data.name,
            "classes": data.classes,
            "contents": data_version(data.x, data.labels, data.x_test, data.labels_test),
            "arch": {"type": type(self.arch).__name__, **dataclasses.asdict(self.arch)},
            "opt": dataclasses.asdict(self.opt),
            "members": self.members,
            "measured": self.measured,
            "measures": [m if isinstance(m, str) else _source(m) for m in self.measures],
            "snapshots": self.snapshots,
            "engine": self.engine,
            "device": data.x.device.type,
            "dtype": str(data.x.dtype),
            "torch": torch.__version__,
            "code": code_version(),
        }

    def restore(self, state: State) -> None:
        """Go on from a state that was saved."""
        for tensors in (state.params, state.momenta, *state.snapshots.values()):
            for name in tensors:
                tensors[name] = tensors[name].to(self.data.x.device)
        self.state = state

    def results(self, folder: RunFolder | None) -> Runs:
        """The runs as they are, or will be once `run` is through."""
        path = folder.path if folder else None
        return Runs(self.data, self.arch, self.opt, self.members, self.state, self.steps_per_epoch, path)

    # ---------------------------------------------------------------------------------------- the loop

    def run(self, folder: RunFolder | None, checkpoint_seconds: float, show: bool | None) -> None:
        """Train to the end, measuring and saving on the way."""
        state, epochs, count = self.state, self.opt.epochs, len(self.members)
        what = f"train {count} network{'s' if count > 1 else ''}"
        start = state.epoch * count
        with self._settings(), bar(epochs * count, what, start=start, show=show) as progress:
            chunks = self._chunks()
            if 0 in self.measured and not state.measured:
                chunks = self._measure(chunks)
            pace, saved = 1, time.monotonic()
            while state.epoch < epochs and chunks:
                target = self.measured[bisect.bisect(self.measured, state.epoch)]
                began = time.monotonic()
                if (state.diverged < 0).any():
                    self._advance(chunks, min(target, state.epoch + pace), progress)
                else:
                    state.epoch = target
                if state.epoch == target:
                    chunks = self._measure(chunks)
                now = time.monotonic()
                # The pace only says how often to look at the clock; results do not depend on it.
                pace = max(1, min(2 * pace, int(pace * _PACE / (now - began + 1e-9))))
                if folder and now - saved >= checkpoint_seconds and state.epoch < epochs:
                    self._gather(chunks)
                    folder.save(*state.to_arrays())
                    saved = time.monotonic()
        self._gather(chunks)
        state.epoch, state.finished = epochs, True
        if folder:  # the state last: once it says that all is done, nothing more is written
            folder.export("history.csv", self.results(folder).history.to_csv(index=False))
            folder.save(*state.to_arrays())

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        """Threads and precision while this session runs."""
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        before = cudnn.allow_tf32, matmul.allow_tf32
        cudnn.allow_tf32 = matmul.allow_tf32 = self.opt.precision == "tf32"
        try:
            with threads_for(self.net, self.batch, len(self.members)):
                yield
        finally:
            cudnn.allow_tf32, matmul.allow_tf32 = before

    def _advance(self, chunks: Sequence[Chunk], stop: int, progress: Bar) -> None:
        """Train every chunk from the state's epoch to the end of epoch `stop`, and note who diverged."""
        state = self.state
        first = state.epoch * self.steps_per_epoch
        for number, chunk in enumerate(chunks, start=1):
            if len(chunk.members) > 1 or state.diverged[chunk.members[0]] < 0:
                sizes = chunk.ensemble.advance(state.epoch, stop)
                finite = sizes.isfinite()
                if not bool(finite.all()):
                    for member, column in zip(chunk.members, finite.T.cpu().numpy(), strict=True):
                        if state.diverged[member] < 0 and not column.all():
                            state.diverged[member] = first + int(column.argmin())
            done = state.epoch + (stop - state.epoch) * number / len(chunks)
            bad = int((state.diverged >= 0).sum())
            progress.update(round(done * len(self.members)), f"{bad} diverged" if bad else "")
        state.epoch = stop

    def _measure(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        """Add a measurement to the state; returns the chunks without the members that have diverged."""
        state, row = self.state, dict[str, Any]()
        for chunk in chunks:
            finite, columns = measure(chunk.ensemble, self.data.x_test, self.y_test, self.measures)
            for name, values in columns.items():
                row.setdefault(name, np.full(len(self.members), np.nan))[chunk.members] = values.cpu().numpy()
            for member, good in zip(chunk.members, finite.tolist(), strict=True):
                if not good and state.diverged[member] < 0:
                    state.diverged[member] = state.epoch * self.steps_per_epoch
        state.measured.append(state.epoch)
        state.columns.append(row)
        if self.snapshots:
            self._gather(chunks)
            state.snapshots[state.epoch] = {name: p.clone() for name, p in state.params.items()}
        if not any(state.diverged[member] >= 0 for chunk in chunks for member in chunk.members):
            return list(chunks)
        self._gather(chunks)
        return self._chunks()

    # --------------------------------------------------------------------------------- members and chunks

    def _chunks(self) -> list[Chunk]:
        """Ensembles of the members that had not diverged at the last measurement, from the state."""
        # Up to a measurement a member that diverged stays where it is, so that those beside it see sums of
        # the same shape, and the same rounding, wherever training was cut off and resumed.
        last = self.state.measured[-1] * self.steps_per_epoch if self.state.measured else -1
        count = len(self.members)
        size = chunk_size(self.net, self.batch, count, self.engine)
        chunks = []
        for start in range(0, count, size):
            at = self.state.diverged
            alive = [i for i in range(start, min(start + size, count)) if at[i] < 0 or at[i] > last]
            if alive:
                chunks.append(self.chunk(alive))
        return chunks

    def chunk(self, members: list[int]) -> Chunk:
        """An ensemble of the members with these numbers, as the state has them."""
        state = self.state
        ensemble = Ensemble(
            self.net,
            {name: p[members] for name, p in state.params.items()},
            {name: p[members] for name, p in state.momenta.items()},
            [self.members[i] for i in members],
            self.opt,
            self.x,
            self.y if self.y.dim() == 2 else self.y[members],
            self.engine,
        )
        return Chunk(members, ensemble)

    def _gather(self, chunks: Sequence[Chunk]) -> None:
        """Copy parameters and momenta from the ensembles to the state; a member that diverged has none."""
        for members, ensemble in chunks:
            for mine, theirs in (
                (self.state.params, ensemble.params),
                (self.state.momenta, ensemble.momenta),
            ):
                for name, stacked in mine.items():
                    stacked[members] = theirs[name].detach()
                    stacked[self.state.diverged >= 0] = torch.nan


def _engine(engine: str, arch: Architecture, opt: SGD, device: torch.device) -> Engine:
    if engine == "auto":
        return choose(arch, opt, device)
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r}: write 'auto', 'stacked', 'vmap' or 'loop'")
    if engine == "stacked" and not (can_stack(arch) and opt.precision != "bf16"):
        raise ValueError(
            f"engine='stacked': only for perceptrons in float32 or float64; got {arch}. Write engine='auto'"
        )
    return cast(Engine, engine)


def _batches(opt: SGD, arch: Architecture, n: int) -> tuple[int, int]:
    """Size of a batch and number of batches in an epoch."""
    batch = n if opt.batch is None else min(opt.batch, n)
    if arch.norm == "bn" and (batch == 1 or n % batch == 1):
        raise ValueError(
            f"batch={opt.batch}: leaves a batch of one of the {n} points, which batch norm cannot normalise; "
            f"write batch={batch + 1}"
        )
    return batch, math.ceil(n / batch)


def _source(function: Function) -> str:
    """What a measuring function does, as text: part of a run's name on disk."""
    try:
        return textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ValueError(
            f"measure={function!r}: its source cannot be read, so a run with it cannot be named on disk; "
            "define it with def in a file or a cell, or unset NCLIB_RUNS"
        ) from error
