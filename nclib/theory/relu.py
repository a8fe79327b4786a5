"""A batch of ReLU networks as plain NumPy arrays, in float64: the forward pass, its gradient, the tangent kernel.

The exact flows use these; training by SGD uses `nclib.networks.models`. One array holds a layer of all B members,
``W[k]`` of shape (B, d_{k+1}, d_k), so that a member costs microseconds a step; biases are (B, d_{k+1}, 1),
inputs (B, N, d). `leak` is the slope of the activation on negative inputs and at 0: 0 is the ReLU, 1 leaves it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from .. import inputs as given
from ..inputs import Array, Arrays
from .closed_forms import held, moderate, slope

Layers = list[Array]


def random_directions(widths: Sequence[int], seeds: Sequence[int]) -> Layers:
    """Uniformly random directions, ‖V_k‖_F = 1, one member a seed, for the widths (d, d_1, …, d_{L-1}, 1)."""
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    members = []
    for seed in seeds:
        rng = np.random.default_rng([given.seed("seed", seed), 1])  # 1: another stream than the data's
        members.append([rng.standard_normal(shape) for shape in shapes])
    layers = [np.stack(layer) for layer in zip(*members, strict=True)]
    return [layer / norms(layer)[:, None, None] for layer in layers]


def norms(layer: Array) -> Array:
    """Frobenius norm of each member's matrix, (B,)."""
    squares: Array = np.einsum("bij,bij->b", layer, layer)
    return np.sqrt(squares)


def forward(layers: Layers, x: Array, biases: Layers | None = None, *, leak: float = 0.0) -> tuple[Array, Layers]:
    """Outputs f(x_n), (B, N), and the input of every layer, (B, d_k, N); the first is x transposed."""
    hidden = [x.swapaxes(1, 2)]
    for k, layer in enumerate(layers):
        z = layer @ hidden[-1]
        if biases is not None:
            z = z + biases[k]
        if k < len(layers) - 1:
            hidden.append(np.maximum(z, leak * z if leak else 0.0, out=z))
    return z[:, 0], hidden


def gradients(layers: Layers, hidden: Layers, r: Array, *, biases: bool = False, leak: float = 0.0) -> Layers:
    """Gradient of Σ_n r_n f(x_n), r (B, N), in each layer, of its shape; with `biases`, then in each of those."""
    back = list(_backward(layers, hidden, r[:, None, :], leak))[::-1]
    of_weights = [delta @ inputs.swapaxes(1, 2) for delta, inputs in zip(back, hidden, strict=True)]
    return of_weights + ([delta.sum(2, keepdims=True) for delta in back] if biases else [])


def circle(angles: Array) -> Array:
    """Unit vectors of the plane, (..., 2)."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def arcs(x: Array) -> tuple[Array, Array]:
    """Angles at which a neuron turning in the plane gains or loses a point of x (N, 2), and the widths between."""
    angles = np.arctan2(x[:, 1], x[:, 0])
    ends = np.unique(np.mod(np.concatenate([angles + np.pi / 2, angles - np.pi / 2]), 2 * np.pi))
    return ends, np.diff(ends, append=ends[0] + 2 * np.pi)


def tangent_kernel(layers: Sequence[Arrays], x: Arrays, *, leak: float = 0.0) -> Array:
    """Tangent kernel on the training points, Θ = (1/N) Σ_k J_k J_kᵀ, (B, N, N), J_k the Jacobian of f in layer k.

    For a fully connected layer (J_k J_kᵀ)_nm is the inner product of what comes in times that of what is
    propagated back, so that no Jacobian is formed. Jacot, Gabriel & Hongler (2018); Chapters 2 and 9.

    Parameters
    ----------
    layers
        L arrays (B, d_{k+1}, d_k); at directions V it is the normalised kernel of Chapter 2.
    x
        Inputs (B, N, d).
    leak
        Slope of the activation on negative inputs: 0 is the ReLU, 1 leaves it out.

    Examples
    --------
    >>> tangent_kernel([np.ones((1, 1, 2))], np.array([[[1.0, 0.0], [0.0, 2.0]]])).tolist()  # L = 1: XXᵀ/N
    [[[0.5, 0.0], [0.0, 2.0]]]
    """
    W = [given.array("layers", layer) for layer in given.entries("layers", layers, "a list of arrays")]
    x = given.array("x", x)
    shapes = [layer.shape for layer in W]
    widths = [*x.shape[2:], *(layer.shape[1] for layer in W if layer.ndim == 3)]
    fitting = [(*x.shape[:1], out, width) for width, out in itertools.pairwise(widths)]
    if x.ndim != 3 or x.size == 0 or widths[-1] != 1 or shapes != fitting:
        write = "write x (B, N, d), N ≥ 1, and L ≥ 1 layers (B, d_1, d) … (B, 1, d_{L-1})"
        raise ValueError(f"layers have shapes {shapes} and x {x.shape}; {write}")
    leak = slope("leak", leak)
    for name, part in [("x", x), *(("layers", layer) for layer in W)]:
        moderate(name, np.abs(part).max(initial=0.0))
    with np.errstate(over="ignore", invalid="ignore"):
        _, hidden = forward(W, x, leak=leak)
        total = np.zeros((len(x), x.shape[1], x.shape[1]))
        back = _backward(W, hidden, np.ones((len(x), 1, x.shape[1])), leak)
        for delta, inputs in zip(back, hidden[::-1], strict=True):
            total += (delta.swapaxes(1, 2) @ delta) * (inputs.swapaxes(1, 2) @ inputs)
        return held(total / x.shape[1], "layers and x")


def _backward(layers: Layers, hidden: Layers, delta: Array, leak: float) -> Iterator[Array]:
    """What arrives at each layer's output, the last layer first, when `delta` is sent back from the network's."""
    yield delta
    for layer, outputs in zip(layers[:0:-1], hidden[:0:-1], strict=True):
        delta = layer.swapaxes(1, 2) @ delta
        delta *= np.where(outputs > 0, 1.0, leak)  # outputs have the signs of the activation's inputs if leak > 0
        yield delta
