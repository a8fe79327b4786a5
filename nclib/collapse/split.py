"""The square loss split at the least-squares classifier (Han, Papyan and Donoho 2022)."""

from __future__ import annotations

import math

import torch

from ..inputs import Arrays
from . import begun


def mse_split(features: Arrays, labels: Arrays, weight: Arrays, bias: Arrays | None = None) -> dict[str, float]:
    r"""Square loss of a classifier: what its features force, and its own deviation from least squares.

    With one-hot targets y, W_LS (and b_LS, if a bias is given) least in the square loss on these features, and
    Σ_W, μ_c and p_c = n_c/N the within-class covariance, means and shares of the classes:

    ===============  ==========================================================================
    ``mse``          1/(2N) Σ ‖W h + b − y‖² = ``mse_ls`` + ``mse_perp``
    ``mse_ls``       its least value over W and b = ``mse_ls_nc1`` + ``mse_ls_nc23``
    ``mse_ls_nc1``   ½ tr(W_LS Σ_W W_LSᵀ)
    ``mse_ls_nc23``  ½ Σ p_c ‖W_LS μ_c + b_LS − e_c‖²
    ``mse_perp``     1/(2N) Σ ‖(W − W_LS) h + b − b_LS‖²
    ===============  ==========================================================================

    The parts add up because the least-squares residual is orthogonal to every feature and to 1.
    Computed densely in float64, with memory for three copies of the features.

    Parameters
    ----------
    features, labels, weight, bias
        As in `nclib.collapse`, with its errors. Without a bias the least-squares classifier has none either.

    Returns
    -------
    dict of str to float
        In the order of the table; rows weigh equally. All are ≥ 0, and 0 for a simplex ETF scaled to the targets.

    References
    ----------
    Han, Papyan and Donoho, "Neural collapse under MSE loss", ICLR 2022, with weight decay 0 and the classes
    weighted as the loss weighs them; the chapter on neural collapse.

    Examples
    --------
    >>> import torch
    >>> features, labels = torch.tensor([[1.0], [3.0], [-1.0], [-3.0]]), torch.tensor([0, 0, 1, 1])
    >>> found = mse_split(features, labels, torch.tensor([[0.5], [-0.5]]), torch.tensor([0.5, 0.5]))
    >>> {key: round(value, 3) for key, value in found.items()}
    {'mse': 0.5, 'mse_ls': 0.05, 'mse_ls_nc1': 0.04, 'mse_ls_nc23': 0.01, 'mse_perp': 0.45}
    """
    statistics, rows, numbers = begun(features, labels, weight, bias)
    classifier = statistics.classifier
    assert classifier is not None
    inputs = rows.double()
    given = classifier.at(inputs).T
    # Beside 1, a column counts up to a constant. Where that is nearly all of it, its first entry comes off,
    # exactly: else rounding would hide the rest.
    first, spread = inputs[0], torch.linalg.vector_norm(inputs - inputs[0], torch.inf, dim=0)
    if bias is not None:
        inputs = torch.cat([inputs - first.where(first.abs() > 1e6 * spread, 0), torch.ones_like(inputs[:, :1])], 1)
    elif bool(((spread > 0) & (first.abs() > 1e10 * spread)).any()):
        raise ValueError("features: a column's mean is 10¹⁰ times its spread; subtract it, or give a bias")
    target: torch.Tensor = torch.nn.functional.one_hot(numbers, statistics.classes).to(inputs)

    # Least squares projects onto the columns' span. Each is scaled to length one, so that its unit does not matter;
    # which directions are rounding is decided beside the columns as they are: centring would hide a constant one.
    # A power of two near the largest entry comes off first: squares stay in floating point, and no digit changes.
    power = torch.frexp(torch.linalg.vector_norm(inputs, torch.inf, dim=0)).exponent
    lengths = torch.ldexp(torch.linalg.vector_norm(torch.ldexp(inputs, -power), dim=0), power)
    basis, strength, _ = torch.linalg.svd(inputs / lengths.where(lengths > 0, 1), full_matrices=False)
    noise = torch.finfo(strength.dtype).eps * max(inputs.shape) * strength[0]
    basis = basis[:, strength > noise]
    best = basis @ (basis.T @ target)
    shares = target / target.sum(0)
    best_mean = (shares.T @ best)[numbers]
    parts = {
        "mse": given - target,
        "mse_ls": best - target,
        "mse_ls_nc1": best - best_mean,
        "mse_ls_nc23": best_mean - target,
        "mse_perp": given - best,
    }
    found = {key: float(part.square().sum()) / (2 * len(rows)) for key, part in parts.items()}
    if not all(map(math.isfinite, found.values())):
        raise ValueError("weight, bias: the outputs are so large that their squares overflow; change the unit")
    return found
