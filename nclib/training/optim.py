"""What is minimised and by which steps: losses, codings of labels, weight decay, SGD; `sgd` has the formulas."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import inputs
from ..networks.models import Architecture, init_norms
from ..scale import base_seed

Loss = Literal["square", "cross_entropy"]
Reduction = Literal["mean", "sum"]
Coding = Literal["auto", "sign", "one-hot"]
DecayOn = Literal["auto", "layers", "last", "rho"]
Precision = Literal["float32", "tf32"]
Sampling = Literal["shuffle", "independent"]
Schedule = str | tuple[tuple[int, float], ...]
Grid = Mapping[str, Any] | Iterable[Mapping[str, Any]]
Member = Mapping[str, Any]

HYPER = ("seed", "lr", "weight_decay", "momentum", "init_norm", "noise")
"""Hyper-parameters in which the members of a grid may differ."""


@dataclass(frozen=True)
class SGD:
    """How networks are trained; made by `sgd`, which documents the fields."""

    lr: float
    momentum: float
    batch: int | None
    epochs: int
    weight_decay: float
    schedule: Schedule
    loss: Loss
    reduction: Reduction
    coding: Coding
    weight_decay_on: DecayOn
    precision: Precision
    sampling: Sampling

    def __post_init__(self) -> None:
        kinds = get_type_hints(SGD)
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name in _RANGES:
                value = check_hyper(name, value)
            elif get_origin(kinds[name]) is Literal:
                inputs.choice(name, value, get_args(kinds[name]))
            elif name == "schedule":
                value = _schedule(value)
            elif not (name == "batch" and value is None):
                value = inputs.count(name, value, 1)
            object.__setattr__(self, name, value)  # a frozen class is set so

    def rate(self, epoch: int) -> float:
        """Factor on the learning rate during the epoch that follows `epoch` finished ones."""
        epoch = inputs.count("epoch", epoch, 0, self.epochs)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
        assert not isinstance(self.schedule, str)
        reached = [factor for start, factor in self.schedule if epoch >= start]
        return reached[-1] if reached else 1.0

    def outputs(self, classes: int) -> int:
        """Outputs of a network that learns `classes` classes under this coding of the labels."""
        classes = inputs.count("classes", classes, 2)
        if self.coding == "sign" and classes != 2:
            raise ValueError(f"coding='sign': the data have {classes} classes, not two; write coding='one-hot'")
        return 1 if classes == 2 and self.coding != "one-hot" else classes

    def decays(self, arch: Architecture) -> Literal["layers", "last", "rho"]:
        """Which norms weight decay acts on for this architecture."""
        inputs.instance("arch", arch, Architecture, "nclib.mlp()")
        on = self.weight_decay_on
        if on == "auto":
            return "rho" if arch.norm == "lm" else "layers"
        if arch.norm == "lm" and on != "rho":
            what = f"weight_decay_on={on!r}: under norm='lm' every layer has norm 1 and only rho can decay"
            raise ValueError(f"{what}; write weight_decay_on='rho'")
        if arch.norm == "bn" and on == "rho":
            what = "weight_decay_on='rho': under norm='bn' the loss does not see the norms of hidden layers"
            raise ValueError(f"{what}; write weight_decay_on='layers' or 'last'")
        if not arch.homogeneous and arch.norm != "lm" and on == "rho":
            raise ValueError("weight_decay_on='rho': a ResNet has no rho; write weight_decay_on='layers'")
        return on


def sgd(
    lr: float = 0.01,
    *,
    momentum: float = 0.0,
    batch: int | None = None,
    epochs: int,
    weight_decay: float = 0.0,
    schedule: str | Sequence[tuple[int, float]] = "constant",
    loss: Loss = "square",
    reduction: Reduction = "mean",
    coding: Coding = "auto",
    weight_decay_on: DecayOn = "auto",
    precision: Precision = "float32",
    sampling: Sampling = "shuffle",
) -> SGD:
    r"""Stochastic gradient descent with momentum on a square or cross-entropy loss.

    One step is $b\leftarrow\beta b+\nabla\mathcal L$, $W\leftarrow W-\eta b$, with

    $$\mathcal L=\frac1N\sum_n\ell(f(x_n),y_n)+\lambda\sum_k\lVert W_k\rVert^2,$$

    the mean being over the batch.  The gradient gets $2\lambda W_k$, so `weight_decay` λ here is
    `torch.optim.SGD(weight_decay=2 * λ)`; a text that sums the loss over the N points where this
    averages has $\lambda_{paper}=N\lambda$.

    Parameters
    ----------
    lr
        η > 0, the learning rate.
    momentum
        β in [0, 1).
    batch
        Points in a mini-batch; None, or more than there are, takes all of them (gradient descent).
    epochs
        Passes over the data, ≥ 1.  With full batches an epoch is one step.
    weight_decay
        λ ≥ 0.
    schedule
        "constant"; "cosine", $η_t = η(1+\cos(π t/T))/2$ in epochs t; or pairs (epoch, factor), e.g.
        ``((200, 0.1), (350, 0.01))``, each in force from its epoch on.
    loss
        "square", $\lVert f-y\rVert^2$; or "cross_entropy", which is $\ln(1+e^{-yf})$ for one output.
    reduction
        What the square loss does with K outputs: their "mean", $\frac1K\lVert f-y\rVert^2$ (as in Xu et al.
        2023 and `torch.nn.MSELoss`), or their "sum".  With one output they are the same.
    coding
        Targets of two classes: "sign", one output and ±1, or "one-hot", two outputs.  "auto" is "sign" for
        two classes and "one-hot" for more.
    weight_decay_on
        "layers", $\lambda\sum_k\lVert W_k\rVert^2$ (under weight normalisation $\lambda\sum_kg_k^2$); "last", the
        last layer only; "rho", $\lambda\rho^2$ (the paper's model).  "auto" is "rho" under `norm="lm"` and
        "layers" otherwise.
    precision
        "float32"; or, for speed on a GPU and only on request, "tf32".
    sampling
        How batches are drawn, from the network's own seed.  "shuffle": every epoch visits every point once, in
        a fresh order; the last batch may be smaller.  "independent": every batch is a fresh set of `batch`
        different points, whatever the batches before it were; an epoch is still ⌈N/batch⌉ steps.

    Notes
    -----
    The loss is that of Chapters 2 to 11.  M. Xu et al., "Dynamics in deep classifiers trained with the
    square loss", Research 6:0024 (2023).

    Examples
    --------
    >>> opt = sgd(lr=0.1, epochs=10, schedule=((5, 0.1),))
    >>> opt.rate(4), opt.rate(5)
    (1.0, 0.1)
    """
    return SGD(
        lr, momentum, batch, epochs, weight_decay, schedule,  # type: ignore[arg-type]
        loss, reduction, coding, weight_decay_on, precision, sampling,
    )  # fmt: skip


def members_of(grid: Grid | None, opt: SGD) -> list[Member]:
    """Every member's hyper-parameters: those of the grid over the defaults."""
    defaults = {
        "seed": base_seed(), "lr": opt.lr, "weight_decay": opt.weight_decay, "momentum": opt.momentum,
        "init_norm": 1.0, "noise": 0.0,
    }  # fmt: skip
    points = [defaults | dict(point) for point in _points({} if grid is None else grid)]
    if not points:
        raise ValueError("grid: holds no member; give every hyper-parameter at least one value")
    unknown = [key for point in points for key in point if key not in HYPER]
    if unknown:
        raise ValueError(f"grid: {unknown[0]!r} is no hyper-parameter; write one of {', '.join(HYPER)}")
    try:
        return [{key: value_of(key, point[key]) for key in HYPER} for point in points]
    except ValueError as error:
        raise ValueError(f"grid: {error}") from None


def _points(grid: Grid) -> Iterable[Mapping[str, Any]]:
    if isinstance(grid, Mapping):
        axes = [_axis(v) for v in grid.values()]
        return (dict(zip(grid, values, strict=True)) for values in itertools.product(*axes))
    expected = "values by name, e.g. dict(seed=range(8)), or a list of such dicts"
    points = inputs.entries("grid", grid, expected)
    if not all(isinstance(point, Mapping) for point in points):
        raise ValueError(f"grid={grid!r}: expected {expected}")
    return points


def _axis(values: Any) -> list[Any]:
    """The values of one hyper-parameter; a tuple is one value, the norms of all layers."""
    with contextlib.suppress(TypeError):  # a single number, be it of NumPy or a tensor
        return [values] if isinstance(values, str | tuple) else list(values)
    return [values]


def value_of(key: str, value: Any) -> Any:
    """One value of a hyper-parameter in a type that JSON and equality are at home with."""
    if key == "seed":
        return inputs.seed(key, value)
    return init_norms(value) if key == "init_norm" else check_hyper(key, value)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lr": ("a learning rate > 0, e.g. lr=0.01", lambda v: v > 0),
    "momentum": ("a number in [0, 1), e.g. momentum=0.9", lambda v: 0 <= v < 1),
    "weight_decay": ("a number >= 0, e.g. weight_decay=0.001", lambda v: v >= 0),
    "noise": ("a share of labels in [0, 1], e.g. noise=0.2", lambda v: 0 <= v <= 1),
}


