"""The language that algorithms are written in: what it refuses, by name, and what it lets anyone add."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import pccompile
from algorithms.nets import Problem, apart, gap, problem
from pccompile.algorithms import ALGORITHMS, Algorithm, register, setting
from pccompile.algorithms import _known as known
from pccompile.algorithms.common import each, learn, look, move, start
from pccompile.algorithms.record import COMPILE_OPTIONS
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, ForEach, PCGraph, Program, Repeat, Until, Update, verify_program


@pytest.fixture(scope="module")
def gated() -> Problem:
    return problem("gated")


@pytest.fixture(scope="module")
def strict(gated: Problem) -> Program:
    return gated.compile("strict").compiled.program


# what is refused


@pytest.mark.parametrize(
    "step, words",
    [
        (Do("tanh", "error", "value -"), "tanh] = value -: no expression"),
        (Do("tanh", "error", "value @ value"), "value @ value is no sum, product, power or function"),
        (Do("tanh", "error", "value.sum()"), "value.sum() is no sum, product, power or function"),
        (Do("tanh", "error", "__import__('os')"), "no function __import__; there are sqrt"),
        (Do("tanh", "error", "clip(value, 0)"), "clip takes 3 arguments, not 2"),
        (Do("tanh", "error", "value if rate else rate"), "is no sum, product, power or function"),
        (Do("tanh", "error", "value + exp(rate)"), "exp(rate) is a function of numbers alone"),
        (Do("tanh", "error", "trace"), "trace is no slot that has been assigned, no argument and no term"),
        (Do("tanh", "force", "pull", carries="credit"), "credit of add is no slot that has been assigned"),
        (Do("tanh", "rate", "value"), "a slot cannot be called rate"),
        (Do("tanh", "pull", "value"), "a slot cannot be called pull"),
        (Do("tanh", "sqrt", "value"), "a slot cannot be called sqrt"),
        (Do("tanh", "two words", "value"), "a slot cannot be called two words"),
        (Do("tanh", "error", "clamp"), "clamp is a term of outputs"),
        (Do("a_weight", "gradient", "noise"), "noise is a term of vertices"),
        (Do("a_weight", "gradient", "predict"), "predict is a term of vertices"),
        (Do("nowhere", "error", "pull"), "updates error of nowhere, which the graph does not have"),
        (Repeat("turns", ()), "turns is no argument that is a whole number"),
        (Repeat("rate", ()), "rate is no argument that is a whole number"),
        (Repeat("steps", (), Until("speed", "value", "rate")), "no vertex has speed"),
        (Repeat("steps", (), Until("value", "speed", "rate")), "has no speed"),
        (Repeat("steps", (), Until("value", "value", "closeness")), "closeness is no argument"),
        (ForEach((), (), ()), "it needs rows of 0 numbers"),
        (ForEach(("z",), ((1.0, 2.0),), ()), "it needs rows of 1 numbers"),
        (ForEach(("z",), ((float("inf"),),), ()), "its rows are not finite"),
        (ForEach(("rate",), ((1.0,),), ()), "a number of a row cannot be called rate"),
        (ForEach(("z", "z"), ((1.0, 1.0),), ()), "a number of a row cannot be called z"),
        (ForEach(("z",), ((1.0,),), (Do("tanh", "z", "value"),)), "a slot cannot be called z"),
        (Update("gradient"), "has no gradient yet"),
    ],
)
@pytest.mark.parametrize("phase", ["infer", "learn"])
def test_a_wrong_step_is_refused_with_the_algorithm_and_the_equation(
    strict: Program, step: Any, words: str, phase: str
) -> None:
    steps = (step, *strict.infer) if isinstance(step, Update) else (*strict.infer, step)
    wrong = replace(strict, infer=steps) if phase == "infer" else replace(strict, learn=(step, *strict.learn))
    with pytest.raises(CompileError, match=re.escape(words)) as caught:
        verify_program(wrong)
    assert caught.value.problems[0].what.startswith("strict")


def test_a_wrong_equation_of_a_vertex_says_where_the_vertex_comes_from(strict: Program) -> None:
    with pytest.raises(CompileError, match=r"strict: trace\[tanh\] = trace") as caught:
        verify_program(replace(strict, infer=(*strict.infer, Do("tanh", "trace", "trace"))))
    assert caught.value.problems[0].where.file == "nets.py"


@pytest.mark.parametrize("name", ["given", "pull", "sqrt"])
def test_an_argument_is_not_called_as_a_term_or_function(strict: Program, name: str) -> None:
    with pytest.raises(CompileError, match=f"strict: its arguments: none can be called {name}"):
        verify_program(replace(strict, arguments={**strict.arguments, name: 1.0}))


def test_a_number_of_a_row_is_read_in_its_loop_only(strict: Program) -> None:
    loop = ForEach(("z",), ((1.0,),), (Do("tanh", "trace", "z * value"),))
    verify_program(replace(strict, infer=(*strict.infer, loop)))
    with pytest.raises(CompileError, match="z is a number of a loop that this is not in"):
        verify_program(replace(strict, infer=(*strict.infer, loop, Do("tanh", "trace", "z * value"))))


def test_what_only_a_loop_assigns_is_not_there_behind_it(strict: Program) -> None:
    """A loop may run no time at all."""
    with pytest.raises(CompileError, match=r"force\[.*|force is no slot"):
        verify_program(replace(strict, infer=(*strict.infer, Do("tanh", "value", "value + force"))))


def test_a_table_names_every_vertex_that_reads_it(strict: Program) -> None:
    wrong = replace(strict, arguments={**strict.arguments, "rate": {"tanh": 0.1}})
    with pytest.raises(CompileError, match="rate has no entry for sigmoid"):
        verify_program(wrong)


# settings


@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if ALGORITHMS[a].settings.__dataclass_fields__])
def test_every_setting_says_what_it_is_and_refuses_another_type(algorithm: str) -> None:
    record = ALGORITHMS[algorithm]
    assert record.citation.startswith(("arXiv:", "doi:", "openreview:"))
    for name, field in record.settings.__dataclass_fields__.items():
        assert field.metadata["text"]
        with pytest.raises(CompileError, match=name):
            record.choose({name: object()})


def test_no_setting_is_called_like_an_option_of_compile() -> None:
    options = set(inspect.signature(pccompile.compile).parameters) - {"settings"}
    assert set(COMPILE_OPTIONS) == options
    for name in options:
        settings = make_dataclass("Settings", [(name, float, setting(0.1, "a number"))], frozen=True)
        with pytest.raises(ValueError, match=f"mine has a setting {name}, which is an option of compile"):
            Algorithm("mine", drifting, settings, "doi:10.0/0")


# what is added from outside


@dataclass(frozen=True)
class Drift:
    """Settings of an algorithm that only this file knows."""

    steps: int = setting(20, "a number of inference steps", least=0)
    rate: float = setting(0.1, "size of an inference step", above=0)
    leak: float = setting(0.0, "how fast values fall back to what is predicted for them", least=0)


def drifting(pc: PCGraph, settings: Drift) -> Program:
    """Strict inference whose values leak."""
    turn = (*look(pc), *move(pc, "value = value + rate * force - leak * error"))
    arguments = {"steps": settings.steps, "rate": settings.rate, "leak": settings.leak}
    infer = (*start(pc), Repeat("steps", turn), *look(pc))
    return Program(pc, "drifting", infer, tuple(learn(pc, at="value")), arguments=arguments, state="value")


@pytest.fixture
def registered() -> Iterator[None]:
    register(Algorithm("drifting", drifting, Drift, "doi:10.0/0"))
    yield
    del known["drifting"]


@pytest.mark.usefixtures("registered")
def test_an_algorithm_from_outside_is_one_like_all_others(gated: Problem, tmp_path: Path) -> None:
    assert gap(gated.gradients("drifting"), gated.gradients("strict")) == 0
    assert apart(gated.gradients("drifting", leak=0.05), gated.gradients("strict")) > 1e-3
    with pytest.raises(CompileError, match="leak is -1"):
        gated.compile("drifting", leak=-1)
    with pytest.raises(ValueError, match="there is an algorithm drifting already"):
        register(Algorithm("drifting", drifting, Drift, "doi:10.0/0"))
    pc = gated.compile("drifting", leak=0.05)
    assert "leak=0.05" in pc.source
    pc.save(tmp_path)
    assert "drifting" in str(pc.summary())


@pytest.mark.usefixtures("registered")
def test_the_command_line_knows_the_settings_of_an_algorithm_from_outside(capsys: pytest.CaptureFixture[str]) -> None:
    from pccompile.cli import main

    assert main(["--algorithm", "drifting", "--help"]) == 0
    assert "--leak LEAK" in capsys.readouterr().out
    assert main(["nothing.onnx", "--algorithm", "strict", "--leak", "1"]) == 2


# loops that end early, tables


def test_a_loop_ends_when_every_vertex_has_settled(gated: Problem) -> None:
    converged = gated.gradients("strict", steps=4000, rate=0.2)
    pc = gated.compile("strict", steps=10**6, rate=0.2, tolerance=1e-9)
    pc.loss(gated.x, target=gated.target).backward()
    found = {n: p.grad for n, p in pc.named_parameters() if p.grad is not None}
    assert apart(found, converged) < 1e-6


def test_no_loop_ends_before_news_from_the_loss_has_reached_every_vertex(gated: Problem) -> None:
    longest = 5
    loose = gated.gradients("strict", steps=100, tolerance=10.0)
    assert gap(loose, gated.gradients("strict", steps=longest)) < 1e-14


def test_rates_by_vertex(gated: Problem) -> None:
    plain = gated.gradients("strict", steps=9)
    names = [v.name for v in gated.compile("strict").compiled.pc.latent]
    assert gap(gated.gradients("strict", steps=9, rate=dict.fromkeys(names, 0.1)), plain) == 0
    pc = gated.compile("strict", steps=9, rate={"mul": 0.05})
    assert 'rate["mul"]' in pc.source
    with pytest.raises(CompileError, match="'nix', which is no vertex that inference moves"):
        gated.compile("strict", rate={"nix": 0.1})


@pytest.mark.quick(2)
@pytest.mark.parametrize("stepper", ["euler", "heavy-ball", "nesterov", "heun"])
def test_all_steppers_settle_at_one_equilibrium(gated: Problem, stepper: str) -> None:
    converged = gated.gradients("strict", steps=6000, rate=0.1)
    assert apart(gated.gradients("strict", steps=6000, rate=0.05, stepper=stepper), converged) < 1e-8


@pytest.mark.parametrize("stepper", ["heavy-ball", "nesterov"])
def test_without_momentum_a_stepper_is_euler(gated: Problem, stepper: str) -> None:
    assert gap(gated.gradients("strict", stepper=stepper, mass=0.0), gated.gradients("strict")) < 1e-14


def test_the_first_step_of_adam_is_the_sign_of_the_force(gated: Problem) -> None:
    pc, rate = gated.compile("strict", steps=1, rate=0.01, stepper="adam"), 0.01
    runtime = pc.prepare((gated.x,), loss=gated.loss, target=gated.target)
    tables = pc.tables(runtime)
    _, context = pc.predict(runtime, tables, runtime.interface.bind((gated.x,), {}))
    infer = runtime.function("infer")
    (_, before), (_, after) = (infer(tables[0], context, [gated.target], steps=n) for n in (0, 1))
    moved = {n: (after[n] - before[n]).abs() for n in after}
    still = [float(m.max()) for m in moved.values() if float(m.max()) < rate / 2]
    assert len(still) == len(moved) - 1  # only what the loss reaches in one step
    assert max(float((m - rate).abs().max()) for m in moved.values() if float(m.max()) > rate / 2) < 1e-6


def test_heun_is_of_second_order_in_time(gated: Problem) -> None:
    """Halving the step of a fixed time quarters the distance to a fine solution; Euler's halves."""
    fine = gated.gradients("strict", steps=4096, rate=1 / 4096, stepper="heun")
    ratios = {}
    for stepper in ("euler", "heun"):
        wide, narrow = (apart(gated.gradients("strict", steps=n, rate=1 / n, stepper=stepper), fine) for n in (16, 32))
        ratios[stepper] = wide / narrow
    assert ratios["euler"] == pytest.approx(2, rel=0.15)
    assert ratios["heun"] == pytest.approx(4, rel=0.15)


