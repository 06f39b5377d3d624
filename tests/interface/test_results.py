"""What a call returns, as tensors: which objects they are, what they share, and what writing into them does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from pccompile import CompileError

RUNS: dict[str, Callable[..., Any]] = {
    "a value": lambda m, x: (torch.tanh(m.a(x)),),
    "a linear value": lambda m, x: (m.a(x),),
    "a view of a value": lambda m, x: (torch.tanh(m.a(x)).view(-1),),
    "a part of a value": lambda m, x: (m.b(h := torch.tanh(m.a(x))), h[:, 1:3].t()),
    "a value and its view": lambda m, x: (h := m.a(x), h.view(-1)),
    "a value and what comes of it": lambda m, x: (h := torch.tanh(m.a(x)), m.b(h)),
    "the input": lambda m, x: (torch.tanh(m.a(x)), x),
    "a view of the input": lambda m, x: (torch.tanh(m.a(x)), x.view(-1)),
    "a parameter": lambda m, x: (torch.tanh(m.a(x)), m.b.weight),
    "a view of a parameter": lambda m, x: (torch.tanh(m.a(x)), m.b.weight.view(-1)),
    "a buffer": lambda m, x: (torch.tanh(m.a(x)), m.row),
    "a view of a buffer": lambda m, x: (torch.tanh(m.a(x)), m.row.view(2, 3)),
    "a detached slice": lambda m, x: (h := m.a(x), h.detach()[:, :2]),
    "all of these": lambda m, x: (h := m.a(x), h.view(-1), x.view(-1), m.row.view(2, 3), m.b.weight, h.detach()[:2], x),
}


class Net(nn.Module):
    """Two layers and a buffer, of which `run` returns something."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b, self.run = nn.Linear(4, 6), nn.Linear(6, 6), run
        self.register_buffer("row", torch.arange(6.0) + 1)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def pair(run: Callable[..., Any], **how: Any) -> tuple[Net, Net, Any]:
    torch.manual_seed(0)
    eager = Net(run).double()
    model = copy.deepcopy(eager)
    return eager, model, pccompile.compile(model, (torch.randn(3, 4, dtype=torch.float64),), **how)


def given(learns: bool) -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4).requires_grad_(learns)


def places(model: nn.Module, x: Tensor, results: Any) -> list[Any]:
    """What each result is: itself an argument, a parameter or a buffer; whose memory it is in; whether it learns."""
    named = {"x": x, **dict(model.named_parameters()), **dict(model.named_buffers())}
    own = {f"result {i}": r for i, r in enumerate(results)}
    return [
        (
            next((k for k, t in named.items() if t is r), None),
            [k for k, t in (named | own).items() if t.untyped_storage().data_ptr() == r.untyped_storage().data_ptr()],
            r.requires_grad,
            r.is_leaf,
        )
        for r in results
    ]


def squares(results: Any) -> Tensor:
    weighted = [(r * torch.linspace(1, 2, r.numel(), dtype=r.dtype).view(r.shape)) for r in results if r.requires_grad]
    return torch.stack([w.square().sum() for w in weighted]).sum()


QUICK = ("the input", "a parameter", "a detached slice", "all of these")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in RUNS])
def test_results_are_what_they_are_in_eager_torch(name: str) -> None:
    eager, model, pc = pair(RUNS[name])
    for learns in (False, True):
        found = []
        for own, called in ((eager, eager), (model, pc)):
            own.zero_grad()
            x = given(learns)
            results = called(x)
            seen = places(own, x, results)
            squares(results).backward()
            found.append((seen, [r.detach().clone() for r in results], [x.grad, *(p.grad for p in own.parameters())]))
        assert found[1][0] == found[0][0]
        torch.testing.assert_close(found[1][1], found[0][1])
        for expected, got in zip(found[0][2], found[1][2], strict=True):
            assert (expected is None) == (got is None)
            if expected is not None:
                torch.testing.assert_close(got, expected)


def row_to_zero(t: Tensor) -> None:
    t[0] = 0


def doubled_without_grad(t: Tensor) -> None:
    with torch.no_grad():
        t.mul_(2)


WRITES: dict[str, Callable[[Tensor], object]] = {
    "add_": lambda t: t.add_(1),
    "mul_": lambda t: t.mul_(2),
    "row": row_to_zero,
    "no_grad": doubled_without_grad,
}


