"""Traps of the gradient's path: where it stops, where the user bends it, and control flow."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.case import Case, OneLayer, collect, normal, own_loss, positive, tokens

FLOW: dict[str, Case] = {}
trap = collect(FLOW)


@trap("detach", normal(3, 4))
class Detach(OneLayer):
    """Decomposition turns `detach` into an alias, and the gate's gradient leaks into `fc`."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h * torch.sigmoid(h.detach())


@trap("detach_whole_path", normal(3, 4))
class DetachWholePath(OneLayer):
    """The only path of `fc` is detached: its gradient is None, not a leak and not zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(x)).detach())


@trap("no_grad", normal(3, 4))
class NoGrad(OneLayer):
    """Decomposition inlines the `no_grad` block and its stop is lost."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        with torch.no_grad():
            scale = 1 / (1 + h.abs().sum(dim=1, keepdim=True))
        return h * scale


@trap("enable_grad_inside_no_grad", normal(3, 4))
class EnableGrad(OneLayer):
    """Only a part of the block stops the gradient: a rule by block and not by operation stops too much."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = torch.sigmoid(self.fc(x))
            with torch.enable_grad():
                h = torch.tanh(self.fc(x))
        return h * scale


@trap("shifted_softmax", normal(3, 4))
class ShiftedSoftmax(OneLayer):
    """A softmax shifted by its detached maximum: the shift takes no gradient and has none to give."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        e = torch.exp(h - h.max(dim=1, keepdim=True).values.detach())
        return e / e.sum(dim=1, keepdim=True)


@trap("stop_gradient_target", normal(3, 4), normal(3, 4), loss=own_loss)
class StopGradientTarget(OneLayer):
    """Self-supervision (BYOL): the target branch uses the same weights but takes no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.predictor = nn.Linear(5, 5)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        with torch.no_grad():
            target = F.normalize(self.fc(other), dim=1)
        return (F.normalize(self.predictor(self.fc(one)), dim=1) - target).pow(2).sum()


class Round(torch.autograd.Function):
    """Rounds; its backward passes the gradient through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@trap("straight_through", normal(3, 4))
class StraightThrough(OneLayer):
    """A custom Function traced through its forward: the user's backward is lost and `round` gives 0."""

    def forward(self, x: Tensor) -> Tensor:
        return Round.apply(2 * self.fc(x))


