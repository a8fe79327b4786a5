"""The global minimum of a two-layer ReLU network, as a convex program.

Where every activation pattern of a neuron can be listed, in the plane and for a few linearly independent points,
the regularised square loss of a wide enough two-layer ReLU network is a convex program over those patterns
(Pilanci and Ergen 2020). A conic solver gives its true minimum, against which a gradient flow can be judged.
Needs CVXPY (``pip install cvxpy``).
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from ..data import Data
from .relu import Array

MOST_POINTS = 10  # in general position: the program has 2^N patterns


class ConvexOptimum(NamedTuple):
    """Global minimum: the loss, ρ = Σ‖v_i‖ + ‖u_i‖, and the outputs f_W(x_n)."""

    loss: float
    rho: float
    outputs: Array


def activation_patterns(x: Array) -> Array:
    """Every pattern 1[x_n·w > 0] that a neuron w can show, (P, N) of bool.

    In the plane P ≤ 2N: turning w by a full circle crosses the line of each point twice; between crossings the
    pattern is constant. Linearly independent points allow every pattern, P = 2^N, as x_n·w can be prescribed.

    Parameters
    ----------
    x : (N, 2), or (N, d) of rank N ≤ 10
        Points, none at the origin.

    Raises
    ------
    ValueError
        If the points are neither in the plane nor linearly independent, or too many.

    Examples
    --------
    >>> activation_patterns(np.array([[1.0, 0.0]])).astype(int)
    array([[0],
           [1]])
    >>> len(activation_patterns(np.eye(5)))
    32
    """
    x = np.asarray(x, dtype=np.float64)
    if x.ndim == 2 and x.shape[1] == 2:
        across = np.arctan2(x[:, 1], x[:, 0])[:, None] + np.array([np.pi / 2, -np.pi / 2])
        crossings = np.unique(np.mod(across.ravel(), 2 * np.pi))
        middle = (crossings + np.append(crossings[1:], crossings[0] + 2 * np.pi)) / 2
        return np.unique(np.stack([np.cos(middle), np.sin(middle)], 1) @ x.T > 0, axis=0)
    if x.ndim != 2 or len(x) > MOST_POINTS or np.linalg.matrix_rank(x) < len(x):
        raise ValueError(
            f"x has shape {x.shape}: patterns are listed in the plane and for at most {MOST_POINTS} linearly "
            "independent points; give points of shape (N, 2), or fewer of them"
        )
    return np.array(list(itertools.product([False, True], repeat=len(x))))


def convex_optimum(problem: Data, weight_decay: float, *, weight_decay_on: str = "rho") -> ConvexOptimum:
    """Global minimum of the two-layer ReLU network's regularised square loss, where all patterns can be listed.

    With the patterns D_i, minimise over v_i, u_i with (2D_i − 1) X v_i ≥ 0 and likewise u_i

        (1/N) ‖Σ_i D_i X (v_i − u_i) − y‖² + λ G²,   G = Σ_i ‖v_i‖ + ‖u_i‖,

    or + 2λG for weight decay λ(‖W_1‖² + ‖W_2‖²). A neuron (w, a) with a > 0 is v = a w, with a < 0 it is u = −a w;
    at fixed products |a|‖w‖ the norms are smallest when ‖w‖ ∝ |a| over neurons, where ρ = ‖W_1‖‖W_2‖ = G.

    Parameters
    ----------
    problem
        Two classes; inputs (N, 2), or at most ten linearly independent ones.
    weight_decay
        λ ≥ 0. At 0 the limit λ → 0 is returned: the network of least norm among those that fit the data.
    weight_decay_on
        ``"rho"`` for λρ² (the normalised model), ``"layers"`` for λΣ_k‖W_k‖² (the plain one).

    Returns
    -------
    ConvexOptimum

    Raises
    ------
    ValueError
        If the data are not of two classes, their patterns can't be listed, λ < 0, or `weight_decay_on` is neither
        word.
    RuntimeError
        If the solver fails; with λ = 0, if no network fits the data.
    ImportError
        If CVXPY is not installed.

    References
    ----------
    Pilanci and Ergen (2020); Chapters 2 and 5 of this book.

    Examples
    --------
    >>> from nclib.data import data
    >>> best = convex_optimum(data("teacher", n=4, d=2), weight_decay=0.1)
    >>> bool(0 < best.loss < 1)
    True
    """
    try:
        import cvxpy as cp
    except ImportError as error:
        raise ImportError("convex_optimum needs CVXPY; install it with: pip install cvxpy") from error
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay}: a decay cannot be negative; write a number >= 0, e.g. 1e-2")
    if weight_decay_on not in ("rho", "layers"):
        raise ValueError(f"weight_decay_on={weight_decay_on!r}: write 'rho' or 'layers'")
    if len(problem.classes) != 2:
        raise ValueError(f"problem has {len(problem.classes)} classes; the convex program is of two")
    x = problem.x.double().flatten(1).numpy(force=True)
    y = problem.y.double().numpy(force=True)
    patterns = activation_patterns(x).astype(float)
    # What of a neuron is orthogonal to all points only costs: it is enough to look at coordinates in their span.
    x = x @ np.linalg.qr(x.T).Q
    v, u = (cp.Variable((len(patterns), x.shape[1])) for _ in range(2))
    constraints = [cp.multiply(2 * patterns - 1, part @ x.T) >= 0 for part in (v, u)]
    outputs: Any = cp.sum(cp.multiply(patterns, (v - u) @ x.T), axis=0)
    norm: Any = cp.sum(cp.norm2(v, axis=1)) + cp.sum(cp.norm2(u, axis=1))
    if weight_decay == 0:
        program = cp.Problem(cp.Minimize(norm), [*constraints, outputs == y])
    else:
        penalty = cp.square(norm) if weight_decay_on == "rho" else 2 * norm
        fit = cp.sum_squares(outputs - y) / len(y)
        program = cp.Problem(cp.Minimize(fit + weight_decay * penalty), constraints)
    program.solve(solver=cp.CLARABEL)
    if program.status != "optimal":
        raise RuntimeError(
            f"the conic solver ended with status {program.status!r}; scale the data to unit norm"
            + (", or give a positive weight_decay, as no network may fit them" if weight_decay == 0 else "")
        )
    loss = 0.0 if weight_decay == 0 else float(program.value)
    return ConvexOptimum(loss, float(norm.value), np.asarray(outputs.value))
