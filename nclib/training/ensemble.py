r"""Networks that are trained together: their parameters, batches, gradients and steps.

An `Ensemble` holds M networks of one architecture that differ in the values of their hyper-parameters.
Parameters, gradients and momenta are each one flat tensor in which every parameter is a block (M, ...),
so that a step of SGD is a handful of operations, whatever M and the depth.  Three engines compute gradients:

``stacked``  batched matrix products without autograd (`nclib.training.stacked`): perceptrons.
``vmap``     `torch.func.vmap` over any architecture: where launching operations is what costs, on a GPU.
``loop``     each network by itself: where one network fills the processor (convolutions on a CPU).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from ..networks.models import MLP, Net
from .optim import mean_loss
from .runs import Plan, State
from .stacked import Activations, StackedMLP

# Numbers (not bytes) of activations that members share a step for; measured on a CPU, a guess on a GPU.
_ROOM = {"cpu": 2**21, "cuda": 2**30}
# Multiplications in a step below which a second thread costs more than it brings; measured.
_SMALL = 5e6
_ALIGN = 16  # numbers, 64 bytes of float32


def chunk_size(plan: Plan) -> int:
    """How many members to train as one: as many as keep the activations of a batch in a cache."""
    if plan.engine == "loop":
        return 1
    count, room = len(plan.members), _ROOM.get(plan.data.x.device.type, _ROOM["cpu"])
    most = max(1, min(count, room // (plan.batch * widths(plan))))
    return -(-count // -(-count // most))  # the fewest chunks, of about equal size


def widths(plan: Plan) -> int:
    """Numbers that one sample leaves in a network: its input and all activations."""
    arch, shape = plan.arch, plan.data.input_shape
    if isinstance(arch, MLP):
        return math.prod(shape) + sum(arch.widths) + plan.outputs
    return shape[1] * shape[2] * max(arch.widths)


@contextlib.contextmanager
def threads_for(plan: Plan, state: State) -> Iterator[None]:
    """One thread, where the products of a step are too small to share; the former number afterwards."""
    before = torch.get_num_threads()
    if isinstance(plan.arch, MLP) and plan.batch * sum(p.numel() for p in state.params.values()) < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Ensemble:
    """The members of a plan with these numbers, from their parameters and momenta in a state, which are copied."""

    def __init__(self, plan: Plan, state: State, numbers: Sequence[int]) -> None:
        self.plan, self.opt, self.numbers = plan, plan.opt, list(numbers)
        self.members, self.n, self.norm = len(self.numbers), plan.n, plan.arch.norm
        self.x, self.y = plan.x, plan.y if plan.y.dim() == 2 else plan.y[self.numbers]
        self.net = plan.net().train()  # whose own parameters do not matter
        hyper = [plan.members[i] for i in self.numbers]
        self.seeds = [int(h["seed"]) for h in hyper]
        own = ({name: p[self.numbers] for name, p in group.items()} for group in (state.params, state.momenta))
        self._allocate(*own)
        self.lr = self._spread("lr", [-h["lr"] for h in hyper])
        self.momentum = self._spread("momentum", [h["momentum"] for h in hyper])
        self.decay = self._spread("weight_decay", [2 * h["weight_decay"] for h in hyper])
        self.decay_each = self.flat.new_tensor([2 * h["weight_decay"] for h in hyper])
        self.stack: StackedMLP | None = None
        if plan.engine == "stacked":
            self.stack = StackedMLP(plan.arch, self.opt, self.params, self.grads)
            self.x = self.x.flatten(1)
            self.x_t, self.y_t = self.x.t(), self.y.mT
        elif plan.engine == "loop":
            for name, p in self.net.named_parameters():
                p.data, p.grad = self.params[name][0], self.grads[name][0]
        self.table = self.y.reshape(-1, self.y.shape[-1])  # one row for each target, member after member
        self.offsets = torch.arange(self.members, device=self.y.device).unsqueeze(1) * self.n
        self.batch, self.steps_per_epoch = plan.batch, plan.steps_per_epoch
        self._rooms: dict[int, Activations] = {}
        # Capturing a graph costs some steps; a rate that never stays would ask for one an epoch.
        self._graphed = self.x.is_cuda and self.opt.schedule != "cosine"
        self._graphs: dict[tuple[int, float], tuple[Any, Tensor, Tensor]] = {}

    def _allocate(self, params: Mapping[str, Tensor], momenta: Mapping[str, Tensor]) -> None:
        """Flat tensors for parameters, gradients and momenta; decaying parameters come first."""
        self.decay_on = self.opt.decays(self.plan.arch)
        names = [name for name, _ in self.net.named_parameters()]
        self.decaying = _decaying(names, self.decay_on)
        order = self.decaying + [name for name in names if name not in self.decaying]
        # Every block starts where a vector of the processor may: matrix products round by where they start.
        self._sizes = [-(-params[name].numel() // _ALIGN) * _ALIGN for name in order]
        self.decay_size = sum(self._sizes[: len(self.decaying)])
        self.spheres = [name for name in order if self.norm == "lm" and name != "scale"]
        flats = [params[order[0]].new_zeros(sum(self._sizes)) for _ in range(3)]
        self.flat, self.flat_grad, self.flat_momentum = flats
        self.params, self.grads, self.momenta = (
            {
                name: block[: params[name].numel()].view(params[name].shape)
                for name, block in zip(order, torch.split(flat, self._sizes), strict=True)
            }
            for flat in flats
        )
        for name in order:
            self.params[name].copy_(params[name])
            self.momenta[name].copy_(momenta[name])

    def _spread(self, name: str, values: Sequence[float]) -> float | Tensor:
        """One number if the members agree (much cheaper), otherwise one for each entry of a flat tensor."""
        if max(map(abs, values)) > torch.finfo(self.flat.dtype).max:
            raise ValueError(f"{name}: beyond {self.flat.dtype}, the type of the data; write a smaller one")
        if len(set(values)) == 1:
            return float(values[0])
        column, spread = self.flat.new_tensor(values), torch.zeros_like(self.flat)
        for block, p in zip(torch.split(spread, self._sizes), self.params.values(), strict=True):
            block[: p.numel()] = column.repeat_interleave(p.numel() // self.members)
        return spread

    # ------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def advance(self, first: int, last: int) -> Tensor:
        """Train from epoch `first` to `last`, both ended: (steps, M), finite where the loss before the step was."""
        self.net.train()
        sizes = self.flat.new_zeros(((last - first) * self.steps_per_epoch, self.members))
        rows = iter(sizes)
        for epoch in range(first, last):
            rate = self.opt.rate(epoch)
            for index in self.batches(epoch):
                self._step(index, rate, next(rows))
        return sizes

    def batches(self, epoch: int) -> Sequence[Tensor | None]:
        """The points of every step of an epoch, each (M, n); members of one seed see the same; None means all."""
        if self.batch == self.n:
            return [None]
        independent, n, steps = self.opt.sampling == "independent", self.n, self.steps_per_epoch

        def draw(seed: int) -> Tensor:
            return subsets(n, self.batch, steps, seed, epoch) if independent else permutation(n, seed, epoch)

        drawn = {seed: draw(seed) for seed in dict.fromkeys(self.seeds)}
        order = torch.stack([drawn[seed] for seed in self.seeds]).to(self.x.device)
        return order.unbind(1) if independent else torch.split(order, self.batch, dim=1)

    def _step(self, index: Tensor | None, rate: float, size: Tensor) -> None:
        """One step on all samples, or on those of `index` (M, n); on a GPU as one launch, a graph replayed."""
        key = (0 if index is None else index.shape[1], rate)
        if self._graphed and (key in self._graphs or self._record(key, index, rate)):
            graph, own_index, own_size = self._graphs[key]
            if index is not None:
                own_index.copy_(index)
            graph.replay()
            size.copy_(own_size)
        else:
            self.gradient(index, size)
            self.update(rate)

    def gradient(self, index: Tensor | None, size: Tensor) -> None:
        """Gradients of the loss without weight decay into `grads`, and into `size` what `advance` returns."""
        if self.plan.engine == "loop":
            self._loop_gradient(index, size)
        elif not self.stack:
            self._vmap_gradient(index, size)
        else:
            n = self.n if index is None else index.shape[1]
            if n not in self._rooms:
                self._rooms[n] = Activations(self.stack, n)
            x = self.x if index is None else self._samples(index)
            x_t, y_t = (self.x_t, self.y_t) if index is None else (x.mT, self._targets(index).mT)
            self.stack.gradient(self._rooms[n], x, x_t, y_t, size)

    def _samples(self, index: Tensor) -> Tensor:
        return self.x.index_select(0, index.reshape(-1)).view(*index.shape, *self.x.shape[1:])

    def _targets(self, index: Tensor) -> Tensor:
        rows = index + self.offsets if self.y.dim() == 3 else index
        return self.table.index_select(0, rows.reshape(-1)).view(*index.shape, -1)

    def _loop_gradient(self, index: Tensor | None, size: Tensor) -> None:
        rows = slice(None) if index is None else index[0]
        self.flat_grad.zero_()
        with torch.enable_grad():
            loss = self._loss(None, self.x[rows], self.table[rows])
        loss.backward()  # type: ignore[no-untyped-call]
        size.copy_(loss.detach())

    def _vmap_gradient(self, index: Tensor | None, size: Tensor) -> None:
        own = 0 if index is not None else None
        x = self.x if index is None else self._samples(index)
        y = self.y if index is None else self._targets(index)
        over = (0, own, 0 if y.dim() == 3 else None)
        grads, losses = vmap(grad_and_value(self._loss), in_dims=over)(self.params, x, y)
        for name, grad in grads.items():
            self.grads[name].copy_(grad)
        size.copy_(losses)

    def _loss(self, params: dict[str, Tensor] | None, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of one network, the ensemble's own or one with the parameters given."""
        f = self.net(x) if params is None else functional_call(self.net, params, (x,))
        return mean_loss(f.view(y.shape), y, self.opt.loss, self.opt.reduction)

    # --------------------------------------------------------------------------------------- a step

    def update(self, rate: float) -> None:
        """Weight decay, momentum and step; under LM the tangent plane before and the sphere after."""
        grad = self.flat_grad
        decayed = slice(self.decay_size)
        if self.decay_on == "rho" and self.norm != "lm":
            self._decay_product()
        elif isinstance(self.decay, Tensor):
            grad[decayed].addcmul_(self.flat[decayed], self.decay[decayed])
        elif self.decay:
            grad[decayed].add_(self.flat[decayed], alpha=self.decay)
        for name in self.spheres:
            v, g = self.params[name].flatten(1), self.grads[name].flatten(1)
            g.sub_((v * g).sum(1, keepdim=True) * v)
        if isinstance(self.momentum, Tensor):
            grad = torch.addcmul(grad, self.flat_momentum, self.momentum, out=self.flat_momentum)
        elif self.momentum:
            grad = torch.add(grad, self.flat_momentum, alpha=self.momentum, out=self.flat_momentum)
        if isinstance(self.lr, Tensor):
            self.flat.addcmul_(grad, self.lr, value=rate)
        else:
            self.flat.add_(grad, alpha=self.lr * rate)
        for name in self.spheres:
            v = self.params[name].flatten(1)
            v.div_(torch.linalg.vector_norm(v, dim=1, keepdim=True))

    def _decay_product(self) -> None:
        """Gradient of λρ² = λ Π‖W_k‖², which is 2λρ² W_k/‖W_k‖²."""
        rows = [self.params[name].view(self.members, -1) for name in self.decaying]
        squares = [row.square().sum(1) for row in rows]
        product = torch.stack(squares).prod(0)
        for name, row, square in zip(self.decaying, rows, squares, strict=True):
            factor = (self.decay_each * product / square).unsqueeze(1)
            self.grads[name].view(self.members, -1).addcmul_(row, factor)

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """What weight decay adds to the loss of each member, λ R(W): (M,) float64."""
        carriers = [self.params[name].double().view(self.members, -1) for name in self.decaying]
        squares = torch.stack([carrier.square().sum(1) for carrier in carriers])
        on_product = self.decay_on == "rho" and self.norm != "lm"
        return self.decay_each.double() / 2 * (squares.prod(0) if on_product else squares.sum(0))

    def weights(self, of: Mapping[str, Tensor]) -> list[Tensor]:
        """Of `params` or `grads` those of the layers' weights, in order, each (M, ...)."""
        return [of[name] for name, _ in self.net.named_parameters() if name.endswith((".weight", ".direction"))]

    def losses(self, index: Tensor | None, size: Tensor) -> Tensor:
        """Losses (M,) of the last call of `gradient`, whose arguments these are."""
        if not self.stack:
            return size.clone()
        y = self.y if index is None else self._targets(index)
        return mean_loss(self._rooms[y.shape[-2]].a[-1].mT, y, self.opt.loss, self.opt.reduction)

    def member(self, i: int) -> Net:
        """Member i as a network, valid until the next call or step."""
        if self.plan.engine != "loop":
            with torch.no_grad():
                for name, p in self.net.named_parameters():
                    p.copy_(self.params[name][i])
        return self.net

    def _record(self, key: tuple[int, float], index: Tensor | None, rate: float) -> bool:
        """Record a step as a CUDA graph, without taking it; False where that cannot be."""
        state = self.flat.clone(), self.flat_momentum.clone()
        own_index = None if index is None else index.clone()
        own_size = self.flat.new_zeros(self.members)
        graph = torch.cuda.CUDAGraph()
        try:
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries set themselves up in the first calls
                for _ in range(3):
                    self.gradient(own_index, own_size)
                    self.update(rate)
            torch.cuda.current_stream().wait_stream(stream)
            with torch.cuda.graph(graph):
                self.gradient(own_index, own_size)
                self.update(rate)
        except RuntimeError as error:
            warnings.warn(f"no CUDA graph of a training step ({error}); going on without", stacklevel=2)
            self._graphed = False
        self.flat.copy_(state[0])
        self.flat_momentum.copy_(state[1])
        self._graphs[key] = (graph, own_size if own_index is None else own_index, own_size)
        return self._graphed


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """Order of n samples that depends on the seed and the epoch alone.

    So a member's batches do not depend on its ensemble, and resuming needs no generator's state.
    """
    return torch.randperm(n, generator=_generator(seed, epoch))


def subsets(n: int, batch: int, steps: int, seed: int, epoch: int) -> Tensor:
    """Sets of `batch` different samples of n, drawn anew for each of `steps` steps: (steps, batch)."""
    # The samples with the largest of n independent numbers are a uniformly random set.
    keys = torch.rand(steps, n, generator=_generator(seed, epoch), dtype=torch.float64)
    return keys.topk(batch, dim=1).indices


def _generator(seed: int, epoch: int) -> torch.Generator:
    """A generator for one epoch of one member, which looks at 32 bits of its seed."""
    # Mix both numbers into all of them (splitmix64).
    z = (seed * 0x9E3779B97F4A7C15 + (epoch + 1) * 0xD1B54A32D192ED03) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return torch.Generator().manual_seed((z ^ (z >> 31)) % 2**32)


def _decaying(names: Sequence[str], on: str) -> list[str]:
    """Parameters that carry the norms on which weight decay acts."""
    if "scale" in names:
        return ["scale"]
    carriers = [name for name in names if name.endswith((".weight", ".gain"))]
    return carriers[-1:] if on == "last" else carriers
