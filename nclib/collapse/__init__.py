"""Neural collapse, measured: within-class spread, the means' geometry, self-duality, nearest mean.

Two passes over the features: the first finds the class means, the second reads every row less the mean of its
class. Centred first and summed in float64, a collapse of 10⁻¹² is read as such.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import inputs
from ..inputs import Arrays

# A chunk of rows, about 1 MiB of float32, stays in cache from the subtraction to the product.
_CHUNK_NUMBERS = 2**18
_CHUNK_NUMBERS_CUDA = 2**23
# Class means further apart or closer than this are measured in float64: in float32 the square of a
# centred feature could overflow, or vanish where the collapse is deep.
_FLOAT32_SPREAD = (1e-9, 1e12)
_MOST_CLASSES = 20_000  # distances are of all pairs
_SIZES = (1e-75, 1e75)  # of class means and weights, so that their fourth powers are numbers


def collapse(
    features: Arrays, labels: Arrays, weight: Arrays | None = None, bias: Arrays | None = None
) -> dict[str, float]:
    r"""Every neural-collapse metric that the arguments allow.

    With class means μ_c, μ_G the mean of the μ_c, M̄ (K×d) with rows μ_c − μ_G, Frobenius norms,
    Σ_W = 1/N Σ(h − μ_y)(h − μ_y)ᵀ, Σ_B = M̄ᵀM̄/K and v_c the mean of ‖h − μ_c‖² over class c:

    ================  =============================================================================
    ``nc1``           tr(Σ_W Σ_B⁺)/K (Zhu et al.; Han et al. report K times this)
    ``nc1_quotient``  tr Σ_W / tr Σ_B (Tirer and Bruna)
    ``cdnv``          mean over pairs of (v_c + v_c′)/(2‖μ_c − μ_c′‖²) (Galanti et al.)
    ``nc2_norm_*``    std/mean (ddof 1) of the row norms of M̄ or W (Papyan et al.)
    ``nc2_angle_*``   mean over pairs of |cos + 1/(K−1)|, rows of M̄ or W (Papyan et al.)
    ``nc2_etf_*``     ‖AAᵀ/‖AAᵀ‖ − (I − 11ᵀ/K)/√(K−1)‖, A = M̄ or row-centred W (Zhu et al.)
    ``nc3``           ‖W/‖W‖ − M̄/‖M̄‖‖² (Han et al.)
    ``nc3_etf``       as ``nc2_etf`` with WM̄ᵀ for AAᵀ (Zhu et al.)
    ``nc4``           share of rows with argmax(Wh + b) ≠ argmin_c ‖h − μ_c‖ (Han et al.)
    ================  =============================================================================

    The suffix is ``_means`` (M̄) or ``_weights`` (W). Without ``weight`` the keys are ``nc1``,
    ``nc1_quotient``, ``cdnv`` and ``nc2_*_means``. Σ_B has rank ≤ min(K − 1, d), so NC1 needs the centred rows
    along M̄'s singular vectors only, and nothing of size d×d.

    Parameters
    ----------
    features
        Last-layer features h, (N, d), of the network in evaluation mode; any floating type, CPU or GPU.
    labels
        Classes 0..K-1, (N,) integers, every class present, K ≥ 2.
    weight
        Last-layer weight W, (K, d). A network with one output f = wᵀh for two classes coded ±1 is the
        one-hot classifier W = cat([w, -w])/2 with b = (1/2, 1/2).
    bias
        Last-layer bias b, (K,).

    Returns
    -------
    dict of str to float
        In the order of the table. All are ≥ 0, and 0 for a simplex ETF. Where a denominator is zero (all class
        means equal, a row of zeros in W) the ratio is nan or inf. μ_G and Σ_B, and with them all of NC2 and NC3,
        weigh the classes equally however many rows they have; ``cdnv`` weighs the pairs equally; Σ_W and ``nc4``
        the rows.

    Raises
    ------
    TypeError, ValueError
        Features that are not floating point or labels that are not integers; shapes that do not fit, nan or
        infinity, numbers whose fourth powers leave floating point, fewer than two classes, a class without a row.

    References
    ----------
    Papyan, Han and Donoho (2020); Zhu et al. (2021); Han, Papyan and Donoho (2022); Tirer and Bruna
    (2022); Galanti, György and Hutter (2022). The chapter on neural collapse.

    Examples
    --------
    >>> import torch
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> found = collapse(features, torch.tensor([0, 0, 1, 1]))
    >>> {key: round(value, 3) for key, value in found.items() if "nc2" not in key}
    {'nc1': 0.0, 'nc1_quotient': 0.01, 'cdnv': 0.003}
    """
    statistics, rows, numbers = begun(features, labels, weight, bias)
    statistics.second_pass(rows, numbers)
    return statistics.result()


class CollapseStatistics:
    """`collapse` for features that come in batches, as from a data loader, which is read twice.

    Only sums over the rows are kept, in float64 and never as E‖h‖² − ‖μ‖², which cancels; so neither the split
    into batches nor their order matters, beyond rounding.

    Parameters
    ----------
    classes
        K ≥ 2.
    weight, bias
        Last layer, (K, d) and (K,), as in `collapse`.

    Raises
    ------
    TypeError, ValueError
        As `collapse`; the batch then leaves no trace. Also if the two passes do not see the same rows.

    Examples
    --------
    >>> import torch
    >>> features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    >>> loader = [(features[:3], torch.tensor([0, 0, 1])), (features[3:], torch.tensor([1]))]
    >>> statistics = CollapseStatistics(classes=2)
    >>> for h, y in loader:
    ...     statistics.first_pass(h, y)
    >>> for h, y in loader:
    ...     statistics.second_pass(h, y)
    >>> round(statistics.result()["nc1_quotient"], 6)
    0.01
    """

    def __init__(self, classes: int, weight: Arrays | None = None, bias: Arrays | None = None) -> None:
        self.classes = classes = inputs.count("classes", classes, 2, _MOST_CLASSES)
        self.classifier: Classifier | None = None
        self._given = weight, bias
        self._wide = False
        self._counts = torch.zeros(classes, dtype=torch.float64)
        self._sums: Tensor | None = None
        self._spread: _Spread | None = None

    def first_pass(self, features: Arrays, labels: Arrays) -> None:
        """Take in a batch, (n, d) and (n,), for the class means; classes may be absent from it."""
        if self._spread is not None:
            raise ValueError("first_pass after second_pass: expected all batches before; begin new statistics")
        rows, numbers = self._batch(features, labels)
        sums = _class_sums(rows, numbers, self.classes)
        _require_finite(sums, "features")
        self._counts = self._counts.to(sums.device) + torch.bincount(numbers, minlength=self.classes)
        self._sums = sums if self._sums is None else self._sums + sums
        self._wide |= rows.dtype == torch.float64 or rows.is_cuda

    def second_pass(self, features: Arrays, labels: Arrays) -> None:
        """Take in a batch again, once the first pass has seen all of them, for everything but the means."""
        rows, numbers = self._batch(features, labels)
        if self._spread is None:
            self._spread = _Spread(self.means, self.classifier, wide=self._wide)
        self._spread.add(rows, numbers)

    @property
    def means(self) -> Tensor:
        """Class means (K, d), float64, of the first pass."""
        empty = [index for index, count in enumerate(self._counts.tolist()) if count == 0]
        if empty or self._sums is None:
            lacking = f"labels has no row of class {empty[0]} ({len(empty)} of {self.classes} classes are empty)"
            raise ValueError(f"{lacking}: expected every class; renumber those that are there")
        return self._sums / self._counts[:, None]

    def result(self) -> dict[str, float]:
        """The keys of `collapse`, once both passes have seen all rows."""
        counts, spread = self._counts, self._spread
        seen = 0 if spread is None else int(spread.counts.sum())
        if spread is None or not spread.counts.equal(counts):
            expected = f"the same {int(counts.sum())} as first_pass"
            raise ValueError(f"second_pass has seen {seen} rows: expected {expected}; give both the same batches")
        # The rows were read less a rounded mean: what that left is taken out again.
        left = self.means - spread.shift
        variances = (spread.squares / counts - left.square().sum(1)).clamp(min=0)
        along = ((spread.along - counts @ (left @ spread.axes.T).square()) / seen).clamp(min=0)
        means = spread.centred
        within = counts @ variances / seen
        # Σ_B⁺ has eigenvalues K/strength²; that K cancels the one in tr(Σ_W Σ_B⁺)/K.
        nc1 = (along / spread.strength.square()).sum() if len(along) else torch.nan
        found = {
            "nc1": float(nc1),
            "nc1_quotient": float(within / (means.square().sum() / self.classes)),
            "cdnv": _distance_normalised_variance(means, variances),
            "nc2_norm_means": _norm_variation(means),
            "nc2_angle_means": _angle_error(means),
            "nc2_etf_means": _simplex_error(means @ means.T),
        }
        if self.classifier is not None:
            weight = self.classifier.weight
            centred = weight - weight.mean(0)
            found |= {
                "nc2_norm_weights": _norm_variation(weight),
                "nc2_angle_weights": _angle_error(weight),
                "nc2_etf_weights": _simplex_error(centred @ centred.T),
                "nc3": float((weight / weight.norm() - means / means.norm()).square().sum()),
                "nc3_etf": _simplex_error(weight @ means.T),
                "nc4": float(spread.disagreements) / seen,
            }
        return found

    def _batch(self, features: Arrays, labels: Arrays) -> tuple[Tensor, Tensor]:
        """A batch, checked, on the device of the first."""
        rows = _features(features)
        numbers, _ = _labels(labels, rows, self.classes)
        if self._sums is None:
            self.classifier = _classifier(*self._given, self.classes, rows)
            return rows, numbers
        if rows.shape[1] != self._sums.shape[1]:
            expected = f"{self._sums.shape[1]}, as in the rows seen before"
            raise ValueError(f"features has {rows.shape[1]} columns: expected {expected}")
        return rows.to(self._sums.device), numbers.to(self._sums.device)


class _Spread:
    """The second pass: sums over the rows z = h − shift_y, shift_c the class mean as the features' type has it.

    Each decision of NC4 is a table's column plus a product that is small when the collapse is deep:
    Wh + b = Wz + (W shift_y + b), and ‖h − μ_c‖² = ‖μ_y − μ_c‖² − 2(μ_c − μ_y)·z + ‖z‖².
    """

    def __init__(self, means: Tensor, classifier: Classifier | None, *, wide: bool) -> None:
        _require_moderate(means - means.mean(0), "features", "the distances of their class means")
        self.centred, self.axes, self.strength = _singular_vectors(means)
        near, far = _FLOAT32_SPREAD
        wide = wide or not near < float(self.centred.square().mean().sqrt()) < far
        self.dtype = torch.float64 if wide else torch.float32
        self.shift = means.to(self.dtype).double()
        self.counts, self.squares = means.new_zeros(2, len(means))
        self.along = means.new_zeros(len(self.axes))
        self.disagreements = means.new_zeros((), dtype=torch.int64)
        self.tables = [self.shift, self.axes]
        if classifier is not None:
            self.tables[1] = torch.cat([self.axes, classifier.weight])
            pull = 2 * self.centred @ self.axes.T
            self.tables += [classifier.at(self.shift), _squared_distances(self.centred), pull]

    def add(self, rows: Tensor, labels: Tensor, dtype: torch.dtype | None = None) -> None:
        """Take in rows; in float64 if a square overflows."""
        shift, directions, *votes = (table.to(dtype or self.dtype) for table in self.tables)
        squares, along = torch.zeros_like(self.squares), torch.zeros_like(self.along)
        disagreements = torch.zeros_like(self.disagreements)
        for part, here, centred in _chunks(rows, labels, shift.dtype):
            torch.index_select(shift, 0, here, out=centred)
            torch.sub(part, centred, out=centred)
            squares.index_add_(0, here, torch.linalg.vector_norm(centred, dim=1).double().square())
            projected = directions @ centred.T
            along += projected[: len(along)].double().square().sum(1)
            if votes:
                disagreements += _disagreements(projected, here, *votes)
        if shift.dtype == torch.float32 and not bool(squares.isfinite().all()):
            return self.add(rows, labels, torch.float64)
        _require_finite(squares, "features")
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.squares += squares
        self.along += along
        self.disagreements += disagreements


def _disagreements(projected: Tensor, labels: Tensor, logits: Tensor, distances: Tensor, pull: Tensor) -> Tensor:
    """How many columns of `projected`, coordinates along the axes and W, get two different answers."""
    axes = pull.shape[1]
    # max and min return the first best index, as argmax and argmin do, in a tenth of their time here.
    chosen = (projected[axes:] + logits.index_select(1, labels)).max(0).indices
    nearest = (distances.index_select(1, labels) - pull @ projected[:axes]).min(0).indices
    return (chosen != nearest).sum()


def _singular_vectors(means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """M̄ (K, d), orthonormal rows (r, d) that span its rows, r ≤ min(K − 1, d), and its singular values (r,)."""
    # The K×K eigenproblem of M̄M̄ᵀ, solved on the triangular factor of M̄ᵀ rather than on the product:
    # the same cost, and small singular values keep twice the digits.
    origin = means.mean(0)
    centred = means - origin
    frame, triangle = torch.linalg.qr(centred.T)
    turn, strength, _ = torch.linalg.svd(triangle, full_matrices=False)
    noise = torch.finfo(means.dtype).eps * max(means.shape) * (strength[0] + origin.norm())
    rank = min(int((strength > noise).sum()), len(means) - 1)
    return centred, (frame @ turn[:, :rank]).T, strength[:rank]


def _squared_distances(points: Tensor) -> Tensor:
    """‖p_i − p_j‖², shape (K, K), exactly 0 where two points agree to rounding."""
    gram = points @ points.T
    sizes = gram.diagonal()[:, None] + gram.diagonal()
    squares = sizes - 2 * gram
    rounding = 8 * torch.finfo(points.dtype).eps * sizes
    return torch.where(squares > rounding, squares, torch.zeros_like(squares))


def _distance_normalised_variance(centred: Tensor, variances: Tensor) -> float:
    distances = _squared_distances(centred)
    distances.fill_diagonal_(torch.inf)
    ratios = (variances[:, None] + variances) / (2 * distances)
    return float(ratios.sum() / (len(ratios) * (len(ratios) - 1)))


def _norm_variation(rows: Tensor) -> float:
    norms = torch.linalg.vector_norm(rows, dim=1)
    return float(norms.std(correction=1) / norms.mean())


def _angle_error(rows: Tensor) -> float:
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    classes = len(rows)
    errors = (unit @ unit.T + 1 / (classes - 1)).abs().fill_diagonal_(0)
    return float(errors.sum() / (classes * (classes - 1)))


def _simplex_error(matrix: Tensor) -> float:
    """‖A/‖A‖ − (I − 11ᵀ/K)/√(K−1)‖ for a K×K matrix A; the second is a simplex ETF's, norm one."""
    classes = len(matrix)
    simplex = (torch.eye(classes).to(matrix) - 1 / classes) / (classes - 1) ** 0.5
    return float((matrix / matrix.norm() - simplex).norm())


