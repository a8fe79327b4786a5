r"""Training seen step by step: how far each step turns each layer, and how it changes its norm.

`nclib.train` looks at a network every few epochs.  The statements about scale-invariant layers (Chapter 6) are
about single steps: a layer $W$ with gradient $g$ turns by the angle θ between $W$ and $W' = W-η(g+2λW)$.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import inputs
from ..data import Data
from ..networks.models import MLP, Architecture
from .ensemble import Ensemble
from .optim import SGD, Grid
from .runs import Plan

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """What T steps did to the L layers of M networks; returned by `step_by_step`.

    Attributes
    ----------
    members
        One row a network: its hyper-parameters.
    loss
        (T, M), the loss on the step's batch before the step, without weight decay.
    gradient
        (T, M, L), ‖g‖, the Frobenius norm of each layer's gradient on that batch, without weight decay.
    norm
        (T + 1, M, L), ‖W_k‖ before each step, and after the last.
    angle
        (T, M, L), the angle in radians between W_k before and after the step, from the chord of the directions.
    weights
        L tensors (M, …), the weights after the last step, on the CPU.
    """

    members: pd.DataFrame
    loss: Array
    gradient: Array
    norm: Array
    angle: Array
    weights: list[Tensor]

    def table(self, at: Iterable[int] | None = None) -> pd.DataFrame:
        """Tidy rows for a plot: one for each network, layer and step in `at` (default: 50, geometrically spaced).

        Columns: those of `members`; ``step`` (from 0), ``layer`` (from 1), ``loss``, ``norm``,
        ``effective_rate``, ``gradient`` and ``angle``, the norms being those before the step.
        """
        import pandas as pd

        count = len(self.loss)
        even = np.geomspace(1, count, min(50, count)).astype(int) - 1
        steps = np.unique(even if at is None else inputs.counts("at", at, "[0]", 0, count - 1))
        if not len(steps):
            raise ValueError(f"at={at!r}: expected at least one step, e.g. at=[0]")
        layers = range(self.norm.shape[2])
        parts = [
            self.members.assign(
                step=step, layer=k + 1, loss=self.loss[step], norm=self.norm[step, :, k],
                effective_rate=self.effective_rate[step, :, k], gradient=self.gradient[step, :, k],
                angle=self.angle[step, :, k],
            )
            for step in steps
            for k in layers
        ]  # fmt: skip
        return pd.concat(parts, ignore_index=True)

    @property
    def effective_rate(self) -> Array:
        """η/‖W_k‖², the step that the direction of a scale-invariant layer makes: (T + 1, M, L)."""
        rates: Array = self.members["lr"].to_numpy()[:, None] / self.norm**2
        return rates


@torch.no_grad()
def step_by_step(
    data: Data,
    arch: Architecture,
    opt: SGD,
    *,
    grid: Grid | None = None,
    start: Sequence[inputs.Arrays] | None = None,
    train_last: bool = True,
) -> Steps:
    r"""Train as `nclib.train` does, the same steps on the same batches, and record the geometry of each.

    Parameters
    ----------
    data, arch, opt, grid
        As in `nclib.train`; the data decide the precision (float64 to check a theorem).
    start
        Weights to start from, L tensors (M, …) as in `Steps.weights`, instead of each seed's own.
    train_last
        False keeps the last layer as it starts.  Under `norm="bn"` every layer that is trained is then
        scale-invariant, and weight decay acts on nothing else.

    Raises
    ------
    ValueError
        As `nclib.train`, and under `norm="wn"` or "lm", whose weights are not what SGD moves.
    FloatingPointError
        If a network's loss or weights stop being finite, or a layer becomes zero; it is named.

    Notes
    -----
    Everything is held in memory: 8 (3L + 1) bytes a step and network.  Chapter 6.

    Examples
    --------
    With weight decay a layer before BN turns by √(4ηλ) = 0.2 a step, whatever the data:

    >>> import torch
    >>> from nclib.data import data
    >>> from nclib.networks.models import mlp
    >>> from nclib.training.optim import sgd
    >>> noise = data("teacher", n=64, noise=1.0, dtype=torch.float64)
    >>> opt = sgd(lr=0.5, batch=8, epochs=200, weight_decay=0.02)
    >>> steps = step_by_step(noise, mlp(widths=(8,), norm="bn", eps=0), opt)
    >>> print(f"{(steps.angle[800:, 0, 0] ** 2).mean() ** 0.5:.2f}")
    0.20
    """
    import pandas as pd

    if inputs.instance("arch", arch, Architecture, "nclib.mlp()").norm in ("wn", "lm"):
        raise ValueError(f"norm={arch.norm!r}: SGD does not move the weights themselves; write norm='bn' or 'none'")
    inputs.flag("train_last", train_last)
    plan = Plan.of(data, arch, opt, grid=grid, engine="stacked" if isinstance(arch, MLP) else "vmap")
    members = plan.members
    ensemble = Ensemble(plan, plan.start(), range(len(members)))
    weights, gradients = ensemble.weights(ensemble.params), ensemble.weights(ensemble.grads)
    if start is not None:
        blocks = inputs.entries("start", start, f"a list of {len(weights)} tensors")
        own = [inputs.tensor(f"start[{k}]", block, like=weights[0]) for k, block in enumerate(blocks)]
        given, needed = ([tuple(w.shape) for w in blocks] for blocks in (own, weights))
        if given != needed:
            raise ValueError(f"start has shapes {given}; these networks need {needed}")
        for weight, block in zip(weights, own, strict=True):
            weight.copy_(block)
    last = weights[-1].clone()
    size = last.new_zeros(len(members))
    norm = _norms(weights)
    direction = _directions(weights, norm)
    norms, losses, slopes, chords = [norm], [], [], []
    for epoch in range(opt.epochs):
        for index in ensemble.batches(epoch):
            ensemble.gradient(index, size)
            losses.append(ensemble.losses(index, size))
            slopes.append(_norms(gradients))
            ensemble.update(opt.rate(epoch))
            if not train_last:
                weights[-1].copy_(last)
            norm = _norms(weights)
            before, direction = direction, _directions(weights, norm)
            norms.append(norm)
            chords.append(_norms([b - a for a, b in zip(before, direction, strict=True)]))
    kept = losses, slopes, norms, chords
    loss, slope, norm_of, chord = (torch.stack(rows).double().numpy(force=True) for rows in kept)
    lost = ~np.isfinite(np.concatenate([loss, norm_of.max(2), chord.max(2)])).all(0)
    if lost.any():
        what = f"the loss of member {members[int(lost.argmax())]} stopped being finite, or a layer has no norm"
        raise FloatingPointError(f"{what}; take a smaller lr")
    table = pd.DataFrame([{"member": i, **m} for i, m in enumerate(members)])
    angle = 2 * np.arcsin(np.minimum(chord / 2, 1))
    return Steps(table, loss, slope, norm_of, angle, [w.cpu().clone() for w in weights])


def _norms(blocks: list[Tensor]) -> Tensor:
    """(M, L) Frobenius norms of L blocks (M, …)."""
    return torch.stack([torch.linalg.vector_norm(block.flatten(1), dim=1) for block in blocks], dim=1)


def _directions(blocks: list[Tensor], norm: Tensor) -> list[Tensor]:
    """The blocks as rows of length 1, (M, numbers) each."""
    return [block.flatten(1) / norm[:, k, None] for k, block in enumerate(blocks)]
