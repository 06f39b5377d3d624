"""Model change × algorithm × road: each cell shows eager's result, or a refusal that names the model's own thing.

Under strict predictive coding, whose gradients differ from autograd's by design, the changed model is compared with a
fresh compilation of an equal one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers.models import half_squares, seeded
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from validity.changes import CHANGES, Change
from validity.changing_model import SET_CLOSURE, Net

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From an input and a target to the model's output and the loss ½‖target − output‖²."""


def by_export(model: nn.Module, x: Tensor, **options: Any) -> Run:
    pc = pccompile.compile(model, (x,), **options)

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if options.get("algorithm") == "strict":
            loss = pc.loss(x, target=y)
            return loss.detach(), loss
        output = pc(x)
        return output, half_squares(output, y)

    return run


def by_torch_compile(model: nn.Module, x: Tensor, **options: Any) -> Run:
    torch._dynamo.reset()
    call = torch.compile(model, backend="pccompile", options={**options, "outside_loss": "linearise"})

    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = call(x)
        return output, half_squares(output, y)

    return run


ROADS: dict[str, Callable[..., Run]] = {"export": by_export, "torch.compile": by_torch_compile}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fixed-prediction": {"algorithm": "fixed-prediction", "steps": 400},
    "strict": {"algorithm": "strict", "steps": 5},
}


@pytest.fixture(autouse=True)
def _closure() -> Any:
    yield
    SET_CLOSURE(1.0)


def outcome(model: nn.Module, run: Run, x: Tensor, y: Tensor) -> dict[str, Tensor | None]:
    """Everything that a call and its backward pass leave: outputs, gradients and buffers."""
    model.zero_grad()
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    width = next(m.weight.shape[0] for m in model.head if isinstance(m, nn.Linear))  # type: ignore[union-attr]
    output, loss = run(x, y[:, :width])
    loss.backward()
    leaves = {f"grad of {k}": p.grad for k, p in _learnable(model).items()}
    return {"output": output.detach(), "input": x.grad, **leaves, **dict(model.named_buffers())}


def _learnable(model: nn.Module) -> dict[str, Tensor]:
    plain = {f"{p}.{k}": v for p, m in model.named_modules() for k, v in vars(m).items() if isinstance(v, Tensor)}
    return {**dict(model.named_parameters()), **{k: v for k, v in plain.items() if v.requires_grad and v.is_leaf}}


def eager(model: nn.Module) -> Run:
    def run(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        output = model(x)
        return output, half_squares(output, y)

    return run


def agree(found: dict[str, Tensor | None], expected: dict[str, Tensor | None]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], value, msg=lambda text, name=name: f"{name}: {text}")


COLUMNS = [(road, algorithm) for road in ROADS for algorithm in ALGORITHMS]
"""Each road with each algorithm."""


FAST = (*((road, "exact") for road in ROADS), ("export", "fixed-prediction"), ("export", "strict"))
"""Columns of which `make test` sees something: the guards of torch.compile know no algorithm."""


def cells() -> Iterator[Any]:
    """Every change in every column; in each but the first, all except each fifth change are left to the long suite."""
    for column, (road, algorithm) in enumerate(COLUMNS):
        for i, change in enumerate(CHANGES):
            fast = column == 0 or (i + column) % 5 == 0
            marks = () if fast and (road, algorithm) in FAST else pytest.mark.slow
            yield pytest.param(road, algorithm, change, marks=marks, id=f"{road}-{algorithm}-{change}")


@pytest.mark.quick(22)
@pytest.mark.parametrize("road, algorithm, change", cells())
def test_a_changed_model(road: str, algorithm: str, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = seeded(Net, torch.float64), ALGORITHMS[algorithm]
    twin = copy.deepcopy(model)
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    run, reference = ROADS[road](model, x, **options), eager(twin)
    if algorithm == "strict":
        reference = ROADS[road](twin, x, **options)
    agree(outcome(model, run, x, y), outcome(twin, reference, x, y))
    change.apply(model, monkeypatch)
    change.apply(twin, monkeypatch)
    if algorithm == "strict":
        fresh = copy.deepcopy(twin) if not _has_graph(twin) else twin
        refusal, reference = attempt(lambda: ROADS[road](fresh, x, **options))
        twin = fresh
        if refusal:
            refused_by_name(refusal, change)
            refused_by_name(attempt(lambda: outcome(model, run, x, y))[0], change)
            return
    refusal, left = attempt(lambda: outcome(model, run, x, y))
    if refusal:
        refused_by_name(refusal, change)
    else:
        agree(left, outcome(twin, reference, x, y))


def refused_by_name(refusal: str, change: Change) -> None:
    assert any(name in refusal for name in change.names), refusal or "not refused"


def attempt(run: Callable[[], Any]) -> tuple[str, Any]:
    """The words of a refusal, and the result where there is none."""
    try:
        return "", run()
    except CompileError as e:
        return str(e), None


def _has_graph(model: nn.Module) -> bool:
    """Whether tensors of a graph stand in the model, which deepcopy refuses."""
    return any(isinstance(v, Tensor) and not v.is_leaf for m in model.modules() for v in vars(m).values())
