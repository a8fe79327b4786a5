"""Neural collapse to look at: features in the space of the simplex that they fall onto."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .inputs import Array, checked


class SimplexView(NamedTuple):
    """Coordinates in the space of the centred class means; see `simplex_view`."""

    points: NDArray[np.float64]
    """The features, (N, K − 1)."""
    means: NDArray[np.float64]
    """Their class means, (K, K − 1); centred, of root mean square length 1."""
    rows: NDArray[np.float64] | None
    """The classifier's rows, (K, K − 1), centred and scaled likewise; None without a classifier."""


@torch.no_grad()
def simplex_view(features: Array, labels: Array, weight: Array | None = None) -> SimplexView:
    r"""Features, class means and classifier in the space of the centred class means.

    For three classes this space is a plane, and the view a picture. With M̄ the centred class means (K×d) and E a
    fixed simplex ETF in K − 1 dimensions, the axes are the orthonormal d×(K − 1) matrix Q that turns M̄Q as near
    to E as a rotation can: Q = AB′ for the singular value decomposition M̄ᵀE = A S B′. So pictures of one network
    at different times, or of different networks, can be laid side by side. Features are centred at μ_G and divided
    by the root mean square length of M̄'s rows; W's rows are centred, projected by the same Q, and divided by their
    own such length.

    Parameters
    ----------
    features : Tensor or array, shape (N, d)
        Last-layer features; d ≥ K − 1.
    labels : Tensor or array of integers, shape (N,)
        Classes 0..K-1, every one present, K ≥ 2.
    weight : Tensor or array, shape (K, d), optional
        Last-layer weight W.

    Returns
    -------
    SimplexView
        Named tuple ``(points, means, rows)``. After a full collapse points, means and rows of a class coincide, at
        the corners of a regular simplex of radius 1.

    Raises
    ------
    TypeError, ValueError
        As `nclib.collapse`; also where d < K − 1 or all class means are equal.

    Examples
    --------
    >>> from nclib.theory.closed_forms import simplex_etf
    >>> frame = simplex_etf(3, dim=5, seed=1)
    >>> view = simplex_view(7 * frame[[0, 1, 2, 2]] + 1, np.array([0, 1, 2, 2]), weight=frame)
    >>> (view.means.round(3) + 0.0).tolist()
    [[0.866, 0.5], [-0.866, 0.5], [0.0, -1.0]]
    >>> bool(np.allclose(view.points, view.means[[0, 1, 2, 2]])), bool(np.allclose(view.rows, view.means))
    (True, True)

    Notes
    -----
    What is left out of the picture is the spread outside the space of the means. Chapter 6.
    """
    given = checked(features, labels, weight)
    means, classifier, classes = given.means, given.classifier, len(given.counts)
    if means.shape[1] < classes - 1:
        raise ValueError(
            f"features has {means.shape[1]} columns: {classes} class means span {classes - 1} dimensions; "
            "give features of at least as many"
        )
    origin = means.mean(0)
    centred = means - origin
    size = centred.square().sum(1).mean().sqrt()
    if not size > 0:
        raise ValueError("features: all class means are equal, so there is no space of means to look at")
    left, _, right = torch.linalg.svd(centred.T @ _reference(classes).to(centred), full_matrices=False)
    axes = left @ right

    def seen(vectors: torch.Tensor, scale: torch.Tensor) -> NDArray[np.float64]:
        coordinates: NDArray[np.float64] = (vectors @ axes / scale).numpy(force=True)
        return coordinates

    pointed = None
    if classifier is not None:
        turned = (classifier.weight - classifier.weight.mean(0)) @ axes
        length = turned.square().sum(1).mean().sqrt()
        pointed = (turned / length.clamp(min=torch.finfo(length.dtype).tiny)).numpy(force=True)
    return SimplexView(seen(given.rows.double() - origin, size), seen(centred, size), pointed)


def _reference(classes: int) -> torch.Tensor:
    """A simplex ETF in K − 1 dimensions, always the same: unit rows, (K, K − 1)."""
    from scipy.linalg import helmert

    frame = np.sqrt(classes / (classes - 1)) * helmert(classes).T
    return torch.from_numpy(np.ascontiguousarray(frame))