def _class_sums(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The sum of each class's rows, (K, d) float64."""
    sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64, device=rows.device)
    for part, here, wide in _chunks(rows, labels, sums.dtype):
        sums.index_add_(0, here, wide.copy_(part))
    return sums


def _chunks(rows: Tensor, labels: Tensor, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """A few rows, their labels and memory of their shape at a time."""
    size = max(256, (_CHUNK_NUMBERS_CUDA if rows.is_cuda else _CHUNK_NUMBERS) // rows.shape[1])
    # One buffer throughout: fresh memory for each chunk would cost more than the sums.
    buffer = torch.empty(min(size, len(rows)), rows.shape[1], dtype=dtype, device=rows.device)
    for part, here in zip(torch.split(rows, size), torch.split(labels, size), strict=True):
        yield part, here, buffer[: len(here)]


# --- a picture -------------------------------------------------------------------------------------------


class SimplexView(NamedTuple):
    """Coordinates in the space of the centred class means; see `simplex_view`."""

    points: NDArray[np.float64]
    means: NDArray[np.float64]
    rows: NDArray[np.float64] | None


def simplex_view(features: Arrays, labels: Arrays, weight: Arrays | None = None) -> SimplexView:
    r"""Features, class means and classifier in the space of the centred class means (Chapter 10).

    For three classes this space is a plane, and the view a picture. With M̄ the centred class means (K×d) and E a
    fixed simplex ETF in K − 1 dimensions, the axes are the orthonormal d×(K − 1) matrix Q that turns M̄Q as near
    to E as a rotation can: Q = AB′ for the singular value decomposition M̄ᵀE = A S B′. So pictures of one network
    at different times, or of different networks, can be laid side by side. Features are centred at μ_G and divided
    by the root mean square length of M̄'s rows; W's rows are centred, projected by the same Q, and divided by their
    own such length. What is left out of the picture is the spread outside the space of the means.

    Parameters
    ----------
    features, labels, weight
        As in `collapse`, with its errors; d ≥ K − 1, and not all class means equal.

    Returns
    -------
    SimplexView
        Named tuple ``(points, means, rows)``: features (N, K − 1), class means (K, K − 1) and the classifier's rows
        (K, K − 1), None without a classifier. After a full collapse those of a class coincide, at the corners of a
        regular simplex of radius 1.

    Examples
    --------
    >>> from nclib.theory.closed_forms import simplex_etf
    >>> frame = simplex_etf(3, dim=5, seed=1)
    >>> view = simplex_view(7 * frame[[0, 1, 2, 2]] + 1, np.array([0, 1, 2, 2]), weight=frame)
    >>> (view.means.round(3) + 0.0).tolist()
    [[0.866, 0.5], [-0.866, 0.5], [0.0, -1.0]]
    >>> bool(np.allclose(view.points, view.means[[0, 1, 2, 2]])), bool(np.allclose(view.rows, view.means))
    (True, True)
    """
    from scipy.linalg import helmert

    statistics, rows, _ = begun(features, labels, weight)
    classes, means, classifier = statistics.classes, statistics.means, statistics.classifier
    if means.shape[1] < classes - 1:
        raise ValueError(f"features has {means.shape[1]} columns: {classes} classes need {classes - 1} or more")
    origin = means.mean(0)
    centred = means - origin
    _require_moderate(centred, "features", "the distances of their class means")
    size = centred.square().sum(1).mean().sqrt()
    if not size > 0:
        raise ValueError("features: all class means are equal, so there is no space of means to look at")
    reference = torch.from_numpy(np.sqrt(classes / (classes - 1)) * helmert(classes).T).to(centred)
    left, _, right = torch.linalg.svd(centred.T @ reference, full_matrices=False)
    axes = left @ right

    points, corners = ((vectors @ axes / size).numpy(force=True) for vectors in (rows.double() - origin, centred))
    pointed = None
    if classifier is not None:
        turned = (classifier.weight - classifier.weight.mean(0)) @ axes
        length = turned.square().sum(1).mean().sqrt()
        pointed = (turned / length.clamp(min=torch.finfo(length.dtype).tiny)).numpy(force=True)
    return SimplexView(points, corners, pointed)


# --- what goes in ----------------------------------------------------------------------------------------


class Classifier(NamedTuple):
    """A last layer, argmax(Wh + b), in float64: weight (K, d), bias (K,) or None for no bias."""

    weight: Tensor
    bias: Tensor | None

    def at(self, points: Tensor) -> Tensor:
        """W p + b for the rows p of `points`, shape (K, n)."""
        logits = self.weight @ points.T
        return logits if self.bias is None else logits + self.bias[:, None]


def begun(
    features: Arrays, labels: Arrays, weight: Arrays | None = None, bias: Arrays | None = None
) -> tuple[CollapseStatistics, Tensor, Tensor]:
    """Everything checked: statistics after the first pass, features and labels as tensors."""
    rows = _features(features)
    matrix = None if weight is None else _tensor("weight", weight)
    if matrix is not None and (matrix.ndim != 2 or 0 in matrix.shape):
        raise ValueError(f"weight has shape {tuple(matrix.shape)}: expected (K, d), a row for each class")
    # Two even for a weight of one row, so that the error is about the weight.
    numbers, classes = _labels(labels, rows, None if matrix is None else max(2, len(matrix)))
    statistics = CollapseStatistics(classes, matrix, bias)
    statistics.first_pass(rows, numbers)
    return statistics, rows, numbers


def _features(features: Arrays) -> Tensor:
    """The features as a (N, d) tensor, sharing the caller's memory."""
    rows = _tensor("features", features)
    if rows.ndim != 2 or 0 in rows.shape:
        expected = "(N, d), a row for each example; features.flatten(1) makes rows of images"
        raise ValueError(f"features has shape {tuple(rows.shape)}: expected {expected}")
    if not rows.is_floating_point():
        raise TypeError(f"features holds {rows.dtype}: expected floating point; convert with features.float()")
    return rows


def _labels(labels: Arrays, features: Tensor, classes: int | None) -> tuple[Tensor, int]:
    """The labels as int64 where the features are, and K: as given, or the largest label plus one."""
    numbers = _tensor("labels", labels)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise TypeError(f"labels holds {numbers.dtype}: expected class numbers; convert with labels.long()")
    if numbers.shape != features.shape[:1]:
        raise ValueError(f"labels has shape {tuple(numbers.shape)}: expected ({len(features)},), one for each row")
    numbers = numbers.to(features.device, torch.int64)
    low, high = int(numbers.min()), int(numbers.max())
    most = len(numbers) if classes is None else classes  # more classes than rows leave some empty
    if low < 0 or high >= max(2, most):
        expected = "0..K-1, a row of each" if classes is None else f"0..{classes - 1} for {classes} classes"
        raise ValueError(f"labels reaches from {low} to {high}: expected {expected}; renumber the classes")
    classes = high + 1 if classes is None else classes
    if classes < 2:
        raise ValueError("labels has one class: collapse compares classes; give two or more, numbered 0..K-1")
    return numbers, classes


def _classifier(weight: Arrays | None, bias: Arrays | None, classes: int, features: Tensor) -> Classifier | None:
    """The last layer in float64 where the features are, or None if no weight was given."""
    if weight is None:
        if bias is not None:
            raise ValueError("bias was given without weight: expected both, or weight alone")
        return None
    matrix = _tensor("weight", weight)
    hint = ""
    if matrix.shape == (1, features.shape[1]) and classes == 2:
        hint = "; a single output w is weight = cat([w, -w]) / 2 with bias = (1/2, 1/2)"
    matrix = _of_classes("weight", matrix, (classes, features.shape[1]), features, hint)
    _require_moderate(matrix, "weight", "the entries")
    return Classifier(matrix, None if bias is None else _of_classes("bias", bias, (classes,), features))


def _of_classes(name: str, values: Arrays, shape: tuple[int, ...], features: Tensor, hint: str = "") -> Tensor:
    """A part of the last layer, finite and of this shape, in float64 where the features are."""
    found = _tensor(name, values).to(features.device, torch.float64)
    if found.shape != shape:
        raise ValueError(f"{name} has shape {tuple(found.shape)}: expected {shape}, one entry a class{hint}")
    _require_finite(found, name)
    return found


def _require_finite(values: Tensor, name: str) -> None:
    """Raise if `values`, the argument `name` or a sum over it, holds nan or infinity."""
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds nan or infinity: expected finite numbers; has the network diverged?")


def _require_moderate(values: Tensor, name: str, which: str) -> None:
    """Raise if fourth powers of `values` overflow, or vanish though the largest does not."""
    largest = float(values.abs().max())
    if not (largest == 0 or _SIZES[0] < largest < _SIZES[1]):
        raise ValueError(f"{name}: {which} reach {largest:.2g}, whose powers leave floating point; change the unit")


def _tensor(name: str, values: Arrays) -> Tensor:
    """As a tensor, of the caller's memory where that can be."""
    if isinstance(values, Tensor) and values.layout == torch.strided and not values.is_complex():
        return values.detach()
    found = inputs.plain(name, values, "an array of numbers")
    if found.dtype.kind not in "biuf":
        hint = "; np.unique(labels, return_inverse=True)[1] numbers them" if name == "labels" else ""
        raise ValueError(f"{name} holds {found.dtype}: expected numbers{hint}")
    if found.dtype.kind == "u" or found.dtype.itemsize > 8:
        found = found.astype(np.int64 if found.dtype.kind == "u" else np.float64)
    found = found.astype(found.dtype.newbyteorder("="), copy=any(step < 0 for step in found.strides))
    with warnings.catch_warnings():
        # A read-only array (a memory map) is fine: nothing is written to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(found)
