"""What is recorded of networks in training: loss, errors, norms and margins, exactly and for many at once.

Everything is measured in evaluation mode with BN's statistics exact over the training set, of the folded
network, with reductions in float64: the numbers are those of `nclib.networks.readings` on each network by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..networks.models import Architecture, Net
from ..networks.normalisation import calibrate, folded_weights
from ..networks.readings import raw_margins, stable_ranks
from .ensemble import Ensemble, widths
from .optim import mean_loss

__all__ = ["GROUPS", "check_measures", "measure"]

GROUPS = ("loss", "test", "norms", "margins", "stable_rank", "collapse")
"""Every name that `measure=` of `nclib.train` knows."""

Function = Callable[[Net], Mapping[str, float]]
Columns = dict[str, Tensor]  # each (M,) float64

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Numbers in the activations of one member, or of all, above which members are measured one by one; measured.
_LARGE_ONE, _LARGE_ALL = 2**18, 2**25
_CHUNK = 1024


def check_measures(
    measures: str | Sequence[str | Function] | None, arch: Architecture
) -> tuple[str | Function, ...]:
    """The measures to take: those asked for, or the default ones that this architecture has."""
    if measures is None:
        return ("loss", "test", "norms", "margins") if arch.homogeneous else ("loss", "test", "norms")
    chosen = (measures,) if isinstance(measures, str) or callable(measures) else tuple(measures)
    for name in chosen:
        if not callable(name) and name not in GROUPS:
            options = ", ".join(map(repr, GROUPS))
            raise ValueError(f"measure={name!r}: unknown; write one of {options}, or a function of a network")
    if "margins" in chosen and not arch.homogeneous:
        raise ValueError(
            f"measure='margins': {type(arch).__name__} has no rho to normalise them by (skip connections); "
            "leave 'margins' out"
        )
    return chosen


@torch.no_grad()
def measure(
    ensemble: Ensemble, x_test: Tensor, y_test: Tensor, measures: Sequence[str | Function]
) -> tuple[Tensor, Columns]:
    """Measure every member of an ensemble on its training set and on a test set.

    Parameters
    ----------
    ensemble : M networks.
    x_test, y_test : test inputs (n, ...) and targets (n, K); n may be 0.
    measures : names of `GROUPS`, or functions that take a network in evaluation mode, calibrated, and
        return numbers by name.

    Returns
    -------
    finite : (M,), whether the member's loss is.
    columns : column name to (M,) float64; NaN for a member whose loss is not finite.
    """
    names = [m for m in measures if isinstance(m, str)]
    functions = [m for m in measures if not isinstance(m, str)]
    size = ensemble.n * widths(ensemble.net)
    large = size > _LARGE_ONE or size * ensemble.members > _LARGE_ALL
    if not ensemble.stack or functions or "collapse" in names or large:
        rows = [_measure_one(ensemble, i, x_test, y_test, names, functions) for i in range(ensemble.members)]
        missing = torch.full((1,), torch.nan, dtype=torch.float64, device=ensemble.x.device)
        names_of = dict.fromkeys(name for row in rows for name in row)
        columns = {name: torch.cat([row.get(name, missing) for row in rows]) for name in names_of}
    else:
        f, f_test, folded = ensemble.stack.evaluate(ensemble.x, x_test.flatten(1))
        targets = (ensemble.y, y_test)
        columns = _summary(ensemble, slice(None), (f, f_test), targets, folded, names)
    return columns.pop("_fit").isfinite(), columns


def _measure_one(
    ensemble: Ensemble,
    member: int,
    x_test: Tensor,
    y_test: Tensor,
    names: Sequence[str],
    functions: Sequence[Function],
) -> Columns:
    net = ensemble.member(member)
    x, y = ensemble.x, ensemble.y if ensemble.y.dim() == 2 else ensemble.y[member]
    f = calibrate(net, x).view(1, len(x), -1)
    net.eval()
    f_test = f.new_empty(1, 0, f.shape[2])
    if "test" in names and len(x_test):
        f_test = torch.cat([net(part) for part in torch.split(x_test, _CHUNK)]).view(1, len(x_test), -1)
    finite = _is_finite(net, f)
    if finite:
        folded = [w.unsqueeze(0) for w in folded_weights(net)]
    else:  # a network that has diverged under BN cannot be folded
        f, folded = f * torch.nan, [f.new_full((1, 1, 1), torch.nan, dtype=torch.float64) for _ in net.layers]
    columns = _summary(ensemble, slice(member, member + 1), (f, f_test), (y, y_test), folded, names)
    if "collapse" in names:
        columns |= _collapse(net, x, y, finite)
    for function in functions if finite else ():
        columns |= {k: f.new_tensor([float(v)], dtype=torch.float64) for k, v in function(net).items()}
    return columns


def _is_finite(net: Net, f: Tensor) -> bool:
    """Whether the outputs are, and the statistics behind them: an infinite variance makes outputs of 0."""
    statistics = [part for bn in net.norms for part in (bn.mean, bn.var)]
    return all(bool(part.isfinite().all()) for part in (f, *statistics))


def _summary(
    ensemble: Ensemble,
    members: slice,
    outputs: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    folded: list[Tensor],
    names: Sequence[str],
) -> Columns:
    """Columns from outputs (M, N, K), targets ([M,] N, K) and folded weights (M, ...), training and test."""
    f, f_test = (part.double() for part in outputs)
    y, y_test = (part.double() for part in targets)
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
    norms = torch.stack([torch.linalg.vector_norm(w.flatten(1), dim=1) for w in folded])
    rho = norms.log().sum(0).exp()
    if "norms" in names:
        if ensemble.net.arch.homogeneous:
            columns["rho"] = rho
        columns |= {f"rho_{k}": norm for k, norm in enumerate(norms, start=1)}
        if ensemble.norm == "bn":  # what weight decay acts on
            columns |= {
                f"weight_norm_{k}": torch.linalg.vector_norm(w[members].double().flatten(1), dim=1)
                for k, w in enumerate(ensemble.weights(), start=1)
            }
    if "margins" in names:
        columns |= _margin_columns(raw / rho.unsqueeze(1))
    if "stable_rank" in names:
        columns |= {f"stable_rank_{k}": stable_ranks(w) for k, w in enumerate(folded, start=1)}
    return {name: torch.where(fit.isfinite(), column, torch.nan) for name, column in columns.items()}


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
    several = y.shape[1] > 1
    found = collapse(features, labels, *((weight, head.bias) if several else ())) if finite else {}
    return {k: features.new_tensor([v], dtype=torch.float64) for k, v in found.items()}
