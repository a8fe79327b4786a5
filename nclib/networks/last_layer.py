"""The last layer of a network by itself: its features and its classifier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .layers import Layer
from .models import Net

__all__ = ["LastLayer", "last_layer"]


class LastLayer(NamedTuple):
    """Features and classifier in float64; see `last_layer`."""

    features: NDArray[np.float64]
    """One row a sample, (N, d)."""
    weight: NDArray[np.float64]
    """W, (K, d)."""
    bias: NDArray[np.float64] | None
    """b, (K,), or None."""


@torch.no_grad()
def last_layer(net: Net, x: Tensor, *, chunk: int = 1024) -> LastLayer:
    r"""What the last layer sees and what it does: features $h_n$, and $W$, $b$ with $f(x_n)=Wh_n+b$.

    Parameters
    ----------
    net : network; with BN, calibrated and in evaluation mode.  Under `norm="lm"` the scale ρ counts to W.
    x : inputs (N, ...), on the network's device.
    chunk : samples at a time.

    Returns
    -------
    LastLayer : named tuple ``(features, weight, bias)`` of float64 arrays, which is what `nclib.collapse`,
        `nclib.ridge` and `nclib.simplex_view` take.

    Raises
    ------
    ValueError : `x` is empty.

    Notes
    -----
    Chapter 6.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=(8,)).build(input_shape=(4,), outputs=3)
    >>> features, weight, bias = last_layer(net, torch.ones(5, 4))
    >>> features.shape, weight.shape, bias
    ((5, 8), (3, 8), None)
    """
    if len(x) == 0:
        raise ValueError("x: no samples; give the inputs whose features are wanted")
    head = net.layers[-1]
    assert isinstance(head, Layer)
    features = torch.cat([net.features(piece) for piece in torch.split(x, chunk)])
    weight = head.matrix if net.scale is None else head.matrix * net.scale
    bias = None if head.bias is None else head.bias.double().numpy(force=True)
    return LastLayer(features.double().numpy(force=True), weight.double().numpy(force=True), bias)