class Reverse(torch.autograd.Function):
    """The identity; its backward multiplies by -strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grad, None


@trap("gradient_reversal", normal(3, 4))
class GradientReversal(OneLayer):
    """A custom Function whose forward is the identity vanishes from the graph, and with it the sign."""

    def __init__(self) -> None:
        super().__init__()
        self.domain = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.fc(x))
        return h, self.domain(Reverse.apply(h, 0.7))


class ClippedProduct(torch.autograd.Function):
    """(x·y, x+y); its backward uses saved tensors and clips."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y)
        return x * y, x + y

    @staticmethod
    def backward(ctx: Any, product: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        return (product * y + total).clamp(-1, 1), (product * x + total).clamp(-1, 1)


@trap("function_of_two", normal(3, 4), normal(3, 5))
class FunctionOfTwo(OneLayer):
    """A custom Function with saved tensors, two inputs and two outputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        product, total = ClippedProduct.apply(self.fc(x), y)
        return torch.sin(product) + total * product


@trap("straight_through_by_detach", normal(3, 4))
class StraightThroughByDetach(OneLayer):
    """The usual idiom for rounding; folding the two h away, or losing the detach, makes the gradient 0."""

    def forward(self, x: Tensor) -> Tensor:
        h = 2 * self.fc(x)
        return h + (h.round() - h).detach()


@trap("tensor_hook", normal(3, 4))
class TensorHook(OneLayer):
    """A hook on a value doubles its gradient; no graph of the forward pass shows it."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.fc(x))
        if h.requires_grad:
            h.register_hook(lambda grad: 2 * grad)
        return h * x.sum()


@trap("checkpointed", normal(3, 4))
class Checkpointed(OneLayer):
    """Checkpointing runs the block twice under autograd: it must not count twice."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda value: torch.tanh(self.fc(value)), x, use_reentrant=False) * 2


@trap("inner_gradient", normal(3, 4), exported=False)
class InnerGradient(OneLayer):
    """A force as the gradient of an energy inside forward: second derivatives are needed."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        energy = torch.tanh(h).pow(2).sum()
        (force,) = torch.autograd.grad(energy, h, create_graph=True)
        return force


@trap("vmap_of_grad", normal(3, 4), exported=False)
class VmapOfGrad(OneLayer):
    """Gradients of each sample inside forward, by `vmap(grad)`."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda row: torch.tanh(self.fc(row)).pow(2).sum()))(x)


@trap("data_dependent_if", normal(3, 4), refused="a branch on a tensor's value")
class DataDependentIf(OneLayer):
    """A branch chosen by the data: a trace on one input is silently wrong on another."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        if x.sum() > 0:
            return torch.tanh(h)
        return 2 * h


@trap("item", positive(3, 4))
class Item(OneLayer):
    """A tensor read as a Python number: a trace freezes it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) / x.max().item()


@trap("data_dependent_while", positive(3, 4), refused="a loop on a tensor's value")
class DataDependentWhile(OneLayer):
    """A loop whose number of rounds depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        while h.detach().norm() > 1:
            h = 0.5 * torch.sin(h)
        return h


@trap("boolean_selection", normal(6, 4))
class BooleanSelection(OneLayer):
    """Rows chosen by a mask: the shape of the value depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return h[x[:, 0] > 0].pow(2).sum() + h.sum()


@trap("cond", normal(3, 4))
class Cond(OneLayer):
    """`torch.cond` over closures that use parameters: the branch not taken has gradients of zero, not None."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda v: torch.tanh(self.fc(v)), lambda v: 2 * self.other(v), (x,))


class RepeatedCell(OneLayer):
    """What `WhileLoop` computes, by a Python loop."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x)
        for _ in range(3):
            h = torch.tanh(self.cell(h) + x)
        return self.fc(h)


@trap("while_loop", normal(3, 4), oracle=RepeatedCell)
class WhileLoop(RepeatedCell):
    """`torch.while_loop` with an initial carry that needs no gradient: torch's own autograd is wrong here."""

    def forward(self, x: Tensor) -> Tensor:
        start = (torch.zeros((), dtype=torch.long), torch.zeros_like(x))
        _, h = torch._higher_order_ops.while_loop(
            lambda step, h: step < 3, lambda step, h: (step + 1, torch.tanh(self.cell(h) + x)), start
        )
        return self.fc(h)


@trap("scan", normal(3, 6, 4))
class Scan(OneLayer):
    """`scan` along the time axis: the parameters in its body gather a gradient at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.cell(h) + row)
            return h, h.clone()

        _, states = torch._higher_order_ops.scan(step, torch.zeros_like(x[:, 0]), x, dim=1)
        return self.fc(states)


@trap("loss_inside", normal(3, 4), tokens(5, 3), loss=own_loss)
class LossInside(OneLayer):
    """Forward returns the loss: the output error is 1 and not a target's difference."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(self.fc(x), label)


@trap("ctc", normal(7, 2, 4), tokens(4, 2, 3), loss=own_loss, dynamic_batch=False, exported=False)
class CTC(OneLayer):
    """The CTC loss: a kernel that reads lengths on the host."""

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        log_probabilities = F.log_softmax(self.fc(x), dim=-1)
        lengths = torch.full((2,), 7), torch.full((2,), 3)
        return F.ctc_loss(log_probabilities, label + 1, *lengths)


@trap("deep_chain", normal(3, 4))
class DeepChain(OneLayer):
    """Twenty layers: with a fixed number of steps the first gets next to nothing of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(20)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(2 * layer(x))
        return self.fc(x)


@trap("unequal_paths", normal(3, 4))
class UnequalPaths(OneLayer):
    """Paths of length 1 and 6 to the same value: a wave that visits each value once loses one."""

    def __init__(self) -> None:
        super().__init__()
        self.long = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(5, 5), nn.Tanh())))

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.long(h) * h
