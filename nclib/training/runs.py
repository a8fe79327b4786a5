"""What one training is asked for (`Plan`), what it goes on from (`State`), and what it leaves (`Runs`)."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import inputs
from ..data import Data
from ..data.raw import redraw
from ..networks.models import MLP, Architecture, Net
from ..networks.normalisation import calibrated
from ..scale import device
from .disk import code_version, digest, meaning
from .optim import SGD, Grid, Member, members_of, targets, value_of

if TYPE_CHECKING:
    import pandas as pd

Function = Callable[[Net], Mapping[str, float]]
Engine = Literal["stacked", "vmap", "loop"]

MEASURES = ("loss", "test", "norms", "margins", "stable_rank", "collapse")
"""Every name that `measure=` of `nclib.train` knows."""

_MEASUREMENTS = 50  # by default
_ONE_DNN_BLOCK = 16  # channels, at most: 8 with AVX2


@dataclass(frozen=True, eq=False)
class Plan:
    """One training, checked and complete: all that its result depends on.  Made by `Plan.of`."""

    data: Data
    arch: Architecture
    opt: SGD
    members: Sequence[Member]
    measured: Sequence[int]  # epochs after which to measure, in order; the last one of training among them
    measures: Sequence[str | Function]
    snapshots: bool
    engine: Engine

    @classmethod
    def of(
        cls,
        data: Data,
        arch: Architecture,
        opt: SGD,
        *,
        grid: Grid | None = None,
        measure_every: int | Iterable[int] | None = None,
        measure: str | Sequence[str | Function] | None = None,
        snapshots: bool = False,
        engine: Literal["auto"] | Engine = "auto",
    ) -> Plan:
        """The plan of a call of `nclib.train` with these arguments; raises ValueError where they do not fit."""
        data = inputs.instance("data", data, Data, "nclib.data('digits')").to(device())
        if not len(data.x):
            raise ValueError("data: no training points; give at least one")
        inputs.instance("arch", arch, Architecture, "nclib.mlp()")
        inputs.instance("opt", opt, SGD, "nclib.sgd(epochs=100)")
        plan = cls(
            data, arch, opt, members_of(grid, opt), _measured(measure_every, opt.epochs), _measures(measure, arch),
            inputs.flag("snapshots", snapshots), _engine(engine, arch, data.x.device),
        )  # fmt: skip
        opt.decays(arch)  # raises where the two do not fit
        try:
            arch.shapes(data.input_shape, plan.outputs)
        except ValueError as error:
            raise ValueError(f"arch: {error}, with data of images (flat=False)") from None

        def alone(batch: int) -> bool:
            return batch == 1 or (opt.sampling == "shuffle" and plan.n % batch == 1)

        if arch.norm == "bn" and alone(plan.batch):
            fits = [f"batch={b}" for b in range(plan.batch + 1, plan.n + 1) if not alone(b)] or ["norm='none'"]
            what = f"leaves a batch of one of the {plan.n} points, which batch norm cannot normalise"
            raise ValueError(f"batch={opt.batch}: {what}; write {fits[0]}")
        return plan

    @property
    def n(self) -> int:
        """Training points."""
        return len(self.data.x)

    @property
    def batch(self) -> int:
        """Points in a step."""
        return self.n if self.opt.batch is None else min(self.opt.batch, self.n)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.n / self.batch)

    @functools.cached_property
    def outputs(self) -> int:
        """Outputs of each network."""
        return self.opt.outputs(len(self.data.classes))

    @functools.cached_property
    def x(self) -> Tensor:
        """Training inputs as the engine takes them; channels-last, a loop is a quarter faster on a CPU."""
        x = self.data.x
        if self.engine == "loop" and x.dim() == 4 and self._bears_channels_last():
            return x.contiguous(memory_format=torch.channels_last)
        return x

    @functools.cached_property
    def y(self) -> Tensor:
        """Training targets (N, K), or (M, N, K) where label noise makes them differ."""
        if not any(m["noise"] for m in self.members):
            return self._coded(self.data.labels)
        return torch.stack([self._coded(self._labels(m)) for m in self.members])

    @functools.cached_property
    def y_test(self) -> Tensor:
        """Test targets (N_test, K)."""
        return self._coded(self.data.labels_test)

    def _coded(self, labels: Tensor) -> Tensor:
        return targets(labels, self.outputs, len(self.data.classes), self.data.x.dtype)

    def _bears_channels_last(self) -> bool:
        """Whether no layer is a strided 1×1 convolution of fewer channels than oneDNN takes at a time.

        With samples channels-last, oneDNN computes that layer's gradient beyond the end of its room (PyTorch
        2.13: wrong numbers, or a crash).
        """
        shapes = self.arch.shapes(self.data.input_shape, self.outputs)
        return not any(s.stride > 1 and s.weight[2:] == (1, 1) and s.weight[1] < _ONE_DNN_BLOCK for s in shapes)

    def data_of(self, member: Member) -> Data:
        """The data, with the share of the training labels redrawn that is this member's noise."""
        return dataclasses.replace(self.data, labels=self._labels(member)) if member["noise"] else self.data

    def _labels(self, member: Member) -> Tensor:
        labels = redraw(self.data.labels.cpu().numpy(), len(self.data.classes), member["noise"], member["seed"])
        return torch.from_numpy(labels).to(self.data.x.device)

    def net(self, init_norm: float | Sequence[float] = 1.0, seed: int = 0) -> Net:
        """One network as it starts, on the device."""
        x = self.data.x
        return self.arch.build(self.data.input_shape, self.outputs, init_norm, seed, x.dtype).to(x.device)

    def start(self) -> State:
        """Every member as its own seed makes it."""
        nets = [dict(self.net(m["init_norm"], m["seed"]).named_parameters()) for m in self.members]
        params = {name: torch.stack([net[name].detach() for net in nets]) for name in nets[0]}
        momenta = {name: torch.zeros_like(p) for name, p in params.items()}
        return State(params, momenta, np.full(len(self.members), -1))

    def config(self) -> dict[str, Any]:
        """All that the result depends on, for JSON."""
        data = self.data
        return {
            "data": data.name,
            "classes": data.classes,
            "contents": [digest(part) for part in (data.x, data.labels, data.x_test, data.labels_test)],
            "arch": meaning(self.arch, "arch"),
            "opt": dataclasses.asdict(self.opt),
            "members": self.members,
            "measured": self.measured,
            "measures": [m if isinstance(m, str) else meaning(m) for m in self.measures],
            "snapshots": self.snapshots,
            "engine": self.engine,
            "device": data.x.device.type,
            "torch": torch.__version__,
            "code": code_version(),
        }


