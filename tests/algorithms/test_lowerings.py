"""Fixed prediction in other forms than its steps: what they equal, how close they are, and when they are taken."""

from __future__ import annotations

import dis
import importlib
import re
from types import CodeType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import pccompile
from algorithms.nets import NETS, Gradients, Problem, problem
from pccompile.algorithms import lowerings
from pccompile.algorithms.combinations import Combinations
from pccompile.algorithms.exponentials import Sections, closest
from pccompile.algorithms.law import PathLengths
from pccompile.algorithms.lowerings import Lowerings
from pccompile.api.module import PCModule
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, ForEach, PCGraph
from pccompile.ir.law import weight

EPS = 2.0**-52


class Shortcuts(nn.Module):
    """As many path lengths as blocks."""

    def __init__(self, blocks: int = 16) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.out(x)


def law(steps: int, rate: float, longest: int) -> list[float]:
    return [weight(steps, rate, k) for k in range(longest + 1)]


def response(found: Sections, count: int) -> list[float]:
    """The sum of the sections for 0, 1, 2 … edges, one at a time."""
    total = [0.0] * count
    for node_sum, product, value, following in found.rows:
        for k in range(count):
            total[k] += value
            value, following = following, node_sum * following - product * value
    return total


def differences(p: Problem, lowering: str, **how: object) -> float:
    """The largest difference of a gradient from that of the steps, relative to backpropagation's above rounding."""
    found = p.gradients("fixed-prediction", lowering=lowering, **how)
    return from_steps(p, found, p.gradients("fixed-prediction", lowering="relax", **how))


def from_steps(p: Problem, found: Gradients, steps: Gradients) -> float:
    least = 1e-5 * max(float(g.norm()) for g in p.backprop.values())
    return max(float((found[k] - g).norm()) / max(float(p.backprop[k].norm()), least) for k, g in steps.items())


def apart(p: Problem, pc: PCModule) -> Gradients:
    """The gradients by inference and then learning, where the file has a function for both at once too."""
    runtime = pc.prepare((p.x,), loss=p.loss, target=p.target)
    params, buffers = pc.tables(runtime)
    predict, infer, learn = (runtime.function(name) for name in ("predict", "infer", "learn"))
    inputs = runtime.interface.bind((p.x,), {})
    outputs, context = predict(params, buffers, inputs)
    errors = infer(params, context, [p.target - outputs[0]])
    found: Gradients = learn(params, context, *(errors if isinstance(errors, tuple) else (errors,)))
    return found


LAWS = [(1, 0.3), (20, 0.1), (2000, 0.1), (60, 1.2)]


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("steps, rate", [(100, 0.1), *(pytest.param(*of, marks=pytest.mark.slow) for of in LAWS)])
def test_combinations_and_damped_sweeps_are_the_steps(name: str, steps: int, rate: float) -> None:
    p, how = problem(name), {"steps": steps, "rate": rate}
    taken = p.gradients("fixed-prediction", lowering="relax", **how)
    for lowering in ("combinations", "exponentials"):
        found = p.gradients("fixed-prediction", lowering=lowering, **how)
        assert from_steps(p, found, taken) < 1e-8, lowering


def test_a_coarse_tolerance_is_kept_and_takes_fewer_sweeps() -> None:
    p = Problem(Shortcuts, (2, 4))
    fine, coarse = (
        p.compile("fixed-prediction", lowering="exponentials", lowering_tolerance=x).compiled.program.infer[-1]
        for x in (1e-9, 1e-3)
    )
    assert isinstance(fine, ForEach)
    assert isinstance(coarse, ForEach)
    assert len(coarse.rows) < len(fine.rows)
    assert 1e-9 < differences(p, "exponentials", lowering_tolerance=1e-3) < 1e-2


@given(st.integers(0, 400), st.floats(0.01, 1.9), st.integers(3, 150))
@settings(max_examples=30, deadline=None)
def test_what_sections_say_of_their_fit_holds(steps: int, rate: float, longest: int) -> None:
    wanted = law(steps, rate, longest)
    found = closest(wanted, 1e-9, EPS)
    worst = max(abs(a - b) for a, b in zip(response(found, longest + 1), wanted, strict=True))
    assert worst <= found.fit + 8 * found.rounding
    assert len(found.rows) <= 12


