r"""Norms, margins, balance and homogeneity of networks, always of the folded network.

$ρ_k = ‖\hat W_k‖_F$ and $ρ = \prod_k ρ_k$, with normalisation folded into $\hat W_k$ (`nclib.networks.folding`).
All reductions are in float64.  Biases, a network's own or those that folding BN leaves, do not enter ρ.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .folding import fold, folded_weights
from .layers import BatchNorm, Layer
from .models import Net

__all__ = [
    "Balance",
    "Homogeneity",
    "balance",
    "homogeneity_error",
    "layer_norms",
    "low_rank_distance",
    "margins",
    "normalised_margins",
    "rho",
    "stable_rank",
]


def layer_norms(net: Net) -> Tensor:
    r"""Frobenius norms $ρ_k = ‖\hat W_k‖_F$ of the folded layers.

    Under `norm="lm"` the scale counts as shared evenly, $ρ_k = |ρ|^{1/L}$ (see `fold`).

    Parameters
    ----------
    net : any network of this package; with BN, calibrated.

    Returns
    -------
    Tensor : (L,) float64, in the order of `net.layers`.

    Raises
    ------
    ValueError : as `fold`.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=(8,)).build(input_shape=(4,), init_norm=(3.0, 0.5))
    >>> [round(r, 6) for r in layer_norms(net).tolist()]
    [3.0, 0.5]
    """
    return torch.stack([torch.linalg.vector_norm(w) for w in folded_weights(net)])


def rho(net: Net) -> float:
    r"""Product of the norms of the folded layers, $ρ = \exp\sum_k\ln‖\hat W_k‖_F$.

    The sum of logarithms neither under- nor overflows; a layer that is zero gives 0.  Biases are
    ignored: with biases (a folded BN has some) ρ is the norm of the weights and no more.

    Parameters
    ----------
    net : network; with BN, calibrated.

    Returns
    -------
    float : ρ ≥ 0.

    Raises
    ------
    ValueError : a ResNet: its skip connections add terms of different degree in the weights, so that
        $f_W ≠ ρ f_V$ and no product of norms normalises it.  Also as `fold`.

    Notes
    -----
    Chapter 1.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> round(rho(mlp(widths=(8, 8)).build(input_shape=(4,), init_norm=(2.0, 0.5, 3.0))), 6)
    3.0
    """
    if not net.arch.homogeneous:
        raise ValueError(
            f"net: rho is not defined for {type(net.arch).__name__}, which is not homogeneous in its layers "
            "(skip connections); use layer_norms(net)"
        )
    return float(layer_norms(net).log().sum().exp())


@torch.no_grad()
def margins(net: Net, x: Tensor, y: Tensor, *, chunk: int = 1024) -> Tensor:
    r"""Normalised margins $m_n$ of the folded network.

    One output, labels ±1: $m_n = y_n f_W(x_n)/ρ$.  Several: $m_n = (f_{y_n} - \max_{j≠y_n}f_j)/ρ$.

    Parameters
    ----------
    net : network; with BN, calibrated on the *training* set, whatever `x` is.
    x : inputs (N, ...).
    y : (N,) of ±1 for one output; for several, class numbers (N,) or one-hot rows (N, K).
    chunk : samples at a time.

    Returns
    -------
    Tensor : (N,) float64; positive where the class is right.

    Raises
    ------
    ValueError : as `rho`, and where `y` does not fit the outputs.

    Notes
    -----
    Chapter 1.  Where the outputs are there already (`calibrate` returns them), use
    `normalised_margins(outputs, y, rho(net))` and save the pass.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=()).build(input_shape=(2,))
    >>> net.layers[0].set_weight(torch.tensor([[3.0, 4.0]]))
    >>> margins(net, torch.eye(2), torch.tensor([1.0, -1.0]))
    tensor([ 0.6000, -0.8000], dtype=torch.float64)
    """
    product, plain = rho(net), fold(net)
    outputs = torch.cat([plain(piece) for piece in torch.split(x, chunk)])
    return normalised_margins(outputs, y, product)


def normalised_margins(outputs: Tensor, y: Tensor, rho: float) -> Tensor:
    """Margins from outputs that have been computed: those of `margins`, without running the network.

    Parameters
    ----------
    outputs : (N,) or (N, K).
    y : as in `margins`.
    rho : number to divide by, > 0 (1 for margins that are not normalised).

    Returns
    -------
    Tensor : (N,) float64.

    Raises
    ------
    ValueError : `y` does not fit the outputs.

    Examples
    --------
    >>> normalised_margins(torch.tensor([[3.0, 1.0, 0.0], [2.0, 0.0, 1.0]]), torch.tensor([0, 2]), 2.0)
    tensor([ 1.0000, -0.5000], dtype=torch.float64)
    """
    f = outputs.detach().double()
    if y.shape[:1] != f.shape[:1]:
        raise ValueError(f"y: {tuple(y.shape)} for outputs {tuple(f.shape)}; expected one label per sample")
    if f.ndim == 1:
        if y.ndim != 1 or not (y.abs() == 1).all():
            raise ValueError("y: expected labels +1 and -1, shape (N,), for a network with one output")
        return y.double() * f / rho
    right = _class_numbers(y, f.shape[1])
    own = f.gather(1, right.unsqueeze(1)).squeeze(1)
    others = f.scatter(1, right.unsqueeze(1), -math.inf).amax(dim=1)
    return (own - others) / rho


def _class_numbers(y: Tensor, classes: int) -> Tensor:
    if y.ndim == 2 and y.shape[1] == classes:
        if not ((y == 0) | (y == 1)).all() or not (y.sum(dim=1) == 1).all():
            raise ValueError("y: rows of a two-dimensional y must be one-hot")
        return y.argmax(dim=1)
    if y.ndim != 1 or y.is_floating_point() or not ((y >= 0) & (y < classes)).all():
        raise ValueError(
            f"y: expected class numbers 0..{classes - 1} as integers, shape (N,), "
            f"or one-hot rows, shape (N, {classes})"
        )
    return y.long()


def stable_rank(weight: Tensor) -> float:
    r"""Stable rank $‖W‖_F^2/‖W‖_2^2$, between 1 and the rank; a kernel counts as the matrix (out, rest).

    Parameters
    ----------
    weight : (out, in) or (out, in, height, width).

    Returns
    -------
    float : in [1, min(out, rest)]; NaN for the zero matrix, for which it is not defined, and for one that
        is not finite.

    Raises
    ------
    ValueError : fewer than two axes.

    Examples
    --------
    >>> round(stable_rank(torch.eye(5)), 6), round(stable_rank(torch.ones(4, 3)), 6)
    (5.0, 1.0)
    >>> round(stable_rank(torch.diag(torch.tensor([2.0, 1.0]))), 6)
    1.25
    """
    if weight.ndim < 2:
        raise ValueError(f"weight: shape {tuple(weight.shape)}; expected a matrix or a convolution kernel")
    matrix = weight.detach().flatten(1).double()
    largest = float(matrix.abs().max())
    if not 0 < largest < math.inf:
        return math.nan
    matrix = matrix / largest  # no under- or overflow in the squares
    # The largest eigenvalue of the smaller Gram matrix: as accurate for σ₁ as an SVD, and much cheaper.
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    return float(gram.trace() / torch.linalg.eigvalsh(gram)[-1])


def low_rank_distance(weight: Tensor) -> Tensor:
    r"""Distance of a matrix to the matrices of rank at most r, $\sqrt{\sum_{i>r}s_i^2}$, for every r.

    The distance is in the Frobenius norm, the $s_i$ are the singular values in falling order, and the
    formula is the theorem of Eckart and Young (1936).  A kernel counts as the matrix (out, rest).

    Parameters
    ----------
    weight : (out, in) or (out, in, height, width).

    Returns
    -------
    Tensor : (min(out, rest) + 1,) float64; entry r is the distance to rank r, the first is $‖W‖_F$, the last 0.

    Raises
    ------
    ValueError : fewer than two axes.

    Notes
    -----
    Chapter 7.

    Examples
    --------
    >>> low_rank_distance(torch.diag(torch.tensor([4.0, 3.0]))).tolist()
    [5.0, 3.0, 0.0]
    """
    if weight.ndim < 2:
        raise ValueError(f"weight: shape {tuple(weight.shape)}; expected a matrix or a convolution kernel")
    squares = torch.linalg.svdvals(weight.detach().flatten(1).double()).square()
    tails = squares.flip(0).cumsum(0).flip(0).sqrt()  # small values first, so that none is lost
    return torch.cat([tails, tails.new_zeros(1)])


class Balance(NamedTuple):
    """What gradient flow without weight decay conserves; see `balance`."""

    layers: Tensor
    neurons: list[Tensor]


def balance(net: Net) -> Balance:
    r"""How far neighbouring layers are from balance, for layers and neuron by neuron.

    $ρ_k^2 - ρ_{k+1}^2$, and $‖\text{row}_i\hat W_k‖^2 - ‖\text{column}_i\hat W_{k+1}‖^2$ for each neuron
    (channel) i.  For plain bias-free networks gradient flow conserves both; with weight decay
    $λ\sum_k‖W_k‖^2$ both decay as $e^{-4λt}$.

    Parameters
    ----------
    net : network that is homogeneous in its layers; with BN, calibrated.

    Returns
    -------
    Balance : `layers`, (L−1,) float64, for k = 1..L−1; `neurons`, L−1 tensors (d_k,) float64, each of
        which sums to the entry of `layers`.  (The difference of two layers further apart is a sum of
        entries of `layers`.)

    Raises
    ------
    ValueError : a ResNet, whose layers do not follow one another in a chain.  Also as `fold`.

    Notes
    -----
    Chapter 5.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=(8,)).build(input_shape=(4,), init_norm=(2.0, 1.0))
    >>> layers, neurons = balance(net)
    >>> round(layers.item(), 6), round(neurons[0].sum().item(), 6)
    (3.0, 3.0)
    """
    if not net.arch.homogeneous:
        raise ValueError(
            f"net: balance is not defined for {type(net.arch).__name__} (skip connections); use layer_norms(net)"
        )
    squares = [w.square() for w in folded_weights(net)]
    neurons = []
    for k in range(len(squares) - 1):
        rows = squares[k].flatten(1).sum(dim=1)
        # Column i of the next layer is what its weights see of neuron i, over all kernel positions:
        # a first axis after `out` of size d_k for kernels, d_k × (positions) for flattened maps.
        columns = squares[k + 1].reshape(squares[k + 1].shape[0], rows.shape[0], -1).sum(dim=(0, 2))
        neurons.append(rows - columns)
    norms = torch.stack([s.sum() for s in squares])
    return Balance(norms[:-1] - norms[1:], neurons)


class Homogeneity(NamedTuple):
    """Relative errors of the two faces of homogeneity; see `homogeneity_error`."""

    scaling: float
    euler: float


def homogeneity_error(net: Net, x: Tensor, factor: float = 2.0) -> Homogeneity:
    r"""How far the network is from homogeneous: $f_{cW} = c^Lf_W$ and $⟨∂f/∂W_k, W_k⟩ = f$.

    Weights are the folded ones.  Under BN the mean that is subtracted follows the weights, as it does in
    training, so that only an affine shift β breaks homogeneity; take for `x` the set that BN was
    calibrated on.  (`homogeneity_error(fold(net), x)` shows the network with that mean frozen into a
    bias: no longer homogeneous.)

    Parameters
    ----------
    net : network; with BN, calibrated.
    x : inputs (N, ...).
    factor : c > 0.

    Returns
    -------
    Homogeneity : `scaling`, $\max_n|f_{cW} - c^Lf_W|/(c^L\max_n|f_W|)$; `euler`, the maximum over k of
        $\max_n|⟨∂f/∂W_k, W_k⟩ - f|/\max_n|f|$.  Rounding (1e-15 in float64) where the network is
        homogeneous; NaN if f is zero on all of `x`.

    Raises
    ------
    ValueError : `factor` is not positive, or as `fold`.

    Notes
    -----
    Chapter 1.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> build = dict(input_shape=(4,), dtype=torch.float64)
    >>> x = torch.eye(4, dtype=torch.float64)
    >>> max(homogeneity_error(mlp(widths=(8, 8)).build(**build), x)) < 1e-13
    True
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"factor={factor!r}: expected a positive number, e.g. factor=2.0")
    model = _Centred(net)
    with torch.no_grad():
        weights = {f"net.layers.{k}.weight": w for k, w in enumerate(_weights(model.net))}
        grown = functional_call(model, {name: factor * w for name, w in weights.items()}, (x,))
    f, slopes = _euler_slopes(model, x)
    size = f.abs().max()
    return Homogeneity(
        ((grown / factor ** len(weights) - f).abs().max() / size).item(),
        max(((slope - f).abs().max() / size).item() for slope in slopes),
    )


