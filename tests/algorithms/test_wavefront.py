"""The wavefront: what has not moved is not computed, and the result is that of the full dynamics, bit for bit."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pccompile
from algorithms.nets import NETS, Problem, problem
from algorithms.programs import agree, captured, full, gradients, loops, plain, program_of
from pccompile import energy
from pccompile.backends.torch import emit
from pccompile.ir import Do, Program, Repeat, Update
from pccompile.passes.wavefront import wavefront

ALGORITHMS: dict[str, dict[str, Any]] = {
    **{s: {"algorithm": "strict", "stepper": s} for s in ("euler", "heavy-ball", "nesterov", "adam", "heun")},
    "alm": {"algorithm": "alm", "penalty": 2.0},
    "centred": {"algorithm": "nudged"},
    "positive": {"algorithm": "nudged", "phases": "positive"},
    "error-optimization": {"algorithm": "error-optimization"},
    "relax": {"algorithm": "fixed-prediction", "lowering": "relax"},
}
WAITING = {k: v for k, v in ALGORITHMS.items() if k != "relax"}
SLOW = ("cnn", "lstm", "transformer")


@pytest.mark.parametrize("net", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NETS])
def test_the_wavefront_gives_the_full_dynamics(net: str) -> None:
    p = problem(net)
    pc = captured(p)
    for how in ALGORITHMS.values():
        program = program_of(pc, **how)
        assert any(s.unmoved for s in loops(program)), how
        assert agree(program, p, 0, 1, 2, 3, 12), how
        found, expected = gradients(program, p, 1, 12), gradients(program, p, 1, 12, text=plain(program))
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)  # fused steps round otherwise


@pytest.mark.parametrize("seed", range(1, 3))
def test_on_random_graphs_with_every_operation_a_vertex(seed: int) -> None:
    p = problem("dag", seed)
    pc = p.compile("strict", granularity="op", steps=1).compiled.pc
    for how in WAITING.values():
        program = program_of(pc, **how)
        assert agree(program, p, 5), how


class Counting(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += any(name in str(func) for name in (".mm.", ".addmm.", ".addmm_.", ".linear."))
        return func(*args, **kwargs or {})


def deep(depth: int) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(5, 5), nn.Tanh())), nn.Linear(5, 3))


def products(program: Program, p: Problem, steps: int) -> int:
    with Counting() as count:
        gradients(program, p, steps)
    return count.products


def test_half_of_the_products_are_spared_on_a_chain() -> None:
    """A vertex k hops from the output predicts anew from turn k on and is pulled from turn k − 1 on."""
    depth = 8
    p = Problem(lambda: deep(depth), (4, 5))
    program = program_of(captured(p), "strict")
    (loop,) = loops(program)
    values = [loop.unmoved.get((v.name, "value"), 0) for v in program.pc.latent]
    assert values == [*range(depth - 1, -1, -1)]
    plain = [products(full(program), p, steps) for steps in (0, depth)]
    spared = products(full(program), p, depth) - products(program, p, depth)
    predictions = sum(range(1, depth + 1))  # of vertex k, in turns 0 to k − 1: the one behind the input never moves
    pulls = sum(range(depth))
    assert spared == predictions + pulls
    assert 0.45 < spared / (plain[1] - plain[0]) < 0.6


def test_text_grows_with_the_network_and_not_with_the_steps() -> None:
    lines = []
    for depth in (4, 8, 12):
        p = Problem(lambda depth=depth: deep(depth), (4, 5))
        pc = captured(p)
        texts = [emit(program_of(pc, "strict", steps=steps)).text for steps in (5, 500)]
        lines.append([t.count("\n") for t in texts])
    assert all(a == b for a, b in lines)
    assert lines[2][0] - lines[1][0] < 1.1 * (lines[1][0] - lines[0][0])  # long lists take more lines at first


def test_what_moves_at_once_is_computed_at_once() -> None:
    """Noise moves every vertex in the first turn; where parameters change or a loop may stop, nothing is followed."""
    pc = captured(problem("gated"))
    assert not any(s.unmoved for s in loops(program_of(pc, "langevin")) if ("value" in {k[1] for k in s.unmoved}))
    assert not any(s.unmoved for s in loops(program_of(pc, "incremental")))
    assert not any(s.unmoved for s in loops(program_of(pc, "strict", tolerance=1e-3)))


def test_values_that_start_elsewhere_are_followed_from_there() -> None:
    """An energy whose rest is not at the prediction: the first turn's forces are not 0 where h is not."""
    p = problem("chain")
    how = {"energies": energy("bernoulli", entropy=True), "algorithm": "strict", "steps": 4, "rate": 0.01}
    compiled = pccompile.compile(copy.deepcopy(p.model), (p.x,), check=False, **how).compiled
    assert compiled is not None
    program = compiled.program
    assert agree(program, p, 0, 1, 2, 5)


def test_a_schedule_that_displaces_values_first_is_not_held_still() -> None:
    """Values that do not start at the prediction move in the first turn, wherever they are."""
    program = program_of(captured(problem("chain")), "strict")
    displaced = tuple(Do(v.name, "value", "2 * value") for v in program.pc.latent)
    at = next(i for i, s in enumerate(program.infer) if isinstance(s, Repeat))
    bare = full(program)
    moved = wavefront(replace(bare, infer=(*bare.infer[:at], *displaced, *bare.infer[at:])))
    (loop,) = loops(moved)
    assert not [k for k in loop.unmoved if k[1] == "value"]
    update = replace(bare, infer=(Update(), *bare.infer[:at], *bare.infer[at:]))
    assert not [k for s in loops(wavefront(update)) for k in s.unmoved if k[1] == "prediction"]
