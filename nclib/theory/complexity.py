"""Rademacher complexities that are measured, not bounded: exact where a formula is known, from below elsewhere.

The class is that of `nclib.theory.bounds`: bias-free networks f_V with ‖V_k‖_F ≤ 1 in every layer. For one row of
signs ε both functions look for

    sup_V (1/N) Σₙ εₙ f_V(xₙ),

the best correlation of the class with these coin flips; its mean over random signs is the empirical Rademacher
complexity R_N. Chapter 3.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.func import functional_call, vmap

from ..networks.models import Architecture

Array = NDArray[np.float64]


def rademacher_exact(x: ArrayLike | Tensor, signs: ArrayLike, depth: int) -> Array:
    r"""Best correlation of a network of unit norms with given signs, exactly, for one layer or two.

    One layer: $\frac1N\lVert\sum_nε_nx_n\rVert$. Two layers, whatever the width: that of the best single unit,
    $\frac1N\max_{\lVert w\rVert=1}|\sum_nε_n\,\mathrm{relu}(w\cdot x_n)|$, for inputs in the plane. Between two
    directions w in which a point switches on or off, the sum is linear in w, so that its extremes over an arc
    lie in the direction of the arc's gradient or at the arc's ends; all of them are tried.

    Parameters
    ----------
    x : (N, d)
        Inputs, none of them 0; d = 2 for two layers.
    signs : (draws, N)
        Rows of ±1. With all 2^N of them the mean of the result is $\mathcal R_N$ itself.
    depth : int
        1 or 2.

    Returns
    -------
    (draws,) array
        The supremum for each row of signs.

    Raises
    ------
    ValueError
        If no formula is known for the depth and dimension, or the shapes do not fit.

    Examples
    --------
    >>> x = np.eye(4)
    >>> rademacher_exact(x, [[1, -1, 1, 1]], depth=1)
    array([0.5])
    >>> rademacher_exact([[1.0, 0.0], [-1.0, 0.0]], [[1, -1]], depth=2)
    array([0.5])

    Notes
    -----
    That one unit carries the supremum is the first step of Golowich, Rakhlin & Shamir (2018). Chapter 3.
    """
    x, signs = _inputs(x), _signs(signs, len(x))
    if x.ndim != 2 or depth not in (1, 2) or (depth == 2 and x.shape[1] != 2):
        raise ValueError(
            f"depth={depth} with x of shape {x.shape}: a formula is known for depth=1, and for depth=2 in the "
            "plane; write x of shape (N, 2), or use rademacher_ascent"
        )
    if depth == 1:
        return np.asarray(np.linalg.norm(signs @ x, axis=1) / len(x))
    angles = np.arctan2(x[:, 1], x[:, 0])
    ends = np.unique(np.mod(np.concatenate([angles + np.pi / 2, angles - np.pi / 2]), 2 * np.pi))
    widths = np.diff(ends, append=ends[0] + 2 * np.pi)  # an arc begins at each end
    active = _directions(ends + widths / 2) @ x.T > 0  # (arcs, N)
    slopes = np.stack([(signs * x[:, axis]) @ active.T for axis in (0, 1)], axis=-1)  # gradients, (draws, arcs, 2)
    best = np.abs((slopes * _directions(ends)).sum(-1)).max(1)
    for sign in (1, -1):
        ahead = np.mod(np.arctan2(sign * slopes[..., 1], sign * slopes[..., 0]) - ends, 2 * np.pi)
        inside = np.where(ahead <= widths, np.linalg.norm(slopes, axis=-1), 0)  # the top of the arc is no end
        best = np.maximum(best, inside.max(1))
    return np.asarray(best / len(x))


def rademacher_ascent(
    x: ArrayLike | Tensor,
    signs: ArrayLike,
    arch: Architecture,
    *,
    restarts: int = 4,
    steps: int = 100,
    seed: int = 0,
) -> Array:
    r"""Best correlation of an architecture of unit norms with given signs that ascent finds: a lower bound.

    From random directions every step moves each $V_k$ half-way to $G_k/\lVert G_k\rVert$, with $G_k$ the gradient
    of $\frac1N\sum_nε_nf_V(x_n)$, and puts it back on its sphere. The largest value met is returned; since it is
    attained by a network of the class, the mean over signs cannot exceed $\mathcal R_N$ but for chance.

    Parameters
    ----------
    x : (N, …)
        Inputs: vectors for `mlp`, images for `convnet`.
    signs : (draws, N)
        Rows of ±1.
    arch
        From `mlp` or `convnet`, without normalisation and biases.
    restarts : int
        Random starts for each row of signs, the best of which counts.
    steps : int
        Steps from each start.
    seed : int
        Of the starts.

    Returns
    -------
    (draws,) array
        The largest correlation found for each row of signs.

    Raises
    ------
    ValueError
        If the architecture is no homogeneous one, or a shape or number does not fit.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> x, signs = np.eye(4), [[1, -1, 1, 1]]
    >>> rademacher_ascent(x, signs, mlp(widths=())).round(6)
    array([0.5])

    Notes
    -----
    Local maxima are the rule: with more width and more restarts more is found. Chapter 3.
    """
    if not arch.homogeneous or arch.norm != "none":
        raise ValueError(f"arch={arch!r}: only networks f_V without normalisation and biases; write mlp or convnet")
    for name, value in (("restarts", restarts), ("steps", steps)):
        if value < 1:
            raise ValueError(f"{name}={value}: nothing would be tried; write a whole number ≥ 1")
    inputs = torch.from_numpy(_inputs(x))
    weighted = torch.from_numpy(_signs(signs, len(inputs))).repeat_interleave(restarts, 0) / len(inputs)
    net = arch.build(tuple(inputs.shape[1:]), 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, _ in net.named_parameters()]
    shapes = [(len(weighted), *p.shape) for p in net.parameters()]
    V = [_on_sphere(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]

    def outputs(*weights: Tensor) -> Tensor:
        value: Tensor = functional_call(net, dict(zip(names, weights, strict=True)), (inputs,))
        return value

    best = torch.zeros(len(weighted), dtype=torch.float64)
    for _ in range(steps):
        V = [v.requires_grad_() for v in V]
        correlation = (vmap(outputs)(*V) * weighted).sum(1)
        best = torch.maximum(best, correlation.detach().abs())
        slopes = torch.autograd.grad(correlation.sum(), V)
        V = [_on_sphere(v.detach() + _on_sphere(slope)) for v, slope in zip(V, slopes, strict=True)]
    return best.view(-1, restarts).amax(1).numpy()


def _inputs(x: ArrayLike | Tensor) -> Array:
    values = np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=np.float64)
    if values.ndim < 2 or not np.isfinite(values).all() or not values.reshape(len(values), -1).any(1).all():
        raise ValueError(f"x has shape {values.shape}; write one finite input a row, (N, …), none of them 0")
    return values


def _signs(signs: ArrayLike, n: int) -> Array:
    values = np.asarray(signs, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != n or not (np.abs(values) == 1).all():
        raise ValueError(f"signs has shape {values.shape}; write rows of ±1, one sign for each of the {n} inputs")
    return values


def _directions(angles: Array) -> Array:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _on_sphere(layer: Tensor) -> Tensor:
    """Each member's weights (B, …) divided by their norm; a layer of zeros stays one."""
    sizes = layer.flatten(1).norm(dim=1).clamp_min(torch.finfo(layer.dtype).tiny)
    unit: Tensor = layer / sizes.view(-1, *[1] * (layer.ndim - 1))
    return unit
