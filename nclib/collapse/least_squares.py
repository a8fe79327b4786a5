"""The mean squared error split at the least-squares classifier (Han, Papyan and Donoho 2022).

Write p_c = n_c/N, P = diag(p), and let D hold the class means, less the mean of all rows if the
classifier has a bias (its best bias is then eliminated; Π = I − √p√pᵀ), raw if it has none (Π = I).
With U = DᵀP^½ (d×K) the least-squares problem has the normal equations

    W_LS (Σ_W + UUᵀ) = P^½ Uᵀ,     so   W_LS = P^½ (I + G)⁻¹ Uᵀ Σ_W⁻¹,   G = Uᵀ Σ_W⁻¹ U  (K×K).

G is a signal-to-noise matrix: nothing larger than K×K is left, and nothing cancels when G is 10¹².
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .inputs import Classifier
from .scatter import CentredRows

# Relative error of ``mse_ls`` to prove, and to expect were the sample typical of all rows.
_PROVED = 1e-2
_EXPECTED = 3e-4
# Part of ``mse_ls`` below which the products in float32 cannot resolve ``mse_perp``.
_FLOAT32 = 1e-8
# What a pass must at least divide the bound by, and how often, or Σ_W is formed instead.
_WORTHWHILE = 2.5
_PASSES = 8
# Narrower features than this, or fewer rows for each feature, and Σ_W is formed: it is cheap, or needed.
_FORM_BELOW = 256
_FORM_ROWS = 8
# How far out of the means' span the first guess must point for it to join the first pass.
_OUTSIDE = 0.2
# Rows for each feature in the sample that bounds rest on.  Its float32 entries are off by about 10⁻⁷ of
# √(M_ii M_jj), which this share of the diagonal outweighs up to thousands of features.
_SAMPLE = 4
_DOUBT = 1e-4


@dataclass(frozen=True)
class Regression:
    """The least-squares problem as the class means and a classifier state it; Σ_W is kept apart.

    Parameters
    ----------
    between : Tensor of float64, shape (K, d)
        D of the module's docstring, a row for each class.
    weight : Tensor of float64, shape (K, d)
        W.
    gap : Tensor of float64, shape (K, K)
        Column c is W μ_c + b − e_c.
    share : Tensor of float64, shape (K,)
        p, summing to one.
    bias : bool
        Whether the classifier has a bias.
    """

    between: Tensor
    weight: Tensor
    gap: Tensor
    share: Tensor
    bias: bool

    @staticmethod
    def of(means: Tensor, counts: Tensor, classifier: Classifier) -> Regression:
        """The problem for class means (K, d) and class sizes (K,)."""
        share = counts / counts.sum()
        gap = classifier.at(means) - torch.eye(len(means)).to(means)
        bias = classifier.bias is not None
        return Regression(means - share @ means if bias else means, classifier.weight, gap, share, bias)

    @property
    def frame(self) -> Tensor:
        """Orthonormal columns spanning Π, shape (K, K − 1) with a bias and (K, K) without.

        With a bias U√p = 0.  That direction is taken out exactly, for beside a G of 10¹² the rounding of
        its zero would be larger than everything asked for.
        """
        root = self.share.sqrt()
        every: Tensor = torch.eye(len(root)).to(root)
        if self.bias:
            every = torch.linalg.qr(root[:, None], mode="complete").Q[:, 1:]
        return every

    @property
    def signal(self) -> Tensor:
        """U = DᵀP^½ in that frame, shape (d, K − 1) or (d, K)."""
        return (self.between.T * self.share.sqrt()) @ self.frame

    def within(self, basis: Tensor) -> Regression:
        """The same problem in the coordinates of orthonormal rows whose span holds D and W."""
        return replace(self, between=self.between @ basis.T, weight=self.weight @ basis.T)


def mse_split(problem: Regression, scatter: Tensor) -> dict[str, float]:
    """Mean squared error, its least-squares part and the classifier's deviation from it.

    L = 1/(2N) Σ ‖W h + b − y‖² = L_NC1 + L_NC2/3 + L_⊥ with, for G as above,

    L_NC1 = ½ tr(W_LS Σ_W W_LSᵀ) = ½ tr(P^½ (I+G)⁻¹ G (I+G)⁻¹ P^½),
    L_NC2/3 = ½ Σ p_c ‖W_LS μ_c + b_LS − e_c‖² = ½ ‖P^½ Π (I+G)⁻¹‖²,
    L_⊥ = ½ tr((W − W_LS) Σ_W (W − W_LS)ᵀ) + ½ Σ p_c ‖(W − W_LS) μ_c + b − b_LS‖².

    The parts add up because the least-squares residual is orthogonal to every (h, 1).

    Parameters
    ----------
    problem : Regression
    scatter : Tensor of float64, shape (d, d)
        Σ_W; in any orthonormal coordinates whose span holds D, W and Σ_W⁻¹U (`Regression.within`).

    Returns
    -------
    dict
        ``mse``, ``mse_ls`` = ``mse_ls_nc1`` + ``mse_ls_nc23``, and ``mse_perp``.

    References
    ----------
    Han, Papyan and Donoho, "Neural collapse under MSE loss", ICLR 2022, with weight decay 0 and the
    classes weighted as the loss weighs them; the chapter on neural collapse.
    """
    root, frame, signal = problem.share.sqrt(), problem.frame, problem.signal
    factor = torch.linalg.cholesky(_ridged(scatter, signal))
    half = torch.linalg.solve_triangular(factor, signal, upper=False)
    spread, axes = torch.linalg.svd(torch.linalg.qr(half, mode="r").R)[1:]
    ratio = torch.zeros_like(axes[0])
    ratio[: len(spread)] = spread.square()

    # Every K×K matrix above, written in the eigenvectors of G (eigenvalues: ratio).
    damped = root[:, None] * (frame @ axes.T) / (1 + ratio)
    miss = damped @ (frame @ axes.T).T
    within_part = (damped.square() * ratio).sum()
    best = torch.linalg.solve_triangular(factor.T, half @ axes.T, upper=True) @ damped.T

    weight, gap = problem.weight, problem.gap * root
    excess = weight - best.T
    within_excess = ((excess @ scatter) * excess).sum().clamp(min=0)
    total = ((weight @ scatter) * weight).sum() + gap.square().sum()
    parts = {
        "mse": total,
        "mse_ls": within_part + miss.square().sum(),
        "mse_ls_nc1": within_part,
        "mse_ls_nc23": miss.square().sum(),
        "mse_perp": within_excess + (gap + miss).square().sum(),
    }
    return {key: 0.5 * float(value) for key, value in parts.items()}


def krylov_mse_split(
    sample: Sample, rows: CentredRows, problem: Regression, basis: Tensor, gram: Tensor, product: Tensor
) -> dict[str, float] | None:
    """`mse_split` in a few coordinates, those of a block Krylov space of Σ_W and U.

    Each pass over the rows costs N·d·K instead of the N·d² of forming Σ_W.  The error is bounded, not
    guessed: a sample of n rows has scatter M with (n/N) M ⪯ Σ_W, so the Galerkin value of G is short
    by at most E = (N/n) Rᵀ M⁻¹ R, R the residual, and E ⪯ ε (I + G) puts ``mse_ls`` within a factor
    1 + ε; what it is too large by, ``mse_perp`` is too small by.  Where ε falls slowly (an
    ill-conditioned Σ_W), the answer is None and Σ_W must be formed.

    Parameters
    ----------
    sample : Sample
        Of the rows.
    rows : CentredRows
    problem : Regression
    basis : Tensor of float64, shape (k, d)
        Orthonormal rows whose span holds D and W.
    gram, product : Tensor of float64, shapes (k, k) and (k, d)
        B Σ_W Bᵀ and B Σ_W for this basis.

    Returns
    -------
    dict, as `mse_split`, or None
    """
    signal, allowed = problem.signal, torch.inf
    for _ in range(_PASSES):
        factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            return None
        right = basis @ signal
        solution = torch.cholesky_solve(right, factor)
        residual = signal - product.T @ solution
        bound = sample.bound(residual, right.T @ solution)
        if not bound <= allowed:
            return None
        expected = bound / sample.inflation
        if bound <= _PROVED and expected <= _EXPECTED:
            parts = mse_split(problem.within(basis), gram)
            if expected * parts["mse_ls"] <= max(_PROVED * parts["mse_perp"], _FLOAT32 * parts["mse_ls"]):
                return parts
        allowed = bound / _WORTHWHILE
        block = _orthonormal(sample.precondition(residual).T, basis)
        corner, through = rows.project(block)
        side = product @ block.T
        gram = torch.cat([torch.cat([gram, side], 1), torch.cat([side.T, corner], 1)])
        basis, product = torch.cat([basis, block]), torch.cat([product, through])
    return None


@dataclass(frozen=True)
class Sample:
    """What a sample of the rows says of Σ_W: a proved lower bound and a good guess, both factored.

    The guess draws M towards its diagonal by as much as its other entries are sampling noise: what
    noise alone would put there, tr(M)²/n, over what is there.
    """

    below: Tensor
    guess: Tensor
    inflation: float
    silent: Tensor

    @staticmethod
    def of(rows: CentredRows) -> Sample | None:
        """Every so-many-th row; None if forming Σ_W is cheap, or needed, or M is not positive definite."""
        count, width = rows.features.shape
        small = width < _FORM_BELOW or count < _FORM_ROWS * width or len(rows.counts) > width // 32
        if small or rows.dtype == torch.float64:
            return None
        sample = rows.every(count // (_SAMPLE * width))
        scatter = sample.scatter()
        # Features that are constant, such as dead units, have neither scatter nor signal.
        silent = scatter.diagonal() == 0
        scatter.diagonal()[silent] = scatter.diagonal().mean()
        diagonal = scatter.diagonal().diag()
        below, failed = torch.linalg.cholesky_ex(scatter - _DOUBT * diagonal)
        if int(failed):
            return None
        noise = diagonal.trace().square() / len(sample.labels)
        shrink = 1.1 * float(noise / (scatter - diagonal).square().sum())
        # As a triangular factor, like the one above.
        guess = diagonal.sqrt()
        if shrink < 1:
            guess = torch.linalg.cholesky(torch.lerp(scatter, diagonal, shrink))
        return Sample(below, guess, count / len(sample.labels), silent)

    def start(self, signal: Tensor) -> Tensor:
        """Where Σ_W⁻¹U should be, as rows (r, d); none if that is where U itself is."""
        guess = self.precondition(signal)
        span = torch.linalg.qr(signal).Q
        outside = guess - span @ (span.T @ guess)
        return guess.T[: len(guess.T) if float(outside.norm() / guess.norm()) > _OUTSIDE else 0]

    def bound(self, residual: Tensor, ratio: Tensor) -> float:
        """ε: the least factor for which E ⪯ ε (I + G)."""
        if bool((residual[self.silent] != 0).any()):
            return torch.inf
        missing = torch.linalg.solve_triangular(self.below, residual, upper=False)
        root = torch.linalg.cholesky(ratio + torch.eye(len(ratio)).to(ratio))
        missing = torch.linalg.solve_triangular(root, missing.T, upper=False)
        return self.inflation * float(torch.linalg.matrix_norm(missing, 2)) ** 2

    def precondition(self, residual: Tensor) -> Tensor:
        """The guess at Σ_W⁻¹R."""
        return torch.cholesky_solve(residual, self.guess)


def _ridged(scatter: Tensor, signal: Tensor) -> Tensor:
    """Σ_W with its diagonal raised by the level of rounding, feature by feature.

    Directions without within-class scatter then count as all but noise-free, instead of stopping the
    factorisation, and a feature's unit makes no difference.
    """
    epsilon = torch.finfo(scatter.dtype).eps
    floor = epsilon**2 * signal.square().sum() + torch.finfo(scatter.dtype).tiny
    ridged = scatter.clone()
    ridged.diagonal().mul_(1 + 8 * len(scatter) * epsilon).add_(floor)
    return ridged


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal rows spanning what ``block`` has outside the orthonormal rows of ``basis``."""
    for _ in range(2):
        block = block - (block @ basis.T) @ basis
        block = torch.linalg.qr(block.T).Q.T
    return block
