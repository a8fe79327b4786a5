"""The theory as an instrument: what its theorems say of any trained `torch.nn.Module`, and whether they apply.

`audit` reads a model once; `Watch` reads it during training.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import inputs as given
from ..collapse import CollapseStatistics
from ..inputs import Array
from ..networks.readings import raw_margins
from ..training.optim import mean_loss
from . import theorems
from .batches import Batches, Coding
from .report import Report
from .tape import Replay, Structure, structure

Loss = str | Callable[[Tensor, Tensor], Tensor]

_PROBE = 16  # inputs with which the structure is found
_WIDEST = 4096  # features; their second moments are a matrix of this size, in float64


def audit(
    model: nn.Module,
    inputs: Any,
    labels: Any = None,
    *,
    weight_decay: float | None = None,
    lr: float | None = None,
    momentum: float = 0.0,
    loss: Loss | None = None,
    last_layer: str | None = None,
) -> Report:
    r"""Read a trained network: norm, margins, balance, collapse, and what theorems predict where they apply.

    The model is read in evaluation mode, and left as it was. Batch norms with running statistics are folded into
    the layers before them where the outputs prove it; what keeps the model from being a homogeneous chain of layers
    is named, and measured: $f_{cW}$ against $c^Lf_W$ where $c^L=2$, the folded biases held fixed.

    Parameters
    ----------
    model
        Any `torch.nn.Module` that maps a batch to outputs, (n,) or (n, 1) for two classes, or (n, K).
    inputs, labels
        Inputs (N, ...) and labels (N,), any arrays; or batches ``(x, y)`` that can be read twice, such as a
        `DataLoader`, and no labels. Labels are 0..K−1 or one-hot rows; for one output ±1, or 0 and 1. All the data
        are never in memory at once. Give the *training* set: the theorems are about it.
    weight_decay
        λ of the loss plus $λ\sum_k‖W_k‖^2$. `torch.optim` is given twice that: write half its ``weight_decay``.
    lr, momentum
        η and β of SGD, for what is predicted of the steps.
    loss
        "square" (the mean over points and outputs, against one-hot targets, or ±1), "cross_entropy", or a function
        of outputs and labels as the model and the data give them, which returns the mean. With `weight_decay` it
        allows all that is predicted of training's end.
    last_layer
        Name of the module that makes the outputs from the features, where that is not the last linear layer.

    Returns
    -------
    Report
        With `table`, `layers`, `figure()`, `to_json()`; ``report["nc1"]`` is one reading's value.

    Raises
    ------
    ValueError
        Data that do not fit the model, outputs that are not finite, and as said above.

    Examples
    --------
    >>> points = torch.eye(4)
    >>> model = nn.Sequential(nn.Linear(4, 2, bias=False))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]))
    >>> report = audit(model, points, [0, 0, 1, 1])
    >>> report["rho"], report["margin_min"], report["error"]
    (2.0, 0.5, 0.0)
    """
    lam = None if weight_decay is None else given.number("weight_decay", weight_decay, "λ >= 0", lambda v: v >= 0)
    eta = None if lr is None else given.positive("lr", lr)
    beta = given.number("momentum", momentum, "a number in [0, 1)", lambda v: 0 <= v < 1)
    if isinstance(loss, str):
        given.choice("loss", loss, ("square", "cross_entropy"), ", or a function of outputs and labels")
    elif loss is not None and not callable(loss):
        raise ValueError(f"loss={given.shown(loss)}: expected 'square', 'cross_entropy' or a function")
    if last_layer is not None:
        given.text("last_layer", last_layer)
    batches = Batches(model, inputs, labels)
    with as_it_was(model):
        probe = batches.first(_PROBE)
        found = structure(model, probe, last_layer)
        sums = Sums(model, found, batches, loss, lam)
        sums.first_pass()
        sums.second_pass()
        if lam is not None and loss is not None:
            sums.slopes()
    return Report(
        model=type(model).__name__,
        n=sums.n,
        classes=sums.coding.classes,
        findings=theorems.findings(found),
        readings=theorems.readings(sums, lam, eta, beta),
        layer_rows=theorems.layer_rows(found, eta),
        margins=sums.normalised_margins,
    )


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, and everything as before afterwards: modes, gradients, random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


class Piece(NamedTuple):
    """Some of the data, and what the model makes of it."""

    x: Tensor
    raw: Tensor  # outputs as the model gives them
    f: Tensor  # the same in float64, (n, K)
    h: Tensor | None  # features
    labels: Tensor
    classes: Tensor
    targets: Tensor


class Sums:
    """What is summed up over the data, batch by batch, in float64."""

    def __init__(
        self, model: nn.Module, found: Structure, batches: Batches, loss: Loss | None, lam: float | None
    ) -> None:
        self.model, self.found, self.batches, self.loss, self.lam = model, found, batches, loss, lam
        self.watch = -1 if found.last is None else found.last.call
        self.n, self.pieces, self.radius = 0, list[Tensor](), 0.0
        self.coding = Coding(found.outputs)
        self.sums = dict.fromkeys(("square", "cross_entropy", "error", "pull", "last_pull"), 0.0)
        self.collapse: CollapseStatistics | None = None
        self.lost = ""  # why there are no readings of the features
        self.collapsed: dict[str, float] = {}
        self.moments: tuple[Tensor, Tensor] | None = None
        self.slope: float | None = None

    def outputs(self) -> Iterator[Piece]:
        """What the model makes of the data, piece by piece."""
        for number, (x, labels) in enumerate(self.batches):
            replay = Replay({}, watch=self.watch)
            raw = replay.run(self.model, x)
            f = (raw[:, None] if raw.ndim == 1 else raw).double()
            if f.ndim != 2 or len(f) != len(x):
                shape = f"outputs of shape {tuple(raw.shape)} for {len(x)} inputs"
                raise ValueError(f"model: {shape}; expected (n,) or (n, K)")
            if not bool(f.isfinite().all()):
                where = f"first in piece {number} of the data"
                raise ValueError(f"model: its outputs hold NaN or infinity, {where}; nothing can be read")
            h = replay.watched
            yield Piece(x, raw, f, None if h is None else h.detach(), labels, *self.coding(labels))

    @torch.no_grad()
    def first_pass(self) -> None:
        """Losses, errors, margins, class means."""
        for piece in self.outputs():
            f, n = piece.f, len(piece.f)
            self.n += n
            if piece.x.is_floating_point():
                self.radius = max(self.radius, float(piece.x.flatten(1).double().norm(dim=1).max()))
            self.pieces.append(raw_margins(f, piece.targets).cpu())
            wrong = self.pieces[-1] <= 0 if f.shape[1] == 1 else f.argmax(1) != piece.classes
            self.sums["error"] += float(wrong.sum())
            for loss in ("square", "cross_entropy"):
                self.sums[loss] += float(mean_loss(f, piece.targets, loss, "mean")) * n
            self._pull(piece)
            if piece.h is not None and piece.h.ndim == 2 and not self.lost:
                with self._or_lost():
                    if self.collapse is None:
                        self.collapse = CollapseStatistics(self.coding.classes, *self._classifier())
                    self.collapse.first_pass(piece.h, piece.classes)

    def _classifier(self) -> tuple[Tensor, Tensor | None]:
        last = self.found.last
        assert last is not None
        weight, bias = last.weight, last.bias
        if len(weight) == 1:  # one output f is the classifier (f, −f)/2 of two
            weight = torch.cat([weight, -weight]) / 2
            bias = None if bias is None else torch.cat([bias, -bias]) / 2
        return weight, bias

    def _pull(self, piece: Piece) -> None:
        """Sums of −f·∂ℓ/∂f, which by Euler's identity hold the layers' norms at rest."""
        if self.loss is None:
            return
        with torch.enable_grad():
            own = piece.raw.detach().requires_grad_()
            value = self.mean_loss(own, piece.labels, piece.targets) * len(own)
            (slope,) = torch.autograd.grad(value, own)
        slope = slope.reshape(piece.f.shape).double()
        last = self.found.last
        shift = 0 if last is None or last.bias is None else last.bias
        self.sums["pull"] -= float((piece.f * slope).sum())
        self.sums["last_pull"] -= float(((piece.f - shift) * slope).sum())

    def mean_loss(self, raw: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of a batch, of its outputs as the model gives them."""
        if callable(self.loss):
            try:
                return self.loss(raw, labels).reshape(())
            except Exception as error:  # whatever a function of the caller's raises
                what = "write a function of outputs and labels that gives a number"
                raise ValueError(f"loss: {error}; {what}") from error
        f = raw[:, None] if raw.ndim == 1 else raw
        return mean_loss(f, targets.to(f), str(self.loss), "mean")

    @torch.no_grad()
    def second_pass(self) -> None:
        """The spread of the features about their class means, and their second moments with the targets."""
        if self.collapse is None or self.lost:
            self.lost = self.lost or "no linear layer makes the outputs from features"
            return
        with self._or_lost():
            self.centre = self.collapse.means.mean(0)
            for piece in self.outputs():
                assert piece.h is not None
                self.collapse.second_pass(piece.h, piece.classes)
                if piece.h.shape[1] <= _WIDEST:
                    rows = piece.h.double() - self.centre
                    self._add_moments(torch.cat([rows, torch.ones_like(rows[:, :1])], 1), piece.targets)
            self.collapsed = self.collapse.result()

    def _add_moments(self, rows: Tensor, targets: Tensor) -> None:
        if self.moments is None:
            d, k = rows.shape[1], targets.shape[1]
            self.moments = rows.new_zeros(d, d), rows.new_zeros(d, k)
        self.moments[0].addmm_(rows.T, rows)
        self.moments[1].addmm_(rows.T, targets)

    @contextlib.contextmanager
    def _or_lost(self) -> Iterator[None]:
        """What fails here costs the readings of the features, not the report."""
        try:
            yield
        except ValueError as error:
            self.lost, self.moments = str(error).partition(":")[0], None

    def slopes(self) -> None:
        """How far the loss with weight decay is from stationary, relative to the gradient of the loss alone."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        total = [torch.zeros_like(p, dtype=torch.float64) for p in parameters]
        for x, labels in self.batches:
            with torch.enable_grad():
                _, targets = self.coding(labels)
                value = self.mean_loss(self.model(x), labels, targets) * len(x)
                found = torch.autograd.grad(value, parameters, allow_unused=True)
            for sum_, part in zip(total, found, strict=True):
                if part is not None:
                    sum_ += part.double()
        assert self.lam is not None
        pairs = [(g / self.n, p.detach().double()) for g, p in zip(total, parameters, strict=True)]
        alone = math.sqrt(sum(float(g.square().sum()) for g, _ in pairs))
        rest = math.sqrt(sum(float((g + 2 * self.lam * p).square().sum()) for g, p in pairs))
        self.slope = rest / alone if alone else math.nan

    # ----------------------------------------------------------------------------- what comes of it

    def mean(self, name: str) -> float:
        """A sum over the points, divided by their number."""
        return self.sums[name] / self.n

    @property
    def rho(self) -> float:
        """Product of the norms of the folded layers; NaN where they are no chain, or a batch norm is in between."""
        if not self.found.chain or self.found.unfolded:
            return math.nan
        norms = torch.tensor([layer.norm for layer in self.found.layers], dtype=torch.float64)
        return float(norms.log().sum().exp())  # which neither under- nor overflows on the way

    @functools.cached_property
    def margins(self) -> Array:
        """Of the outputs, (N,)."""
        found: Array = torch.cat(self.pieces).numpy()
        return found

    @functools.cached_property
    def normalised_margins(self) -> Array:
        """The same over ρ, where there is one."""
        return self.margins / self.rho if self.rho > 0 else self.margins

    def off_ridge(self, lam: float) -> float | None:
        """Relative distance of the last layer from the ridge classifier of its features; its bias has no decay."""
        if self.moments is None or self.found.last is None:
            return None
        second, cross, _ = self._second_moments()
        strength = self.n * self.coding.outputs * lam
        best = torch.linalg.solve(second + strength * torch.eye(len(second)).to(second), cross).T
        return float((self.found.last.weight.to(best) - best).norm() / best.norm())

    def least_squares(self) -> float | None:
        """Mean square error of the best linear classifier of the features."""
        if self.moments is None or self.found.last is None:
            return None
        second, cross, total = self._second_moments()
        values, axes = torch.linalg.eigh(second)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        gained = ((axes[:, kept].T @ cross).square() / values[kept, None]).sum()
        return max(0.0, float(total - gained)) / (self.n * self.coding.outputs)

    def _second_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σhhᵀ, Σhyᵀ and Σ‖y‖² about the means where the last layer has a bias, and about zero where not."""
        assert self.moments is not None
        assert self.found.last is not None
        (second, cross), n = self.moments, self.n
        sums, targets = second[:-1, -1], cross[-1]
        if self.found.last.bias is not None:
            about = second[:-1, :-1] - torch.outer(sums, sums) / n, cross[:-1] - torch.outer(sums, targets) / n
            return *about, n - targets.square().sum() / n
        c = self.centre
        lifted = second[:-1, :-1] + torch.outer(sums, c) + torch.outer(c, sums) + n * torch.outer(c, c)
        return lifted, cross[:-1] + torch.outer(c, targets), torch.tensor(float(n)).to(c)
