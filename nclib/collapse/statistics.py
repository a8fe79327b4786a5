"""Neural-collapse metrics in one pass over batches, from statistics that merge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .formulas import Geometry, duality, spread
from .inputs import (
    Array,
    checked_classifier,
    checked_features,
    checked_labels,
    require_every_class,
    require_finite,
)
from .least_squares import Regression, mse_split
from .scatter import CentredRows, add_gram_, chunks, class_means, mirror_


class CollapseStatistics:
    r"""Neural-collapse metrics of features that arrive in batches or on several workers.

    Keeps, for each class, the number of rows n_c, their mean μ_c and Σ‖h − μ_c‖², and for all classes
    together the d×d scatter Σ(h − μ_y)(h − μ_y)ᵀ: in float64 and about the means, never as
    E‖h‖² − ‖μ‖², which cancels.  Two such states merge exactly: with primes for the two sides and
    δ_c = μ_c″ − μ_c′, the scatters add up with Σ_c (n_c′ n_c″ / n_c) δ_c δ_cᵀ on top.  So neither the
    split into batches nor their order matters, beyond rounding.

    One pass gives every key of `collapse` but ``nc4``, which compares each row with the finished means:
    add up `disagreements` in a second pass and divide by N.  The state takes 8d² bytes (2 MiB at
    d = 512), and a batch of n rows n·d² operations.

    Parameters
    ----------
    classes : int
        K ≥ 2.

    Raises
    ------
    ValueError
        If there are fewer than two classes.

    References
    ----------
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The American Statistician,
    1983; the chapter on neural collapse.

    Examples
    --------
    >>> import torch
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> first, second = CollapseStatistics(classes=2), CollapseStatistics(classes=2)
    >>> first.update(features[:3], torch.tensor([0, 0, 1]))
    >>> second.update(features[3:], torch.tensor([1]))
    >>> first.merge(second)
    >>> round(first.result()["nc1_quotient"], 6)
    0.01
    """

    def __init__(self, classes: int) -> None:
        if classes < 2:
            raise ValueError(f"classes={classes}: collapse compares classes; give two or more")
        self.classes = classes
        self._state: _Moments | None = None

    @property
    def counts(self) -> Tensor:
        """Rows seen of each class, int64, shape (K,)."""
        if self._state is None:
            return torch.zeros(self.classes, dtype=torch.int64)
        return self._state.counts.long()

    @torch.no_grad()
    def update(self, features: Array, labels: Array) -> None:
        """Take in a batch; classes may be absent from it.

        Parameters
        ----------
        features : Tensor or array, shape (n, d)
        labels : Tensor or array of integers, shape (n,), values in 0..K-1

        Raises
        ------
        TypeError, ValueError
            As `collapse`; the batch then leaves no trace.
        """
        rows = checked_features(features)
        numbers, _ = checked_labels(labels, rows, self.classes)
        state = self._state_for(rows)
        numbers, rows = numbers.to(state.means.device), rows.to(state.means.device)
        counts = torch.bincount(numbers, minlength=self.classes).double()
        means = class_means(rows, numbers, counts)
        require_finite(means, "features")
        squares = torch.zeros_like(counts)
        for centred, chunk in CentredRows(rows, numbers, counts, means, torch.float64):
            squares.index_add_(0, chunk, centred.square().sum(1))
            add_gram_(state.scatter, centred)
        state.absorb(counts, means, squares)
        self._state = state

    @torch.no_grad()
    def merge(self, other: CollapseStatistics) -> None:
        """Take in everything that ``other`` has seen; ``other`` stays as it is.

        Raises
        ------
        ValueError
            If the two differ in their number of classes or of features.
        """
        if other.classes != self.classes:
            raise ValueError(f"other has {other.classes} classes: expected {self.classes}; merge like with like")
        there = other._state
        if there is None:
            return
        state = self._state_for(there.means)
        device = state.means.device
        counts, means, squares = (t.to(device, copy=True) for t in (there.counts, there.means, there.squares))
        state.scatter += there.scatter.to(device)
        state.absorb(counts, means, squares)
        self._state = state

    @torch.no_grad()
    def result(self, weight: Array | None = None, bias: Array | None = None) -> dict[str, float]:
        """Every metric of `collapse` that the arguments allow, but ``nc4``.

        Parameters
        ----------
        weight : Tensor or array, shape (K, d), optional
        bias : Tensor or array, shape (K,), optional

        Returns
        -------
        dict of str to float

        Raises
        ------
        ValueError
            As `collapse`; also if a class has not been seen yet.
        """
        state = self._complete()
        classifier = checked_classifier(weight, bias, self.classes, state.means)
        geometry = Geometry.of(state.means)
        scatter = mirror_(state.scatter / state.counts.sum())
        along = ((geometry.axes @ scatter) * geometry.axes).sum(1)
        found = spread(geometry, state.counts, state.squares / state.counts, along)
        if classifier is None:
            return found
        problem = Regression.of(state.means, state.counts, classifier)
        return found | duality(geometry, classifier.weight) | mse_split(problem, scatter)

    @torch.no_grad()
    def disagreements(self, features: Array, weight: Array, bias: Array | None = None) -> int:
        """How many rows the classifier and the nearest class mean assign differently.

        For a second pass: the class means are those of the rows seen so far.  Added up over all batches
        and divided by the number of rows this is ``nc4``.

        Parameters
        ----------
        features : Tensor or array, shape (n, d)
        weight : Tensor or array, shape (K, d)
        bias : Tensor or array, shape (K,), optional

        Returns
        -------
        int
            Between 0 and n.

        Raises
        ------
        TypeError, ValueError
            As `collapse`; also if a class has not been seen yet.
        """
        rows = checked_features(features)
        means = self._complete().means
        self._state_for(rows)
        classifier = checked_classifier(weight, bias, self.classes, means)
        assert classifier is not None
        origin = means.mean(0, keepdim=True)
        centred, offset = means - origin, classifier.at(origin)
        wrong = 0
        for chunk in chunks(rows):
            moved = rows[chunk].to(means.device).double() - origin
            chosen = (classifier.weight @ moved.T + offset).argmax(0)
            nearest = (centred.square().sum(1, keepdim=True) - 2 * centred @ moved.T).argmin(0)
            wrong += int((chosen != nearest).sum())
        return wrong

    def _complete(self) -> _Moments:
        """The state, once every class has been seen."""
        require_every_class(self.counts)
        assert self._state is not None
        return self._state

    def _state_for(self, rows: Tensor) -> _Moments:
        """The state, or an empty one, for rows of this width."""
        width = rows.shape[1]
        if self._state is None:
            return _Moments.empty(self.classes, width, rows.device)
        known = self._state.means.shape[1]
        if width != known:
            raise ValueError(f"features has {width} columns: expected {known}, as in the rows seen before")
        return self._state


@dataclass
class _Moments:
    """Centred moments of the rows seen, in float64; `scatter` lives in its upper triangle."""

    counts: Tensor
    means: Tensor
    squares: Tensor
    scatter: Tensor

    @staticmethod
    def empty(classes: int, width: int, device: torch.device) -> _Moments:
        shapes = (classes,), (classes, width), (classes,), (width, width)
        return _Moments(*(torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes))

    def absorb(self, counts: Tensor, means: Tensor, squares: Tensor) -> None:
        """Merge another set of rows, whose own scatter has been added already."""
        total = self.counts + counts
        share = counts / total.clamp(min=1)
        step = means - self.means
        # Zero where one side has no row of the class: there is no step to account for.
        between = (self.counts * share).sqrt()[:, None] * step
        add_gram_(self.scatter, between)
        self.squares += squares + between.square().sum(1)
        self.means += share[:, None] * step
        self.counts = total
