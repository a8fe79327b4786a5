r"""The binary experiment of the follow-up paper as one call, the same for a laptop and for a GPU.

Two classes of CIFAR-10, the network of four convolutions, one-hot targets and the square loss averaged over both
outputs, SGD with momentum 0.9 and a constant learning rate: `binary_experiment` trains it from several initial
norms and seeds, and measures norms and margins on the way.  `published_norm` is the norm by the published formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

import torch

from .data import Data
from .networks.layers import BatchNorm, Layer
from .networks.models import Net, Norm, convnet
from .training import train
from .training.optim import sgd

if TYPE_CHECKING:
    from .training.runs import Runs

__all__ = ["binary_experiment", "published_norm"]


def binary_experiment(
    data: Data,
    *,
    norm: Norm,
    weight_decay: float,
    init_norms: Sequence[float],
    seeds: Sequence[int],
    epochs: int,
    batch: int = 128,
    lr: float = 0.01,
    noise: float = 0.0,
    measure_every: int | Iterable[int] = 10,
) -> Runs:
    """Train the four-convolution network on two classes, from every initial norm and seed.

    Parameters
    ----------
    data
        Images of two classes.
    norm
        Normalisation, as in `convnet`.
    weight_decay
        λ of λΣ‖W_k‖²: half of what `torch.optim` calls weight decay (the paper's 0.01 is λ = 0.005).
    init_norms
        Initial norms ‖W_k‖ of every layer.
    seeds
        Seeds of the initial directions and of the batches.
    epochs, batch, lr
        Passes through the data, size of a batch, and constant learning rate; the paper has 1000, 128 and 0.01.
    noise
        Share of the training labels drawn anew at random.
    measure_every
        As in `train`.

    Returns
    -------
    Runs
        Its history has the loss, errors, norms and normalised margins, and the column ``rho_published``.

    Raises
    ------
    ValueError
        As `train`, and if there are not two classes.

    Examples
    --------
    >>> from nclib.data import from_arrays
    >>> generator = torch.Generator().manual_seed(0)
    >>> pair = from_arrays(torch.randn(20, 3, 32, 32, generator=generator), [0, 1] * 10)
    >>> options = dict(norm="bn", weight_decay=0.01, seeds=[0], epochs=1, batch=10)
    >>> runs = binary_experiment(pair, init_norms=[1, 3], **options)
    >>> runs.final[["init_norm", "epoch", "status"]].values.tolist()
    [[1.0, 1, 'ok'], [3.0, 1, 'ok']]

    Notes
    -----
    With one output of ±1 in place of two, and the loss not averaged over outputs, the paper's rate diverges.
    Chapter 8.
    """
    if len(data.classes) != 2:
        raise ValueError(f"data has {len(data.classes)} classes; choose two, e.g. classes=(1, 2)")
    opt = sgd(lr=lr, momentum=0.9, batch=batch, epochs=epochs, coding="one-hot")
    grid = {"seed": list(seeds), "init_norm": list(init_norms), "weight_decay": [weight_decay], "noise": [noise]}
    measure = ("loss", "test", "norms", "margins", _published)
    return train(data, convnet(norm=norm), opt, grid=grid, measure_every=measure_every, measure=measure)


def published_norm(net: Net) -> float:
    r"""ρ by the formula of the published code: under BN it divides a layer's norm by that of its vector of
    standard deviations, $\prod_k‖W_k‖/‖s_k‖$, which understates the norm of the folded network.

    Parameters
    ----------
    net
        A network of this package, with exact statistics (see `calibrate`) where it has BN.

    Returns
    -------
    float
        The number; without BN it is `rho`.

    Examples
    --------
    >>> import torch
    >>> from nclib.networks.calibration import calibrate
    >>> from nclib.networks.models import mlp
    >>> from nclib.networks.norms import rho
    >>> net = mlp(widths=(64,), norm="bn").build((8,), seed=0)
    >>> _ = calibrate(net, torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    >>> 7.9 < rho(net) / published_norm(net) < 9.5  # about the root of the width
    True

    Notes
    -----
    {prf:ref}`thm-folding` has the factor. Chapters 1 and 8.
    """
    weights = [cast(Layer, layer).weight.detach().double() for layer in net.layers]
    log = math.fsum(torch.linalg.vector_norm(weight).log().item() for weight in weights)
    for norm in net.norms:
        assert isinstance(norm, BatchNorm)
        log -= torch.linalg.vector_norm((norm.var.double() + norm.eps).sqrt()).log().item()
    return math.exp(log)


def _published(net: Net) -> dict[str, float]:
    return {"rho_published": published_norm(net)}
