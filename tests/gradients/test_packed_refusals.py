"""Packed sequences: lengths that do not fit or that a program was not made for, and what else is refused, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.packing import LENGTHS, Layers, N, X, check, falling, pack, padded, step
from torch import Tensor, nn

import pccompile
from pccompile import CompileError


def one_state(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    return m.b(pack(x, n))[1]


@pytest.mark.parametrize(
    "lengths, text",
    [
        ([2, 5, 0, 1], "length of every packed sequence must be at least 1"),
        ([2, 6, 3, 1], "a packed sequence is to have 6 steps, and the padded ones have 5"),
        ([5, 3, 4, 1], "sorted in decreasing order"),
        ([3, 2, 1], "3 lengths are given for 4 packed sequences"),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit_are_refused(lengths: list[int], text: str) -> None:
    m = Layers(lambda m, x, n: m.b(falling(x, n))[1])
    pc = pccompile.compile(m, (X, torch.tensor([5, 3, 2, 1])))
    for run in (m, pc):
        with pytest.raises(RuntimeError):
            run(X, torch.tensor(lengths))
    with pytest.raises(RuntimeError, match=text):
        pc(X, torch.tensor(lengths))


def test_what_needs_the_longest_sequence_to_be_whole_says_so() -> None:
    """Torch would broadcast a longest sequence of one step, and a rule would not know."""
    m = Layers(lambda m, x, n: padded(m.a(pack(x, n))[0]) + x)
    pc = check(m, lengths=(N, torch.tensor([5, 5, 1, 1])))
    for n, text in (([4, 3, 2, 1], "is 4, and forward needs 5"), ([1, 1, 1, 1], "is 1, and forward needs 5")):
        with pytest.raises(RuntimeError, match=text):
            pc(X, torch.tensor(n))


def test_a_branch_on_the_longest_length_holds_for_the_whole_length_only() -> None:
    def branching(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        y = padded(m.a(pack(x, n))[0])
        return y * 2 if y.size(1) > 3 else y

    pc = check(Layers(branching), lengths=(N, torch.tensor([5, 5, 1, 1])))
    with pytest.raises(RuntimeError, match="longest sequence of all 5 steps, and the longest here has 3"):
        pc(X, torch.tensor([3, 3, 2, 1]))


def test_a_total_length_below_the_steps_that_were_given() -> None:
    """It bounds the lengths of what is padded to it, and of nothing else."""

    def short(m: Layers, x: Tensor, n: Tensor) -> tuple[Tensor, ...]:
        whole = padded(m.b(pack(x, n + 2))[0])
        return whole, padded(m.a(pack(x, n))[0], total_length=3), padded(m.b(pack(x, n))[0], total_length=4)

    lengths = [torch.tensor(n) for n in ([2, 3, 3, 1], [1, 1, 1, 1], [3, 3, 3, 3])]
    pc = check(Layers(short), lengths=tuple(lengths))
    with pytest.raises(RuntimeError, match="of 4 steps is to be padded to a total_length of 3"):
        pc(torch.cat([X, X], 1), torch.tensor([1, 2, 3, 4]))


def test_other_lengths_of_a_pair_are_not_broadcast() -> None:
    def pair(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        return padded(m.a(pack(x, n))[0]) + padded(m.b(pack(x, n.clamp(min=2)))[0])

    pc = check(Layers(pair), lengths=LENGTHS[:2])
    with pytest.raises(RuntimeError, match="is 2, and forward needs 1"):
        pc(X, torch.tensor([1, 1, 1, 1]))


def short_ones_only(m: Layers, x: Tensor, n: Tensor) -> Tensor:
    y = padded(m.a(pack(x, n))[0])
    return y if y.size(1) < 5 else torch.cat([y, x[..., :2]])


@pytest.mark.parametrize(
    "function, text",
    [
        (short_ones_only, "depends on the lengths of packed sequences"),
        (lambda m, x, n: m.a(pack(x, n[:, None]))[1][0], "lengths of one dimension"),
        (lambda m, x, n: m.a(pack(x, n)._replace(batch_sizes=n))[1][0], "read from a tensor's contents"),
        (
            lambda m, x, n: m.a(falling(x, n), (m.h, m.h))[1][0],
            r"Expected hidden\[0\] size \(1, 4, 3\), got \[1, 1, 3\]",
        ),
    ],
    ids=["short ones only", "matrix", "own sizes", "states of another batch"],
)
def test_what_is_refused_by_name(function: Callable[..., Any], text: str) -> None:
    with pytest.raises(CompileError, match=text):
        pccompile.compile(Layers(function), (X, N), capture="export")


def test_a_packed_argument_is_refused_and_a_packed_result_returned() -> None:
    with pytest.raises(CompileError, match=r"(?s)given a packed sequence.*pack them in forward"):
        pccompile.compile(nn.LSTM(3, 4).double(), (pack(X, N),))
    m = Layers(lambda m, x, n: m.a(pack(x, n))[0])
    pc = pccompile.compile(m, (X, N))
    for n in LENGTHS:
        torch.testing.assert_close(tuple(pc(X, n)), tuple(m(X, n)))


def test_what_else_a_model_branches_on_is_not_laid_on_lengths() -> None:
    m = Layers(lambda m, x, n: m.a(pack(x, n))[1][0] if x.sum() > 0 else x)
    with pytest.raises(CompileError, match="reads a tensor's value") as caught:
        pccompile.compile(m, (X, N), capture="export")
    assert "packed sequence" not in str(caught.value)


def test_autocast_is_refused_around_packed_layers_only() -> None:
    def beside(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = (x @ x.transpose(1, 2))[..., :3]
        return m.b(pack(x.float() * m.h, n))[1]

    def within(m: Layers, x: Tensor, n: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return m.b(pack(x, n))[1]

    m, x = Layers(beside).float(), X.float()
    torch.testing.assert_close(pccompile.compile(m, (x, N))(x, N), m(x, N))
    with pytest.raises(CompileError, match="packed sequences under autocast"):
        pccompile.compile(Layers(within).float(), (x, N))


def test_a_circuit_has_none() -> None:
    with pytest.raises(CompileError, match="no circuit for a recurrent layer over packed sequences"):
        pccompile.compile(Layers(one_state), (X, N), backend="netlist")


def test_other_lengths_of_data_are_not_broadcast_either() -> None:
    """The same without packing: torch takes it that as many entries are positive as there are factors."""
    m = Layers(lambda m, x: (x * m.h)[x > 0] * torch.arange(1.0, 4.0))
    x = torch.tensor([1.0, 1, -1, -1, 1, -1]).view(1, 2, 3).double()
    pc = pccompile.compile(m, (x,))
    torch.testing.assert_close(step(pc, m, x), step(m, m, x))
    with pytest.raises(RuntimeError, match="is 1, and forward needs 3"):
        pc(torch.eye(1, 6).view(1, 2, 3).double())
