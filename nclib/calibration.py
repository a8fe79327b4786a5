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
    evaluation mode on `x` equals training mode with `x` as one batch.  Reductions in float64, two
    passes per chunk, chunks merged by Chan's rule.

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
    >>> from nclib.models import mlp
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
        # Measured: float64 reductions are fastest while a chunk stays in the processor's cache.
        chunk = max(1, (2**26 if x.is_cuda else 2**20) // per_sample)
    pieces = torch.split(x, chunk)
    # A residual block holds up to four activations of the largest size at a time.
    if 4 * per_sample * x.shape[0] * x.element_size() <= max_bytes:
        features = _calibrate_abreast([net.arch.signal(net, piece) for piece in pieces])
        return torch.cat([net.head(h) for h in features])
    for k in range(len(net.norms)):
        _set_statistics(_pre_activation(net, piece, k) for piece in pieces)
    return torch.cat([net.head(net.features(piece, by_statistics)) for piece in pieces])


def _calibrate_abreast(signals: list[Signal]) -> list[Tensor]:
    """Advance the chunks together from one BN layer to the next; returns their features."""
    answers: list[Tensor | None] = [None] * len(signals)
    while True:
        requests, features = [], []
        for i, signal in enumerate(signals):
            try:
                # A fresh coroutine is started by sending None.
                requests.append(signal.send(answers[i]))  # type: ignore[arg-type]
            except StopIteration as stop:
                features.append(stop.value)
            answers[i] = None  # free it: memory is what this way costs
        if features:
            return features
        _set_statistics(iter(requests))
        for i in range(len(signals)):
            answers[i] = by_statistics(*requests.pop(0))


def _set_statistics(requests: Iterator[tuple[BatchNorm, Tensor]]) -> None:
    """Mean and biased variance per channel over all chunks, in float64, into the BN layer they ask for."""
    counts, means, variances = [], [], []
    for bn, a in requests:  # noqa: B007  (every chunk names the same layer)
        axes = [0, *range(2, a.ndim)]
        # Measured: copies to float64 cost least in blocks that stay in a processor's innermost caches.
        block = max(1, (2**26 if a.is_cuda else 2**17) // a[0].numel())
        for part in torch.split(a, block):
            b = part.to(torch.float64, copy=True)
            mean = b.mean(axes)
            b -= mean.reshape(-1, *[1] * (b.ndim - 2))
            counts.append(b.shape[0])
            means.append(mean)
            variances.append(b.square_().mean(axes))
    share = (torch.tensor(counts, dtype=torch.float64, device=mean.device) / sum(counts)).unsqueeze(1)
    pooled = (share * torch.stack(means)).sum(0)
    between = (torch.stack(means) - pooled).square()
    bn.mean.copy_(pooled)
    bn.var.copy_((share * (torch.stack(variances) + between)).sum(0))


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