def _measured(every: int | Iterable[int] | None, epochs: int) -> list[int]:
    """Epochs after which to measure, the last one among them."""
    if every is None:
        every = max(1, epochs // _MEASUREMENTS)
    try:
        chosen = set(range(0, epochs, inputs.count("measure_every", every, 1)))
    except ValueError:
        try:
            listed = list(every) if isinstance(every, set) else every  # whose order does not matter
            chosen = set(inputs.counts("measure_every", listed, "10", 0, epochs))
        except ValueError:
            expected = f"a number of epochs >= 1, or epochs between 0 and {epochs}, e.g. measure_every=10"
            raise ValueError(f"measure_every={every!r}: expected {expected}") from None
    return sorted(chosen | {epochs})


def _measures(measures: str | Sequence[str | Function] | None, arch: Architecture) -> tuple[str | Function, ...]:
    """The measures to take: those asked for, or the default ones that this architecture has."""
    if measures is None:
        return ("loss", "test", "norms", "margins") if arch.homogeneous else ("loss", "test", "norms")
    several = isinstance(measures, Iterable) and not isinstance(measures, str)
    chosen = tuple(inputs.entries("measure", measures, f"some of {MEASURES}")) if several else (measures,)
    for name in chosen:
        if not callable(name):
            inputs.choice("measure", name, MEASURES, ", or a function of a network")
    if "margins" in chosen and not arch.homogeneous:
        what = f"{type(arch).__name__} has no rho to normalise them by (skip connections)"
        raise ValueError(f"measure='margins': {what}; leave 'margins' out")
    return chosen


def _engine(engine: Literal["auto"] | Engine, arch: Architecture, device: torch.device) -> Engine:
    """The engine asked for, or the one that measured fastest for this architecture on this kind of device."""
    inputs.choice("engine", engine, ("auto", *get_args(Engine)))
    if engine == "stacked" and not isinstance(arch, MLP):
        raise ValueError(f"engine='stacked': only for perceptrons; got {arch}. Write engine='auto'")
    if engine != "auto":
        return engine
    if isinstance(arch, MLP):
        return "stacked"
    return "vmap" if device.type == "cuda" else "loop"


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
        table = self.table()
        arrays |= {f"columns/{name}": column for name, column in table.items()}
        notes = {"epoch": self.epoch, "finished": self.finished, "measured": self.measured, "columns": list(table)}
        return arrays, notes

    def table(self) -> dict[str, NDArray[np.float64]]:
        """All that was measured, each (measurements, M); NaN where one does not have a column."""
        names = dict.fromkeys(name for row in self.columns for name in row)
        missing = np.full(len(self.diverged), np.nan)
        return {name: np.stack([row.get(name, missing) for row in self.columns]) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], notes: Mapping[str, Any], like: Tensor) -> State:
        """The inverse of `to_arrays`, on the device and in the type of `like`."""
        groups: dict[str, dict[str, Tensor]] = {"params": {}, "momenta": {}}
        snapshots: dict[int, dict[str, Tensor]] = {}
        for name, array in arrays.items():
            group, _, rest = name.partition("/")
            if group in groups:
                groups[group][rest] = torch.from_numpy(array).to(like.device, like.dtype)
            elif group == "snapshots":
                epoch, _, rest = rest.partition("/")
                snapshots.setdefault(int(epoch), {})[rest] = torch.from_numpy(array).to(like.device, like.dtype)
        table, rows = {name: arrays[f"columns/{name}"] for name in notes["columns"]}, range(len(notes["measured"]))
        columns = [{name: column[row] for name, column in table.items()} for row in rows]
        return cls(
            groups["params"], groups["momenta"], arrays["diverged"], notes["epoch"], notes["finished"],
            list(notes["measured"]), columns, snapshots,
        )  # fmt: skip