def test_equations_know_functions(gated: Problem) -> None:
    """Every function of the language against torch, on the values that strict inference ends in."""
    program = gated.compile("strict").compiled.program
    functions = {
        "sqrt(abs(value))": lambda v: v.abs().sqrt(),
        "exp(-value)": lambda v: (-v).exp(),
        "log(1 + value ** 2)": lambda v: (1 + v**2).log(),
        "sign(value)": torch.sign,
        "clip(value, -0.1, rate)": lambda v: v.clamp(-0.1, 0.1),
        "where(value > rate, value, 2 * rate)": lambda v: torch.where(v > 0.1, v, torch.full_like(v, 0.2)),
        "where(0 <= value, 1 / (2 + value), value - rate)": lambda v: torch.where(v >= 0, 1 / (2 + v), v - 0.1),
        "mean(value) + zero": lambda v: v.mean(0, keepdim=True).expand_as(v),
        "2 * rate / 4 - value / -2": lambda v: 0.05 + v / 2,
    }
    for equation, expected in functions.items():
        steps = (*program.infer, *each(program.pc.latent, f"shown = {equation}"))
        shown = replace(program, infer=steps, learn=(*program.learn, *_reading(program.pc, "shown")))
        found, values = _settled(gated, shown)
        for name, value in values.items():
            torch.testing.assert_close(found[name], expected(value), rtol=1e-12, atol=1e-14)


