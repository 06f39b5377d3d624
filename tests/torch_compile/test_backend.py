"""`torch.compile(model, backend="pccompile")`: programs that are cut in pieces learn as plain autograd would."""

from __future__ import annotations

import copy
import logging
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from zoo.traps_flow import ClippedProduct, Reverse, Round

from pccompile import CompileError
from pccompile.runtime.torch_compile import backend

STEPS = {"BridgeBackward", "PlainStepBackward"}
SEAMS = {*STEPS, "AsStridedBackward0", "torch::autograd::CopyBackwards", "CloneBackward0"}
"""What autograd may hold of a program: our pieces, and memory that they share or overwrite."""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    logger.setLevel(level)


class Program(nn.Module):
    """Layers that the programs below share; `run` is the program."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.out, self.norm = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3), nn.BatchNorm1d(5)
        self.seen: list[float] = []
        self.run = run

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def cut() -> None:
    """A graph break."""
    torch._dynamo.graph_break()


def printed(m: Program, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x))
    print("mean", float(h.mean()))
    return m.out(m.b(h) + h)


def branched(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    if x.sum() > 0:
        return m.out(torch.tanh(h))
    return m.out(2 * m.b(h))


def listed(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    m.seen.append(h.detach().norm().item())
    return m.out(torch.sin(h)) * len(m.seen)


def scaled(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.out(h / (1 + h.abs().max().item()))


def looped(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    while h.norm() > 2:
        h = 0.5 * torch.sin(m.b(h))
    return m.out(h)


def normed(m: Program, x: Tensor) -> Tensor:
    h = m.norm(m.a(x))
    cut()
    return m.out(m.norm(torch.relu(h)))


def dropped(m: Program, x: Tensor) -> Tensor:
    h = F.dropout(m.a(x), 0.5, m.training)
    cut()
    return F.dropout(m.out(h), 0.3, m.training)


def tied(m: Program, x: Tensor) -> Tensor:
    h = torch.tanh(m.b(m.a(x)))
    cut()
    return m.out(m.b(h) @ m.b.weight)


def no_grad(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        scale = torch.sigmoid(m.b(h))
        cut()
        scale = scale * m.b(h).abs()
    return m.out(h * scale)


def no_grad_in_place(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    with torch.no_grad():
        h.clamp_(-1, 1).mul_(2)
    cut()
    return m.out(h * h)


def detached(m: Program, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    gate = torch.sigmoid(h.detach())
    cut()
    return m.out(h * gate), gate


def functions(m: Program, x: Tensor) -> Tensor:
    h = Round.apply(2 * m.a(x))
    product, total = ClippedProduct.apply(h, m.b(h))
    return m.out(Reverse.apply(torch.sin(product), 0.7) + total)


def hooked(m: Program, x: Tensor) -> Tensor:
    h = torch.tanh(m.a(x))
    early = h * 3
    if h.requires_grad:
        h.register_hook(lambda g: 2 * g * m.norm.running_var)
        h.register_hook(lambda g: g + 1)
    return m.out(h + early)


def in_place(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    h.mul_(2).add_(m.b(x @ m.a.weight.t()))
    cut()
    return m.out(torch.sin(h))


def through_a_view(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    first = h[:, :2]
    cut()
    first.mul_(torch.sigmoid(m.b.bias[:2]))
    cut()
    return m.out(h)


def view_of_an_argument(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    cut()
    flat, scale = h.view(-1), h.sum()
    cut()
    flat.mul_(3)
    cut()
    return m.out(torch.sin(h)) + scale


def returned_twice(m: Program, x: Tensor) -> tuple[Tensor, ...]:
    h = m.a(x)
    return m.out(h), h, h.clone(), h.t(), x[0], h.detach()


def counted(m: Program, x: Tensor) -> Tensor:
    h = m.a(x)
    m.norm.num_batches_tracked += 1
    m.norm.running_mean.mul_(0.9).add_(0.1 * h.detach().mean(0))
    return m.out(torch.tanh(h - m.norm.running_mean)) * m.norm.num_batches_tracked


def checkpointed(m: Program, x: Tensor) -> Tensor:
    h = checkpoint(lambda v: torch.tanh(m.b(m.a(v))), x, use_reentrant=False)
    cut()
    return m.out(h)


def sized(m: Program, x: Tensor) -> tuple[Tensor, int]:
    h = m.a(x) / x.shape[0]
    cut()
    return m.out(h.reshape(x.shape[0] * 5).view(-1, 5)), x.shape[0]


def sized_once(m: Program, x: Tensor) -> tuple[Tensor, int]:
    h = m.a(x).reshape(x.shape[0] * 5)
    return m.out(h.view(-1, 5) / x.shape[0]), x.shape[0] + 1


PROGRAMS = {
    f.__name__: f
    for f in (
        *(printed, branched, listed, scaled, looped, normed, dropped, tied, no_grad, detached, functions, hooked),
        *(
            in_place,
            no_grad_in_place,
            through_a_view,
            view_of_an_argument,
            returned_twice,
            counted,
            checkpointed,
            sized,
        ),
    )
}


def tensors(result: Any) -> list[Tensor]:
    return [r for r in (result if isinstance(result, tuple) else (result,)) if isinstance(r, Tensor)]


def step(model: Any, module: nn.Module, x: Tensor) -> dict[str, Any]:
    """What one training step sees and leaves."""
    torch.manual_seed(3)
    module.zero_grad()
    x = x.clone().requires_grad_()
    result = model(x)
    loss = sum(((i + 1) * r.sin().sum() for i, r in enumerate(tensors(result))), torch.zeros(()))
    loss.backward()
    found: dict[str, Any] = {k: p.grad for k, p in module.named_parameters()} | {"input": x.grad}
    found |= {f"buffer {k}": b.clone() for k, b in module.named_buffers()}
    found |= {f"result {i}": r.detach() for i, r in enumerate(tensors(result))}
    found |= {f"carries {i}": torch.tensor(r.requires_grad) for i, r in enumerate(tensors(result))}
    found["numbers"] = torch.tensor([r for r in result if isinstance(r, int)]) if isinstance(result, tuple) else None
    return found


def inputs() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [s + torch.randn(n, 4, generator=draw, dtype=torch.float64) for n, s in ((3, 1), (3, -1), (5, 1), (6, -1))]


def twins(run: Callable[..., Any], **options: Any) -> tuple[Program, Any, Program]:
    torch.manual_seed(0)
    module = Program(run).double()
    return module, torch.compile(module, backend=backend, **options), copy.deepcopy(module)


@pytest.mark.quick(9)
@pytest.mark.parametrize("name", PROGRAMS)
def test_pieces_learn_as_autograd_does(name: str) -> None:
    module, compiled, plain = twins(PROGRAMS[name])
    for x in inputs():
        found, wanted = step(compiled, module, x), step(plain, plain, x)
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def behind(node: Any, found: set[str]) -> set[str]:
    """The kinds of autograd's nodes that a result was made by."""
    if node is not None and node.name() not in found | {"torch::autograd::AccumulateGrad"}:
        found.add(node.name())
        for before, _ in node.next_functions:
            behind(before, found)
    return found


