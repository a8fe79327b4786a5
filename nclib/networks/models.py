"""Bias-free networks with exact initial norms: MLP, the four-convolution net, ResNet-18.

An architecture is a frozen dataclass (equal fields, equal network), made by `mlp`, `convnet` or
`resnet18`; its method `build` returns a `Net`.  `Net.forward` has no side effect and no control flow that
depends on data, so it can be used with `torch.func.functional_call` and `torch.func.vmap`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["none", "bn", "wn", "lm"]


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
    function of the parameters in `WeightNormLayer`.  Only folding BN makes a layer with a `bias`.
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
            return F.linear(torch.flatten(h, 1), self.matrix, self.bias)
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
    """Batch normalisation per channel without an affine part, $(a - m)/\\sqrt{s^2 + ε}$.

    In training mode $m, s^2$ are mean and *biased* variance of the batch and nothing is stored; in
    evaluation mode they are the buffers `mean` and `var`, set by `nclib.calibrate` and NaN before, so that
    a forgotten calibration cannot go unseen.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.full((channels,), math.nan))
        self.register_buffer("var", torch.full((channels,), math.nan))

    def forward(self, a: Tensor) -> Tensor:
        mean, var = (None, None) if self.training else (self.mean, self.var)
        # torch.batch_norm, not torch.nn.functional.batch_norm: the latter refuses eps = 0 in training.
        cudnn = torch.backends.cudnn.enabled
        return torch.batch_norm(a, None, None, mean, var, self.training, 0.0, self.eps, cudnn)

    def extra_repr(self) -> str:
        return f"{self.mean.shape[0]}, eps={self.eps}"


