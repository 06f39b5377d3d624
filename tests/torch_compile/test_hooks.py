"""Hooks that come and go after a program was compiled take effect under torch.compile, which checks none itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules
from torch.utils.hooks import RemovableHandle

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    """Two layers; a graph break between them where `cut` is set."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.a, self.act, self.b, self.cut = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), cut
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.cut:
            torch._dynamo.graph_break()
        return self.b(self.act(h))


def forward(m: Net) -> RemovableHandle:
    return m.act.register_forward_hook(lambda module, args, result: 2 * result)


def another_forward(m: Net) -> RemovableHandle:
    return m.act.register_forward_hook(lambda module, args, result: result.sin())


def forward_with_keywords(m: Net) -> RemovableHandle:
    return m.act.register_forward_hook(lambda module, args, kwargs, result: result + args[0], with_kwargs=True)


def observing(m: Net) -> RemovableHandle:
    return m.b.register_forward_hook(lambda module, args, result: m.seen.append(result.detach().sum().item()))


def before(m: Net) -> RemovableHandle:
    return m.b.register_forward_pre_hook(lambda module, args: (args[0] * 3,))


def of_the_whole(m: Net) -> RemovableHandle:
    return m.register_forward_hook(lambda module, args, result: result.exp())


def backward(m: Net) -> RemovableHandle:
    return m.act.register_full_backward_hook(lambda module, gradients, errors: (2 * gradients[0],))


def before_backward(m: Net) -> RemovableHandle:
    return m.act.register_full_backward_pre_hook(lambda module, errors: (3 * errors[0],))


def of_all(m: Net) -> RemovableHandle:
    return of_all_modules.register_module_forward_hook(
        lambda module, args, result: 2 * result if isinstance(module, nn.Tanh) else None
    )


def before_all(m: Net) -> RemovableHandle:
    return of_all_modules.register_module_forward_pre_hook(
        lambda module, args: (2 * args[0],) if isinstance(module, nn.Tanh) else None
    )


def backward_of_all(m: Net) -> RemovableHandle:
    return of_all_modules.register_module_full_backward_hook(
        lambda module, gradients, errors: (2 * gradients[0],) if isinstance(module, nn.Tanh) else None
    )


def of_a_parameter(m: Net) -> RemovableHandle:
    return m.a.weight.register_hook(lambda gradient: 2 * gradient)


def after_accumulation(m: Net) -> RemovableHandle:
    def scale(parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(3)

    return m.a.weight.register_post_accumulate_grad_hook(scale)


HOOKS = (
    *(forward, another_forward, forward_with_keywords, observing, before, of_the_whole, backward, before_backward),
    *(of_all, before_all, backward_of_all, of_a_parameter, after_accumulation),
)


def step(run: Callable[[Tensor], Tensor], m: Net) -> dict[str, Any]:
    m.zero_grad()
    m.seen.clear()
    x = torch.linspace(-1, 2, 20).view(5, 4).requires_grad_()
    result = run(x)
    result.square().sum().backward()
    return {k: p.grad for k, p in m.named_parameters()} | {"x": x.grad, "y": result.detach(), "seen": list(m.seen)}


@pytest.mark.quick(12)
@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("hook", HOOKS, ids=lambda f: f.__name__)
def test_a_hook_comes_and_goes(hook: Callable[[Net], RemovableHandle], cut: bool) -> None:
    torch.manual_seed(0)
    m = Net(cut)
    run, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    shared = hook in (of_all, before_all, backward_of_all)
    torch.testing.assert_close(step(run, m), step(eager, eager))
    handles = [hook(m)] if shared else [hook(m), hook(eager)]
    for _ in range(2):
        torch.testing.assert_close(step(run, m), step(eager, eager))
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(step(run, m), step(eager, eager))


def test_one_hook_for_another() -> None:
    torch.manual_seed(0)
    m = Net(False)
    run, eager = torch.compile(m, backend="pccompile"), copy.deepcopy(m)
    handles = [forward(m), forward(eager)]
    torch.testing.assert_close(step(run, m), step(eager, eager))
    for handle in handles:
        handle.remove()
    another_forward(m), another_forward(eager)
    torch.testing.assert_close(step(run, m), step(eager, eager))