@pytest.mark.parametrize("name", ["printed", "branched", "functions", "in_place", "checkpointed"])
def test_nothing_is_left_to_autograd(name: str) -> None:
    _, compiled, _ = twins(PROGRAMS[name])
    kinds = behind(compiled(inputs()[0]).grad_fn, set())
    assert kinds & STEPS
    assert kinds <= SEAMS, kinds


def test_train_and_eval_mode() -> None:
    module, compiled, plain = twins(dropped)
    for mode in (True, False, True):
        module.train(mode), plain.train(mode)
        torch.testing.assert_close(step(compiled, module, inputs()[0]), step(plain, plain, inputs()[0]))


def test_a_marked_dimension_is_compiled_once() -> None:
    sizes: list[str] = []
    module, compiled, plain = twins(
        sized_once, options={"hook": lambda stage, result, seconds: sizes.append(stage) if stage == "export" else None}
    )
    for x in inputs():
        torch._dynamo.mark_dynamic(x, 0)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x)[0], plain(x)[0])
        (grad,) = torch.autograd.grad(compiled(x)[0].sum(), [module.a.weight])
        (wanted,) = torch.autograd.grad(plain(x)[0].sum(), [plain.a.weight])
        torch.testing.assert_close(grad, wanted)
    assert len(sizes) == 1


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction", "strict"])
def test_options_choose_the_algorithm(algorithm: str) -> None:
    texts: list[Any] = []

    def hook(stage: str, result: Any, seconds: float) -> None:
        texts.extend([result.text] if stage == "emit" else [])

    options = {"algorithm": algorithm, "outside_loss": "linearise", "hook": hook}
    _, compiled, _ = twins(printed, options=options)
    compiled(inputs()[0]).sum().backward()
    assert len(texts) == 2
    assert all(t.startswith(f'"""{algorithm} predictive coding') for t in texts)
    assert "a_weight" in texts[0]


def test_frozen_parameters_and_a_program_without_gradients() -> None:
    module, compiled, plain = twins(printed)
    for m in (module, plain):
        m.a.requires_grad_(False)
    x = inputs()[0]
    compiled(x).sum().backward()
    plain(x).sum().backward()
    assert module.a.weight.grad is None
    torch.testing.assert_close(module.b.weight.grad, plain.b.weight.grad)
    with torch.no_grad():
        assert not compiled(x).requires_grad


def written_in_part(m: Program, h: Tensor) -> Tensor:
    part = h[:, :2]
    cut()
    part.mul_(2)
    return m.out(h)


def overlapping(m: Program, h: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.sin(h)
    return h[:, :2], h[:, 1:3]


@pytest.mark.parametrize(
    "run, words",
    [
        (written_in_part, "is changed in place and shares memory with"),
        (overlapping, "overlapping parts of one value"),
    ],
)
def test_what_a_piece_cannot_do_is_refused(run: Callable[..., Any], words: str) -> None:
    def program(m: Program, x: Tensor) -> Any:
        h = m.a(x)
        cut()
        return run(m, h)

    _, compiled, _ = twins(program)
    with pytest.raises(CompileError, match=words):
        compiled(inputs()[0])


@pytest.mark.parametrize("options", [{"algorithm": "nonsense"}, {"nonsense": 1}])
def test_wrong_options_are_refused(options: dict[str, Any]) -> None:
    _, compiled, _ = twins(printed, options=options)
    with pytest.raises(CompileError, match="nonsense"):
        compiled(inputs()[0])


def test_torch_finds_the_backend_by_its_name() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["torch_dynamo_backends"] == {
        "pccompile": f"{backend.__module__}:{backend.__name__}"
    }