def _reading(pc: PCGraph, slot: str) -> tuple[Do, ...]:
    """Steps of learning that read a slot of every vertex, so that inference hands it on."""
    return each(pc.latent, f"seen = {slot}")


def _settled(p: Problem, program: Program) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The slot `shown` and the values that a program ends in."""
    from pccompile.backends.torch import emit

    functions: dict[str, Any] = {}
    exec(emit(verify_program(program)).text, functions)
    _, context = functions["predict"](dict(p.model.named_parameters()), {}, {"x": p.x})
    _, values, shown = functions["infer"](dict(p.model.named_parameters()), context, [p.target])
    return shown, values


def test_a_model_that_draws_samples_is_refused_where_predictions_move() -> None:
    class Noisy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(torch.distributions.Gamma(self.a(x).exp(), 1.0).rsample())

    torch.manual_seed(0)
    for algorithm, record in ALGORITHMS.items():
        if (record.needs_loss or algorithm == "zil") and record.mirrors is None:
            with pytest.raises(CompileError, match="standard_gamma draws a sample"):
                pccompile.compile(Noisy(), (torch.randn(4, 5),), algorithm=algorithm, check=False)


# reports


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_reports_of_every_algorithm(gated: Problem, algorithm: str) -> None:
    p, vertex = gated, "mul"
    if ALGORITHMS[algorithm].mirrors:  # of chains, and of no loss
        p, vertex = problem("chain"), "n3"
        p.loss = None
    pc = p.compile(algorithm)
    assert algorithm in str(pc.summary())
    assert vertex in str(pc.explain(vertex))
    trace = pc.infer((p.x,), target=p.target)
    assert bool(trace.free_energy.isfinite().all())
    report = pccompile.verify(pc, (p.x,), target=p.target)
    assert report.passed
    compared = {"exact": True, "zil": True}
    assert all(d.agrees for d in report.parameters) or algorithm not in compared
    assert bool(report.parameters) is (algorithm != "incremental")


@pytest.mark.parametrize("algorithm", ["alm", "nudged", "langevin", "error-optimization", "incremental", "strict"])
def test_divergence_is_named(gated: Problem, algorithm: str) -> None:
    pc = gated.compile(algorithm, rate=1e6, steps=60, on_divergence="raise")
    updating = torch.optim.SGD(pc.parameters(), 0.1)

    def step() -> None:
        if algorithm == "incremental":
            pc.train_step(gated.x, gated.target, updating)
        else:
            pc.loss(gated.x, target=gated.target).backward()

    with pytest.raises(CompileError, match=rf"{algorithm} inference diverges\b.* the error of \w+ is not finite"):
        step()


def test_a_trace_with_rates_by_vertex(gated: Problem) -> None:
    trace = gated.compile("strict", rate={"mul": 0.05}).infer((gated.x,), target=gated.target)
    assert "rate=by vertex" in repr(trace)


class _Attention(torch.nn.Module):
    """Attention, whose composition has vertices that no line of the model names."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = torch.nn.Linear(4, 12), torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mix(x).chunk(3, -1)
        return self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_rates_by_vertex_where_a_composition_has_vertices_of_its_own() -> None:
    torch.manual_seed(0)
    model, x, y = _Attention(), torch.randn(2, 3, 4), torch.zeros(2, 3, 2)
    found = []
    for rate in (0.1, {"mix": 0.1}):
        pc = pccompile.compile(model, (x,), algorithm="strict", steps=3, rate=rate, loss=squared, check=False)
        found.append(torch.autograd.grad(pc.loss(x, target=y), list(model.parameters())))
    for plain, table in zip(*found, strict=True):
        torch.testing.assert_close(table, plain)


def squared(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The summed square."""
    return (output - target).pow(2).sum()


def test_dynamics_without_a_loop_have_no_trace(gated: Problem) -> None:
    with pytest.raises(CompileError, match="zil takes no loop of steps here"):
        gated.compile("zil", dynamics="full").infer((gated.x,), target=gated.target)
