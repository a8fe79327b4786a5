"""The formulas of neural collapse, from class means, a classifier and a few projected variances.

The table in `nclib.collapse.collapse` names each formula's source.  K classes, d features; everything here
is float64 and of size K×d or K×K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Geometry:
    """The centred class means M̄ and their singular vectors: M̄ = turn · diag(strength) · axes.

    Parameters
    ----------
    centred : Tensor, shape (K, d)
        M̄, whose rows are μ_c − μ_G; μ_G is the mean of the class means.
    axes : Tensor, shape (r, d)
        Orthonormal rows spanning them, r ≤ min(K − 1, d).
    strength : Tensor, shape (r,)
        Singular values, largest first: Σ_B = axesᵀ diag(strength²/K) axes.
    """

    centred: Tensor
    axes: Tensor
    strength: Tensor

    @staticmethod
    def of(means: Tensor) -> Geometry:
        """Geometry of class means (K, d)."""
        # The K×K eigenproblem of M̄M̄ᵀ, solved on the triangular factor of M̄ᵀ rather than on the product:
        # the same cost, and small singular values keep twice the digits.
        origin = means.mean(0)
        centred = means - origin
        frame, triangle = torch.linalg.qr(centred.T)
        turn, strength, _ = torch.linalg.svd(triangle, full_matrices=False)
        noise = torch.finfo(means.dtype).eps * max(means.shape) * (strength[0] + origin.norm())
        rank = min(int((strength > noise).sum()), len(means) - 1)
        return Geometry(centred, (frame @ turn[:, :rank]).T, strength[:rank])


def spread(geometry: Geometry, counts: Tensor, variances: Tensor, along: Tensor) -> dict[str, float]:
    """NC1 and the NC2 of the class means.

    Parameters
    ----------
    geometry : Geometry
    counts : Tensor, shape (K,)
        Rows in each class.
    variances : Tensor, shape (K,)
        v_c, the mean of ‖h − μ_c‖² over class c.
    along : Tensor, shape (r,)
        aᵀ Σ_W a for each row a of ``geometry.axes``.

    Returns
    -------
    dict
        ``nc1``, ``nc1_quotient``, ``cdnv`` and ``nc2_*_means``.
    """
    centred, classes = geometry.centred, len(counts)
    within = (counts @ variances) / counts.sum()
    # Σ_B⁺ has eigenvalues K/strength²; that K cancels the one in tr(Σ_W Σ_B⁺)/K.
    nc1 = (along.clamp(min=0) / geometry.strength.square()).sum() if len(along) else torch.nan
    quotient = within / (centred.square().sum() / classes)
    return {
        "nc1": float(nc1),
        "nc1_quotient": float(quotient),
        "cdnv": _distance_normalised_variance(centred, variances),
        "nc2_norm_means": _norm_variation(centred),
        "nc2_angle_means": _angle_error(centred),
        "nc2_etf_means": _simplex_error(centred @ centred.T),
    }


def duality(geometry: Geometry, weight: Tensor) -> dict[str, float]:
    """NC2 of the classifier's rows, and NC3: how far they are from the centred class means.

    Parameters
    ----------
    geometry : Geometry
    weight : Tensor, shape (K, d)
        W.

    Returns
    -------
    dict
        ``nc2_*_weights``, ``nc3`` and ``nc3_etf``.
    """
    means = geometry.centred
    centred = weight - weight.mean(0)
    return {
        "nc2_norm_weights": _norm_variation(weight),
        "nc2_angle_weights": _angle_error(weight),
        "nc2_etf_weights": _simplex_error(centred @ centred.T),
        "nc3": float((weight / weight.norm() - means / means.norm()).square().sum()),
        "nc3_etf": _simplex_error(weight @ means.T),
    }


def squared_distances(points: Tensor) -> Tensor:
    """‖p_i − p_j‖², shape (K, K), exactly 0 where two points agree to rounding."""
    gram = points @ points.T
    sizes = gram.diagonal()[:, None] + gram.diagonal()
    squares = sizes - 2 * gram
    rounding = 8 * torch.finfo(points.dtype).eps * sizes
    return torch.where(squares > rounding, squares, torch.zeros_like(squares))


def _distance_normalised_variance(centred: Tensor, variances: Tensor) -> float:
    distances = squared_distances(centred)
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
