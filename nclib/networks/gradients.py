r"""The gradient that each training point has for itself, of which a mini-batch takes the mean."""

from __future__ import annotations

from torch import Tensor
from torch.func import functional_call, grad, vmap

from .models import Net

__all__ = ["per_sample_gradients"]


def per_sample_gradients(net: Net, x: Tensor, y: Tensor, *, weight_decay: float = 0.0) -> list[Tensor]:
    r"""Gradient in every layer of the loss of each point, $g_{n,k}=\nabla_{W_k}\ell_n+2λW_k$.

    $\ell_n=(f_W(x_n)-y_n)^2$, the mean over the outputs where there are several.  The gradient on a
    mini-batch is the mean of its points' $g_{n,k}$, and that of the whole loss
    $\frac1N\sum_n\ell_n+λ\sum_k‖W_k‖^2$ the mean of all.  A ReLU at its kink has derivative 0.

    Parameters
    ----------
    net : plain network, `norm="none"` (fold others first).
    x : inputs (N, ...).
    y : targets, (N,) for one output and (N, K) for several.
    weight_decay : λ ≥ 0.

    Returns
    -------
    list of L tensors (N, *shape of the layer's weight), in the type of `net`.

    Raises
    ------
    ValueError : the network is normalised, or `y` does not fit its outputs.

    Notes
    -----
    Chapter 7.  Biases are held fixed and have no entry.

    Examples
    --------
    >>> import torch
    >>> from nclib.networks.models import mlp
    >>> net = mlp(widths=()).build(input_shape=(2,))
    >>> net.layers[0].set_weight(torch.tensor([[0.5, 0.0]]))
    >>> (g,) = per_sample_gradients(net, torch.eye(2), torch.tensor([1.0, -1.0]), weight_decay=0.1)
    >>> [[round(v, 6) for v in row] for row in g[:, 0].tolist()]
    [[-0.9, 0.0], [0.1, 2.0]]
    """
    if net.arch.norm != "none":
        raise ValueError(f"net: norm={net.arch.norm!r} has no gradient of its own per point; pass nclib.fold(net)")
    expected = (len(x),) if net.outputs == 1 else (len(x), net.outputs)
    if tuple(y.shape) != expected:
        raise ValueError(f"y: shape {tuple(y.shape)}; expected targets of shape {expected}, like the outputs")
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    weights = {name: p for name, p in parameters.items() if name.endswith("weight")}
    fixed = {name: p for name, p in parameters.items() if name not in weights}

    def loss(weights: dict[str, Tensor], point: Tensor, target: Tensor) -> Tensor:
        output: Tensor = functional_call(net, weights | fixed, (point.unsqueeze(0),))
        return (output[0] - target).square().mean()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    return [found[name] + 2 * weight_decay * p for name, p in weights.items()]
