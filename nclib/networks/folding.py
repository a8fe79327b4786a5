r"""Folding a normalised network into plain weights.

In evaluation mode batch normalisation is the affine map $a \mapsto γ(a-m)/\sqrt{s^2+ε}+β$ of each
channel, so the layer before it can absorb it, row by row:

$$\hat W = \mathrm{diag}\Big(\frac{γ}{\sqrt{s^2+ε}}\Big)W,\qquad \hat b = β-\frac{γ\,m}{\sqrt{s^2+ε}}.$$

The folded network computes the same function, and ρ and the margins of a normalised network are those
of its folded form.

**A trap.**  It is tempting to divide the *norm* of the layer by the norm of the vector of standard
deviations, $‖W‖_F/‖s‖_2$, instead of dividing each row by its own.  With $C$ channels of equal $s$ the
first gives $‖W‖_F/(s\sqrt C)$ and the second $‖W‖_F/s$: ρ comes out too small by $\prod_k\sqrt{C_k}$
over the normalised layers, a factor of $\sqrt{32·64·128} = 512$ for `convnet()`.  With unequal $s$ (and
rows of equal norm, ε = 0) it is worse, by Cauchy and Schwarz: $\sum_i s_i^2\sum_i s_i^{-2} ≥ C^2$.
Below, 64 channels:

>>> import torch
>>> from nclib.networks.models import calibrate, mlp
>>> x = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
>>> net = mlp(widths=(64,), norm="bn", eps=0).build(input_shape=(10,), dtype=torch.float64)
>>> _ = calibrate(net, x)
>>> right = fold(net).layers[0].weight.norm().item()
>>> wrong = (net.layers[0].weight.norm() / net.norms[0].var.sqrt().norm()).item()
>>> print(f"right {right:.3f}, wrong {wrong:.3f}, ratio {right / wrong:.2f} (about sqrt(64) = 8)")
right 7.966, wrong 0.992, ratio 8.03 (about sqrt(64) = 8)
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from .layers import BatchNorm, Layer
from .models import Net

__all__ = ["fold", "folded_weights"]


def fold(net: Net) -> Net:
    r"""Fold BN, WN or LM into plain weights: a network with the same outputs in evaluation mode.

    * BN: as above.  The mean becomes a bias, which is kept; `rho` ignores it and says so.
    * WN: $\hat W_k = g_k v_k/‖v_k‖$.
    * LM: the scale is shared out evenly, $\hat W_k = |ρ|^{1/L}V_k$, its sign going to the last layer
      (ρ may cross zero in training); a ResNet, which is not homogeneous, gets all of ρ in the last layer.

    Computed in float64 and rounded once to the type of `net`.

    Parameters
    ----------
    net : network; with BN it must have been calibrated (`calibrate(net, x_train)`).

    Returns
    -------
    Net : new plain network (`norm="none"`) in evaluation mode, on the device of `net`, sharing nothing
        with it; with biases if there was BN (or a bias).

    Raises
    ------
    ValueError : BN statistics are missing, or a channel has no variance and ε is 0.

    Notes
    -----
    Chapter 1.

    Examples
    --------
    >>> from nclib.networks.models import calibrate, mlp
    >>> x = torch.eye(5)
    >>> net = mlp(widths=(7,), norm="bn").build(input_shape=(5,), outputs=2).eval()
    >>> outputs = calibrate(net, x)
    >>> torch.allclose(fold(net)(x), outputs, atol=1e-6)
    True
    """
    weights, biases = _fold(net)
    arch = replace(net.arch, norm="none", affine=False, bias=any(b is not None for b in biases))
    plain = Net(arch, net.input_shape, net.outputs).to(weights[0].device, next(net.parameters()).dtype)
    with torch.no_grad():
        for layer, weight, bias in zip(plain.layers, weights, biases, strict=True):
            assert isinstance(layer, Layer)
            layer.set_weight(weight)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
    return plain.eval()


def folded_weights(net: Net) -> list[Tensor]:
    """Weights $\\hat W_k$ of the folded network in float64, in the shapes of the layers.

    What `fold` puts in its layers, before rounding to the type of `net`; raises as `fold` does.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=(3,), norm="wn").build(input_shape=(2,), init_norm=5.0)
    >>> [round(w.norm().item(), 6) for w in folded_weights(net)]
    [5.0, 5.0]
    """
    return _fold(net)[0]


@torch.no_grad()
def _fold(net: Net) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases of the folded network in float64."""
    layers = [layer for layer in net.layers if isinstance(layer, Layer)]
    weights = [_copy64(layer.weight) for layer in layers]
    biases = [None if layer.bias is None else _copy64(layer.bias) for layer in layers]
    for k, bn in enumerate(net.norms):
        assert isinstance(bn, BatchNorm)
        gain, shift = _affine_map(bn, k)
        weights[k] = weights[k] * gain.reshape(-1, *[1] * (weights[k].ndim - 1))
        biases[k] = shift
    if net.scale is not None:
        weights = [w * c for w, c in zip(weights, _scale_shares(net), strict=True)]
    return weights, biases


def _copy64(parameter: Tensor) -> Tensor:
    """A copy in float64 that shares nothing with the network, neither memory nor graph."""
    return parameter.detach().to(torch.float64, copy=True)


def _affine_map(bn: BatchNorm, k: int) -> tuple[Tensor, Tensor]:
    """Gain and shift of BN layer k (from 0) in evaluation mode, in float64."""
    mean, var = bn.mean.double(), bn.var.double() + bn.eps
    if not (mean.isfinite() & var.isfinite()).all():
        raise ValueError(
            f"net: batch norm {k + 1} has no statistics; set them with calibrate(net, x_train) before folding"
        )
    if (var == 0).any():
        raise ValueError(
            f"net: batch norm {k + 1} has {int((var == 0).sum())} channel(s) of zero variance and eps=0, "
            "so its output is undefined; build the network with eps > 0"
        )
    return bn.affine_map()


def _scale_shares(net: Net) -> list[float]:
    """The factors of the layers that make up the scale of an LM network."""
    assert net.scale is not None
    scale, depth = net.scale.item(), len(net.layers)
    if not net.arch.homogeneous:
        return [1.0] * (depth - 1) + [scale]
    share = abs(scale) ** (1 / depth)
    return [share] * (depth - 1) + [math.copysign(share, scale)]
