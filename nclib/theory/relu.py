"""A batch of bias-free ReLU networks as plain NumPy arrays, in float64: the forward pass and its gradient.

The exact flows use these; training by SGD uses `nclib.networks.models`. One array holds a layer of all B members,
``W[k]`` of shape (B, d_{k+1}, d_k), so that a member costs microseconds a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Layers = list[Array]


def random_directions(widths: Sequence[int], seeds: Sequence[int]) -> Layers:
    """Uniformly random directions, ‖V_k‖_F = 1, one member a seed.

    Parameters
    ----------
    widths
        (d, d_1, …, d_{L-1}, 1): the input, the hidden widths and the one output.
    seeds
        One a member; the same seed always gives the same member.

    Returns
    -------
    list of (B, d_{k+1}, d_k) arrays
        The layers k = 1 … L.

    Examples
    --------
    >>> V = random_directions((20, 16, 1), seeds=[0, 1])
    >>> [v.shape for v in V]
    [(2, 16, 20), (2, 1, 16)]
    """
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    members = []
    for seed in seeds:
        rng = np.random.default_rng([seed, 1])  # 1: another stream than the data's
        members.append([rng.standard_normal(shape) for shape in shapes])
    layers = [np.stack(layer) for layer in zip(*members, strict=True)]
    return [layer / norms(layer)[:, None, None] for layer in layers]


def norms(layer: Array) -> Array:
    """Frobenius norm of each member's matrix, (B,).

    Examples
    --------
    >>> norms(np.ones((1, 2, 2)))
    array([2.])
    """
    squares: Array = np.einsum("bij,bij->b", layer, layer)
    return np.sqrt(squares)


def forward(layers: Layers, x: Array, biases: Layers | None = None, *, leak: float = 0.0) -> tuple[Array, Layers]:
    """Outputs f(x_n) and the inputs of every layer.

    Parameters
    ----------
    layers
        L arrays (B, d_{k+1}, d_k).
    x
        Inputs (B, N, d).
    biases
        L arrays (B, d_{k+1}, 1), or none.
    leak
        Slope of the activation on negative inputs, max(z, leak·z): 0 is the ReLU, 1 leaves it out.

    Returns
    -------
    f : (B, N)
    hidden : list of (B, d_k, N)
        The input of each layer; the first is x transposed.

    Examples
    --------
    >>> f, hidden = forward([np.eye(2)[None], np.ones((1, 1, 2))], np.array([[[1.0, -1.0]]]))
    >>> f
    array([[1.]])
    """
    hidden = [x.swapaxes(1, 2)]
    for k, layer in enumerate(layers):
        z = layer @ hidden[-1]
        if biases is not None:
            z = z + biases[k]
        if k < len(layers) - 1:
            hidden.append(np.maximum(z, leak * z if leak else 0.0, out=z))
    return z[:, 0], hidden


def gradients(layers: Layers, hidden: Layers, r: Array, *, biases: bool = False, leak: float = 0.0) -> Layers:
    """Gradient of Σ_n r_n f(x_n) with respect to each layer, and to each bias (the slope at 0 is `leak`).

    Parameters
    ----------
    layers, hidden
        As from `forward`.
    r
        (B, N): weight of each point's output.
    biases
        Append the gradients with respect to the biases.
    leak
        As in `forward`.

    Returns
    -------
    list of L arrays (B, d_{k+1}, d_k), or of those and L arrays (B, d_{k+1}, 1)

    Examples
    --------
    >>> layers = [np.eye(2)[None], np.ones((1, 1, 2))]
    >>> _, hidden = forward(layers, np.array([[[1.0, -1.0]]]))
    >>> gradients(layers, hidden, np.ones((1, 1)))[1]
    array([[[1., 0.]]])
    """
    delta = r[:, None, :]
    weight_gradients: Layers = []
    bias_gradients: Layers = []
    for k in range(len(layers) - 1, -1, -1):
        weight_gradients.append(delta @ hidden[k].swapaxes(1, 2))
        if biases:
            bias_gradients.append(delta.sum(2, keepdims=True))
        if k:
            delta = layers[k].swapaxes(1, 2) @ delta
            delta *= _slopes(hidden[k], leak)
    return weight_gradients[::-1] + bias_gradients[::-1]


def _slopes(hidden: Array, leak: float) -> Array:
    """Derivative of the activation, from its outputs: their signs are those of its inputs if leak > 0."""
    slopes: Array = np.where(hidden > 0, 1.0, leak)
    return slopes


def tangent_kernel(layers: Layers, x: Array, *, leak: float = 0.0) -> Array:
    """Tangent kernel on the training points, Θ = (1/N) Σ_k J_k J_kᵀ with J_k the Jacobian of f in layer k.

    For a fully connected layer (J_k J_kᵀ)_nm is the inner product of what comes in times that of what is
    propagated back, so that no Jacobian is formed.

    Parameters
    ----------
    layers
        L arrays (B, d_{k+1}, d_k); at directions V it is the normalised kernel of Chapter 2.
    x
        Inputs (B, N, d).
    leak
        As in `forward`.

    Returns
    -------
    (B, N, N)

    Notes
    -----
    Jacot, Gabriel & Hongler (2018). Chapters 2 and 5.

    Examples
    --------
    >>> x = np.array([[[1.0, 0.0], [0.0, 2.0]]])
    >>> tangent_kernel([np.ones((1, 1, 2))], x)  # L = 1: XXᵀ/N
    array([[[0.5, 0. ],
            [0. , 2. ]]])
    """
    _, hidden = forward(layers, x, leak=leak)
    back = np.ones((x.shape[0], 1, x.shape[1]))
    total = np.zeros((x.shape[0], x.shape[1], x.shape[1]))
    for k in range(len(layers) - 1, -1, -1):
        total += (back.swapaxes(1, 2) @ back) * (hidden[k].swapaxes(1, 2) @ hidden[k])
        if k:
            back = layers[k].swapaxes(1, 2) @ back
            back *= _slopes(hidden[k], leak)
    kernel: Array = total / x.shape[1]
    return kernel
