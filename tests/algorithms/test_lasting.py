"""State that lasts between calls: what an algorithm keeps of vertices and parameters, as buffers of its own."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pccompile
from algorithms.nets import Problem, problem
from pccompile.algorithms import Algorithm, incremental, register, setting, strict
from pccompile.algorithms import _known as known
from pccompile.algorithms.common import each
from pccompile.diagnostics import CompileError
from pccompile.ir import Do, Lasting, PCGraph, Program, Repeat, verify_program

DECAY = 0.75


@dataclass(frozen=True)
class Settings(strict.Settings):
    """Those of strict inference, and how fast what is kept forgets."""

    decay: float = setting(DECAY, "the part of a running mean that stays", least=0)


def traced(pc: PCGraph, settings: Any, inner: Any = strict, own: Any = None) -> Program:
    """An algorithm that keeps a running variance of each error, its mean, and a running gradient of each parameter."""
    program = inner.schedule(pc, own or settings)
    learned = [n for n in pc.graph.params if n in pc.reached]
    kept = (
        *each(pc.latent, "spread = decay * spread + (1 - decay) * mean(error ** 2)"),
        *each(pc.latent, "drift = drift + average(error)"),
        *each(learned, "trace = decay * trace - pull", at="value"),
    )
    lasting = (
        *(Lasting(v.name, "spread", 1.0) for v in pc.latent),
        *(Lasting(v.name, "drift", single=True) for v in pc.latent),
        *(Lasting(name, "trace") for name in learned),
    )
    arguments = {**program.arguments, "decay": DECAY}
    learn = (*program.learn, *kept)
    return replace(program, algorithm="traced", learn=learn, arguments=arguments, lasting=lasting)


def together(pc: PCGraph, settings: Settings) -> Program:
    """The same where parameters move inside inference."""
    return traced(pc, settings, incremental, incremental.Settings(steps=3))


def at_every_step(pc: PCGraph, settings: Settings) -> Program:
    """Strict inference that moves what it keeps inside its loop."""
    program = strict.schedule(pc, settings)
    moves = each(pc.latent, "spread = decay * spread + (1 - decay) * mean(error ** 2)")
    infer = tuple(replace(s, body=(*s.body, *moves)) if isinstance(s, Repeat) else s for s in program.infer)
    lasting = tuple(Lasting(v.name, "spread", 1.0) for v in pc.latent)
    return replace(program, infer=infer, arguments={**program.arguments, "decay": DECAY}, lasting=lasting)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    for name, schedule in (("traced", traced), ("traced together", together), ("traced inside", at_every_step)):
        register(Algorithm(name, schedule, Settings, "none", energies="any", roles=True))
    yield
    del known["traced"], known["traced together"], known["traced inside"]


@pytest.fixture
def p() -> Problem:
    return problem("chain")


def lasting(pc: nn.Module) -> dict[str, Tensor]:
    """What a module keeps, by its name without the first part."""
    return {k.partition(".")[2]: t.clone() for k, t in pc.state_dict().items() if k.startswith("lasting.")}


def errors_of(pc: pccompile.PCModule, p: Problem) -> dict[str, Tensor]:
    return {k: e for k, e in pc.settle(p.x, target=p.target).errors.items() if k in ("n1", "n3")}


def test_what_is_kept_follows_its_equations(p: Problem) -> None:
    """Three batches against running means by hand, of the errors and gradients that plain strict inference gives."""
    pc, plain = p.compile("traced", steps=5), p.compile("strict", steps=5)
    gradients, errors = p.gradients("strict", steps=5), errors_of(plain, p)
    spread = {k: torch.ones_like(e[:1]) for k, e in errors.items()}
    trace = {k: torch.zeros_like(g) for k, g in gradients.items()}
    for count in range(1, 4):
        pc.loss(p.x, target=p.target).backward()
        found = lasting(pc)
        for k, e in errors.items():
            spread[k] = DECAY * spread[k] + (1 - DECAY) * e.square().mean(0, keepdim=True)
            torch.testing.assert_close(found[f"spread.{k}"], spread[k], rtol=1e-12, atol=0)
            torch.testing.assert_close(found[f"drift.{k}"], count * e.mean().reshape(1, 1), rtol=1e-12, atol=0)
        for k, g in gradients.items():
            trace[k] = DECAY * trace[k] + g
            torch.testing.assert_close(found[f"trace.n{k.replace('.', '_')}"], trace[k], rtol=1e-12, atol=1e-15)


def test_a_call_that_only_looks_leaves_it(p: Problem) -> None:
    pc = pccompile.compile(copy.deepcopy(p.model), (p.x,), algorithm="traced", loss=p.loss)
    before = lasting(pc)
    assert all(bool((t == (1.0 if k.startswith("spread") else 0.0)).all()) for k, t in before.items())
    pc(p.x)
    pc.settle(p.x, target=p.target)
    pc.infer((p.x,), target=p.target)
    pccompile.verify(pc, (p.x,), target=p.target)
    assert all(torch.equal(t, before[k]) for k, t in lasting(pc).items())
    assert "drift, spread, trace, from one call to the next" in str(pc.locality())


@pytest.mark.parametrize("algorithm", [pytest.param("traced", marks=pytest.mark.slow), "traced together"])
def test_a_training_step_moves_it(p: Problem, algorithm: str) -> None:
    pc = p.compile(algorithm)
    optimizer = torch.optim.SGD(pc.parameters(), 0.01)
    pc.train_step(p.x, p.target, optimizer)
    first = lasting(pc)
    pc.train_step(p.x, p.target, optimizer, clamped={"n3": torch.zeros(4, 6, dtype=torch.float64)})
    assert all(float(t.abs().max()) > 0 for t in first.values())
    assert all(not torch.equal(t, first[k]) for k, t in lasting(pc).items() if "n1" in k)


def test_it_is_saved_moved_and_copied(p: Problem) -> None:
    pc = p.compile("traced")
    pc.loss(p.x, target=p.target).backward()
    kept = lasting(pc)
    other = p.compile("traced")
    other.load_state_dict(pc.state_dict())
    copies = [other, copy.deepcopy(pc), pickle.loads(pickle.dumps(pc))]
    pc.loss(p.x, target=p.target).backward()
    advanced = lasting(pc)
    for twin in copies:
        assert all(torch.equal(t, kept[k]) for k, t in lasting(twin).items())
        twin.loss(p.x, target=p.target).backward()
        assert all(torch.equal(t, advanced[k]) for k, t in lasting(twin).items())
    assert not any("lasting" in name for name, _ in p.model.named_buffers())
    pc.float()
    assert all(t.dtype == torch.float32 for t in lasting(pc).values())
    pc.loss(p.x.float(), target=p.target.float()).backward()
    assert not torch.equal(lasting(pc)["drift.n1"].double(), advanced["drift.n1"])


def test_two_passes_may_be_under_way(p: Problem) -> None:
    """The second backward pass begins with what its forward pass read."""
    pc = p.compile("traced")
    one, two = pc.loss(p.x, target=p.target), pc.loss(2 * p.x, target=p.target)
    one.backward(retain_graph=True)
    first = lasting(pc)
    one.backward()
    assert all(torch.equal(t, first[k]) for k, t in lasting(pc).items())
    two.backward()
    assert not torch.equal(lasting(pc)["drift.n1"], first["drift.n1"])


def test_the_generated_file_takes_and_returns_it(p: Problem) -> None:
    pc = p.compile("traced")
    functions: dict[str, Any] = {}
    exec(pc.source, functions)
    params = dict(p.model.named_parameters())
    buffers = {k: t for k, t in pc.state().items() if k.startswith("lasting.")}
    for _ in range(2):
        pc.loss(p.x, target=p.target).backward()
        functions["step"](params, buffers, {"input": p.x}, [p.target])
    assert all(torch.equal(buffers[f"lasting.{k}"], t) for k, t in lasting(pc).items())
    assert "`step` puts it into `buffers`:\nlasting.spread.n1" in pc.source


def test_what_moves_inside_a_loop_moves_at_every_step(p: Problem) -> None:
    """The buffers that a file is given stay as they are until `step` replaces them."""
    pc, plain = p.compile("traced inside", steps=4), p.compile("strict", steps=4)
    functions: dict[str, Any] = {}
    exec(pc.source, functions)
    params = dict(p.model.named_parameters())
    first = {k: t for k, t in pc.state().items() if k.startswith("lasting.")}
    buffers, spread = dict(first), {k: torch.ones(1, 6, dtype=torch.float64) for k in ("n1", "n3")}
    for _ in range(2):
        pc.loss(p.x, target=p.target).backward()
        functions["step"](params, buffers, {"input": p.x}, [p.target])
        for count in range(4):
            errors = plain.settle(p.x, target=p.target, steps=count).errors
            for k in spread:
                spread[k] = DECAY * spread[k] + (1 - DECAY) * errors[k].square().mean(0, keepdim=True)
    for k, expected in spread.items():
        torch.testing.assert_close(lasting(pc)[f"spread.{k}"], expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(buffers[f"lasting.spread.{k}"], expected, rtol=1e-12, atol=0)
    assert all(bool((t == 1).all()) for t in first.values())


def test_a_model_may_have_something_of_that_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("lasting", nn.Linear(5, 6))
    model.add_module("act", nn.Tanh())
    model.add_module("out", nn.Linear(6, 3))
    pc = pccompile.compile(model, (torch.randn(4, 5),), algorithm="traced", loss=torch.nn.functional.mse_loss)
    assert {"lasting.weight", "lasting_1.spread.act"} <= pc.state_dict().keys()


# what is refused


@pytest.mark.parametrize(
    "kept, words",
    [
        (Lasting("nowhere", "spread"), "lasting spread[nowhere]: nowhere is no vertex and no parameter"),
        (Lasting("input", "spread"), "input is no vertex and no parameter"),
        (Lasting("n1", "error"), "what is kept between calls cannot be called error"),
        (Lasting("n1", "rate"), "what is kept between calls cannot be called rate"),
        (Lasting("n1", "drift"), "lasting drift[n1]: it is kept twice"),
    ],
)
def test_what_cannot_be_kept_is_refused(p: Problem, kept: Lasting, words: str) -> None:
    program = p.compile("traced").compiled.program
    with pytest.raises(CompileError, match=re.escape(words)) as caught:
        verify_program(replace(program, lasting=(*program.lasting, kept)))
    assert caught.value.problems[0].what.startswith("traced: ")


@pytest.mark.parametrize(
    "equation, words",
    [
        ("spread = spread + error", "and error is of samples: take average(error) or mean(error)"),
        ("drift = mean(error)", "drift is kept between calls, and error is of samples: take average(error)"),
        ("drift = spread", "and spread is of numbers of the whole vertex: take average(spread)"),
        ("spread = 2 * rate", "spread is kept between calls, and a number alone has no shape"),
        ("drift = drift + pull", "pull is of samples"),
        ("hint = spread + echo", "echo is no slot that has been assigned"),
    ],
)  # fmt: skip
def test_what_has_samples_does_not_outlive_them(p: Problem, equation: str, words: str) -> None:
    program = p.compile("traced").compiled.program
    slot, _, right = equation.partition(" = ")
    with pytest.raises(CompileError, match=re.escape(words)) as caught:
        verify_program(replace(program, learn=(*program.learn, Do("n1", slot, right))))
    assert caught.value.problems[0].what.startswith(f"traced: {slot}[n1] = {right}: ")


def test_a_number_for_each_element_needs_a_fixed_shape() -> None:
    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(torch.tanh(self.a(x)))

    lengths = ({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
    with pytest.raises(CompileError, match=r"lasting spread\[tanh\]: a sample of tanh has no fixed shape"):
        pccompile.compile(
            Series(), (torch.randn(4, 7, 5),), algorithm="traced", loss=nn.functional.mse_loss, dynamic_shapes=lengths
        )


def test_a_program_says_what_lasts(p: Problem) -> None:
    assert "  lasting: drift[n1], one number\n" in str(p.compile("traced").compiled.program)
