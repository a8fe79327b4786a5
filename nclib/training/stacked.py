r"""Many perceptrons at once: forward and backward pass by batched matrix products, without autograd.

A small network on a CPU spends its time on the overhead of operations, not on arithmetic; M networks
stacked into tensors (M, ...) pay it once.  Activations are (M, width, n), samples last: with samples
shared by all members the first layer is one matrix product $(M d_1\times d_0)(d_0\times n)$, gradients
come out contiguous, and the statistics of batch normalisation run along contiguous memory.

With a_k = W_k h_{k-1}, h_k = σ(BN(a_k)) and δ_k = ∂L/∂a_k: ∂L/∂W_k = δ_k h_{k-1}ᵀ and ∂L/∂h_{k-1} = W_kᵀ δ_k.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..networks.models import Architecture
from .optim import SGD, loss_gradient

_relu_backward_ = torch.ops.aten.threshold_backward.grad_input
_bn_backward = torch.ops.aten.native_batch_norm_backward


class Activations:
    """Room for the activations and their gradients of M members on n samples each."""

    def __init__(self, net: StackedMLP, n: int) -> None:
        def room() -> list[Tensor]:
            return [net.matrices[0].new_empty(net.members, w.shape[1], n) for w in net.matrices]

        self.a = room()  # pre-activations; without BN the ReLU works in place, and this becomes h
        self.d = room()  # gradients in the pre-activations
        # Views that every step needs; making one costs as much as a small product.
        self.a_t = [a.mT for a in self.a]
        self.first_a, self.first_d = self.a[0].view(-1, n), self.d[0].view(-1, n)
        self.rows = [a.view(1, -1, n) for a in self.a]
        self.d_rows = [d.view(1, -1, n) for d in self.d]


class StackedMLP:
    """The loss gradient of M equal perceptrons; `params` and `grads`, by name, are each (M, ...) and contiguous."""

    def __init__(
        self, arch: Architecture, opt: SGD, params: Mapping[str, Tensor], grads: Mapping[str, Tensor]
    ) -> None:
        self.eps, self.norm, self.loss, self.reduction = arch.eps, arch.norm, opt.loss, opt.reduction
        self.depth = len(arch.widths) + 1
        self.scale, self.scale_grad = params.get("scale"), grads.get("scale")

        def by_layer(source: Mapping[str, Tensor], name: str) -> list[Tensor]:
            return [source[f"layers.{k}.{name}"] for k in range(self.depth) if f"layers.{k}.{name}" in source]

        self.gains, self.gain_grads = by_layer(params, "gain"), by_layer(grads, "gain")
        self.directions, self.direction_grads = by_layer(params, "direction"), by_layer(grads, "direction")
        plain = not self.directions
        self.matrices = by_layer(params, "weight") if plain else [v.clone() for v in self.directions]
        self.matrix_grads = by_layer(grads, "weight") if plain else [v.clone() for v in self.directions]
        self.transposed = [w.mT for w in self.matrices]
        self.members = self.matrices[0].shape[0]
        first, first_grad = self.matrices[0], self.matrix_grads[0]
        self.first, self.first_grad = first.view(-1, first.shape[2]), first_grad.view(-1, first.shape[2])

    def gradient(self, room: Activations, x: Tensor, x_t: Tensor, y: Tensor, size: Tensor) -> None:
        """Gradients of the mean loss over n samples, into `grads`.

        `x` is (n, d), shared by all members, or (M, n, d), and `x_t` its transpose in the last two axes; `y`, the
        targets, is (M, K, n) or broadcastable to it; `size`, (M,), as in `loss_gradient`.
        """
        if self.directions:
            lengths = self._compose()
        self._forward(room, x_t)
        outputs, d = room.a[-1], room.d[-1]
        if self.scale is None:
            loss_gradient(outputs, y, d, size, self.loss, self.reduction)
        else:
            assert self.scale_grad is not None
            scale = self.scale[:, None, None]
            loss_gradient(outputs * scale, y, d, size, self.loss, self.reduction)
            torch.sum(d * outputs, (1, 2), out=self.scale_grad)
            d.mul_(scale)
        self._backward(room, x)
        if self.directions:
            self._decompose(lengths)

    def _forward(self, room: Activations, x_t: Tensor) -> None:
        self._saved: list[tuple[Tensor, Tensor, Tensor]] = []
        h = x_t
        for k in range(self.depth):
            a = room.a[k]
            if h.dim() == 2:
                torch.mm(self.first, h, out=room.first_a)
            else:
                torch.bmm(self.matrices[k], h, out=a)
            if k == self.depth - 1:
                return
            if self.norm == "bn":
                # Every row of every member is a channel, and the samples are its image.
                options = None, None, None, None, True, 0.0, self.eps
                normed, mean, rstd = torch.native_batch_norm(room.rows[k], *options)
                h = torch.relu_(normed.view(a.shape))
                self._saved.append((h, mean, rstd))
            else:
                h = torch.relu_(a)

    def _backward(self, room: Activations, x: Tensor) -> None:
        for k in range(self.depth - 1, -1, -1):
            d = room.d[k]
            if k == 0:
                if x.dim() == 2:
                    torch.mm(room.first_d, x, out=self.first_grad)
                else:
                    torch.bmm(d, x, out=self.matrix_grads[0])
                return
            bn = self.norm == "bn"
            h, h_t = room.a[k - 1], room.a_t[k - 1]
            if bn:
                h, mean, rstd = self._saved[k - 1]
                h_t = h.mT
            torch.bmm(d, h_t, out=self.matrix_grads[k])
            below = room.d[k - 1]
            if d.shape[1] == 1:  # an outer product: much cheaper as an elementwise one
                torch.mul(self.transposed[k], d, out=below)
            else:
                torch.bmm(self.transposed[k], d, out=below)
            _relu_backward_(below, h, 0, grad_input=below)
            if bn:
                d_rows = room.d_rows[k - 1]
                saved = None, None, None, mean, rstd, True, self.eps, [True, False, False]
                d_rows.copy_(_bn_backward(d_rows, room.rows[k - 1], *saved)[0])

    def _compose(self) -> list[Tensor]:
        r"""Effective weights $W=g\,v/\lVert v\rVert$ of weight normalisation; returns the lengths of v."""
        lengths = []
        for v, gain, w in zip(self.directions, self.gains, self.matrices, strict=True):
            length = torch.linalg.vector_norm(v, dim=(1, 2))
            torch.mul(v, (gain / length)[:, None, None], out=w)
            lengths.append(length)
        return lengths

    def _decompose(self, lengths: list[Tensor]) -> None:
        """From the gradient G in W: ∂_g = ⟨G, v⟩/‖v‖ and ∂_v = g/‖v‖ (G − ∂_g v/‖v‖)."""
        for k, length in enumerate(lengths):
            grad, v = self.matrix_grads[k], self.directions[k]
            along = self.gain_grads[k]
            torch.sum(grad * v, (1, 2), out=along)
            along.div_(length)
            torch.sub(grad, v * (along / length)[:, None, None], out=self.direction_grads[k])
            self.direction_grads[k].mul_((self.gains[k] / length)[:, None, None])

    @torch.no_grad()
    def evaluate(self, x: Tensor, x_test: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Outputs in evaluation mode, BN's statistics being exact over `x`, and the folded weights.

        Of inputs (N, d) and (N_test, d) that all members share: outputs (M, N, K) and (M, N_test, K), and the L
        folded weights (M, d_k, d_{k-1}) in float64.
        """
        if self.directions:
            self._compose()
        shape = (self.members, -1, -1)
        h, h_test = x.t().expand(*shape), x_test.t().expand(*shape)
        folded = []
        for k, w in enumerate(self.matrices):
            a, a_test = torch.matmul(w, h), torch.matmul(w, h_test)
            if k == self.depth - 1:
                break
            if self.norm == "bn":
                var, mean = torch.var_mean(a.double(), dim=2, keepdim=True, correction=0)
                # Statistics are stored and read in the type of the network, as `calibrate` does.
                mean, var = mean.to(a.dtype), var.to(a.dtype)
                gain = (var.double() + self.eps).rsqrt()
                folded.append(w.double() * gain)
                gain = gain.to(a.dtype)
                a, a_test = (a - mean) * gain, (a_test - mean) * gain
            else:
                folded.append(w.double())
            h, h_test = a.relu(), a_test.relu()
        folded.append(w.double())
        if self.scale is not None:
            scale = self.scale.double()
            share = scale.abs().pow(1 / self.depth)
            folded = [f * share[:, None, None] for f in folded]
            folded[-1] = folded[-1] * scale.sign()[:, None, None]
            a, a_test = a * self.scale[:, None, None], a_test * self.scale[:, None, None]
        return a.mT, a_test.mT, folded
