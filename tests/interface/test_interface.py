"""Losses inside a program, other ways in, and calls that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import Residual, distance, gradients, half_squares, mlp, seeded
from helpers.training import ALGORITHMS, data, pair
from torch import Tensor, fx, nn
from zoo import TRAPS

import pccompile
from pccompile import CompileError

# a loss of its own


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
def test_a_loss_inside_is_the_loss_outside(algorithm: str) -> None:
    x, y = data(5, 4), torch.randint(3, (5,))
    plain, pc = pair(mlp, x, loss=F.cross_entropy, **ALGORITHMS[algorithm])
    loss, wanted = pc.loss(x, target=y), F.cross_entropy(plain(x), y)
    torch.testing.assert_close(loss, wanted)
    assert distance(gradients(pc, loss), gradients(plain, wanted)) < 1e-8


def test_without_a_loss_it_is_the_squared_error() -> None:
    x, y = data(5, 4), data(5, 3)
    plain, pc = pair(mlp, x)
    loss, wanted = pc.loss(x, target=y), half_squares(plain(x), y)
    torch.testing.assert_close(loss, wanted)
    assert distance(gradients(pc, loss), gradients(plain, wanted)) < 1e-12


def test_squared_error_outside_is_squared_error_inside_for_strict() -> None:
    x, y = data(5, 4), data(5, 3)
    _, pc = pair(mlp, x, algorithm="strict", outside_loss="linearise")
    assert distance(gradients(pc, half_squares(pc(x), y)), gradients(pc, pc.loss(x, target=y))) < 1e-12


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_scaling_the_loss_scales_the_gradients_and_leaves_inference_alone(algorithm: str) -> None:
    x, y = data(5, 4), torch.randint(3, (5,))
    _, pc = pair(mlp, x, loss=F.cross_entropy, **ALGORITHMS[algorithm])
    once = gradients(pc, pc.loss(x, target=y))
    scaled = gradients(pc, 1024 * pc.loss(x, target=y))
    assert distance({k: g / 1024 for k, g in scaled.items()}, once) < 1e-14


def test_a_loss_that_is_no_number_is_refused() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x, loss=lambda output, target: (output - target) ** 2)
    with pytest.raises(CompileError, match="single number"):
        pc.loss(x, target=data(5, 3))


# other ways in


def test_an_exported_program_a_file_of_one_and_a_traced_module(tmp_path: Path) -> None:
    x = data(5, 4)
    model = seeded(Residual)
    wanted = gradients(model, half_squares(model(x)))
    program = torch.export.export(model, (x,))
    torch.export.save(program, tmp_path / "model.pt2")
    for given in (program, tmp_path / "model.pt2", str(tmp_path / "model.pt2")):
        pc = pccompile.compile(given, trust_code=True)
        assert distance(gradients(pc, half_squares(pc(x))), wanted) < 1e-12
    pc = pccompile.compile(fx.symbolic_trace(model), (x,))
    assert distance(gradients(pc, half_squares(pc(x))), wanted) < 1e-12


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK not really")
    with pytest.raises(CompileError, match="is not an exported program"):
        pccompile.compile(tmp_path / "model.pt2", trust_code=True)


def test_a_tensor_is_enough_as_example() -> None:
    x = data(5, 4)
    assert torch.equal(pccompile.compile(seeded(mlp), x)(x), seeded(mlp)(x))


# wrong calls


@pytest.mark.parametrize(
    "args, words",
    [
        ((torch.zeros(5, 7, dtype=torch.float64),), ["4", "7"]),
        ((torch.zeros(4, dtype=torch.float64), torch.zeros(1)), ["positional"]),
        ((), ["missing"]),
        (("text",), ["expected a tensor"]),
    ],
    ids=["shape", "too many", "too few", "no tensor"],
)
def test_a_wrong_call_is_refused_in_one_line(args: tuple[Any, ...], words: list[str]) -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x)
    with pytest.raises((CompileError, TypeError)) as caught:
        pc(*args)
    first = str(caught.value).splitlines()[0]
    assert len(first) < 400
    assert any(word in first for word in words)


def test_a_dtype_that_the_model_refuses_is_refused_in_its_words() -> None:
    plain, pc = pair(mlp, data(5, 4))
    x = torch.zeros(5, 4, dtype=torch.long)
    for model in (plain, pc):
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            model(x)


@pytest.mark.parametrize(
    "x, words",
    [
        (torch.zeros(5, 7, dtype=torch.float64), "expected 4 entries in dimension 1"),
        (torch.zeros(5, 4), "expected float64[s0, 4]"),
        (torch.zeros(4, dtype=torch.float64), "got float64[4]"),
    ],
    ids=["shape", "dtype", "rank"],
)
def test_a_program_that_cannot_be_compiled_again_names_the_wrong_input(x: Tensor, words: str) -> None:
    pc = pccompile.compile(torch.export.export(seeded(mlp), (data(5, 4),)))
    with pytest.raises(CompileError) as caught:
        pc(x)
    assert "input" in str(caught.value)
    assert words.replace("s0", "5") in str(caught.value)


def test_example_arguments_are_needed() -> None:
    with pytest.raises(CompileError, match="example arguments are missing"):
        pccompile.compile(mlp())


@pytest.mark.parametrize(
    "how, words",
    [
        ({"algorithm": "magic"}, "unknown algorithm 'magic'"),
        ({"granularity": "atom"}, "unknown granularity 'atom'"),
        ({"steps": 3}, "exact has no setting steps"),
        ({"algorithm": "strict", "lowering": "relax"}, "strict has no setting lowering"),
        ({"algorithm": "fixed-prediction", "lowering": "upwards"}, "unknown lowering"),
        ({"algorithm": "fixed-prediction", "steps": -1}, "steps is -1"),
        ({"algorithm": "strict", "steps": -1}, "steps is -1"),
        ({"algorithm": "strict", "rate": float("nan")}, "rate is nan"),
    ],
)
def test_settings_that_do_not_exist_are_refused_by_name(how: dict[str, Any], words: str) -> None:
    with pytest.raises(CompileError, match=words) as caught:
        pccompile.compile(mlp(), (torch.zeros(2, 4),), **how)
    assert "hint:" in str(caught.value)


def test_a_model_without_anything_to_learn_is_refused() -> None:
    with pytest.raises(CompileError):
        pccompile.compile(nn.Tanh(), (torch.zeros(2, 4),))


def test_a_trap_that_reads_a_number_is_refused_by_place() -> None:
    case = TRAPS["data_dependent_if"]
    x = case.inputs(torch.Generator(), torch.float32)
    with pytest.raises(CompileError, match=r"traps_flow\.py:\d+"):
        pccompile.compile(case.build(), x, capture="export")


@pytest.mark.parametrize("backend", ["torch", "netlist"])
def test_parameters_without_a_shape_are_refused_until_the_model_was_called(backend: str) -> None:
    x, model = torch.randn(4, 6), nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(CompileError, match=r"0\.weight, 0\.bias, 2\.weight and 1 more have no shape before"):
        pccompile.compile(model, (x,), backend=backend)
    model(x)
    pccompile.compile(model, (x,), backend=backend)
