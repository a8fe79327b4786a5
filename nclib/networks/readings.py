r"""What is read off a network: norms, margins, ranks, balance, its last layer, the gradient of each point.

$ρ_k = ‖\hat W_k‖_F$ and $ρ = \prod_k ρ_k$, with normalisation folded into $\hat W_k$ (`nclib.fold`).
All reductions are in float64.  The biases that folding BN leaves do not enter ρ.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .. import inputs
from ..inputs import Arrays
from .models import Net, checked, taken
from .normalisation import fold, folded_weights


def layer_norms(net: Net) -> Tensor:
    r"""Frobenius norms $ρ_k = ‖\hat W_k‖_F$ of the folded layers, (L,) float64, in the order of `net.layers`.

    Under `norm="lm"` the scale counts as shared evenly, $ρ_k = |ρ|^{1/L}$ (see `fold`, whose errors these are).
    """
    return torch.stack([torch.linalg.vector_norm(w) for w in folded_weights(net)])


def rho(net: Net) -> float:
    r"""Product of the norms of the folded layers, $ρ = \exp\sum_k\ln‖\hat W_k‖_F$ (Chapter 1).

    The sum of logarithms neither under- nor overflows; a layer that is zero gives 0.  Biases, which a
    folded BN has, are ignored: ρ is the norm of the weights and no more.

    Parameters
    ----------
    net
        Network; with BN, calibrated.

    Raises
    ------
    ValueError
        A ResNet: its skip connections add terms of different degree in the weights, so that
        $f_W ≠ ρ f_V$ and no product of norms normalises it.  A ρ beyond float64.  Also as `fold`.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> round(rho(mlp(widths=(8, 8)).build(input_shape=(4,), init_norm=(2.0, 0.5, 3.0))), 6)
    3.0
    """
    _refuse_skips(net, "rho")
    return float(_finite(layer_norms(net).log().sum().exp(), "net: its rho"))


def _finite(found: Tensor, name: str) -> Tensor:
    if not bool(found.isfinite().all()):
        raise ValueError(f"{name} overflows {found.dtype}; divide the weights or the inputs")
    return found


def _refuse_skips(net: Net, name: str) -> None:
    if not checked(net).arch.homogeneous:
        what = f"{type(net.arch).__name__}, which is not homogeneous in its layers (skip connections)"
        raise ValueError(f"net: {name} is not defined for {what}; use the norms of the layers of nclib.fold(net)")


@torch.no_grad()
def margins(net: Net, x: Arrays, y: Arrays, *, chunk: int = 1024) -> Tensor:
    r"""Normalised margins $m_n$ of the folded network, (N,) float64, positive where the class is right (Chapter 1).

    One output, labels ±1: $m_n = y_n f_W(x_n)/ρ$.  Several: $m_n = (f_{y_n} - \max_{j≠y_n}f_j)/ρ$.  ValueError
    as `rho`, and where ρ = 0.

    Parameters
    ----------
    net
        Network; with BN, calibrated on the *training* set, whatever `x` is.
    x
        Inputs (N, ...); any array, taken to the network's type and device.
    y
        (N,) of ±1 for one output; for several, class numbers (N,) or one-hot rows (N, K).
    chunk
        Samples at a time.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=()).build(input_shape=(2,))
    >>> net.layers[0].set_weight(torch.tensor([[3.0, 4.0]]))
    >>> margins(net, torch.eye(2), torch.tensor([1.0, -1.0]))
    tensor([ 0.6000, -0.8000], dtype=torch.float64)
    """
    product, plain = rho(net), fold(net)
    x, chunk = taken(net, x, least=0), inputs.count("chunk", chunk, 1)
    if product == 0:
        raise ValueError("net: its rho is 0, by which nothing can be divided; take a network without zero layers")
    outputs = torch.cat([plain(piece) for piece in torch.split(x, chunk)]).view(len(x), net.outputs)
    codes = _codes(y, len(x), net.outputs).to(x.device)
    return _finite(raw_margins(outputs.double(), codes) / product, "net: its output")


def raw_margins(f: Tensor, y: Tensor) -> Tensor:
    """Margins before ρ divides them: y f for one output, else the right output minus the largest other one.

    Outputs f (..., N, K) and targets y ([...,] N, K), ±1 for K = 1 and one-hot rows otherwise, give (..., N).
    """
    if f.shape[-1] == 1:
        return (y * f).squeeze(-1)
    return (f * y).sum(-1) - f.masked_fill(y.expand_as(f) > 0, -torch.inf).amax(-1)


def _codes(y: Arrays, n: int, outputs: int) -> Tensor:
    """Labels as targets (N, K) in float64: ±1 for one output, one-hot rows for several."""
    found = inputs.tensor("y", y, "one label per sample")
    if found.ndim == 0 or len(found) != n:
        raise ValueError(f"y: {tuple(found.shape)} for {n} inputs; expected one label per sample")
    if outputs == 1:
        if found.ndim != 1 or not (found.abs() == 1).all():
            raise ValueError("y: expected labels +1 and -1, shape (N,), for a network with one output")
        return found.unsqueeze(1)
    if found.ndim == 2 and found.shape[1] == outputs:
        if not ((found == 0) | (found == 1)).all() or not (found.sum(dim=1) == 1).all():
            raise ValueError("y: rows of a two-dimensional y must be one-hot")
        return found
    if found.ndim != 1 or not ((found >= 0) & (found < outputs) & (found == found.round())).all():
        rows = f"one-hot rows, shape (N, {outputs})"
        raise ValueError(f"y: expected class numbers 0..{outputs - 1}, shape (N,), or {rows}")
    return torch.nn.functional.one_hot(found.long(), outputs).double()


def stable_ranks(weights: Tensor) -> Tensor:
    r"""Stable rank $‖W‖_F^2/‖W‖_2^2$ of every matrix, between 1 and the rank; a kernel counts as (out, rest).

    Matrices (M, out, ...) give (M,) float64; NaN for the zero matrix, for which it is not defined, and for one
    that is not finite.
    """
    matrix = weights.detach().flatten(2).double()
    matrix = matrix / matrix.abs().amax((1, 2), keepdim=True)  # no under- or overflow in the squares
    # The largest eigenvalue of the smaller Gram matrix: as accurate for σ₁ as an SVD, and much cheaper.
    gram = matrix @ matrix.mT if matrix.shape[1] <= matrix.shape[2] else matrix.mT @ matrix
    undefined = ~gram.isfinite().all(2).all(1)
    largest = torch.linalg.eigvalsh(torch.where(undefined[:, None, None], 0.0, gram))[:, -1]
    return torch.where(undefined, torch.nan, gram.diagonal(dim1=1, dim2=2).sum(1) / largest)


def low_rank_distance(weight: Arrays) -> Tensor:
    r"""Distance of a matrix to the matrices of rank at most r, $\sqrt{\sum_{i>r}s_i^2}$, for every r.

    The distance is in the Frobenius norm, the $s_i$ are the singular values in falling order, and the
    formula is the theorem of Eckart and Young (1936); Chapter 13.

    Parameters
    ----------
    weight
        Matrix (out, in) or kernel (out, in, height, width), which counts as the matrix (out, rest).

    Returns
    -------
    Tensor
        (min(out, rest) + 1,) float64; entry r is the distance to rank r, the first is $‖W‖_F$, the last 0.

    Examples
    --------
    >>> low_rank_distance(torch.diag(torch.tensor([4.0, 3.0]))).tolist()
    [5.0, 3.0, 0.0]
    """
    found = inputs.tensor("weight", weight, "a matrix or a convolution kernel")
    if found.ndim < 2 or 0 in found.shape:
        raise ValueError(f"weight: shape {tuple(found.shape)}; expected a matrix or a convolution kernel")
    squares = torch.linalg.svdvals(found.flatten(1)).square()
    tails = squares.flip(0).cumsum(0).flip(0).sqrt()  # small values first, so that none is lost
    return _finite(torch.cat([tails, tails.new_zeros(1)]), "weight: its norm")


class Balance(NamedTuple):
    """What gradient flow without weight decay conserves; see `balance`."""

    layers: Tensor
    neurons: list[Tensor]


def balance(net: Net) -> Balance:
    r"""How far neighbouring layers are from balance, for layers and neuron by neuron (Chapter 8).

    $ρ_k^2 - ρ_{k+1}^2$, and $‖\text{row}_i\hat W_k‖^2 - ‖\text{column}_i\hat W_{k+1}‖^2$ for each neuron
    (channel) i.  For plain bias-free networks gradient flow conserves both; with weight decay
    $λ\sum_k‖W_k‖^2$ both decay as $e^{-4λt}$.

    Parameters
    ----------
    net
        Network, with BN calibrated; its layers must follow one another in a chain, so no ResNet (ValueError).

    Returns
    -------
    Balance
        `layers`, (L−1,) float64, for k = 1..L−1; `neurons`, L−1 tensors (d_k,) float64, each of which sums to the
        entry of `layers`.  (The difference of two layers further apart is a sum of entries of `layers`.)

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=(8,)).build(input_shape=(4,), init_norm=(2.0, 1.0))
    >>> layers, neurons = balance(net)
    >>> round(layers.item(), 6), round(neurons[0].sum().item(), 6)
    (3.0, 3.0)
    """
    _refuse_skips(net, "balance")
    squares = [w.square() for w in folded_weights(net)]
    norms = _finite(torch.stack([s.sum() for s in squares]), "net: its norm")
    return Balance(norms[:-1] - norms[1:], [rows_less_columns(*pair) for pair in pairwise(squares)])


def rows_less_columns(squares: Tensor, following: Tensor) -> Tensor:
    """Of the squared weights of two layers: each neuron's row in the first less its column in the second, (d,)."""
    rows = squares.flatten(1).sum(dim=1)
    # Column i of the next layer is what its weights see of neuron i, over all kernel positions:
    # a first axis after `out` of size d_k for kernels, d_k × (positions) for flattened maps.
    return rows - following.reshape(following.shape[0], rows.shape[0], -1).sum(dim=(0, 2))


