"""One weight-carrying layer, plain or weight-normalised, and batch normalisation.

The parts of which `nclib.networks.models` makes networks.  A network's body is a coroutine (`Signal`): at every
batch normalisation it hands out the layer and its pre-activation and is sent the normalised value.
That one form serves training, evaluation, exact calibration and centring, which differ only in the
rule that answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerShape(NamedTuple):
    """Shape of one layer's weight; `stride` 0 marks a map of the flattened input (no convolution)."""

    weight: tuple[int, ...]
    stride: int = 0

    @property
    def out(self) -> int:
        return self.weight[0]


class Layer(nn.Module):
    """One weight-carrying layer, $h \\mapsto W_k h$, linear or convolution (padding (kernel − 1)/2).

    `weight` is always the *effective* weight $W_k$ ($V_k$ under `norm="lm"`): a parameter here, a
    function of the parameters in `WeightNormLayer`.
    """

    def __init__(self, shape: LayerShape, *, bias: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(shape.out)) if bias else None)
        self._make_weight()

    def _make_weight(self) -> None:
        self.weight = nn.Parameter(torch.empty(self.shape.weight))

    def set_weight(self, weight: Tensor) -> None:
        """Copy `weight` into the layer's parameters."""
        with torch.no_grad():
            self.weight.copy_(weight)

    @property
    def matrix(self) -> Tensor:
        """The effective weight as a matrix (out, everything else)."""
        weight: Tensor = self.weight
        return weight if weight.ndim == 2 else weight.flatten(1)

    def forward(self, h: Tensor) -> Tensor:
        if self.shape.stride == 0:
            return F.linear(h if h.ndim == 2 else h.flatten(1), self.matrix, self.bias)
        padding = (self.shape.weight[-1] - 1) // 2
        return F.conv2d(h, self.weight, self.bias, stride=self.shape.stride, padding=padding)

    def extra_repr(self) -> str:
        return f"{self.shape.weight}, stride={self.shape.stride}, bias={self.bias is not None}"


class WeightNormLayer(Layer):
    """$W_k = g\\,v/‖v‖_F$ with one gain $g$ for the layer (it starts at $‖v‖ = 1$, $g$ = `init_norm`).

    Salimans and Kingma (2016) use one gain per row; the theory (Chapter 1) normalises the whole
    layer, so that $g$ is $ρ_k$ up to its sign.
    """

    def _make_weight(self) -> None:
        self.direction = nn.Parameter(torch.empty(self.shape.weight))
        self.gain = nn.Parameter(torch.empty(()))

    def set_weight(self, weight: Tensor) -> None:
        with torch.no_grad():
            norm = torch.linalg.vector_norm(weight)
            self.gain.copy_(norm)
            self.direction.copy_(weight / norm)

    # mypy: the base class stores a parameter under this name, this class computes it.
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        length: Tensor = torch.linalg.vector_norm(self.direction)
        return self.direction * (self.gain / length)


class BatchNorm(nn.Module):
    """Batch normalisation per channel, $(a - m)/\\sqrt{s^2 + ε}$, then $γ\\cdot + β$ if `affine`.

    In training mode $m, s^2$ are mean and *biased* variance of the batch and nothing is stored; in
    evaluation mode they are the buffers `mean` and `var`, set by `calibrate` and NaN before.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, *, eps: float, affine: bool) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.full((channels,), math.nan))
        self.register_buffer("var", torch.full((channels,), math.nan))
        self.gamma: nn.Parameter | None
        self.beta: nn.Parameter | None
        self.register_parameter("gamma", nn.Parameter(torch.ones(channels)) if affine else None)
        self.register_parameter("beta", nn.Parameter(torch.zeros(channels)) if affine else None)

    def forward(self, a: Tensor) -> Tensor:
        return self.normalise(a, None, None) if self.training else self.normalise(a, self.mean, self.var)

    def normalise(self, a: Tensor, mean: Tensor | None, var: Tensor | None) -> Tensor:
        """Normalise with the given statistics, or with those of the batch for None."""
        # torch.batch_norm, not torch.nn.functional.batch_norm: the latter refuses eps = 0 in training.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(a, self.gamma, self.beta, mean, var, mean is None, 0.0, self.eps, cudnn)

    def affine_map(self) -> tuple[Tensor, Tensor]:
        """The layer in evaluation mode as $a \\mapsto$ gain·a + shift: gain and shift in float64."""
        gain = (self.var.double() + self.eps).rsqrt()
        if self.gamma is not None:
            gain = gain * self.gamma.detach().double()
        shift = -gain * self.mean.double()
        return gain, shift if self.beta is None else shift + self.beta.detach().double()

    def extra_repr(self) -> str:
        return f"{self.mean.shape[0]}, eps={self.eps}, affine={self.gamma is not None}"


#: A network's body: it yields (BN layer, pre-activation), is sent the normalised value, returns features.
Signal = Generator[tuple[BatchNorm, Tensor], Tensor, Tensor]
#: A rule that answers such requests.
Normalise = Callable[[BatchNorm, Tensor], Tensor]


def by_mode(bn: BatchNorm, a: Tensor) -> Tensor:
    """BN's own rule: the batch in training mode, the stored statistics in evaluation mode."""
    normalised: Tensor = bn(a)
    return normalised


def by_statistics(bn: BatchNorm, a: Tensor) -> Tensor:
    """The stored statistics, whatever the mode."""
    return bn.normalise(a, bn.mean, bn.var)


def run_signal(signal: Signal, rule: Normalise) -> Tensor:
    """Drive a network's coroutine to its end, answering each request by `rule`."""
    try:
        request = next(signal)
        while True:
            request = signal.send(rule(*request))
    except StopIteration as stop:
        features: Tensor = stop.value
        return features
