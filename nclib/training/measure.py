"""What is recorded of networks in training: loss, errors, norms and margins, exactly and for many at once.

Everything is measured in evaluation mode with BN's statistics exact over the training set, of the folded
network, with reductions in float64: the numbers are those of `nclib.networks.readings` on each network by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..networks.models import Net
from ..networks.normalisation import calibrated, folded_weights
from ..networks.readings import raw_margins, stable_ranks
from .ensemble import Ensemble, widths
from .optim import HYPER, mean_loss
from .runs import Function

Columns = dict[str, Tensor]  # each (M,) float64

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Numbers in the activations of one member, or of all, above which members are measured one by one; measured.
_LARGE_ONE, _LARGE_ALL = 2**18, 2**25
_CHUNK = 1024


@torch.no_grad()
def measure(ensemble: Ensemble) -> tuple[Tensor, Columns]:
    """Measure every member of an ensemble as its plan says, on its training set and on the test set.

    Returns whether each member's loss is finite, (M,), and the columns, NaN where it is not.
    """
    plan = ensemble.plan
    size = ensemble.n * widths(plan)
    large = size > _LARGE_ONE or size * ensemble.members > _LARGE_ALL
    one_by_one = "collapse" in plan.measures or any(callable(m) for m in plan.measures)
    if not ensemble.stack or one_by_one or large:
        rows = [_measure_one(ensemble, i) for i in range(ensemble.members)]
        missing = torch.full((1,), torch.nan, dtype=torch.float64, device=ensemble.x.device)
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: torch.cat([row.get(name, missing) for row in rows]) for name in names}
    else:
        f, f_test, folded = ensemble.stack.evaluate(ensemble.x, plan.data.x_test.flatten(1))
        columns = _summary(ensemble, slice(None), f, f_test, ensemble.y, folded)
    return columns.pop("_fit").isfinite(), columns


def _measure_one(ensemble: Ensemble, member: int) -> Columns:
    net, measures, x_test = ensemble.member(member), ensemble.plan.measures, ensemble.plan.data.x_test
    x, y = ensemble.x, ensemble.y if ensemble.y.dim() == 2 else ensemble.y[member]
    f = calibrated(net, x).view(1, len(x), -1)
    net.eval()
    f_test = f.new_empty(1, 0, f.shape[2])
    if "test" in measures and len(x_test):
        f_test = torch.cat([net(part) for part in torch.split(x_test, _CHUNK)]).view(1, len(x_test), -1)
    # The outputs, and the statistics behind them: an infinite variance makes outputs of 0.
    finite = all(bool(part.isfinite().all()) for part in (f, *(p for bn in net.norms for p in (bn.mean, bn.var))))
    if finite:
        folded = [w.unsqueeze(0) for w in folded_weights(net)]
    else:  # a network that has diverged under BN cannot be folded
        f, folded = f * torch.nan, [f.new_full((1, 1, 1), torch.nan, dtype=torch.float64) for _ in net.layers]
    columns = _summary(ensemble, slice(member, member + 1), f, f_test, y, folded)
    if "collapse" in measures:
        columns |= _collapse(net, x, y, finite)
    for function in measures:
        if callable(function) and finite:
            columns |= {k: f.new_tensor([v], dtype=torch.float64) for k, v in _own(function, net, columns).items()}
    return columns


_TAKEN = ("member", *HYPER, "epoch", "step", "status")


def _own(function: Function, net: Net, columns: Columns) -> dict[str, float]:
    """What a user's function measures, under names that the history has not."""
    found: Any = function(net)
    try:
        if not (isinstance(found, Mapping) and all(isinstance(name, str) for name in found)):
            raise TypeError
        numbers = {name: float(value) for name, value in found.items()}
    except (TypeError, ValueError, RuntimeError):
        expected = "expected numbers by name, e.g. {'norm': 1.0}"
        raise ValueError(f"measure={function!r}: returned {found!r}; {expected}") from None
    if taken := [name for name in numbers if name in columns or name in _TAKEN]:
        what = f"returned {taken[0]!r}, a column that the history has already"
        raise ValueError(f"measure={function!r}: {what}; call it e.g. {f'my_{taken[0]}'!r}")
    return numbers


def _summary(
    ensemble: Ensemble, members: slice, f: Tensor, f_test: Tensor, y: Tensor, folded: list[Tensor]
) -> Columns:
    """Columns from outputs (M, N, K) on training and test set, targets ([M,] N, K) and folded weights (M, ...)."""
    f, f_test, y, y_test = (part.double() for part in (f, f_test, y, ensemble.plan.y_test))
    names = ensemble.plan.measures
    opt, columns = ensemble.opt, dict[str, Tensor]()
    kind = "mse" if opt.loss == "square" else "cross_entropy"
    fit = mean_loss(f, y, opt.loss, opt.reduction)
    raw = raw_margins(f, y)
    columns["_fit"] = fit
    if "loss" in names:
        columns |= {"loss": fit + ensemble.penalty()[members], kind: fit, "error": _share_wrong(raw)}
    if "test" in names and len(y_test):
        columns[f"test_{kind}"] = mean_loss(f_test, y_test, opt.loss, opt.reduction)
        columns["test_error"] = _share_wrong(raw_margins(f_test, y_test))
    norms = _norms(folded)
    rho = norms.log().sum(0).exp()
    if "norms" in names:
        if ensemble.plan.arch.homogeneous:
            columns["rho"] = rho
        columns |= {f"rho_{k}": norm for k, norm in enumerate(norms, start=1)}
        if ensemble.norm == "bn":  # what weight decay acts on
            own = _norms([w[members].double() for w in ensemble.weights(ensemble.params)])
            columns |= {f"weight_norm_{k}": norm for k, norm in enumerate(own, start=1)}
    if "margins" in names:
        columns |= _margin_columns(raw / rho.unsqueeze(1))
    if "stable_rank" in names:
        columns |= {f"stable_rank_{k}": stable_ranks(w) for k, w in enumerate(folded, start=1)}
    return {name: torch.where(fit.isfinite(), column, torch.nan) for name, column in columns.items()}


def _norms(weights: list[Tensor]) -> Tensor:
    """(L, M) Frobenius norms of L blocks (M, ...)."""
    return torch.stack([torch.linalg.vector_norm(w.flatten(1), dim=1) for w in weights])


def _share_wrong(raw: Tensor) -> Tensor:
    return (raw <= 0).double().mean(1)


def _margin_columns(margins: Tensor) -> Columns:
    columns = {"margin_min": margins.amin(1), "margin_mean": margins.mean(1)}
    columns["margin_std"] = margins.std(1, correction=0)
    ordered = margins.sort(1).values
    for q in _QUANTILES:
        place = q * (ordered.shape[1] - 1)
        low, high = ordered[:, int(place)], ordered[:, min(int(place) + 1, ordered.shape[1] - 1)]
        columns[f"margin_q{round(100 * q):02d}"] = low + (high - low) * (place - int(place))
    return columns


def _collapse(net: Net, x: Tensor, y: Tensor, finite: bool) -> Columns:
    from ..collapse import collapse

    head = net.layers[-1]
    labels = (y[:, 0] < 0).long() if y.shape[1] == 1 else y.argmax(1)
    features = torch.cat([net.features(part) for part in torch.split(x, _CHUNK)])
    weight = head.matrix if net.scale is None else head.matrix * net.scale
    try:
        found = collapse(features, labels, weight if y.shape[1] > 1 else None) if finite else {}
    except ValueError as error:
        raise ValueError(f"measure='collapse': {error}") from error
    return {k: features.new_tensor([v], dtype=torch.float64) for k, v in found.items()}
