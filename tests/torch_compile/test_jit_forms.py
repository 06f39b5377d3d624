"""What jit=True notes of a call: when kernels run at once, and when torch decides anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._inductor.compile_fx
from torch import Tensor, nn

from pccompile.runtime.jit import Compiled


class Refused(Exception):
    """A call was not run at once."""


def scaled(params: dict[str, Tensor], values: list[Any], rate: float = 1.0) -> dict[str, Tensor]:
    return {"w": params["w"] * values[0] * rate, "b": params["b"] + values[-1]}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Compiled]:
    """A function that was called once, and that from then on refuses calls that do not run at once."""
    monkeypatch.setattr(torch._inductor.compile_fx, "compile_fx", lambda graph, examples, config_patches: graph)

    def refuse(*args: Any, **numbers: Any) -> Any:
        raise Refused

    def make(function: Callable[..., Any], *args: Any, **numbers: Any) -> Compiled:
        torch._dynamo.reset()
        found = Compiled(function)
        found(*args, **numbers)
        found._run = refuse
        return found

    return make


def tables(size: int = 3, **how: Any) -> tuple[dict[str, Tensor], list[Any]]:
    return {"w": torch.rand(size, **how), "b": nn.Parameter(torch.rand(size, **how))}, [torch.rand(size, **how), 2]


def test_a_form_that_was_seen_runs_at_once_on_other_numbers(seen: Callable[..., Compiled]) -> None:
    run = seen(scaled, *tables())
    for _ in range(2):
        other = tables()
        torch.testing.assert_close(run(*other), {k: t.detach() for k, t in scaled(*other).items()})
        assert not any(t.requires_grad for t in run(*other).values())


@pytest.mark.parametrize(
    "other",
    [
        tables(4),
        tables(dtype=torch.float64),
        tables(device="meta"),
        ({k: t[::2] for k, t in tables(5)[0].items()}, [torch.rand(3), 2]),
        (dict(reversed(tables()[0].items())), tables()[1]),
        (tables()[0], [torch.rand(3), 5]),
        (tables()[0], [torch.rand(3), 2.0]),
        (tables()[0], [torch.rand(3), "2"]),
        (tables()[0], [torch.rand(3)]),
        (tables()[0], [torch.rand(3).to_sparse(), 2]),
        (tables()[0], [torch.rand(3, dtype=torch.complex64).conj(), 2]),
    ],
    ids=["size", "dtype", "device", "strides", "order", "number", "type", "text", "fewer", "sparse", "conj"],
)
def test_another_form_does_not(seen: Callable[..., Compiled], other: Any) -> None:
    with pytest.raises(Refused):
        seen(scaled, *tables())(*other)


def test_other_numbers_and_settings_do_not(seen: Callable[..., Compiled]) -> None:
    run = seen(scaled, *tables(), rate=0.5)
    run(*tables(), rate=0.5)
    with pytest.raises(Refused):
        run(*tables(), rate=0.25)
    with torch.autocast("cpu"), pytest.raises(Refused):
        run(*tables(), rate=0.5)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(Refused):
            run(*tables(), rate=0.5)
    finally:
        torch.set_num_threads(threads)
    with torch.compiler.set_stance("force_eager"), pytest.raises(Refused):
        run(*tables(), rate=0.5)


def emptied(params: dict[str, Tensor], values: list[Any]) -> dict[str, Tensor]:
    found = scaled(params, values)
    values.clear()
    return found


def replaced(params: dict[str, Tensor], values: list[Any]) -> dict[str, Tensor]:
    params["w"] = params["w"] + 1
    return scaled(params, values)


def written(params: dict[str, Tensor], values: list[Any]) -> dict[str, Tensor]:
    values[0].add_(1)
    return scaled(params, values)


def parted(params: dict[str, Tensor], values: list[Any]) -> dict[str, Tensor]:
    found = params["w"] * 2
    torch._dynamo.graph_break()
    return {"w": found + values[0]}


@pytest.mark.parametrize("function", [emptied, replaced, written, parted])
def test_what_does_more_than_to_run_a_graph_never_does(
    seen: Callable[..., Compiled], function: Callable[..., Any]
) -> None:
    with pytest.raises(Refused):
        seen(function, *tables())(*tables())


def test_tensors_that_are_one_are_not_taken_for_two(seen: Callable[..., Compiled]) -> None:
    same = torch.rand(3)
    run = seen(scaled, {"w": same, "b": same}, [torch.rand(3), 2])
    with pytest.raises(Refused):
        run(*tables())
