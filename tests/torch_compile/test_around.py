"""torch.compile, torch.export and other tracers around a model that is compiled already."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

import pccompile
from pccompile import CompileError

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Core(nn.Module):
    """A part with running statistics, a mask and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.drop(self.norm(self.a(x)))), self.a.weight)


class Around(nn.Module):
    """A bigger model around a part, that calls it twice."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.before, self.core, self.after = nn.Linear(4, 4), core, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.sin(self.before(x))
        return self.after(self.core(h) + self.core(2 * h))


def batch(n: int = 5) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def core() -> Core:
    torch.manual_seed(0)
    return Core().double()


def compiled(model: nn.Module, called: bool = False, **options: Any) -> pccompile.api.module.PCModule:
    pc = pccompile.compile(model, (batch(),), **options)
    if called:
        pc(batch()).sum().backward()
        model.zero_grad()
    return pc


def learned(run: Callable[[Tensor], Any], module: nn.Module, x: Tensor) -> dict[str, Any]:
    """What a step leaves in the module."""
    torch.manual_seed(2)
    module.zero_grad()
    x = x.clone().requires_grad_()
    result = run(x)
    result.square().sum().backward()
    tensors = {k: p.grad for k, p in module.named_parameters()} | {f"buffer {k}": b for k, b in module.named_buffers()}
    return {**tensors, "input": x.grad, "result": result.detach()}


@pytest.mark.quick(7)
@pytest.mark.parametrize("called", [False, True], ids=["fresh", "called before"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "pccompile"])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_a_compiled_model_under_torch_compile(place: str, backend: str, called: bool) -> None:
    model = core()
    pc = compiled(model, called)
    plain: nn.Module = copy.deepcopy(model)
    whole: nn.Module = pc
    if place == "inside":
        torch.manual_seed(1)
        whole, plain = Around(pc).double(), Around(plain).double()
        plain.before.load_state_dict(whole.before.state_dict())
        plain.after.load_state_dict(whole.after.state_dict())
    run = torch.compile(whole, backend=backend)
    for mode, n in ((True, 5), (True, 3), (False, 3), (True, 4)):
        whole.train(mode), plain.train(mode)
        torch.testing.assert_close(learned(run, whole, batch(n)), learned(plain, plain, batch(n)))


@pytest.mark.slow
def test_a_compiled_model_under_inductor() -> None:
    model = core().eval()
    plain = copy.deepcopy(model)
    run = torch.compile(Around(compiled(model)).double())
    whole = run._orig_mod
    eager = Around(plain).double()
    eager.before.load_state_dict(whole.before.state_dict())
    eager.after.load_state_dict(whole.after.state_dict())
    torch.testing.assert_close(learned(run, whole.eval(), batch()), learned(eager.eval(), eager, batch()))


@pytest.mark.parametrize("algorithm", ["fixed-prediction", "strict"])
def test_the_algorithm_stays_what_it_was(algorithm: str) -> None:
    """torch.compile around a compiled model runs its inference, not autograd."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    pc = compiled(model, algorithm=algorithm, steps=3, rate=0.2, loss=F.mse_loss)
    y = batch().cos()
    torch.compile(lambda x: pc.loss(x, target=y), backend="eager")(batch()).backward()
    inside = {k: p.grad for k, p in model.named_parameters()}
    model.zero_grad()
    pc.loss(batch(), target=y).backward()
    torch.testing.assert_close(inside, {k: p.grad for k, p in model.named_parameters()}, rtol=0, atol=0)


def test_torch_export_takes_the_model_itself() -> None:
    model = core()
    pc = compiled(model)
    batches = {0: torch.export.Dim("batch")}
    programs = [torch.export.export(m, (batch(),), dynamic_shapes=(batches,), strict=False) for m in (pc, model)]
    operations = [[n.target for n in p.graph.nodes if n.op == "call_function"] for p in programs]
    assert operations[0] == operations[1]
    assert set(programs[0].state_dict) == set(programs[1].state_dict)


def test_a_compiled_model_is_compiled_anew_from_its_model() -> None:
    model = core()
    plain = copy.deepcopy(model)
    twice = pccompile.compile(compiled(model), (batch(),))
    torch.testing.assert_close(learned(twice, model, batch()), learned(plain, plain, batch()))


def traced_by_jit(pc: nn.Module) -> Any:
    return torch.jit.trace(pc, (batch(),))


def traced_by_make_fx(pc: nn.Module) -> Any:
    return make_fx(pc)(batch())


def traced_by_make_fx_with_fake_tensors(pc: nn.Module) -> Any:
    return make_fx(pc, tracing_mode="fake", _allow_non_fake_inputs=True)(batch())


def traced_by_aot_function(pc: nn.Module) -> Any:
    return torch._functorch.aot_autograd.aot_function(pc, lambda graph, _: graph)(batch())


@pytest.mark.parametrize(
    "trace", [traced_by_jit, traced_by_make_fx, traced_by_make_fx_with_fake_tensors, traced_by_aot_function]
)
def test_what_would_record_the_operations_is_refused(trace: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(CompileError, match="cannot be traced"):
        trace(compiled(core().eval()))


@pytest.mark.parametrize("transform", [torch.func.grad, lambda f: torch.func.vmap(f, randomness="same")])
def test_transforms_inside_a_compiled_function_are_refused(transform: Callable[..., Any]) -> None:
    pc = compiled(core().eval())
    with pytest.raises(CompileError, match=r"transformed by torch\.func"):
        torch.compile(lambda x: transform(lambda v: pc(v[None]).sum())(x), backend="eager")(batch()[0])


class Counter(TorchDispatchMode):
    """Counts operations and changes none."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_modes_that_only_look_on_are_no_tracers() -> None:
    pc = compiled(core().eval(), called=True)
    with Counter() as counter:
        pc(batch()).sum().backward()
    assert counter.count > 0