def _weights(net: Net) -> list[Tensor]:
    return [cast(Layer, layer).weight for layer in net.layers]


def _euler_slopes(model: _Centred, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs f, and ⟨∂f/∂W_k, W_k⟩ for every k, both for all samples and outputs."""
    weights = _weights(model.net)
    f = model(x)
    # g_k(u) = ⟨∂(u·f)/∂W_k, W_k⟩ is linear in u, and its gradient in u is the slope of every f_n at once.
    u = torch.zeros_like(f, requires_grad=True)
    gradients = torch.autograd.grad(f, weights, u, create_graph=True)
    pairs = zip(gradients, weights, strict=True)
    slopes = [torch.autograd.grad((g * w).sum(), u, retain_graph=True)[0] for g, w in pairs]
    return f.detach(), slopes


class _Centred(nn.Module):
    r"""The folded network with BN's mean taken from the batch: $σ(\hat W_kh - ⟨\hat W_kh⟩ + β)$."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = fold(net)
        if len(net.norms):
            weights = self.net.layers
            self.net = copy.deepcopy(net)  # keeps its BN layers, as places to centre at
            for layer, plain in zip(self.net.layers, weights, strict=True):
                cast(Layer, layer).set_weight(cast(Layer, plain).weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.net.head(self.net.features(x, _centre))


def _centre(bn: BatchNorm, a: Tensor) -> Tensor:
    axes = [0, *range(2, a.ndim)]
    centred = a - a.mean(axes, keepdim=True)
    return centred if bn.beta is None else centred + bn.beta.reshape(-1, *[1] * (a.ndim - 2))