class Runs:
    """Trained networks and their history; returned by `nclib.train`.

    Attributes
    ----------
    arch, opt
        What was trained and how.
    folder
        Where the run is kept on disk, or None.
    """

    def __init__(self, plan: Plan, state: State, folder: Path | None) -> None:
        self.arch, self.opt, self.folder = plan.arch, plan.opt, folder
        # A copy, without the targets and the layout of inputs that training has made.
        self._plan, self._state = dataclasses.replace(plan), state

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """Tidy measurements, one row for each member and measured epoch.

        Columns: ``member``; the hyper-parameters; ``epoch``; ``step``, the number of steps taken; ``status``,
        "ok" or, in its last row, "diverged"; and what was measured.
        """
        import pandas as pd

        table, rows = self._state.table(), []
        for i, member in enumerate(self._plan.members):
            for j, epoch in enumerate(self._state.measured):
                ok = self._alive(i, epoch)
                measured = {name: column[j][i] if ok else np.nan for name, column in table.items()}
                place = {"epoch": epoch, "step": epoch * self._plan.steps_per_epoch}
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

        rows = [
            {"member": i, **_plain(m), "status": "ok" if at < 0 else "diverged", "diverged_at": int(at)}
            for i, (m, at) in enumerate(zip(self._plan.members, self._state.diverged, strict=True))
        ]
        return pd.DataFrame(rows)

    def model(self, member: int | None = None, *, epoch: int | None = None, **hyper: Any) -> Net:
        """One of the networks, on its training's device, in evaluation mode, BN calibrated on the training set.

        Parameters
        ----------
        member
            Its number in `members`; or, instead,
        **hyper
            Values of hyper-parameters that it alone has, e.g. ``model(seed=0, weight_decay=0.01)``.
        epoch
            With ``snapshots=True``, the measured epoch to take it from; otherwise the last.

        ValueError if no or several members fit, the member diverged, or there is no snapshot.
        """
        i = self._find(member, hyper)
        params = self._state.params if epoch is None else self._snapshot(epoch)
        if not self._alive(i, self._state.epoch if epoch is None else epoch):
            what = f"its training diverged at step {self._state.diverged[i]}, so it has no weights to return"
            raise ValueError(f"member={i}: {what}; take another member (runs.members has their status)")
        net = self._plan.net()
        with torch.no_grad():
            for name, p in net.named_parameters():
                p.copy_(params[name][i])
        if len(net.norms):
            calibrated(net, self._plan.data.x)
        return net.eval()

    def data(self, member: int | None = None, **hyper: Any) -> Data:
        """The data a member was trained on: its own labels, where label noise redrew some."""
        return self._plan.data_of(self._plan.members[self._find(member, hyper)])

    def _find(self, member: int | None, hyper: Mapping[str, Any]) -> int:
        count = len(self._plan.members)
        numbers = range(count) if member is None else [inputs.count("member", member, 0, count - 1)]
        unknown = [key for key in hyper if key not in self._plan.members[0]]
        if unknown:
            known = ", ".join(self._plan.members[0])
            raise ValueError(f"{unknown[0]}={hyper[unknown[0]]!r}: no hyper-parameter; write one of {known}")
        wanted = {key: value_of(key, value) for key, value in hyper.items()}
        found = [i for i in numbers if wanted.items() <= self._plan.members[i].items()]
        if len(found) != 1:
            given = ", ".join(f"{key}={value!r}" for key, value in hyper.items()) or "member=None"
            mend = "name one, e.g. model(0), or give all the values that tell it from the others"
            raise ValueError(f"{given}: fits {len(found)} of {count} members; {mend}")
        return found[0]

    def _snapshot(self, epoch: int) -> dict[str, Tensor]:
        epoch = inputs.count("epoch", epoch)
        if epoch not in self._state.snapshots:
            known = ", ".join(map(str, self._state.snapshots)) or "none: train with snapshots=True"
            raise ValueError(f"epoch={epoch}: no snapshot; there are {known}")
        return self._state.snapshots[epoch]

    def _alive(self, member: int, epoch: int) -> bool:
        at = int(self._state.diverged[member])
        return at < 0 or epoch * self._plan.steps_per_epoch < at

    def __len__(self) -> int:
        return len(self._plan.members)

    def __repr__(self) -> str:
        bad = int((self._state.diverged >= 0).sum())
        note = f", {bad} diverged" if bad else ""
        return f"Runs({len(self)} members, {self._state.epoch} epochs{note})"


def _plain(member: Member) -> dict[str, Any]:
    """Hyper-parameters as columns: a tuple of initial norms becomes text."""
    return {k: ", ".join(map(str, v)) if isinstance(v, tuple) else copy.copy(v) for k, v in member.items()}
