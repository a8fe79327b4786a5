"""What training leaves: the state that is saved, and `Runs`, through which it is read."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import Data
from ..data.raw import redraw
from ..networks.models import Architecture, Net
from ..networks.normalisation import calibrate
from .optim import SGD

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Runs", "State"]

Member = Mapping[str, Any]


@dataclass
class State:
    """All that training goes on from: stacked tensors (M, ...) and the measurements so far."""

    params: dict[str, Tensor]
    momenta: dict[str, Tensor]
    diverged: NDArray[np.int64]  # (M,) first step at which the loss was not finite, or -1
    epoch: int = 0
    finished: bool = False
    measured: list[int] = field(default_factory=list)
    columns: list[dict[str, NDArray[np.float64]]] = field(default_factory=list)  # one dict a measurement
    snapshots: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def to_arrays(self) -> tuple[dict[str, Tensor | NDArray[Any]], dict[str, Any]]:
        """Everything as named arrays, and a few notes that JSON can hold."""
        arrays: dict[str, Tensor | NDArray[Any]] = {"diverged": self.diverged}
        arrays |= {f"params/{name}": p for name, p in self.params.items()}
        if not self.finished:
            arrays |= {f"momenta/{name}": p for name, p in self.momenta.items()}
        for epoch, params in self.snapshots.items():
            arrays |= {f"snapshots/{epoch}/{name}": p for name, p in params.items()}
        names = list(dict.fromkeys(name for row in self.columns for name in row))
        missing = np.full(len(self.diverged), np.nan)
        for name in names:
            arrays[f"columns/{name}"] = np.stack([row.get(name, missing) for row in self.columns])
        notes = {"epoch": self.epoch, "finished": self.finished, "measured": self.measured, "columns": names}
        return arrays, notes

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, Any]) -> State:
        """The inverse of `to_arrays`."""
        groups: dict[str, dict[str, Tensor]] = {"params": {}, "momenta": {}}
        snapshots: dict[int, dict[str, Tensor]] = {}
        for name, array in arrays.items():
            group, _, rest = name.partition("/")
            if group in groups:
                groups[group][rest] = torch.from_numpy(array)
            elif group == "snapshots":
                epoch, _, rest = rest.partition("/")
                snapshots.setdefault(int(epoch), {})[rest] = torch.from_numpy(array)
        columns = [
            {name: arrays[f"columns/{name}"][row] for name in notes["columns"]}
            for row in range(len(notes["measured"]))
        ]
        return cls(
            groups["params"], groups["momenta"], arrays["diverged"], notes["epoch"], notes["finished"],
            list(notes["measured"]), columns, snapshots,
        )  # fmt: skip


class Runs:
    """Trained networks and their history; returned by `nclib.train`.

    Attributes
    ----------
    arch, opt : what was trained and how.
    folder : where the run is kept on disk, or None.
    """

    def __init__(
        self,
        data: Data,
        arch: Architecture,
        opt: SGD,
        members: Sequence[Member],
        state: State,
        steps_per_epoch: int,
        folder: Path | None,
    ) -> None:
        self.arch, self.opt, self.folder = arch, opt, folder
        self._data, self._members, self._state = data, members, state
        self._steps_per_epoch = steps_per_epoch

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """Tidy measurements, one row for each member and measured epoch.

        Columns: ``member``; the hyper-parameters; ``epoch``; ``step``, the number of steps taken; ``status``,
        "ok" or, in its last row, "diverged"; and what was measured.
        """
        import pandas as pd

        names = list(dict.fromkeys(name for row in self._state.columns for name in row))
        missing = np.full(len(self._members), np.nan)
        table = {name: [row.get(name, missing) for row in self._state.columns] for name in names}
        rows = []
        for i, member in enumerate(self._members):
            for j, epoch in enumerate(self._state.measured):
                ok = self._alive(i, epoch)
                measured = {name: column[j][i] if ok else np.nan for name, column in table.items()}
                place = {"epoch": epoch, "step": epoch * self._steps_per_epoch}
                status = {"status": "ok" if ok else "diverged"}
                rows.append({"member": i, **_plain(member), **place, **status, **measured})
                if not ok:
                    break
        return pd.DataFrame(rows)

    @functools.cached_property
    def final(self) -> pd.DataFrame:
        """The last row of each member in `history`."""
        return self.history.groupby("member", sort=False).tail(1).reset_index(drop=True)

    @functools.cached_property
    def members(self) -> pd.DataFrame:
        """One row a member, with its hyper-parameters, its status, and the step at which it diverged (or -1)."""
        import pandas as pd

        diverged = self._state.diverged
        return pd.DataFrame(
            [
                {"member": i, **_plain(m), "status": "ok" if at < 0 else "diverged", "diverged_at": int(at)}
                for i, (m, at) in enumerate(zip(self._members, diverged, strict=True))
            ]
        )

    def model(self, member: int | None = None, *, epoch: int | None = None, **hyper: Any) -> Net:
        """One of the networks, in evaluation mode, BN calibrated on the training set.

        Parameters
        ----------
        member : its number in `members`; or, instead,
        **hyper : values of hyper-parameters that it alone has, e.g. ``model(seed=0, weight_decay=0.01)``.
        epoch : with ``snapshots=True``, the measured epoch to take it from; otherwise the last.

        Returns
        -------
        Net : on the device it was trained on.

        Raises
        ------
        ValueError : no or several members fit, the member diverged, or there is no snapshot.
        """
        i = self._find(member, hyper)
        params = self._state.params if epoch is None else self._snapshot(epoch)
        if not self._alive(i, self._state.epoch if epoch is None else epoch):
            raise ValueError(
                f"member={i}: its training diverged at step {self._state.diverged[i]}, so it has no weights "
                "to return; take another member (runs.members has their status)"
            )
        dtype = next(iter(params.values())).dtype
        outputs = self.opt.outputs(len(self._data.classes))
        net = self.arch.build(self._data.input_shape, outputs, dtype=dtype).to(self._data.x.device)
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(params[name][i])
        if len(net.norms):
            calibrate(net, self._data.x)
        return net.eval()

    def data(self, member: int | None = None, **hyper: Any) -> Data:
        """The data a member was trained on: its own labels, where label noise redrew some."""
        chosen = self._members[self._find(member, hyper)]
        return with_noise(self._data, chosen["noise"], chosen["seed"])

    def _find(self, member: int | None, hyper: Mapping[str, Any]) -> int:
        count = len(self._members)
        if member is not None:
            if not 0 <= member < count:
                raise ValueError(f"member={member}: there are {count} members, 0..{count - 1}")
            return member
        unknown = [key for key in hyper if key not in self._members[0]]
        if unknown:
            known = ", ".join(self._members[0])
            raise ValueError(f"{unknown[0]}={hyper[unknown[0]]!r}: no hyper-parameter; write one of {known}")
        found = [i for i, m in enumerate(self._members) if hyper.items() <= m.items()]
        if len(found) != 1:
            given = ", ".join(f"{key}={value!r}" for key, value in hyper.items()) or "no argument"
            raise ValueError(
                f"{given}: fits {len(found)} of {count} members; name one, e.g. model(0), or give all "
                "the values that tell it from the others"
            )
        return found[0]

    def _snapshot(self, epoch: int) -> dict[str, Tensor]:
        if epoch not in self._state.snapshots:
            known = ", ".join(map(str, self._state.snapshots)) or "none: train with snapshots=True"
            raise ValueError(f"epoch={epoch}: no snapshot; there are {known}")
        return self._state.snapshots[epoch]

    def _alive(self, member: int, epoch: int) -> bool:
        at = int(self._state.diverged[member])
        return at < 0 or epoch * self._steps_per_epoch < at

    def __len__(self) -> int:
        return len(self._members)

    def __repr__(self) -> str:
        bad = int((self._state.diverged >= 0).sum())
        note = f", {bad} diverged" if bad else ""
        return f"Runs({len(self)} members, {self._state.epoch} epochs{note})"


def with_noise(data: Data, noise: float, seed: int) -> Data:
    """The data with a share of the training labels redrawn by a seed (`nclib.data` says how)."""
    if not noise:
        return data
    labels = redraw(data.labels.cpu().numpy(), len(data.classes), noise, seed)
    return dataclasses.replace(data, labels=torch.from_numpy(labels).to(data.labels.device))


def _plain(member: Member) -> dict[str, Any]:
    """Hyper-parameters as columns: a tuple of initial norms becomes text."""
    return {k: ", ".join(map(str, v)) if isinstance(v, tuple) else copy.copy(v) for k, v in member.items()}
