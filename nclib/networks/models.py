"""Bias-free networks with exact initial norms: MLP, the four-convolution net, ResNet-18.

An architecture is a frozen dataclass (equal fields, equal network), made by `mlp`, `convnet` or
`resnet18`; its method `build` returns a `Net`.

* Every layer computes $W_k h$ without a bias, and starts at $‖W_k‖_F$ = `init_norm` exactly.
* `Net.forward` has no side effect and no control flow that depends on data, so it can be used with
  `torch.func.functional_call` and `torch.func.vmap`.  In particular batch normalisation keeps no
  moving average: in training mode it uses the batch, in evaluation mode the statistics that
  `calibrate` has put there, and until then NaN, so that a forgotten calibration cannot go unseen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .calibration import calibrate
from .layers import BatchNorm, Layer, LayerShape, Normalise, Signal, WeightNormLayer, by_mode, run_signal

__all__ = [
    "MLP",
    "Architecture",
    "BatchNorm",
    "ConvNet",
    "Layer",
    "Net",
    "ResNet18",
    "calibrate",
    "convnet",
    "mlp",
    "project_",
    "resnet18",
]

Norm = Literal["none", "bn", "wn", "lm"]


@dataclass(frozen=True)
class Architecture:
    """What a network is, apart from its input, its outputs and its weights.

    Use the constructors `mlp`, `convnet` and `resnet18`, which document the fields.
    """

    widths: tuple[int, ...]
    norm: Norm = "none"
    affine: bool = False
    eps: float = 1e-5
    bias: bool = False

    @property
    def homogeneous(self) -> bool:
        """Whether $f_W$, normalisation folded, is a product of its layers' norms and directions."""
        return True

    def __post_init__(self) -> None:
        if any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in self.widths):
            raise ValueError(f"widths={self.widths!r}: expected positive integers, e.g. widths=(64, 64)")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm={self.norm!r}: expected one of 'none', 'bn', 'wn', 'lm'")
        if self.affine and self.norm != "bn":
            raise ValueError(f"affine=True with norm={self.norm!r}: only batch norm has a shift; use norm='bn'")
        if self.bias and self.norm != "none":
            raise ValueError(f"bias=True with norm={self.norm!r}: use norm='none', the only one with biases")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps={self.eps!r}: expected a finite number >= 0, e.g. eps=1e-5")

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        """Shapes of the layers k = 1..L for this input."""
        raise NotImplementedError

    def signal(self, net: Net, x: Tensor) -> Signal:
        """The body of the network as a coroutine that returns the last hidden layer."""
        h = x
        for k in range(len(net.layers) - 1):
            h = torch.relu_((yield from net.hidden(k, h)))  # in place: memory is what a large pass waits for
        return h if h.ndim == 2 else h.flatten(1)

    def build(
        self,
        input_shape: Sequence[int],
        outputs: int = 1,
        init_norm: float | Sequence[float] = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Net:
        """Make the network: Gaussian directions, each layer scaled to $‖W_k‖_F$ = `init_norm` exactly.

        Directions are drawn in float64 from `seed` alone, so that nets that differ in `norm`,
        `init_norm` or `dtype` start in the same direction.  Under `norm="lm"` the layers start on the
        sphere and the scale at $ρ = \\prod_k$ `init_norm`.

        Parameters
        ----------
        input_shape : shape of one input without the sample axis: any for `mlp`, (channels, height,
            width) for `convnet` and `resnet18`.
        outputs : number of outputs, at least 1.
        init_norm : positive; one number for all layers, or one per layer.  (He's initialisation has
            $‖W_k‖_F ≈ \\sqrt{2 d_k}$ with $d_k$ the outputs, or output channels, of layer k.)
        seed : seed of the directions.
        dtype : floating-point type of parameters and buffers.

        Returns
        -------
        Net : on the CPU, in training mode.

        Raises
        ------
        ValueError : shapes, norms or outputs that make no network.

        Examples
        --------
        >>> import torch
        >>> net = mlp(widths=(16, 8)).build(input_shape=(4,), init_norm=(0.5, 1.0, 2.0))
        >>> [round(layer.weight.norm().item(), 6) for layer in net.layers]
        [0.5, 1.0, 2.0]
        >>> net(torch.ones(3, 4)).shape
        torch.Size([3])
        """
        shape = tuple(input_shape)
        if not shape or any(not isinstance(s, int) or s < 1 for s in shape):
            raise ValueError(f"input_shape={input_shape!r}: expected positive integers, e.g. (64,) or (3, 32, 32)")
        if not isinstance(outputs, int) or outputs < 1:
            raise ValueError(f"outputs={outputs!r}: expected an integer >= 1 (1 for two classes coded ±1)")
        net = Net(self, shape, outputs).to(dtype)
        _initialise(net, init_norm, seed)
        return net


class MLP(Architecture):
    """Fully connected layers; see `mlp`."""

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        sizes = [math.prod(input_shape), *self.widths, outputs]
        return [LayerShape((m, n)) for n, m in pairwise(sizes)]


class ConvNet(Architecture):
    """Strided 3×3 convolutions and one to the outputs; see `convnet`."""

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        channels, *size = _image_shape("convnet", input_shape)
        shapes = []
        for width in self.widths:
            shapes.append(LayerShape((width, channels, 3, 3), stride=2))
            channels, size = width, [(s + 1) // 2 for s in size]
        return [*shapes, LayerShape((outputs, channels, *size))]


class ResNet18(Architecture):
    """Basic residual blocks, two per stage; see `resnet18`."""

    @property
    def homogeneous(self) -> bool:
        return False

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        channels, *_ = _image_shape("resnet18", input_shape)
        shapes = [LayerShape((self.widths[0], channels, 3, 3), stride=1)]
        for old, new, stride in self._blocks():
            shapes.append(LayerShape((new, old, 3, 3), stride=stride))
            shapes.append(LayerShape((new, new, 3, 3), stride=1))
            if self._has_projection(old, new, stride):
                shapes.append(LayerShape((new, old, 1, 1), stride=stride))
        return [*shapes, LayerShape((outputs, self.widths[-1]))]

    def signal(self, net: Net, x: Tensor) -> Signal:
        k = 0
        h = torch.relu_((yield from net.hidden(k, x)))
        for old, new, stride in self._blocks():
            inside = torch.relu_((yield from net.hidden(k + 1, h)))
            inside = yield from net.hidden(k + 2, inside)
            k += 2
            if self._has_projection(old, new, stride):
                k += 1
                h = yield from net.hidden(k, h)
            h = torch.relu_(inside + h)
        return h.mean(dim=(2, 3))

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of each block: two a stage, halving from stage 2 on."""
        stages = list(enumerate(zip((self.widths[0], *self.widths[:-1]), self.widths, strict=True)))
        return [block for i, (old, new) in stages for block in ((old, new, 1 if i == 0 else 2), (new, new, 1))]

    @staticmethod
    def _has_projection(old: int, new: int, stride: int) -> bool:
        return stride != 1 or old != new


class Net(nn.Module):
    """A network made by `Architecture.build`.

    Attributes
    ----------
    layers : the weight-carrying layers k = 1..L in order (`Layer`; its effective weight: `.weight`).
    norms : with `norm="bn"` one `BatchNorm` for each hidden layer, otherwise empty.
    scale : with `norm="lm"` the scalar parameter ρ, otherwise None.
    arch, input_shape, outputs : what it was built from.
    """

    def __init__(self, arch: Architecture, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.arch, self.input_shape, self.outputs = arch, input_shape, outputs
        shapes = arch.shapes(input_shape, outputs)
        kind = WeightNormLayer if arch.norm == "wn" else Layer
        self.layers = nn.ModuleList(kind(shape, bias=arch.bias) for shape in shapes)
        bn = [BatchNorm(s.out, eps=arch.eps, affine=arch.affine) for s in shapes[:-1] if arch.norm == "bn"]
        self.norms = nn.ModuleList(bn)
        self.scale: nn.Parameter | None
        self.register_parameter("scale", nn.Parameter(torch.ones(())) if arch.norm == "lm" else None)

    def hidden(self, k: int, h: Tensor) -> Signal:
        """Pre-activation of hidden layer k (from 0), handed out for normalisation if there is BN."""
        a: Tensor = self.layers[k](h)
        if len(self.norms):
            bn = self.norms[k]
            assert isinstance(bn, BatchNorm)
            a = yield bn, a
        return a

    def features(self, x: Tensor, normalise: Normalise | None = None) -> Tensor:
        """Last hidden layer after its ReLU, (N, d); `normalise` stands in for BN's own rule if given."""
        return run_signal(self.arch.signal(self, x), normalise or by_mode)

    def head(self, features: Tensor) -> Tensor:
        """Last layer on `features` (N, d): (N,) for one output, (N, K) for several."""
        out: Tensor = self.layers[-1](features)
        if self.scale is not None:
            out = out * self.scale
        return out.squeeze(1) if self.outputs == 1 else out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def mlp(
    widths: Sequence[int] = (64, 64),
    norm: Norm = "none",
    *,
    affine: bool = False,
    eps: float = 1e-5,
    bias: bool = False,
) -> MLP:
    """Architecture of a fully connected ReLU network, $f_W(x) = W_L\\,σ(W_{L-1} \\cdots σ(W_1 x))$.

    Parameters
    ----------
    widths : hidden widths; `()` is the linear model.
    norm : "none"; "bn", batch normalisation between the linear map and the ReLU of hidden layers;
        "wn", $W_k = g_k v_k/‖v_k‖$; "lm", $f = ρ f_V$ with $‖V_k‖ = 1$ kept by `project_` after every
        optimiser step.
    affine : give BN its $γ, β$; β breaks homogeneity (Chapter 1).
    eps : BN's ε, ≥ 0.  The usual 1e-5 is *not* small against the variances of unit-norm inputs under
        small initial norms: the layer is then no longer scale-invariant (Chapter 4).  Where a theorem
        about scale invariance is tested take eps=0, or one far below the smallest variance.  With
        eps=0 a channel that is constant over the batch gives NaN.
    bias : give every layer a bias, which starts at 0; only for showing what it breaks.

    Raises
    ------
    ValueError : an argument out of its range.

    Examples
    --------
    >>> mlp(widths=(32,), norm="bn")
    MLP(widths=(32,), norm='bn', affine=False, eps=1e-05, bias=False)
    """
    return MLP(tuple(widths), norm, affine, eps, bias)


def convnet(
    widths: Sequence[int] = (32, 64, 128),
    norm: Norm = "none",
    *,
    affine: bool = False,
    eps: float = 1e-5,
    bias: bool = False,
) -> ConvNet:
    """Architecture of the four-convolution network of the book's full-scale experiment.

    3×3 convolutions (stride 2, padding 1) to `widths` channels, each followed by a ReLU, then one
    convolution whose kernel covers what is left to the outputs: 4×4 for 32×32 inputs and for 28×28
    ones (28 → 14 → 7 → 4), 1×1 for 8×8.  Any image size works.

    Parameters are those of `mlp`.

    Examples
    --------
    >>> net = convnet().build(input_shape=(3, 32, 32))
    >>> [tuple(layer.weight.shape) for layer in net.layers]
    [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (1, 128, 4, 4)]
    """
    return ConvNet(tuple(widths), norm, affine, eps, bias)


def resnet18(
    norm: Norm = "bn",
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    affine: bool = False,
    eps: float = 1e-5,
) -> ResNet18:
    """Architecture of ResNet-18 with the stem for 32×32 images (3×3, stride 1, no max-pooling).

    Bias-free; average pooling before the last layer; projections (1×1) where a block changes size.
    Skip connections make it *not* homogeneous in its layers, so `rho` and `margins` refuse it; its
    norms per layer and its collapse are well defined.  `net.layers` lists, block by block, the two
    3×3 convolutions and then the projection.

    Parameters
    ----------
    widths : channels of the stages (two blocks each); fewer or narrower ones for quick runs.
    norm, affine, eps : see `mlp`.

    Notes
    -----
    With `norm="none"` equal layer norms of 1 do not train: the signal dies on its way.  With He's norms
    (`init_norm` of `build`) and momentum 0.9 it trains at learning rates up to about 0.03, and falls
    back to the zero output at 0.1 (measured on 600 digits, a narrow network).  Under "lm" ρ starts at the
    product of all `init_norm`, so He's norms overflow there.

    Examples
    --------
    >>> net = resnet18().build(input_shape=(3, 32, 32), outputs=10)
    >>> len(net.layers), sum(p.numel() for p in net.parameters())
    (21, 11164352)
    """
    if not widths:
        raise ValueError("widths=(): resnet18 needs at least one stage, e.g. widths=(64, 128, 256, 512)")
    return ResNet18(tuple(widths), norm, affine, eps)


@torch.no_grad()
def project_(net: Net) -> Net:
    """Put every $V_k$ of a `norm="lm"` network back on its sphere, $V_k ← V_k/‖V_k‖_F$, in place.

    To be called after every optimiser step; the scale ρ is left alone.

    Raises
    ------
    ValueError : the network has another normalisation.

    Examples
    --------
    >>> net = mlp(widths=(8,), norm="lm").build(input_shape=(4,), init_norm=3.0)
    >>> round(net.scale.item(), 6), round(project_(net).layers[0].weight.norm().item(), 6)
    (9.0, 1.0)
    """
    if net.arch.norm != "lm":
        raise ValueError(f"net: norm={net.arch.norm!r} has no sphere to project to; build it with norm='lm'")
    for layer in net.layers:
        assert isinstance(layer, Layer)
        layer.weight.div_(torch.linalg.vector_norm(layer.weight, dtype=torch.float64))
    return net


def _image_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    if len(input_shape) != 3:
        raise ValueError(
            f"input_shape={input_shape}: {name} needs (channels, height, width), e.g. (3, 32, 32); "
            "use mlp for flat inputs"
        )
    return input_shape


def _initialise(net: Net, init_norm: float | Sequence[float], seed: int) -> None:
    """Draw directions in float64 and scale them (in `Net` order, from one generator)."""
    depth = len(net.layers)
    norms = list(init_norm) if isinstance(init_norm, Sequence) else [float(init_norm)] * depth
    if len(norms) != depth or not all(math.isfinite(r) and r > 0 for r in norms):
        raise ValueError(f"init_norm={init_norm!r}: expected a positive number, or {depth} of them (one per layer)")
    generator = torch.Generator().manual_seed(seed)
    for layer, norm in zip(net.layers, norms, strict=True):
        assert isinstance(layer, Layer)
        direction = torch.randn(layer.shape.weight, generator=generator, dtype=torch.float64)
        target = 1.0 if net.scale is not None else norm
        layer.set_weight(direction * (target / torch.linalg.vector_norm(direction)))
    if net.scale is not None:
        net.scale.data.fill_(math.prod(norms))
