"""The readings of `audit`, all along a training that somebody else writes."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from .. import inputs as given
from .batches import Batches

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SHOWN = ("error", "rho", "margin_q50", "nc1_quotient")


class Watch:
    r"""Record the readings of `audit` during one's own training loop: call it after every step with its number.

    Every so many steps the model is audited on a fixed subset of the data, and left as it was; the history grows by
    a row, and `path` with it. Of layers before a batch norm the next call measures the angle by which
    one step turns them, beside $\sqrt{4ηλ/(1+β)}$ (Chapter 6). What a subset of n points says of an error rate p
    is uncertain by $\sqrt{p(1-p)/n}$, the column ``error_se``.

    Parameters
    ----------
    model, inputs, labels
        As in `audit`.
    every
        Steps between two readings.
    points
        How many points are read, evenly spread over arrays, the first ones of batches.
    path
        A CSV file; if it is there, its rows are the history up to now, and steps it has are not read again.
    **options
        Of `audit`: weight_decay, lr, momentum, loss, last_layer.

    Notes
    -----
    In PyTorch Lightning call it from a `Callback`'s ``on_train_batch_end`` with ``trainer.global_step``, in the
    Hugging Face `Trainer` from ``on_step_end`` with ``state.global_step``.

    Examples
    --------
    >>> import torch
    >>> model, x, y = nn.Sequential(nn.Linear(4, 2)), torch.eye(4), torch.tensor([0, 0, 1, 1])
    >>> watch = Watch(model, x, y, every=10)
    >>> for step in range(21):
    ...     watch(step)  # after the optimiser's step
    >>> watch.history.step.tolist()
    [0, 10, 20]
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        labels: Any = None,
        *,
        every: int = 100,
        points: int = 1000,
        path: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        unknown = set(options) - {"weight_decay", "lr", "momentum", "loss", "last_layer"}
        if unknown:
            raise ValueError(
                f"{min(unknown)}: no option of audit; write weight_decay, lr, momentum, loss or last_layer"
            )
        self._model, self._options = model, options
        self.every = given.count("every", every, 1)
        self._x, self._y = Batches(model, inputs, labels).some(given.count("points", points, 1))
        if not (path is None or isinstance(path, str | os.PathLike)):
            raise ValueError(f"path={given.shown(path)}: expected the name of a CSV file")
        self._path = None if path is None else Path(path)
        self._rows: list[dict[Any, Any]] = []
        if self._path is not None and self._path.exists():
            import pandas as pd

            self._rows = [dict(row) for _, row in pd.read_csv(self._path).iterrows()]
        self._before: dict[str, Tensor] = {}
        self._spent, self._began = 0.0, time.perf_counter()

    def __call__(self, step: int) -> None:
        """Read the model if it is time; `step` counts the optimiser's steps."""
        began, step = time.perf_counter(), given.count("step", step)
        if self._before:
            self._rows[-1]["angle"] = self._angle()
            self._save()
        if step % self.every == 0 and step not in {row["step"] for row in self._rows}:
            self._read(step)
        self._spent += time.perf_counter() - began

    @property
    def history(self) -> pd.DataFrame:
        """One row per reading; ``seconds`` is what it cost, ``share`` what all have, of the time so far."""
        import pandas as pd

        return pd.DataFrame(self._rows)

    def figure(self) -> Figure:
        """Errors, norm, median margin and collapse against the step."""
        import matplotlib.pyplot as plt

        history = self.history
        shown = [name for name in _SHOWN if name in history and history[name].notna().any()]
        if not shown:
            raise ValueError("the history is empty; call the watch after every step")
        figure, axes = plt.subplots(
            1, len(shown), figsize=(3.2 * len(shown), 3), layout="constrained", squeeze=False
        )
        for ax, name in zip(axes[0], shown, strict=True):
            ax.plot(history["step"], history[name])
            ax.set(xlabel="step", ylabel=name, yscale="linear" if (history[name] <= 0).any() else "log")
        return figure

    def _read(self, step: int) -> None:
        from . import audit

        began = time.perf_counter()
        report = audit(self._model, self._x, self._y, **self._options)
        row: dict[str, Any] = {"step": step}
        row |= {r.name: report[r.name] for r in report.readings if r.name != "turning_angle"}
        row["error_se"] = math.sqrt(row["error"] * (1 - row["error"]) / report.n)
        row |= {f"norm_{k}": layer["norm"] for k, layer in enumerate(report.layer_rows, 1)}
        expected = next(r for r in report.readings if r.name == "turning_angle")
        row |= {
            "angle": math.nan,
            "angle_predicted": math.nan if expected.predicted is None else expected.predicted,
        }
        normalised = {layer["layer"] for layer in report.layer_rows if layer["batch_norm"]}
        self._before = {
            name: p.detach().clone()
            for name, p in self._model.named_parameters()
            if p.ndim > 1 and name.rpartition(".")[0] in normalised
        }
        row["seconds"] = time.perf_counter() - began
        row["share"] = (self._spent + row["seconds"]) / (time.perf_counter() - self._began)
        self._rows.append(row)
        self._save()

    def _angle(self) -> float:
        """Root mean square angle by which the last step turned the layers before batch norm."""
        now, angles = dict(self._model.named_parameters()), []
        for name, old in self._before.items():
            a, b = old.double().flatten(), now[name].detach().double().flatten()
            # Of nearly parallel vectors the cosine has lost the angle; the half-difference of the units has not.
            half = (a / a.norm() - b / b.norm()).norm() / 2
            angles.append(2 * math.asin(min(1.0, float(half))))
        self._before = {}
        return float(np.sqrt(np.mean(np.square(angles))))

    def _save(self) -> None:
        if self._path is not None:
            whole = self._path.with_name(self._path.name + ".part")
            self.history.to_csv(whole, index=False)
            whole.replace(self._path)
