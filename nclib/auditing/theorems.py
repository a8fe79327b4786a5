"""Which theorem of the book says what of a model: readings beside predictions, or why there is none."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from ..book.claims import finite
from ..networks.readings import rows_less_columns, stable_ranks
from ..theory.bounds import margin_bound_over_grid
from .report import APART, FAILS, HOLDS, UNTESTED, Reading
from .tape import Layer, Structure

if TYPE_CHECKING:
    from . import Sums

_NEAR = 0.02  # how far a reading may be from what is predicted at rest, relative, and still hold
_SLOPE = "gradient with weight decay over that without; kinks of ReLUs keep it above 0"
_FITTED = 1e-3  # mean square error below which data count as fitted


def readings(sums: Sums, lam: float | None, eta: float | None, beta: float) -> list[Reading]:
    """All of them, in the order of the report."""
    return [
        *_network(sums),
        *_fit(sums),
        *_rest(sums, lam),
        *_steps(sums.found, lam, eta, beta),
        *_collapse(sums),
        *_bound(sums),
    ]


def layer_rows(found: Structure, eta: float | None) -> list[dict[str, Any]]:
    """What is told of each layer."""
    rows = []
    for layer in found.layers:
        row: dict[str, Any] = {"layer": layer.name or "(in the model)", "kind": layer.kind}
        row |= {
            "shape": "×".join(map(str, layer.weight.shape)),
            "norm": finite(layer.norm),
            "length": finite(layer.length),
        }
        row["stable_rank"] = finite(float(stable_ranks(layer.weight[None])[0]))
        row["batch_norm"] = "folded" if layer.folded else "not folded" if layer.normalised else ""
        if eta is not None:
            row["effective_rate"] = finite(eta / layer.length**2) if layer.normalised and layer.length else None
        rows.append(row)
    return rows


def findings(found: Structure) -> list[str]:
    """What the model is, and what keeps it from being a homogeneous chain of layers, in words."""
    folded = sum(layer.folded for layer in found.layers)
    norms = f"; {folded} of {found.normalised} batch norms folded" if found.normalised else ""
    said = [f"{len(found.layers)} layers, {found.depth} on the longest way{norms}", *found.findings]
    said += [f"batch norm not folded: {reason}" for reason in found.unfolded[:5]]
    if len(found.unfolded) > 5:
        said.append(f"and {len(found.unfolded) - 5} more batch norms not folded")
    if found.biased:
        said.append("biases" + (", as folding leaves them" if folded else ""))
    if found.dead:
        said.append(f"{found.dead} channels whose variance is below batch norm's ε: folding makes their rows long")
    return said


def _network(sums: Sums) -> list[Reading]:
    found, rho = sums.found, sums.rho
    exact = found.homogeneous
    held = HOLDS if found.departure < 1e-3 else FAILS
    what = "of f(cW) from 2f(W), c^L = 2"
    note = what if exact else f"{what}; {_why(found)}"
    if math.isnan(rho):
        norm = Reading("network", "rho", rho, None, APART, "thm-homogeneity", f"no product of norms: {_why(found)}")
    else:
        norm = Reading("network", "rho", rho, note="of the weights; biases do not count" if found.biased else "")
    return [
        Reading("network", "depth", float(found.depth)),
        Reading(
            "network", "departure", found.departure, 0.0 if exact else None, held if exact else APART,
            "thm-homogeneity", note,
        ),
        norm,
    ]  # fmt: skip


def _why(found: Structure) -> str:
    """What keeps the model from being homogeneous, shortly."""
    reasons = [reason.partition(" (")[0] for reason in found.findings]
    reasons += ["batch norm that cannot be folded"] * bool(found.unfolded) + ["biases"] * found.biased
    return ", ".join(reasons) or "no layers in a chain"


def _fit(sums: Sums) -> list[Reading]:
    told = [
        Reading("fit", "error", sums.mean("error")),
        Reading("fit", "mse", sums.mean("square")),
        Reading("fit", "cross_entropy", sums.mean("cross_entropy")),
    ]
    raw = np.asarray(sums.margins)
    margins = sums.normalised_margins
    note = "" if margins is not raw else "in units of the outputs: the model has no ρ"
    with np.errstate(over="ignore"):  # what overflows is missing in the report
        deviation = float(margins.std())
    told += [
        Reading("fit", "margin_min", float(margins.min()), note=note),
        Reading("fit", "margin_mean", float(margins.mean())),
        Reading("fit", "margin_std", deviation),
    ]
    told += [Reading("fit", f"margin_q{q:02d}", float(np.quantile(margins, q / 100))) for q in (5, 25, 50, 75, 95)]
    fitted = sums.mean("square") < _FITTED
    value = float(raw.mean())
    if fitted:
        verdict, note = _near(value, 1.0), "ρ times the mean margin, where the data are fitted"
    else:
        verdict, note = APART, f"the data are not fitted: mean square {sums.mean('square'):.2g}"
    told.append(
        Reading("fit", "rho_margin", value, 1.0 if fitted else None, verdict, "thm-interpolant-margin", note)
    )
    return told


def _rest(sums: Sums, lam: float | None) -> list[Reading]:
    """What holds where training has come to rest under weight decay."""
    names = {
        "stationarity": "", "rest_norms": "thm-two-rests", "last_norm": "thm-two-rests",
        "ridge_distance": "thm-last-layer", "balance": "thm-balance", "neuron_balance": "thm-conservation",
    }  # fmt: skip
    found = sums.found
    plain = found.homogeneous and not found.normalised
    spread, neurons = _balance(found), _neurons(found)
    values = {"balance": spread, "neuron_balance": neurons}
    if lam is None or sums.loss is None:
        why = "give weight_decay and loss"
    elif lam == 0:
        why = "without weight decay nothing is predicted of the end"
    else:
        why = ""
    if why:
        return [Reading("rest", n, values.get(n, math.nan), None, UNTESTED, t, why) for n, t in names.items()]
    assert lam is not None
    slope = math.nan if sums.slope is None else sums.slope
    far = f"; perhaps not at rest: stationarity {slope:.2g}"
    apart = (
        f"not a homogeneous chain: {_why(found)}"
        if not found.homogeneous
        else "layers before batch norm never rest"
    )
    told = [
        Reading(
            "rest",
            "stationarity",
            slope,
            note="gradient with weight decay over that without; kinks keep it above 0",
        )
    ]

    def row(name: str, value: float, predicted: float, verdict: str, note: str) -> None:
        told.append(
            Reading("rest", name, value, predicted, verdict, names[name], note + (far if verdict == FAILS else ""))
        )

    def not_here(name: str, note: str) -> None:
        told.append(Reading("rest", name, values.get(name, math.nan), None, APART, names[name], note))

    pull = sums.mean("pull") / 2
    if plain and pull > 0:
        off = max(abs(lam * layer.norm**2 / pull - 1) for layer in found.layers)
        row("rest_norms", off, 0.0, _within(off), "largest deviation of λρ_k² from −⟨f·ℓ′⟩/2")
    else:
        not_here("rest_norms", apart if not plain else "the outputs do not pull the weights outwards")
    last, pull = found.last, sums.mean("last_pull") / 2
    if last is not None and pull > 0:
        value = lam * last.length**2
        row("last_norm", value, pull, _near(value, pull), "λ‖W‖² of the last layer, whatever lies before it")
    else:
        not_here("last_norm", "no linear layer makes the outputs" if last is None else "the outputs do not pull it")
    if sums.loss != "square":
        not_here("ridge_distance", "the loss is not the square loss")
    elif (apart_by := sums.off_ridge(lam)) is None:
        not_here("ridge_distance", sums.lost or "there are too many features")
    else:
        row(
            "ridge_distance",
            apart_by,
            0.0,
            _within(apart_by),
            "of the last layer from the ridge classifier of its features",
        )
    for name, value, what in (
        ("balance", spread, "standard deviation of the layers' norms over their mean"),
        ("neuron_balance", neurons, "largest |row² − column²| of a neuron over the mean of row²"),
    ):
        if plain and math.isfinite(value):
            row(name, value, 0.0, _within(value), what)
        else:
            not_here(name, apart if not plain else "there is one layer")
    return told


def _steps(found: Structure, lam: float | None, eta: float | None, beta: float) -> list[Reading]:
    """What is predicted of the steps that SGD takes."""
    label = "thm-turning-angle"
    if not any(layer.normalised for layer in found.layers):
        return [Reading("steps", "turning_angle", math.nan, None, APART, label, "no layer is before batch norm")]
    if not lam or eta is None:
        return [Reading("steps", "turning_angle", math.nan, None, UNTESTED, label, "give weight_decay and lr")]
    predicted = math.sqrt(4 * eta * lam / (1 + beta))
    note = "radians per step of a layer before batch norm, once its length has settled; Watch measures it"
    return [Reading("steps", "turning_angle", math.nan, predicted, UNTESTED, label, note)]


def _collapse(sums: Sums) -> list[Reading]:
    if not sums.collapsed:
        why = sums.lost
        return [
            Reading("collapse", name, math.nan, None, UNTESTED, "", why) for name in ("nc1", "nc2_etf_means", "nc3")
        ]
    told = [Reading("collapse", name, value) for name, value in sums.collapsed.items()]
    least = sums.least_squares()
    note = "mean square that the best linear classifier of these features would leave"
    return [*told, Reading("collapse", "mse_least_squares", math.nan if least is None else least, note=note)]


def _bound(sums: Sums) -> list[Reading]:
    found, label = sums.found, "thm-margin-bound"
    dense = all(layer.kind == "linear" for layer in found.layers) and not found.pooled
    if not (found.homogeneous and dense and sums.rho > 0 and sums.radius > 0):
        why = _why(found) if not found.homogeneous else "convolutions or pooling: their patches have to be said"
        return [Reading("bound", "margin_bound", math.nan, None, APART, label, why)]
    outputs, margins = sums.coding.outputs, sums.normalised_margins
    if outputs == 2:  # the difference of two outputs is one output, of a last layer up to √2 as long
        margins = margins / math.sqrt(2)
    elif outputs > 2:
        label = "thm-many-margin"
    bound = margin_bound_over_grid(margins, found.depth, sums.radius, classes=sums.coding.classes)
    parts = f"{bound.ramp_loss:.3g} + {bound.complexity:.3g} + {bound.confidence:.3g} at γ = {bound.gamma:.3g}"
    said = "vacuous" if bound.vacuous else "of the true error, with probability 0.95"
    return [Reading("bound", "margin_bound", bound.total, None, "", label, f"{said}: {parts}")]


def _near(value: float, predicted: float) -> str:
    return HOLDS if abs(value - predicted) <= _NEAR * abs(predicted) else FAILS


def _within(value: float) -> str:
    return HOLDS if value <= _NEAR else FAILS


def _balance(found: Structure) -> float:
    norms = np.array([layer.norm for layer in found.layers])
    return float(norms.std() / norms.mean()) if len(norms) > 1 and norms.mean() else math.nan


def _neurons(found: Structure) -> float:
    """Rows of each layer against the columns of the next, in a chain."""
    if not found.chain or len(found.layers) < 2:
        return math.nan
    worst = 0.0
    for one, two in pairwise(found.layers):
        if not _follows(one, two):
            return math.nan
        squares = one.weight.square()
        apart = rows_less_columns(squares, two.weight.square()).abs().max()
        worst = max(worst, float(apart / squares.sum() * len(squares)))
    return worst


def _follows(one: Layer, two: Layer) -> bool:
    """Whether column i of the second layer is what it reads of neuron or channel i of the first."""
    straight = not any("transpose" in layer.kind or layer.groups > 1 for layer in (one, two))
    return straight and two.weight[0].numel() % len(one.weight) == 0