def check_hyper(name: str, value: object) -> float:
    """One hyper-parameter as a float, or an error that names it."""
    return inputs.number(name, value, *_RANGES[name])


def _schedule(schedule: Any) -> Schedule:
    if isinstance(schedule, str):
        return inputs.choice("schedule", schedule, ("constant", "cosine"), ", or ((epoch, factor), ...)")
    pairs: tuple[tuple[int, float], ...] = ()
    with contextlib.suppress(TypeError, ValueError):
        least = ">= 0", lambda f: f >= 0
        pairs = tuple((inputs.count("epoch", e), inputs.number("factor", f, *least)) for e, f in schedule)
    if not pairs or list(pairs) != sorted(pairs):
        expected = "pairs (epoch, factor) in order, e.g. ((200, 0.1), (350, 0.01))"
        raise ValueError(f"schedule={schedule!r}: expected {expected}")
    return pairs


def targets(labels: Tensor, outputs: int, classes: int, dtype: torch.dtype) -> Tensor:
    """Targets (N, outputs): ±1 with +1 for the first class, or one-hot."""
    if outputs == 1:
        return (1 - 2 * labels).to(dtype).unsqueeze(1)
    return F.one_hot(labels, classes).to(dtype)


def mean_loss(f: Tensor, y: Tensor, loss: str, reduction: str) -> Tensor:
    """Mean loss over the batch: f and y of shape (..., n, K), the result of shape (...)."""
    if loss == "square":
        per_point = (f - y).square()
        return per_point.mean((-2, -1)) if reduction == "mean" else per_point.sum(-1).mean(-1)
    if f.shape[-1] == 1:
        return F.softplus(-f * y).mean((-2, -1))
    return -(y * F.log_softmax(f, dim=-1)).sum(-1).mean(-1)


def loss_gradient(f: Tensor, y: Tensor, out: Tensor, size: Tensor, loss: str, reduction: str) -> None:
    """Gradient of `mean_loss` in f, into `out`, for the transposed shapes (M, K, n).

    `size` (M,) gets one number a member that is finite exactly as long as its loss is.
    """
    n = f.shape[2]
    if loss == "square":
        torch.sub(f, y, out=out)
        torch.linalg.vector_norm(out, dim=(1, 2), out=size)
        out.mul_(2.0 / (n * f.shape[1] if reduction == "mean" else n))
        return
    torch.linalg.vector_norm(f, dim=(1, 2), out=size)
    if f.shape[1] == 1:
        torch.mul(torch.sigmoid(-f * y), y, out=out).mul_(-1.0 / n)
    else:
        torch.sub(torch.softmax(f, dim=1), y, out=out).mul_(1.0 / n)