@pytest.mark.parametrize("steps, rate, sections", [(0, 0.1, 1), (1, 0.3, 1), (5000, 0.1, 1), (200, 1.0, 1)])
def test_one_section_is_enough_for_one_step_and_for_many(steps: int, rate: float, sections: int) -> None:
    found = closest(law(steps, rate, 59), 1e-9, EPS)
    assert len(found.rows) == sections
    assert found.error < 1e-12


def test_the_number_of_sections_does_not_grow_with_the_longest_path() -> None:
    counts = {len(closest(law(100, 0.1, longest), 1e-9, EPS).rows) for longest in (63, 255, 1001)}
    assert counts == {6}


def test_a_law_that_no_exponentials_meet_is_refused_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    p = Problem(Shortcuts, (2, 4))
    monkeypatch.setattr(lowerings, "MOST_PARTS", 1)
    with pytest.raises(
        CompileError, match=r"no 24 exponentials come within 1e-14 of 100 steps of size 0\.1 in float64"
    ):
        p.compile("fixed-prediction", lowering="exponentials", lowering_tolerance=1e-14)
    facts = p.compile("fixed-prediction", lowering_tolerance=1e-14).compiled.program.facts
    assert not any("exponentials" in f for f in facts)


def test_the_lowering_with_the_fewest_messages_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    pc = Problem(Shortcuts, (2, 4)).compile("exact").compiled.pc

    def chosen(steps: int) -> str:
        return Lowerings(pc, PathLengths(pc), steps, 0.1, 3e-5).cheapest()[0]

    assert chosen(100) == "combinations"
    assert chosen(1) == "closed-form"
    for limit in ("MOST_PARTS", "MOST_ERRORS"):  # of the whole file, and beside the file of one sweep
        with monkeypatch.context() as patch:
            patch.setattr(lowerings, limit, 1)
            assert chosen(100) == "exponentials"
    chain = problem("chain").compile("exact").compiled.pc
    assert Lowerings(chain, PathLengths(chain), 100, 0.1, None).cheapest()[0] == "closed-form"


def test_the_file_does_not_grow_with_the_steps_or_the_sweeps() -> None:
    p = Problem(Shortcuts, (2, 4))
    texts = [p.compile("fixed-prediction", lowering="exponentials", steps=t).source.splitlines() for t in (50, 100)]
    assert abs(len(texts[0]) - len(texts[1])) < 4
    exact = p.compile("exact").source.splitlines()
    assert len(texts[1]) < 1.5 * len(exact)


def effective(pc: PCGraph, chosen: Combinations) -> dict[str, list[tuple[int, float]]]:
    """For each vertex, every path to an output: its edges, and what it carries in the end, one matrix an edge."""
    states, children = {v: [(0, np.ones(1))] for v in pc.clamped}, pc.children()
    for v in reversed(pc.latent):
        place = chosen.places[v.name]
        by = {pull.child: pull.matrix for pull in place.pulls}
        states[v.name] = [
            (edges + 1, by[c.name] @ state if c.name in by else np.zeros(len(place.carried)))
            for c in children[v.name]
            for edges, state in states[c.name]
        ]
    found = {}
    for name in chosen.wanted:
        place = chosen.places[name]
        by = place.at((0,))[0] if place.carried else np.zeros(0)
        found[name] = [(edges, float(by @ state)) for edges, state in states[name]]
    return found


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-9])
def test_no_path_is_farther_from_the_law_than_combinations_say(tolerance: float) -> None:
    pc = Problem(lambda: Shortcuts(9), (2, 4)).compile("exact").compiled.pc
    paths, wanted = PathLengths(pc), pc.names
    chosen = Combinations(pc, paths, law(20, 0.3, paths.longest), wanted, tolerance, EPS)
    found = effective(pc, chosen)
    assert max(map(len, found.values())) == 2**8
    worst = max(abs(w - weight(20, 0.3, k)) for of in found.values() for k, w in of)
    assert worst <= chosen.error <= tolerance
    full = sum(s.bit_count() for s in paths.sets.values())
    assert len(chosen.slots) < 0.7 * full


