"""One training from start to finish: its ensembles, its loop, its clock."""

from __future__ import annotations

import bisect
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..screen import bar
from .disk import RunFolder
from .ensemble import Ensemble, chunk_size, threads_for
from .measure import measure
from .runs import Plan, Runs, State

_PACE = 1.0  # seconds between two looks at the clock


class Session:
    """A plan and how far it is."""

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
                pace = max(1, min(2 * pace, int(pace * _PACE / (now - began + 1e-9))))
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
            finite, columns = measure(chunk)
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
