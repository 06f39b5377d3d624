"""The self-check finds faults that are put into the compiler, and says where they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

import pccompile
from pccompile import CompileError, pipeline
from pccompile.ir import PCGraph
from pccompile.runtime import derivative_reads, smaller_example
from pccompile.runtime import module as runtime_module
from validity.faults import (
    CLIPPED,
    EMPTIED,
    FLIPPED,
    HALVED,
    NEGATED,
    ROLLED,
    SCALED,
    SHIFTED,
    TRANSPOSED,
    Break,
    drawn,
    dropped,
    rewritten,
    spoilt_operation,
    through,
)

ERRORS: list[tuple[str, str, str, Break]] = [
    ("stack", "c", "tanh_1", SCALED),
    ("stack", "tanh_1", "b", NEGATED),
    ("stack", "b", "tanh", dropped),
    ("stack", "tanh", "a", CLIPPED),
    ("residual", "add_1", "add", HALVED),
    ("residual", "gelu", "b", SHIFTED),
    ("residual", "sin", "add", EMPTIED),
    ("residual", "d", "add_1", ROLLED),
    ("transformer", "norm", "add", SCALED),
    ("transformer", "scaled_dot_product_attention", "qkv", NEGATED),
    ("transformer", "scaled_dot_product_attention_softmax", "scaled_dot_product_attention_mul", SCALED),
    ("transformer", "up", "norm", FLIPPED),
    ("convolutions", "norm", "conv1", HALVED),
    ("convolutions", "max_pool2d", "relu", ROLLED),
    ("convolutions", "mean", "relu_1", through("aten.mul.Scalar", other=36.0)),
    ("recurrent", "cell_gru_cell_sub", "cell", NEGATED),
    ("recurrent", "cell_gru_cell_1_addmm_2_mm", "cell_gru_cell", SCALED),
    ("recurrent", "cell_gru_cell_tanh", "cell_gru_cell_add_3", SCALED),
]
MESSAGES: list[tuple[str, str, str, str, Break]] = [
    ("stack", "b", "b_weight", "b.weight", TRANSPOSED),
    ("stack", "a", "a_bias", "a.bias", SCALED),
    ("stack", "c", "c_weight", "c.weight", dropped),
    ("residual", "c", "c_weight", "c.weight", TRANSPOSED),
    ("residual", "d", "d_bias", "d.bias", HALVED),
    ("transformer", "qkv", "qkv_weight", "qkv.weight", ROLLED),
    ("transformer", "norm", "norm_bias", "norm.bias", NEGATED),
    ("convolutions", "conv2", "conv2_weight", "conv2.weight", SCALED),
    ("convolutions", "norm", "norm_weight", "norm.weight", EMPTIED),
    ("recurrent", "out", "out_weight", "out.weight", SHIFTED),
]
VALUES = [("stack", "tanh"), ("residual", "gelu"), ("transformer", "norm"), ("convolutions", "conv2")]
DTYPES = [torch.float32, torch.float64]


@pytest.fixture(params=["whole", "part"], autouse=True)
def _size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fault is looked for on the whole example, and on a part as if that were a large model."""
    if request.param == "part":
        monkeypatch.setattr(smaller_example, "WORK", 0)


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: Callable[[PCGraph], PCGraph]) -> None:
    """Let the compiler make this mistake from now on."""
    derive = pipeline.derive_rules
    monkeypatch.setattr(pipeline, "derive_rules", lambda pc, typer: fault(derive(pc, typer)))


def refusal(name: str, dtype: torch.dtype = torch.float32, **how: Any) -> str:
    model, x = drawn(name, dtype)
    with pytest.raises(CompileError) as caught:
        pccompile.compile(model, (x,), **how)
    return str(caught.value)


@pytest.mark.quick(24)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "vertex", "parent", "fault"), ERRORS)
def test_a_wrong_message_is_found_at_the_vertex_that_receives_it(
    name: str, vertex: str, parent: str, fault: Break, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, lambda pc: rewritten(pc, vertex, parent, fault))
    text = refusal(name, dtype)
    assert f"the first vertex whose error differs is {parent}" in text, text


@pytest.mark.quick(8)
@pytest.mark.parametrize(("name", "vertex", "parent", "path", "fault"), MESSAGES)
def test_a_wrong_message_to_a_parameter_is_found(
    name: str, vertex: str, parent: str, path: str, fault: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_fault(monkeypatch, lambda pc: rewritten(pc, vertex, parent, fault))
    text = refusal(name)
    assert f"what vertex {vertex} sends to {path} does not" in text, text
    assert path in text.split(" differ")[0]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_wrong_operation_is_found(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that writes another computation than the captured one."""
    settle = pipeline.settle_layouts
    fault = spoilt_operation(value, "aten.mul.Scalar", other=1.001)
    monkeypatch.setattr(pipeline, "settle_layouts", lambda graph: fault(settle(graph)))
    text = refusal(name)
    assert f"the first vertex whose value differs is {value}, by 0.001" in text, text
    assert "output 0" in text


@pytest.mark.parametrize("how", [{"algorithm": "fixed-prediction"}, {"algorithm": "strict"}, {"granularity": "layer"}])
def test_the_rules_of_other_algorithms_are_checked(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with_fault(monkeypatch, lambda pc: rewritten(pc, "c", "tanh_1", SCALED))
    assert "the first vertex whose error differs is tanh_1" in refusal("stack", **how)


def test_without_the_check_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with_fault(monkeypatch, lambda pc: rewritten(pc, "c", "tanh_1", SCALED))
    model, x = drawn("stack")
    assert pccompile.compile(model, (x,), check=False).checked is None


def test_two_parameters_swapped_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = runtime_module.CompiledModule.tables

    def swapped(self: Any, runtime: Any) -> Any:
        params, buffers = tables(self, runtime)
        return {**params, "a.weight": params["b.weight"], "b.weight": params["a.weight"]}, buffers

    monkeypatch.setattr(runtime_module.CompiledModule, "tables", swapped)
    assert "output 0" in refusal("stack")


def test_a_gradient_where_eager_has_none_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead branch that the program takes for a live one."""
    reaching = runtime_module.reaching
    everything = frozenset(range(9))
    monkeypatch.setattr(runtime_module, "reaching", lambda c: dict.fromkeys(reaching(c), frozenset()))
    assert "missing" in refusal("stack")
    monkeypatch.setattr(runtime_module, "reaching", lambda c: dict.fromkeys(reaching(c), everything))
    pccompile.compile(*(lambda m, x: (m, (x,)))(*drawn("stack")))


def test_a_fault_of_the_printer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the text alone: no stage before it is wrong."""
    compile_imported = derivative_reads.compile_imported

    def misprinted(*args: Any, **kwargs: Any) -> Any:
        made = compile_imported(*args, **kwargs)
        head, sweep, tail = made.source.text.partition("def infer_and_learn")
        text = head + sweep + tail.replace('"b.bias": ', '"b.bias": 1.001 * ')
        assert text != made.source.text
        return dataclasses.replace(made, source=dataclasses.replace(made.source, text=text))

    monkeypatch.setattr(derivative_reads, "compile_imported", misprinted)
    assert "b.bias differs from eager torch (b.bias by 0.001)" in refusal("stack")