class LastLayer(NamedTuple):
    """Features and classifier; see `last_layer`."""

    features: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64] | None


@torch.no_grad()
def last_layer(net: Net, x: Arrays, *, chunk: int = 1024) -> LastLayer:
    r"""What the last layer sees and does: features $h_n$, and $W$, $b$ with $f(x_n)=Wh_n+b$ (Chapter 11).

    Parameters
    ----------
    net
        Network; with BN, calibrated and in evaluation mode (else ValueError).  Under `norm="lm"` ρ counts to W.
    x
        Inputs (N, ...), at least one; any array, taken to the network's type and device.
    chunk
        Samples at a time.

    Returns
    -------
    LastLayer
        Named tuple ``(features, weight, bias)`` of float64 arrays (N, d), (K, d) and (K,), bias None if there is
        none, which is what `nclib.collapse`, `nclib.ridge` and `nclib.simplex_view` take.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=(8,)).build(input_shape=(4,), outputs=3)
    >>> features, weight, bias = last_layer(net, torch.ones(5, 4))
    >>> features.shape, weight.shape, bias
    ((5, 8), (3, 8), None)
    """
    x, chunk = taken(net, x), inputs.count("chunk", chunk, 1)
    if any(bn.training for bn in net.norms):
        raise ValueError("net: batch norm is in training mode; call net.eval() first")
    folded_weights(net)  # raises where BN has no statistics
    head = net.layers[-1]
    features = torch.cat([net.features(piece) for piece in torch.split(x, chunk)])
    _finite(features, "net: its last hidden layer")
    weight = head.matrix if net.scale is None else head.matrix * net.scale
    bias = None if head.bias is None else head.bias.double().numpy(force=True)
    return LastLayer(features.double().numpy(force=True), weight.double().numpy(force=True), bias)


