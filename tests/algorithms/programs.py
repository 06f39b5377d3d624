"""Programs run from their files, with and without what makes their loops cheaper."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from algorithms.nets import Problem
from pccompile.backends.torch import emit, optimise
from pccompile.ir import PCGraph, Program, Repeat
from pccompile.pipeline import Options, schedule


def loops(program: Program) -> list[Repeat]:
    return [s for s in program.infer if isinstance(s, Repeat)]


def full(program: Program) -> Program:
    """The same, with every vertex computed at every step."""
    return replace(program, infer=tuple(replace(s, unmoved={}) if isinstance(s, Repeat) else s for s in program.infer))


def captured(p: Problem) -> PCGraph:
    compiled = p.compile("strict", steps=1).compiled
    assert compiled is not None
    return compiled.pc


def program_of(pc: PCGraph, algorithm: str, **settings: Any) -> Program:
    return schedule(pc, Options(algorithm, None, settings))


def plain(program: Program) -> str:
    """The file of `program` with every vertex computed at every step, into memory of its own."""
    with mock.patch.object(optimise, "moved_in_place", lambda f, arguments: f):
        return emit(full(program)).text


def gradients(program: Program, p: Problem, *counts: int, text: str = "") -> list[dict[str, Tensor]]:
    """What the file for `program` gives after so many steps, with the loss. text: another file for it."""
    scope: dict[str, Any] = {}
    exec(text or emit(program).text, scope)
    model = copy.deepcopy(p.model)
    params, buffers = {k: t.detach() for k, t in model.named_parameters()}, dict(model.named_buffers())
    results = []
    for steps in counts:
        outputs, context = scope["predict"](params, buffers, dict.fromkeys(program.pc.graph.inputs, p.x))
        loss, errors = scope["clamp"](outputs, [p.target])
        given = [p.target] if program.state else errors
        results.append({**scope["infer_and_learn"](params, context, given, steps=steps), "the loss": loss})
    return results


def agree(program: Program, p: Problem, *counts: int) -> bool:
    """Whether the wavefront gives what the full dynamics gives."""
    return all(map(same, gradients(program, p, *counts), gradients(full(program), p, *counts)))


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[k], expected[k]) for k in expected)
