r"""Exact batch-norm statistics over a whole training set, and folding a normalised network into plain weights.

In evaluation mode batch normalisation is the affine map $a \mapsto (a-m)/\sqrt{s^2+ε}$ of each channel, so the
layer before it can absorb it, row by row:

$$\hat W = \mathrm{diag}\Big(\frac1{\sqrt{s^2+ε}}\Big)W,\qquad \hat b = -\frac{m}{\sqrt{s^2+ε}}.$$

The folded network computes the same function, and ρ and the margins of a normalised network are those
of its folded form.

**A trap.**  It is tempting to divide the *norm* of the layer by the norm of the vector of standard deviations,
$‖W‖_F/‖s‖_2$, instead of dividing each row by its own.  Where the $C$ channels have equal $s$, that is too small by
$\sqrt C$ for each normalised layer, a factor of $\sqrt{32·64·128} = 512$ for `convnet()` (Chapters 1 and 15).  With
unequal $s$ (and rows of equal norm, ε = 0) it is worse, by Cauchy and Schwarz: $\sum_i s_i^2\sum_i s_i^{-2} ≥ C^2$.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from .. import inputs
from .models import BatchNorm, Net, checked, taken


@torch.no_grad()
def calibrate(net: Net, x: inputs.Arrays, *, chunk: int | None = None, max_bytes: int = 4 * 2**30) -> Tensor:
    """Set BN's statistics exactly over `x`, the whole training set, and return the network's outputs on it.

    Layer by layer: mean and *biased* variance (divided by N, as BN normalises in training) of the
    layer's pre-activations over all of `x`, given the exact statistics of the layers before.  Hence
    evaluation mode on `x` equals training mode with `x` as one batch.  Reductions in float64.
    The outputs, in evaluation mode, (N,) or (N, K), come for nothing; ValueError where they overflow.

    Parameters
    ----------
    net
        Network; without BN nothing is set.  Its mode (training or evaluation) is left alone.
    x
        Inputs (N, ...), at least one; any array, taken to the network's type and device.
    chunk
        Samples at a time; None chooses.
    max_bytes
        As long as the activations of all chunks fit in this, every layer runs once; otherwise the
        layers before are run again for each BN layer.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> x = torch.eye(6)
    >>> net = mlp(widths=(8,), norm="bn").build(input_shape=(6,))
    >>> outputs = calibrate(net, x)
    >>> torch.allclose(outputs, net.eval()(x)), torch.allclose(outputs, net.train()(x), atol=1e-6)
    (True, True)
    """
    if chunk is not None:
        chunk = inputs.count("chunk", chunk, 1)
    inputs.number("max_bytes", max_bytes, "a number of bytes >= 0", lambda b: b >= 0)
    outputs = calibrated(net, taken(net, x), chunk, max_bytes)
    if not bool(outputs.isfinite().all()) and (net.arch.eps > 0 or not len(net.norms)):
        raise ValueError(f"x: the network's outputs overflow {outputs.dtype}; divide x, or write net.double()")
    return outputs


@torch.no_grad()
def calibrated(net: Net, x: Tensor, chunk: int | None = None, max_bytes: int = 4 * 2**30) -> Tensor:
    """The same without checks, and of whatever inputs and network."""
    modes = [bn.training for bn in net.norms]
    try:
        for bn in net.norms:
            bn.eval()
        return _calibrate(net, x, chunk, max_bytes)
    finally:
        for bn, mode in zip(net.norms, modes, strict=True):
            bn.train(mode)


def _calibrate(net: Net, x: Tensor, chunk: int | None, max_bytes: int) -> Tensor:
    per_sample = _largest_activation(net, x)
    if chunk is None:
        # Measured: small enough for the outer cache, large enough for the convolutions.
        chunk = max(1, (2**26 if x.is_cuda else 2**21) // per_sample)
    pieces = torch.split(x, chunk)
    # A residual block holds up to four activations of the largest size at a time.
    if len(net.norms) and 4 * per_sample * x.shape[0] * x.element_size() <= max_bytes:
        with _before_each(net.norms, lambda bn, a: _set_statistics(bn, a.pieces)):
            features = net.features(cast(Tensor, _Pieces(pieces)))
        return torch.cat([net.head(h) for h in cast(_Pieces, features).pieces])
    for bn in net.norms:
        _set_statistics(bn, (_input_of(bn, net, piece) for piece in pieces))
    return torch.cat([net(piece) for piece in pieces])


class _Pieces:
    """A batch held in pieces: every function of torch acts on one after the other, while it is in the cache.

    As one tensor it would cost a fifth to a half more time in convolutions (measured).
    """

    def __init__(self, pieces: Sequence[Tensor]) -> None:
        self.pieces = pieces

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> _Pieces:
        count = next(len(a.pieces) for a in args if isinstance(a, cls))
        each = [[a.pieces[i] if isinstance(a, cls) else a for a in args] for i in range(count)]
        return cls([function(*those, **(kwargs or {})) for those in each])


@contextmanager
def _before_each(norms: Iterable[BatchNorm], look: Callable[[BatchNorm, Any], None]) -> Iterator[None]:
    """Within this context `look` sees each of these BN layers and what it is given, before it acts."""
    hooks = [bn.register_forward_pre_hook(lambda bn, args: look(bn, args[0])) for bn in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _ReachedError(Exception):
    """The forward pass has come to the layer in question."""


def _input_of(bn: BatchNorm, net: Net, x: Tensor) -> Tensor:
    """What a BN layer is given; the layers behind it do not run."""

    def stop(_: BatchNorm, a: Tensor) -> NoReturn:
        raise _ReachedError(a)

    try:
        with _before_each([bn], stop):
            net.features(x)
    except _ReachedError as reached:
        return cast(Tensor, reached.args[0])
    raise AssertionError("a layer of another network")


def _set_statistics(bn: BatchNorm, pieces: Iterable[Tensor]) -> None:
    """Mean and biased variance per channel over all pieces of a pre-activation, in float64."""
    shift: Tensor | None = None
    for a in pieces:
        axes = [0, *range(2, a.ndim)]
        if shift is None:
            # What is subtracted so that the difference of float64 sums keeps its digits: the mean of some is
            # enough, within √(whole/part) standard deviations of that of the whole. Samples in float32 need none:
            # the sums lose less than the samples' own rounding.
            wide = a.dtype == torch.float64
            shift = a[:256].mean(axes) if wide else a.new_zeros(a.shape[1], dtype=torch.float64)
            total, squares = torch.zeros_like(shift), torch.zeros_like(shift)
            count = 0
        # Measured: float64 copies cost least in blocks that stay in the inner caches.
        for part in torch.split(a, max(1, (2**26 if a.is_cuda else 2**17) // a[0].numel())):
            b = part - shift.reshape(-1, *[1] * (a.ndim - 2)) if a.dtype == torch.float64 else part.double()
            count += b.numel() // b.shape[1]
            total += b.sum(axes)
            squares += b.square_().sum(axes)
    assert shift is not None
    mean = total / count
    var = squares / count - mean.square()
    mean += shift
    # A spread below the samples' own rounding is none: a constant channel has variance 0.
    bn.mean.copy_(mean)
    bn.var.copy_(torch.where(var.sqrt() > torch.finfo(a.dtype).eps * mean.abs(), var, 0.0))


def _largest_activation(net: Net, x: Tensor) -> int:
    """Numbers per sample in the largest of the input and the pre-activations before a BN."""
    sizes = [x[0].numel()]
    with _before_each(net.norms, lambda _, a: sizes.append(a[0].numel())):
        net.features(x[:1])
    return max(sizes)


def fold(net: Net) -> Net:
    r"""Fold BN, WN or LM into plain weights: a new network with the same outputs in evaluation mode (Chapter 1).

    * BN: each row of $W$ divided by $\sqrt{s^2+ε}$ of its channel.  The mean becomes a bias, which is kept;
      `rho` ignores it and says so.
    * WN: $\hat W_k = g_k v_k/‖v_k‖$.
    * LM: the scale is shared out evenly, $\hat W_k = |ρ|^{1/L}V_k$, its sign going to the last layer
      (ρ may cross zero in training); a ResNet, which is not homogeneous, gets all of ρ in the last layer.

    The result is plain (`norm="none"`), in evaluation mode, on the device of `net`, and shares nothing with it.
    Computed in float64 and rounded once to the type of `net`.

    Parameters
    ----------
    net
        Network; with BN it must have been calibrated (`calibrate(net, x_train)`), and where ε is 0 no channel may
        have variance 0: else ValueError, as where weights are not finite.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> x = torch.eye(5)
    >>> net = mlp(widths=(7,), norm="bn").build(input_shape=(5,), outputs=2).eval()
    >>> outputs = calibrate(net, x)
    >>> torch.allclose(fold(net)(x), outputs, atol=1e-6)
    True
    """
    weights, biases = _fold(checked(net))
    biased = any(b is not None for b in biases)
    plain = Net(replace(net.arch, norm="none"), net.input_shape, net.outputs, bias=biased)
    plain = plain.to(weights[0].device, next(net.parameters()).dtype)
    with torch.no_grad():
        for layer, weight, bias in zip(plain.layers, weights, biases, strict=True):
            layer.set_weight(weight)
            if layer.bias is not None and bias is not None:
                layer.bias.copy_(bias)
    return checked(plain.eval())  # in half precision a row may overflow


def folded_weights(net: Net) -> list[Tensor]:
    """Weights that `fold` puts in its layers, in their shapes, float64 before rounding; raises as `fold` does."""
    return _fold(net)[0]


@torch.no_grad()
def _fold(net: Net) -> tuple[list[Tensor], list[Tensor | None]]:
    """Weights and biases of the folded network in float64, sharing nothing with the network."""
    weights = [layer.weight.detach().to(torch.float64, copy=True) for layer in net.layers]
    biases = [None if layer.bias is None else layer.bias.detach().double() for layer in net.layers]
    for k, bn in enumerate(net.norms):
        mean, gain = bn.mean.double(), _gain(bn, k)
        weights[k] = weights[k] * gain.reshape(-1, *[1] * (weights[k].ndim - 1))
        biases[k] = -gain * mean
    if net.scale is not None:
        scale = net.scale.item()
        share = abs(scale) ** (1 / len(weights)) if net.arch.homogeneous else 1.0
        last = math.copysign(share, scale) if net.arch.homogeneous else scale
        weights = [*(w * share for w in weights[:-1]), weights[-1] * last]
    return weights, biases


def _gain(bn: BatchNorm, k: int) -> Tensor:
    """What BN layer k (from 0) multiplies each channel by in evaluation mode, in float64."""
    mean, var = bn.mean.double(), bn.var.double() + bn.eps
    if not (mean.isfinite() & var.isfinite()).all():
        raise ValueError(f"net: batch norm {k + 1} has no statistics; set them with calibrate(net, x_train) first")
    if constant := int((var == 0).sum()):
        what = f"has {constant} channel(s) of zero variance and eps=0, so its output is undefined"
        raise ValueError(f"net: batch norm {k + 1} {what}; build the network with eps > 0")
    return var.rsqrt()