def per_sample_gradients(net: Net, x: Arrays, y: Arrays, *, weight_decay: float = 0.0) -> list[Tensor]:
    r"""Gradient in every layer of the loss of each point, $g_{n,k}=\nabla_{W_k}\ell_n+2λW_k$ (Chapter 14).

    $\ell_n=(f_W(x_n)-y_n)^2$, the mean over the outputs where there are several.  The gradient on a
    mini-batch is the mean of its points' $g_{n,k}$, and that of the whole loss
    $\frac1N\sum_n\ell_n+λ\sum_k‖W_k‖^2$ the mean of all.  A ReLU at its kink has derivative 0.
    Biases are held fixed and have no entry.  ValueError where a gradient overflows.

    Parameters
    ----------
    net
        Plain network, `norm="none"` (fold others first).
    x
        Inputs (N, ...), at least one; any array, taken to the network's type and device.
    y
        Targets, (N,) for one output and (N, K) for several.
    weight_decay
        λ ≥ 0.

    Returns
    -------
    list
        L tensors (N, …) in the shape of the layer's weight and the type of `net`.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=()).build(input_shape=(2,))
    >>> net.layers[0].set_weight(torch.tensor([[0.5, 0.0]]))
    >>> (g,) = per_sample_gradients(net, torch.eye(2), torch.tensor([1.0, -1.0]), weight_decay=0.1)
    >>> [[round(v, 6) for v in row] for row in g[:, 0].tolist()]
    [[-0.9, 0.0], [0.1, 2.0]]
    """
    x = taken(net, x)
    y = inputs.tensor("y", y, "targets like the outputs", like=x)
    decay = inputs.number("weight_decay", weight_decay, "a number >= 0, e.g. weight_decay=0.001", lambda v: v >= 0)
    if net.arch.norm != "none":
        raise ValueError(f"net: norm={net.arch.norm!r} has no gradient of its own per point; pass nclib.fold(net)")
    expected = (len(x),) if net.outputs == 1 else (len(x), net.outputs)
    if tuple(y.shape) != expected:
        raise ValueError(f"y: shape {tuple(y.shape)}; expected targets of shape {expected}, like the outputs")
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    weights = {name: p for name, p in parameters.items() if name.endswith("weight")}
    fixed = {name: p for name, p in parameters.items() if name not in weights}

    def loss(weights: dict[str, Tensor], point: Tensor, target: Tensor) -> Tensor:
        output: Tensor = functional_call(net, weights | fixed, (point.unsqueeze(0),))
        return (output[0] - target).square().mean()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    return [_finite(found[name] + 2 * decay * p, "net: its gradient") for name, p in weights.items()]
