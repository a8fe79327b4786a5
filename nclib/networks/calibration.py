"""Exact batch-norm statistics over a whole training set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .layers import BatchNorm, Signal, by_statistics

if TYPE_CHECKING:
    from .models import Net

__all__ = ["calibrate"]


@torch.no_grad()
def calibrate(net: Net, x: Tensor, *, chunk: int | None = None, max_bytes: int = 4 * 2**30) -> Tensor:
    """Set BN's statistics exactly over `x` (the whole training set) and return the outputs on it.

    Layer by layer: mean and *biased* variance (divided by N, as BN normalises in training) of the
    layer's pre-activations over all of `x`, given the exact statistics of the layers before.  Hence
    evaluation mode on `x` equals training mode with `x` as one batch.  Reductions in float64.

    Parameters
    ----------
    net : network; without BN nothing is set.  Its mode (training or evaluation) is left alone.
    x : inputs (N, ...).
    chunk : samples at a time; None chooses.
    max_bytes : as long as the activations of all chunks fit in this, every layer runs once; otherwise
        the layers before are run again for each BN layer.

    Returns
    -------
    Tensor : outputs in evaluation mode on `x`, (N,) or (N, K): they come for nothing.

    Raises
    ------
    ValueError : `x` is empty.

    Examples
    --------
    >>> from nclib.networks.models import mlp
    >>> x = torch.eye(6)
    >>> net = mlp(widths=(8,), norm="bn").build(input_shape=(6,))
    >>> outputs = calibrate(net, x)
    >>> torch.allclose(outputs, net.eval()(x)), torch.allclose(outputs, net.train()(x), atol=1e-6)
    (True, True)
    """
    if x.shape[0] == 0:
        raise ValueError("x: no samples; the statistics need at least one (two for a variance)")
    per_sample = _largest_activation(net, x)
    if chunk is None:
        # Measured: small enough for the outer cache, large enough for the convolutions.
        chunk = max(1, (2**26 if x.is_cuda else 2**21) // per_sample)
    pieces = torch.split(x, chunk)
    # A residual block holds up to four activations of the largest size at a time.
    if 4 * per_sample * x.shape[0] * x.element_size() <= max_bytes:
        features = _calibrate_abreast([net.arch.signal(net, piece) for piece in pieces], len(net.norms))
        return torch.cat([net.head(h) for h in features])
    for k in range(len(net.norms)):
        _set_statistics(_pre_activation(net, piece, k) for piece in pieces)
    return torch.cat([net.head(net.features(piece, by_statistics)) for piece in pieces])


def _calibrate_abreast(signals: list[Signal], layers: int) -> list[Tensor]:
    """Advance all chunks together from one BN layer to the next; returns their features."""
    waiting: list[tuple[BatchNorm, Tensor] | None] = [None] * len(signals)

    def advance() -> Iterator[tuple[BatchNorm, Tensor]]:
        # One chunk after another is normalised, passed on and handed to the statistics while it is in the cache.
        for i, signal in enumerate(signals):
            request, waiting[i] = waiting[i], None
            # A fresh coroutine is started by sending None.
            waiting[i] = signal.send(_normalise_(*request) if request else None)  # type: ignore[arg-type]
            yield waiting[i]  # type: ignore[misc]

    for _ in range(layers):
        _set_statistics(advance())
    features = []
    for signal, request in zip(signals, waiting, strict=True):
        try:
            signal.send(_normalise_(*request) if request else None)  # type: ignore[arg-type]
        except StopIteration as stop:
            features.append(stop.value)
    return features


def _normalise_(bn: BatchNorm, a: Tensor) -> Tensor:
    """As `by_statistics`, but in place: writing to fresh memory costs more than the arithmetic."""
    gain, shift = bn.affine_map()
    shape = (-1, *[1] * (a.ndim - 2))
    shift, gain = shift.to(a.dtype).reshape(shape), gain.to(a.dtype).reshape(shape)
    return torch.addcmul(shift, a, gain, out=a)


def _set_statistics(requests: Iterator[tuple[BatchNorm, Tensor]]) -> None:
    """Mean and biased variance per channel over all chunks, in float64, into the BN layer they ask for."""
    shift: Tensor | None = None
    for bn, a in requests:  # noqa: B007  (every chunk names the same layer)
        axes = [0, *range(2, a.ndim)]
        if shift is None:
            shift = _shift(a, axes)
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


def _shift(a: Tensor, axes: list[int]) -> Tensor:
    """What to subtract from the samples so that the difference of their sums keeps its digits, (C,) float64.

    Samples in float32 need nothing: what float64 sums of them lose is less than the samples' own rounding.
    In float64 the mean of some is enough: it is within √(whole/part) standard deviations of that of the whole.
    """
    if a.dtype != torch.float64:
        return a.new_zeros(a.shape[1], dtype=torch.float64)
    return a[:256].mean(axes)


def _pre_activation(net: Net, x: Tensor, k: int) -> tuple[BatchNorm, Tensor]:
    """What BN layer k (from 0) is given, with stored statistics in the BN layers before it."""
    signal = net.arch.signal(net, x)
    request = next(signal)
    for _ in range(k):
        request = signal.send(by_statistics(*request))
    return request


def _largest_activation(net: Net, x: Tensor) -> int:
    """Numbers per sample in the largest of the input and the pre-activations before a BN."""
    sizes = [x[0].numel()]

    def look(bn: BatchNorm, a: Tensor) -> Tensor:
        sizes.append(a[0].numel())
        return a

    net.features(x[:1], look)
    return max(sizes)
