"""Within-class scatter in one pass over the rows: centred first, reduced in float64, a few rows at a time.

Everything that touches all N feature rows for :mod:`nclib.collapse` is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

# About 2 MiB of float32: small enough to stay in cache from the subtraction to the products.
_CHUNK_NUMBERS = 2**19
_CHUNK_NUMBERS_CUDA = 2**23

Visit = Callable[[Tensor, Tensor, Tensor], None]


def class_means(features: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Class means μ_c, summed in float64; an empty class gets 0.

    Parameters
    ----------
    features : Tensor, shape (N, d)
    labels : Tensor of int64, shape (N,), values in 0..K-1
    counts : Tensor, shape (K,)
        Rows in each class.

    Returns
    -------
    Tensor of float64, shape (K, d)
    """
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64, device=features.device)
    # One buffer throughout: fresh memory for each chunk would cost more than the sums.
    buffer = sums.new_empty(0)
    for rows in chunks(features):
        part = features[rows]
        if len(part) != len(buffer):
            buffer = sums.new_empty(part.shape)
        sums.index_add_(0, labels[rows], buffer.copy_(part))
    return sums / counts.clamp(min=1)[:, None]


@dataclass(frozen=True)
class CentredRows:
    """The rows h − μ_y of a feature matrix, read in chunks in one arithmetic type.

    In float32 the rounded mean is subtracted, which is nearly exact where it matters (row close to
    mean), and what the rounding left, known in float64, is taken out of every second moment.

    Parameters
    ----------
    features : Tensor, shape (N, d)
    labels : Tensor of int64, shape (N,)
    counts : Tensor of float64, shape (K,)
    means : Tensor of float64, shape (K, d)
    dtype : torch.dtype
        float32 or float64: the type of the products; sums over chunks are float64 in both.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    means: Tensor
    dtype: torch.dtype

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Chunks of (centred rows, their labels); the rows' memory is used again for the next chunk."""
        rounded = self.means.to(self.dtype)
        buffer = torch.empty(0, dtype=self.dtype, device=self.features.device)
        for rows in chunks(self.features):
            labels = self.labels[rows]
            if len(labels) != len(buffer):
                buffer = rounded.new_empty(len(labels), rounded.shape[1])
            torch.index_select(rounded, 0, labels, out=buffer)
            torch.sub(self.features[rows], buffer, out=buffer)
            yield buffer, labels

    def wide(self) -> CentredRows:
        """The same rows in float64."""
        return replace(self, dtype=torch.float64)

    def every(self, step: int) -> CentredRows:
        """Every step-th row, centred at the same class means."""
        labels = self.labels[::step]
        counts = torch.bincount(labels, minlength=len(self.counts)).double()
        return CentredRows(self.features[::step], labels, counts, self.means, self.dtype)

    def scatter(self) -> Tensor:
        """Σ_W = (1/N) Σ (h − μ_y)(h − μ_y)ᵀ.

        Returns
        -------
        Tensor of float64, shape (d, d)
        """
        total = self.means.new_zeros(self.means.shape[1], self.means.shape[1])
        for rows, _ in self:
            add_gram_(total, rows)
        add_gram_(total, self.counts.sqrt()[:, None] * self._rounding(), sign=-1)
        return mirror_(total.div_(len(self.labels)))

    def project(self, basis: Tensor, visit: Visit | None = None, *, product: bool = True) -> tuple[Tensor, Tensor]:
        """B Σ_W Bᵀ and B Σ_W in one pass, without Σ_W.

        Parameters
        ----------
        basis : Tensor of float64, shape (k, d)
            B, one direction a row.
        visit : callable, optional
            Called with every chunk's (projections (k, n), centred rows (n, d), labels (n,)).
        product : bool
            Whether B Σ_W is wanted; without it the pass takes two thirds of the time.

        Returns
        -------
        gram : Tensor of float64, shape (k, k)
        product : Tensor of float64, shape (k, d)
            Zeros if it was not wanted.
        """
        directions = basis.to(self.dtype)
        gram, through = basis.new_zeros(len(basis), len(basis)), torch.zeros_like(basis)
        for rows, labels in self:
            projected = directions @ rows.T
            if visit is not None:
                visit(projected, rows, labels)
            if product:
                through += projected @ rows
            wide = projected.double()
            gram += wide @ wide.T
        rounding = self._rounding()
        offsets = rounding @ basis.T
        weighted = self.counts[:, None] * offsets
        gram -= offsets.T @ weighted
        if product:
            through -= weighted.T @ rounding
        return gram / len(self.labels), through / len(self.labels)

    def variances(self, sums: Tensor) -> Tensor:
        """Class variances (1/n_c) Σ ‖h − μ_c‖² from the sums of squares about the rounded means."""
        return (sums / self.counts - self._rounding().square().sum(1)).clamp(min=0)

    def _rounding(self) -> Tensor:
        """Mean of the rows as read (they are centred at the rounded mean): μ_c − round(μ_c)."""
        return self.means - self.means.to(self.dtype).double()


def add_gram_(total: Tensor, rows: Tensor, sign: int = 1) -> None:
    """Add ± rowsᵀ rows to the upper triangle of ``total``, block by block, in place."""
    width = total.shape[0]
    block = max(64, -(-width // 8))
    for start in range(0, width, block):
        stop = min(start + block, width)
        product = rows[:, start:stop].T @ rows[:, start:]
        total[start:stop, start:] += product if sign > 0 else -product


def mirror_(total: Tensor) -> Tensor:
    """Copy the upper triangle of ``total`` onto the lower one, in place."""
    block = 1024
    for start in range(0, total.shape[0], block):
        stop = start + block
        corner = total[start:stop, start:stop]
        corner.copy_(corner.triu() + corner.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def chunks(features: Tensor) -> Iterator[slice]:
    """Slices that cover the rows, each a few MiB of them."""
    numbers = _CHUNK_NUMBERS_CUDA if features.is_cuda else _CHUNK_NUMBERS
    size = max(256, numbers // max(1, features.shape[1]))
    for start in range(0, len(features), size):
        yield slice(start, start + size)
