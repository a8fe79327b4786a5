"""The unconstrained-features model, minimised by brute force: what an optimiser finds from a random start.

The closed form that it is compared with is `nclib.theory.closed_forms.ufm_minimiser`. Chapter 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .closed_forms import Array, UFMinimiser, class_sizes

_ITERATIONS = 20_000
# L-BFGS stops where the objective no longer changes in its last digit; started afresh from there, it may go on.
_RESTARTS = 5
# Largest entry of the gradient at which a point counts as stationary.
_STATIONARY = 1e-6


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
    """Minimise the unconstrained-features model by gradients, from a random start.

    With features as rows hₙ, one-hot Y and N points in all, quasi-Newton steps (L-BFGS) down

        (1/2N) ‖H Wᵀ + 1 bᵀ − Y‖² + (λ_W/2) ‖W‖² + (λ_H/2) ‖H‖².

    Nothing of the solution is built in: the start is Gaussian, and the steps see gradients only.

    Parameters
    ----------
    classes : int
        K ≥ 2.
    per_class : int or sequence of int
        n ≥ 1, points per class: one number for all classes, or K of them.
    weight_decay_w, weight_decay_h : float
        λ_W, λ_H ≥ 0. At 0 minimisers are not unique, and the start decides which is found.
    bias : bool
        Whether there is a bias b.
    relu : bool
        Keep all features ≥ 0, as the last ReLU of a network does.
    dim : int, optional
        Dimension of the features; K when left out.
    seed : int
        Of the start.
    init : float
        Standard deviation of the entries of the start.

    Returns
    -------
    UFMinimiser
        The stationary point that was found, in the form of `ufm_minimiser`.

    Raises
    ------
    ValueError
        If a size is too small or a weight decay negative.
    RuntimeError
        If the optimiser stopped before it reached a stationary point.

    Examples
    --------
    >>> from nclib.theory.closed_forms import ufm_minimiser
    >>> found, best = ufm_descent(3, 5, 0.02, 0.001), ufm_minimiser(3, 5, 0.02, 0.001)
    >>> bool(abs(found.loss - best.loss) < 1e-12)
    True

    Notes
    -----
    SciPy's L-BFGS-B, which also keeps features ≥ 0 where that is asked for. Chapter 6.
    """
    from scipy.optimize import minimize

    sizes = class_sizes(classes, per_class)
    for name, value in (("weight_decay_w", weight_decay_w), ("weight_decay_h", weight_decay_h)):
        if not value >= 0:
            raise ValueError(f"{name}={value}: a decay cannot be negative; write a number ≥ 0, e.g. 1e-3")
    dim = classes if dim is None else dim
    if dim < 1:
        raise ValueError(f"dim={dim}: features need a dimension; write dim ≥ 1")
    labels = np.repeat(np.arange(classes, dtype=np.int64), sizes)
    targets = np.eye(classes)[labels]
    ends = [classes * dim, (classes + len(labels)) * dim]

    def parts(flat: Array) -> tuple[Array, Array, Array]:
        weight, features, shift = np.split(flat, ends)
        return weight.reshape(classes, dim), features.reshape(-1, dim), shift

    def objective(flat: Array) -> tuple[float, Array]:
        value, slopes = _objective(*parts(flat), targets, weight_decay_w, weight_decay_h)
        slopes[2][:] *= bias
        return value, np.concatenate([slope.ravel() for slope in slopes])

    start = init * np.random.default_rng(seed).standard_normal(ends[1] + classes)
    start[ends[1] :] *= bias
    lowest = np.full(len(start), -np.inf)
    if relu:
        start[ends[0] : ends[1]] = np.abs(start[ends[0] : ends[1]])
        lowest[ends[0] : ends[1]] = 0.0
    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12}
    bounds = np.column_stack([lowest, np.full(len(start), np.inf)]) if relu else None
    for _ in range(_RESTARTS):
        result: Any = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        start = result.x
        # At its bound a feature may be pushed outwards; that is no slope it could follow.
        slope = float(np.abs(np.where((start <= lowest) & (result.jac > 0), 0.0, result.jac)).max())
        if slope <= _STATIONARY:
            break
    else:
        raise RuntimeError(
            f"the optimiser stopped where the gradient is still {slope:.1g} ({result.message}); "
            "try another seed or a smaller init"
        )
    weight, features, shift = parts(result.x)
    means = np.stack([features[labels == c].mean(0) for c in range(classes)])
    rank = classes - 1 if bias else classes
    values = np.linalg.svd(features @ weight.T, compute_uv=False).astype(np.float64)
    return UFMinimiser(
        values[:rank], weight, features, shift, labels, np.linalg.norm(means, axis=1), float(result.fun)
    )


def _objective(
    weight: Array, features: Array, shift: Array, targets: Array, decay_w: float, decay_h: float
) -> tuple[float, tuple[Array, Array, Array]]:
    """The model's objective and its gradient in weight, features and bias."""
    residual = features @ weight.T + shift - targets
    value = (residual**2).sum() / (2 * len(features))
    value += decay_w / 2 * (weight**2).sum() + decay_h / 2 * (features**2).sum()
    residual /= len(features)
    slopes = residual.T @ features + decay_w * weight, residual @ weight + decay_h * features, residual.sum(0)
    return float(value), slopes