def test_where_more_arrives_than_is_sent_it_is_weighed_there() -> None:
    p = Problem(lambda: Shortcuts(6), (2, 4))
    pc = p.compile("fixed-prediction", lowering="combinations", lowering_tolerance=1e-6)
    source, graph = pc.source, pc.compiled.pc
    chosen = Lowerings(graph, PathLengths(graph), 100, 0.1, 1e-6).learning
    sent = [(len(chosen.places[pull.child].carried), pull) for v in chosen.places.values() for pull in v.pulls]
    assert any(count < len(pull.matrix) for count, pull in sent)
    assert all(pull.messages <= min(count, len(pull.matrix)) for count, pull in sent)
    sweep = source[source.index("def infer_and_learn") :]
    for i in range(1, 6):
        (pull,) = (q for v in chosen.places.values() for q in v.pulls if q.child == ("tanh" if i == 0 else f"tanh_{i}"))
        assert sweep.count(f'@ params["blocks.{i}.weight"]') == pull.messages


@pytest.mark.parametrize("lowering", ["combinations", "closed-form"])
@pytest.mark.parametrize("name", [n if n == "dag" else pytest.param(n, marks=pytest.mark.slow) for n in NETS])
def test_lists_of_errors_are_the_errors_one_by_one(name: str, lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, how = problem(name), {"steps": 100, "rate": 0.1, "lowering": lowering}
    alone = p.gradients("fixed-prediction", **how)
    emit, lower = (importlib.import_module(f"pccompile.backends.torch.{name}") for name in ("emit", "lower"))
    monkeypatch.setattr(emit, "shorter_by_lists", lambda program: True)
    monkeypatch.setattr(lower, "listable", lambda steps: all(isinstance(s, Do) for s in steps))
    pc = p.compile("fixed-prediction", **how)
    assert "error in" in pc.source or name == "chain"
    assert from_steps(p, p.gradients("fixed-prediction", **how), alone) < 1e-8
    assert from_steps(p, apart(p, pc), alone) < 1e-8


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_layers_that_carry_other_numbers_of_errors_share_functions(dtype: torch.dtype) -> None:
    model, x = Shortcuts(24).to(dtype), torch.randn(2, 4, dtype=dtype)
    pc = pccompile.compile(model, (x,), algorithm="fixed-prediction", lowering="combinations", steps=100, rate=0.1)
    chosen = Lowerings(pc.compiled.pc, PathLengths(pc.compiled.pc), 100, 0.1, None).learning
    counts = {len(place.carried) for place in chosen.places.values()}
    assert len(counts) > 3
    sweep = pc.source[pc.source.index("def infer_and_learn(") :]
    calls = re.findall(r"(infer_and_learn_block\w*)\(", sweep)
    assert max(map(calls.count, calls)) > 12
    functions = [c for c in compile(pc.source, "source", "exec").co_consts if isinstance(c, CodeType)]
    assert "DELETE_DEREF" not in {
        i.opname for f in functions for i in dis.get_instructions(f)
    }  # torch.compile refuses that


@pytest.mark.slow
def test_many_blocks_take_a_file_of_less_than_a_thousand_lines() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b(torch.tanh(self.a(x)))

    model = nn.Sequential(nn.Linear(3, 4), *(Block() for _ in range(32)), nn.Linear(4, 2))
    how = {"algorithm": "fixed-prediction", "lowering": "combinations", "steps": 100, "rate": 0.1}
    pc = pccompile.compile(model, (torch.randn(2, 3),), **how)
    assert len(pc.source.splitlines()) < 1000


def test_inference_and_learning_one_after_the_other_give_what_both_together_give() -> None:
    p = Problem(lambda: Shortcuts(6), (2, 4))
    found = apart(p, p.compile("fixed-prediction", lowering="combinations"))
    together = p.gradients("fixed-prediction", lowering="combinations")
    for key, gradient in together.items():
        assert torch.allclose(found[key], gradient, rtol=1e-7, atol=1e-9 * float(p.backprop[key].norm()))


@pytest.mark.parametrize("algorithm", ["fixed-prediction", "meta-pcn"])
def test_a_trace_shows_the_steps_in_whatever_form_they_are_compiled(algorithm: str) -> None:
    p = problem("chain")
    traces = [
        p.compile(algorithm, lowering=how, steps=9).infer(p.x, target=p.target) for how in ("exponentials", "relax")
    ]
    assert traces[0].steps == traces[1].steps == 9
    assert torch.equal(traces[0].free_energy, traces[1].free_energy)