@dataclass(frozen=True)
class Architecture:
    """What a network is, apart from its input, its outputs and its weights; see `mlp` for the fields."""

    #: Whether $f_W$, normalisation folded, is a product of its layers' norms and directions.
    homogeneous: ClassVar[bool] = True

    widths: tuple[int, ...]
    norm: Norm = "none"
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in self.widths):
            raise ValueError(f"widths={self.widths!r}: expected positive integers, e.g. widths=(64, 64)")
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm={self.norm!r}: expected one of 'none', 'bn', 'wn', 'lm'")
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps={self.eps!r}: expected a finite number >= 0, e.g. eps=1e-5")

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        """Shapes of the layers k = 1..L for this input."""
        raise NotImplementedError

    def features(self, net: Net, x: Tensor) -> Tensor:
        """The body of the network: its last hidden layer, (N, d)."""
        # Functions of torch, not methods of tensors: `nclib.calibrate` passes all of its chunks at once.
        h = x
        for k in range(len(net.layers) - 1):
            h = torch.relu_(net.hidden(k, h))  # in place: memory is what a large pass waits for
        return torch.flatten(h, 1)

    def build(
        self,
        input_shape: Sequence[int],
        outputs: int = 1,
        init_norm: float | Sequence[float] = 1.0,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Net:
        """Make the network, on the CPU, with Gaussian directions and $‖W_k‖_F$ = `init_norm` exactly.

        Directions are drawn in float64 from `seed` alone, so that nets that differ in `norm`,
        `init_norm` or `dtype` start in the same direction.  Under `norm="lm"` the layers start on the
        sphere and the scale at $ρ = \\prod_k$ `init_norm`.

        Parameters
        ----------
        input_shape
            Shape of one input without the sample axis: any for `mlp`, (channels, height, width) for
            `convnet` and `resnet18`.
        outputs
            Number of outputs, at least 1.
        init_norm
            Positive; one number for all layers, or one per layer.  (He's initialisation has
            $‖W_k‖_F ≈ \\sqrt{2 d_k}$ with $d_k$ the outputs, or output channels, of layer k.)
        seed, dtype
            Seed of the directions; floating-point type of parameters and buffers.

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

    homogeneous = False

    def shapes(self, input_shape: tuple[int, ...], outputs: int) -> list[LayerShape]:
        channels, *_ = _image_shape("resnet18", input_shape)
        shapes = [LayerShape((self.widths[0], channels, 3, 3), stride=1)]
        for old, new, stride in self._blocks():
            shapes.append(LayerShape((new, old, 3, 3), stride=stride))
            shapes.append(LayerShape((new, new, 3, 3), stride=1))
            if stride != 1:
                shapes.append(LayerShape((new, old, 1, 1), stride=stride))
        return [*shapes, LayerShape((outputs, self.widths[-1]))]

    def features(self, net: Net, x: Tensor) -> Tensor:
        k = 0
        h = torch.relu_(net.hidden(k, x))
        for _, _, stride in self._blocks():
            inside = net.hidden(k + 2, torch.relu_(net.hidden(k + 1, h)))
            k += 2
            if stride != 1:
                k += 1
                h = net.hidden(k, h)
            h = torch.relu_(torch.add(inside, h))
        return torch.mean(h, dim=(2, 3))

    def _blocks(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of each block: two a stage, halving, projected, from stage 2 on."""
        stages = list(enumerate(zip((self.widths[0], *self.widths[:-1]), self.widths, strict=True)))
        return [block for i, (old, new) in stages for block in ((old, new, 1 if i == 0 else 2), (new, new, 1))]


class Net(nn.Module):
    """A network made by `Architecture.build`.

    Attributes
    ----------
    layers
        The weight-carrying layers k = 1..L in order (`Layer`; its effective weight: `.weight`).
    norms
        With `norm="bn"` one `BatchNorm` for each hidden layer, otherwise empty.
    scale
        With `norm="lm"` the scalar parameter ρ, otherwise None.
    arch, input_shape, outputs
        What it was built from.
    """

    def __init__(
        self, arch: Architecture, input_shape: tuple[int, ...], outputs: int, *, bias: bool = False
    ) -> None:
        super().__init__()
        self.arch, self.input_shape, self.outputs = arch, input_shape, outputs
        shapes = arch.shapes(input_shape, outputs)
        kind = WeightNormLayer if arch.norm == "wn" else Layer
        bn = [BatchNorm(s.out, eps=arch.eps) for s in shapes[:-1] if arch.norm == "bn"]
        # A ModuleList knows its entries only as modules.
        self.layers = cast(Sequence[Layer], nn.ModuleList(kind(shape, bias=bias) for shape in shapes))
        self.norms = cast(Sequence[BatchNorm], nn.ModuleList(bn))
        self.scale: nn.Parameter | None
        self.register_parameter("scale", nn.Parameter(torch.ones(())) if arch.norm == "lm" else None)

    def hidden(self, k: int, h: Tensor) -> Tensor:
        """Pre-activation of hidden layer k (from 0), normalised if there is BN."""
        a: Tensor = self.layers[k](h)
        return self.norms[k](a) if len(self.norms) else a

    def features(self, x: Tensor) -> Tensor:
        """Last hidden layer after its ReLU, (N, d)."""
        return self.arch.features(self, x)

    def head(self, features: Tensor) -> Tensor:
        """Last layer on `features` (N, d): (N,) for one output, (N, K) for several."""
        out: Tensor = self.layers[-1](features)
        if self.scale is not None:
            out = out * self.scale
        return out.squeeze(1) if self.outputs == 1 else out

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def mlp(widths: Sequence[int] = (64, 64), norm: Norm = "none", *, eps: float = 1e-5) -> MLP:
    """Architecture of a fully connected ReLU network, $f_W(x) = W_L\\,σ(W_{L-1} \\cdots σ(W_1 x))$.

    Parameters
    ----------
    widths
        Hidden widths; `()` is the linear model.
    norm
        "none"; "bn", batch normalisation between the linear map and the ReLU of hidden layers;
        "wn", $W_k = g_k v_k/‖v_k‖$; "lm", $f = ρ f_V$, where `nclib.train` puts every $V_k$ back on its
        sphere, $‖V_k‖ = 1$, after each step.
    eps
        BN's ε, ≥ 0.  The usual 1e-5 is *not* small against the variances of unit-norm inputs under
        small initial norms: the layer is then no longer scale-invariant (Chapter 6).  Where a theorem
        about scale invariance is tested take eps=0, or one far below the smallest variance.  With
        eps=0 a channel that is constant over the batch gives NaN.

    Examples
    --------
    >>> mlp(widths=(32,), norm="bn")
    MLP(widths=(32,), norm='bn', eps=1e-05)
    """
    return MLP(tuple(widths), norm, eps)


def convnet(widths: Sequence[int] = (32, 64, 128), norm: Norm = "none", *, eps: float = 1e-5) -> ConvNet:
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
    return ConvNet(tuple(widths), norm, eps)


def resnet18(norm: Norm = "bn", *, widths: Sequence[int] = (64, 128, 256, 512), eps: float = 1e-5) -> ResNet18:
    """Architecture of ResNet-18 with the stem for 32×32 images (3×3, stride 1, no max-pooling).

    Bias-free; average pooling before the last layer; projections (1×1) where a block changes size.
    Skip connections make it *not* homogeneous in its layers, so `rho` and `margins` refuse it; its
    norms per layer and its collapse are well defined.  `net.layers` lists, block by block, the two
    3×3 convolutions and then the projection.

    Parameters
    ----------
    widths
        Channels of the stages (two blocks each); fewer or narrower ones for quick runs.
    norm, eps
        As in `mlp`.

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
    return ResNet18(tuple(widths), norm, eps)


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
        direction = torch.randn(layer.shape.weight, generator=generator, dtype=torch.float64)
        target = 1.0 if net.scale is not None else norm
        layer.set_weight(direction * (target / torch.linalg.vector_norm(direction)))
    if net.scale is not None:
        net.scale.data.fill_(math.prod(norms))