def written(own: nn.Module, called: Any, index: int, write: Callable[[Tensor], object]) -> list[Any] | None:
    """Outputs, state and gradients after a write into a result; None where that raises."""
    own.zero_grad()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    x = given(False)
    try:
        results = called(x)
        write(results[index])
        squares(results).backward()
        after = [t.detach().clone() for t in (*results, *own.state_dict().values(), x)]
        return [*after, *(p.grad for p in own.parameters())]
    except (RuntimeError, CompileError):
        return None
    finally:
        with torch.no_grad():
            for name, value in own.state_dict().items():
                value.copy_(before[name])


ALONE = ("a value", "a linear value", "a value and what comes of it")
"""Results that share no memory: whatever eager torch follows of them is followed."""
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fixed-prediction": {"algorithm": "fixed-prediction", "steps": 200},
    "zil": {"algorithm": "zil"},
    "strict": {"algorithm": "strict", "outside_loss": "linearise"},
}


@pytest.mark.parametrize("how", ALGORITHMS.values(), ids=ALGORITHMS)
def test_a_write_into_a_result_is_followed_or_raises(how: dict[str, Any]) -> None:
    for name in ("a linear value", "a value and its view"):
        compare_writes(name, how)


@pytest.mark.slow
def test_writes_into_results_of_all_kinds_are_followed_or_raise() -> None:
    for name in RUNS:
        compare_writes(name, {})


@pytest.mark.slow
def test_a_write_into_a_result_of_jitted_programs_is_followed_or_raises() -> None:
    for name in (*ALONE, "a view of a value", "a part of a value", "a value and its view", "a detached slice"):
        compare_writes(name, {"jit": True})


def compare_writes(name: str, how: dict[str, Any]) -> None:
    """Assert that writes into each result do what they do in eager torch, or raise where memory is shared."""
    eager, model, pc = pair(RUNS[name], **how)
    learnt = 0 if how.get("algorithm") == "strict" else len(list(eager.parameters()))  # strict has other gradients
    for write in WRITES.values():
        for i in range(len(eager(given(False)))):
            expected, found = written(eager, eager, i, write), written(model, pc, i, write)
            if found is None:
                assert expected is None or name not in ALONE or not learnt
                continue
            assert expected is not None
            count = len(expected) - len(list(eager.parameters())) + learnt
            torch.testing.assert_close(found[:count], expected[:count], rtol=1e-6, atol=1e-9)


OTHER_TARGETS: tuple[tuple[Any, str], ...] = (
    (True, "takes a target for each output with an error, 1 in all, and was given 0 tensors"),
    (3, "was given 0 tensors"),
    ("three", "was given 0 tensors"),
    (None, "was given 0 tensors"),
    ([], "was given 0 tensors"),
    ([torch.zeros(3, 6), torch.zeros(3, 6)], "1 in all, and was given 2 tensors"),
    (torch.zeros(2, 6), r"target of output 0 has the shape \(2, 6\), and the output \(3, 6\)"),
    (torch.zeros(3, 3, 6), r"the shape \(3, 3, 6\), and the output \(3, 6\)"),
    (torch.zeros(3, 6, dtype=torch.complex128), "target of output 0 is complex128, and the output is float64"),
)


@pytest.mark.parametrize("algorithm", ["exact", "incremental"])
def test_targets_that_the_squared_error_does_not_take(algorithm: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).double()
    pc = pccompile.compile(model, (given(False),), algorithm=algorithm)
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.1), copy.deepcopy(model.state_dict())
    for target, words in OTHER_TARGETS:
        with pytest.raises(CompileError, match=words):
            pc.train_step(given(False), target, optimizer)
        torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    pc.train_step(given(False), torch.zeros(6), optimizer)


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_call_that_is_refused_under_autocast_leaves_the_statistics(jit: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    pc = pccompile.compile(model, (torch.randn(3, 4),), jit=jit)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(CompileError, match="target of output 0 is float32, and the output is bfloat16"):
            pc.loss(torch.randn(3, 4), target=torch.zeros(3, 2))
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
        pc.loss(torch.randn(3, 4), target=torch.zeros(3, 2, dtype=torch.bfloat16)).backward()
