"""The absolute minimum of a problem, found by an optimiser: what a flow, or a closed form, can be judged against.

For two layers of ReLUs that is a conic solver, on a convex program over the patterns that a neuron can show; for
unconstrained features, whose closed form is `ufm_minimiser`, it is gradients alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import inputs
from ..data import Data
from ..inputs import Array, array, number
from .closed_forms import UFMinimiser, class_sizes, decay, features_dim
from .relu import arcs, circle

MOST_POINTS = 10  # in general position: the program has 2^N patterns
_CERTIFIED = 1e-6  # largest share of the loss by which it may exceed the bound from below
_ITERATIONS = 20_000
_RESTARTS = 5  # L-BFGS stops where the objective no longer changes in its last digit; started afresh, it may go on
_STATIONARY = 1e-6  # largest entry of the gradient at which a point counts as stationary


class ConvexOptimum(NamedTuple):
    """The global minimum of a two-layer network: its regularised loss, ρ = Σ‖v_i‖ + ‖u_i‖, and f_W(x_n), (N,)."""

    loss: float
    rho: float
    outputs: Array


def activation_patterns(x: Array) -> Array:
    """Every pattern 1[x_n·w > 0] that a neuron w can show, (P, N) of bool.

    In the plane P ≤ 2N: turning w by a full circle crosses the line of each point twice; between crossings the
    pattern is constant. Linearly independent points allow every pattern, P = 2^N, as x_n·w can be prescribed.
    """
    if x.ndim == 2 and x.shape[1] == 2:
        ends, widths = arcs(x)
        return np.unique(circle(ends + widths / 2) @ x.T > 0, axis=0)
    if x.ndim != 2 or len(x) > MOST_POINTS or np.linalg.matrix_rank(x) < len(x):
        known = f"patterns are listed in the plane and for at most {MOST_POINTS} linearly independent points"
        raise ValueError(f"x has shape {x.shape}: {known}; give points of shape (N, 2), or fewer of them")
    return np.array(list(itertools.product([False, True], repeat=len(x))))


def convex_optimum(problem: Data, weight_decay: float, *, weight_decay_on: str = "rho") -> ConvexOptimum:
    """Global minimum of the two-layer ReLU network's regularised square loss, where all patterns can be listed.

    With the patterns D_i, minimise over v_i, u_i with (2D_i − 1) X v_i ≥ 0 and likewise u_i

        (1/N) ‖Σ_i D_i X (v_i − u_i) − y‖² + λ G²,   G = Σ_i ‖v_i‖ + ‖u_i‖,

    or + 2λG for weight decay λ(‖W_1‖² + ‖W_2‖²). A neuron (w, a) with a > 0 is v = a w, with a < 0 it is u = −a w;
    at fixed products |a|‖w‖ the norms are smallest when ‖w‖ ∝ |a| over neurons, where ρ = ‖W_1‖‖W_2‖ = G.
    Pilanci and Ergen (2020); Chapters 3 and 9. Needs CVXPY (``pip install cvxpy``). Returns a `ConvexOptimum`.

    Parameters
    ----------
    problem
        Two classes; inputs (N, 2), or at most ten linearly independent ones.
    weight_decay
        λ ≥ 0. At 0 the limit λ → 0 is returned: the network of least norm among those that fit the data.
    weight_decay_on
        ``"rho"`` for λρ² (the normalised model), ``"layers"`` for λΣ_k‖W_k‖² (the plain one).

    Raises
    ------
    RuntimeError
        If the solver fails, or if its point is not the minimum to six digits: the loss (with λ = 0 the norm) is
        held against the bound from below that the dual gives. With λ = 0, if no network fits the data.
    ImportError
        Without CVXPY and its solver Clarabel.

    Examples
    --------
    >>> from nclib.data import data
    >>> best = convex_optimum(data("teacher", n=4, d=2), weight_decay=0.1)
    >>> bool(0 < best.loss < 1)
    True
    """
    lam = decay("weight_decay", weight_decay)
    power = 2 if inputs.choice("weight_decay_on", weight_decay_on, ("rho", "layers")) == "rho" else 1
    inputs.instance("problem", problem, Data, "nc.from_arrays(x, y)")
    if len(problem.classes) != 2:
        raise ValueError(f"problem has {len(problem.classes)} classes; the convex program is of two")
    x, y = array("problem.x", problem.x.flatten(1)), array("problem.y", problem.y)
    patterns = activation_patterns(x).astype(float)
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("convex_optimum needs CVXPY; install it with: pip install cvxpy") from error
    if cp.CLARABEL not in cp.installed_solvers():
        raise ImportError("convex_optimum needs the solver Clarabel; install it with: pip install clarabel")
    # In units of the largest input; what of a neuron is orthogonal to all points only costs.
    largest = np.abs(x).max() or 1.0
    unit = float(np.linalg.norm(x / largest, axis=1).max() * largest) or 1.0
    x = x / unit
    x = x @ np.linalg.qr(x.T).Q
    lam = lam / unit if power == 1 else lam / unit / unit
    if power == 1 and lam >= 1:  # a neuron earns at most its norm
        return ConvexOptimum(1.0, 0.0, np.zeros(len(y)))
    if not (weight_decay == 0 or 1e-14 < lam < 1e14):
        beyond = f"weight_decay={weight_decay} with inputs of norm {unit:.3g} is beyond the solver's digits"
        raise ValueError(f"{beyond}; write 0 for the limit, or inputs of norm 1 and a decay in [1e-12, 1e12]")
    v, u = (cp.Variable((len(patterns), x.shape[1])) for _ in range(2))
    cones = [cp.multiply(2 * patterns - 1, part @ x.T) >= 0 for part in (v, u)]
    norm: Any = cp.sum(cp.norm2(v, axis=1)) + cp.sum(cp.norm2(u, axis=1))
    # Scaled so that all numbers are of order one whatever λ: the residual is √λ times `rest`, or f is λ times that.
    rest = cp.Variable(len(y))
    goal = (cp.square(norm) if power == 2 else 2 * norm) + cp.sum_squares(rest) / len(y)
    fitted = y + np.sqrt(lam) * rest
    if lam >= 1:
        fitted = np.sqrt(lam) * rest
        goal -= 2 * (fitted @ y) / len(y)
    equal = cp.sum(cp.multiply(patterns, (v - u) @ x.T), axis=0) == fitted
    program = cp.Problem(cp.Minimize(goal), [*cones, equal])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is in the status
            program.solve(solver=cp.CLARABEL)
        status = str(program.status)
    except cp.SolverError as error:
        status = str(error)
    if status not in ("optimal", "optimal_inaccurate"):  # which of the two does not matter: the dual judges below
        fit = ", or give a positive weight_decay, as no network may fit them" if lam == 0 else ""
        raise RuntimeError(f"the conic solver ended with status {status!r}; move close points apart{fit}")

    # From above: the network itself, of the best norm. From below: the dual of the program, at the solver's prices.
    outputs = np.maximum(x @ v.value.T, 0).sum(1) - np.maximum(x @ u.value.T, 0).sum(1)
    rho = float(norm.value)
    z, pull = equal.dual_value, (patterns * equal.dual_value) @ x
    pushes = [(np.maximum(cone.dual_value, 0) * (2 * patterns - 1)) @ x for cone in cones]
    most = max(
        float(np.linalg.norm(s * pull - push, axis=1).max()) for s, push in zip((1, -1), pushes, strict=True)
    )
    earned, size = max(0.0, -float(z @ y)), len(y) * float(z @ z)
    if lam == 0:
        loss, found, below = 0.0, rho, earned / most
        fits = float(np.abs(outputs - y).max()) < _CERTIFIED
    else:
        squares = float(outputs @ outputs) + (lam * len(y) * rho**2 if power == 2 else 0)
        share = max(0.0, float(outputs @ y) - (lam * len(y) * rho if power == 1 else 0)) / (squares or 1)
        rho, outputs, fits = share * rho, share * outputs, True
        loss = found = float(((outputs - y) ** 2).mean()) + lam * (rho**2 if power == 2 else 2 * rho)
        if power == 2:
            below = lam * earned**2 / (most**2 + lam * size)
        else:
            step = min(lam / most, earned / size)
            below = 2 * step * earned - step**2 * size
    if not (fits and found - below <= _CERTIFIED * found):
        gap = f"not the minimum to six digits (duality gap {found - below:.2g} of {found:.2g})"
        raise RuntimeError(f"the solver's point is {gap}; move close points apart, or give a larger weight_decay")
    return ConvexOptimum(loss, rho / unit, outputs)


def ufm_descent(
    classes: int,
    per_class: int | Sequence[int],
    weight_decay_w: float,
    weight_decay_h: float,
    *,
    bias: bool = True,
    relu: bool = False,
    dim: int | None = None,
    seed: int = 0,
    init: float = 1.0,
) -> UFMinimiser:
    """Minimise the unconstrained-features model by gradients, from a random start (Chapter 10).

    Quasi-Newton steps (SciPy's L-BFGS-B) go down the objective of `ufm_minimiser`, and the result has its form.
    Nothing of the solution is built in: the start is Gaussian, and the steps see gradients only.

    Parameters
    ----------
    classes, per_class, bias
        As in `ufm_minimiser`.
    weight_decay_w, weight_decay_h
        λ_W, λ_H ≥ 0. At 0 minimisers are not unique, and the start decides which is found.
    relu
        Keep all features ≥ 0, as the last ReLU of a network does.
    dim
        Dimension of the features; K when left out.
    seed, init
        Of the start, and the standard deviation of its entries.

    Raises
    ------
    RuntimeError
        If the optimiser stopped before it reached a stationary point.

    Examples
    --------
    >>> from nclib.theory.closed_forms import ufm_minimiser
    >>> found, best = ufm_descent(3, 5, 0.02, 0.001), ufm_minimiser(3, 5, 0.02, 0.001)
    >>> bool(abs(found.loss - best.loss) < 1e-12)
    True
    """
    from scipy.optimize import minimize

    sizes, bias, relu = class_sizes(classes, per_class), inputs.flag("bias", bias), inputs.flag("relu", relu)
    classes, dim = len(sizes), features_dim(dim, sizes, 1)
    lam_w, lam_h = decay("weight_decay_w", weight_decay_w), decay("weight_decay_h", weight_decay_h)
    init = number("init", init, "a standard deviation, a number >= 0", lambda v: v >= 0)
    labels = np.repeat(np.arange(classes, dtype=np.int64), sizes)
    targets = np.eye(classes)[labels]
    ends = [classes * dim, (classes + len(labels)) * dim]

    def parts(flat: Array) -> tuple[Array, Array, Array]:
        weight, features, shift = np.split(flat, ends)
        return weight.reshape(classes, dim), features.reshape(-1, dim), shift

    def objective(flat: Array) -> tuple[float, Array]:
        weight, features, shift = parts(flat)
        residual = features @ weight.T + shift - targets
        value = (residual**2).sum() / (2 * len(labels))
        value += lam_w / 2 * (weight**2).sum() + lam_h / 2 * (features**2).sum()
        residual /= len(labels)
        to_w, to_h = residual.T @ features + lam_w * weight, residual @ weight + lam_h * features
        return float(value), np.concatenate([to_w.ravel(), to_h.ravel(), bias * residual.sum(0)])

    start = init * np.random.default_rng(inputs.seed("seed", seed)).standard_normal(ends[1] + classes)
    start[ends[1] :] *= bias
    lowest = np.full(len(start), -np.inf)
    if relu:
        start[ends[0] : ends[1]] = np.abs(start[ends[0] : ends[1]])
        lowest[ends[0] : ends[1]] = 0.0
    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12}
    bounds = np.column_stack([lowest, np.full(len(start), np.inf)]) if relu else None
    for _ in range(_RESTARTS):
        with np.errstate(over="ignore", invalid="ignore"):
            result: Any = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        start = result.x
        # At its bound a feature may be pushed outwards; that is no slope it could follow.
        slope = float(np.abs(np.where((start <= lowest) & (result.jac > 0), 0.0, result.jac)).max())
        if slope <= _STATIONARY:
            break
    else:
        stopped = f"the optimiser stopped where the gradient is still {slope:.1g} ({result.message})"
        raise RuntimeError(f"{stopped}; try another seed or a smaller init")
    weight, features, shift = parts(result.x)
    mean_norms = [np.linalg.norm(features[labels == c].mean(0)) for c in range(classes)]
    values = np.linalg.svd(features @ weight.T, compute_uv=False)[: classes - bias].astype(np.float64)
    return UFMinimiser(values, weight, features, shift, labels, np.array(mean_norms), float(result.fun))
