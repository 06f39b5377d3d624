"""A program divided between ranks, run as threads that hand each other tensors, against the whole."""

from __future__ import annotations

import queue
import threading
import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers.models import Residual, seeded
from helpers.models import half_squares as loss
from torch import Tensor, nn

import pccompile
from pccompile.analysis.partition import by_cost, by_module
from pccompile.backends.torch import emit
from pccompile.ir import Do, Exchange, Program, verify_local, verify_program
from pccompile.passes.divide_graph import divide_graph
from pccompile.passes.divide_program import Division, divide_program
from pccompile.runtime.loaded_program import load

Mail = Mapping[tuple[int, int, int], "queue.Queue[Tensor]"]


class Threads:
    """The neighbours of one rank. told: the place of each tensor that goes from rank to rank in an exchange."""

    def __init__(self, rank: int, division: Division, mail: Mail) -> None:
        self.rank, self.transfers, self.mail = rank, division.transfers, mail

    def exchange(self, number: int, *told: Tensor) -> list[Tensor]:
        own = [t for t in self.transfers if t.number == number]
        for t, value in zip([t for t in own if t.of == self.rank], told, strict=True):
            self.mail[number, t.of, t.to].put(value.clone())
        return [self.mail[number, t.of, t.to].get(timeout=20) for t in own if t.to == self.rank]

    def turns(self, steps: int) -> range:
        return range(steps)


def divided(pc: Any, x: Tensor, y: Tensor, ranks: int) -> tuple[list[dict[str, Tensor]], Division]:
    """The gradients that each rank finds."""
    runtime, (params, buffers), inputs = pc.program_for((x,), {}, y)
    compiled = runtime.compiled
    owners = by_cost(compiled.program.pc, runtime.lengths, ranks)
    parts = divide_graph(compiled.program.pc, owners, ranks)
    division = divide_program(compiled.program, parts, owners)
    known: dict[str, Tensor] = dict(inputs)
    prepared = []
    for part, program in zip(parts, division.programs, strict=True):  # the forward pass, rank after rank
        verify_local(part.pc)
        owns_loss = bool(part.pc.outputs)
        scope = load(emit(verify_program(program), compiled.loss if owns_loss else None, outlining=None).text, "part")
        heard = {leaf: known[value] for leaf, (_, value) in part.hears.items()}
        outputs, context = scope["predict"](params, buffers, {**inputs, **heard})
        known |= dict(zip(part.pc.graph.outputs, outputs, strict=True))
        errors = scope["clamp"](outputs, [y])[1] if owns_loss else []
        prepared.append((scope, context, [y] if program.state else errors, program))
    mail: Mail = defaultdict(queue.Queue)
    found: list[dict[str, Tensor]] = [{} for _ in parts]

    def run(rank: int) -> None:
        scope, context, given, program = prepared[rank]
        how = {"neighbours": Threads(rank, division, mail)} if program.exchanges else {}
        found[rank] = scope["infer_and_learn"](params, context, given, **how)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found, division


def compiled(**how: Any) -> tuple[Any, Tensor, Tensor]:
    model = seeded(Residual)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    return pccompile.compile(model, (x,), loss=loss, check=False, **how), x, y


@pytest.mark.quick(3)
@pytest.mark.parametrize(
    "algorithm, settings, exchanges",
    [
        ("strict", {"steps": 3, "rate": 0.1}, 3),
        ("exact", {}, 2),
        ("fixed-prediction", {"steps": 4, "rate": 0.3, "lowering": "relax"}, 1),
        ("zil", {}, None),
        ("error-optimization", {"steps": 2, "rate": 0.1}, None),
        ("alm", {"steps": 3}, 3),
        ("nudged", {"steps": 3}, None),
        ("fixed-prediction", {"steps": 30, "lowering": "exponentials", "lowering_tolerance": 1e-4}, None),
        ("strict", {"steps": 3, "rate": 0.1, "stepper": "heun"}, None),
        ("strict", {"steps": 3, "rate": 0.1, "energies": pccompile.energy("laplace")}, None),
    ],
)
def test_ranks_together_do_what_the_whole_does(algorithm: str, settings: dict[str, Any], exchanges: int | None) -> None:
    pc, x, y = compiled(algorithm=algorithm, **settings)
    pc.loss(x, target=y).backward()
    found, division = divided(pc, x, y, 3)
    owned = [name for gradients in found for name in gradients]
    assert sorted(owned) == sorted(k for k, p in pc.named_parameters() if p.grad is not None)
    for name, p in pc.named_parameters():
        gradient = next(g[name] for g in found if name in g)
        torch.testing.assert_close(gradient, p.grad, rtol=0, atol=1e-12)
    if exchanges is not None:  # as few as there can be: each stands for news that has to arrive
        assert len({t.number for t in division.transfers}) == exchanges


def told(program: Program) -> list[Exchange]:
    return [s for s in program.infer if isinstance(s, Exchange)]


def test_an_exchange_waits_for_what_it_brings() -> None:
    pc, x, y = compiled()
    _, division = divided(pc, x, y, 2)
    (first, second) = division.programs
    (hears,), (tells,) = told(first), told(second)
    assert hears.heard == tells.told
    assert hears.number == tells.number
    steps = [*second.infer]
    assert all(isinstance(s, Do) for s in steps[: steps.index(tells)])
    assert "hear from_rank_1[" in str(first)
    assert "tell from_rank_1[" in str(second)


def test_parts_cost_about_the_same() -> None:
    model = nn.Sequential(*(m for _ in range(8) for m in (nn.Linear(16, 16), nn.Tanh())), nn.Linear(16, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pc = pccompile.compile(model, (torch.randn(2, 16),), check=False).compiled.pc
    owners = by_cost(pc, {"batch": 32}, 4)
    layers = [sum(owners[v.name] == rank and "linear" in str(v) for v in pc.vertices) for rank in range(4)]
    assert sorted(layers) == [2, 2, 2, 3]
    assert list(owners.values()) == sorted(owners.values())
    assert by_module(pc, {"0": 0, "2": 1})[pc.names[-1]] == 1
