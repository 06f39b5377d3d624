"""What operations and programs cost: multiplications, messages between vertices, and how much happens in sequence.

Products are counted as floating-point operations in pairs, a multiplication and an addition: 2·m·k·n for a matrix
product of [m, k] by [k, n]. What is done element by element is not counted, and neither is the loss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy

from pccompile.analysis.locality import farthest
from pccompile.ir import Arg, Dim, Do, ForEach, Program, Ref, Repeat, Step, TensorType, Type
from pccompile.ir.equations import names, parse
from pccompile.ops import definition


def products(op: str, args: Mapping[str, Arg], types: Mapping[str, Type], result: Type | None) -> Dim:
    """The floating-point operations of `op(args)` in matrix products and convolutions; 0 for others."""
    operations = definition(op).operations
    if operations is None:
        return 0

    def shape(arg: Arg) -> tuple[Dim, ...]:
        type_ = types[arg]
        assert isinstance(arg, Ref)
        assert isinstance(type_, TensorType)
        return type_.shape

    return operations(args, shape, result.shape if isinstance(result, TensorType) else ())


def size_in_bytes(type_: Type | None) -> Dim:
    """How much memory a value of this type takes."""
    if isinstance(type_, tuple):
        return sum(map(size_in_bytes, type_))
    return math.prod(type_.shape) * type_.dtype.itemsize if type_ is not None else 0


def at(size: Dim, lengths: Mapping[str, int]) -> int:
    """A size as a number. Raises KeyError with the name of a length that is not known."""
    if isinstance(size, int):
        return size
    return int(size.xreplace({s: sympy.Integer(lengths[str(s)]) for s in size.free_symbols}))


@dataclass
class Traffic:
    """What crosses edges between vertices in one inference, the forward pass included.

    forward: values that children read to predict. backward: messages to parents. bytes: of both.
    """

    forward: int = 0
    backward: int = 0
    bytes: Dim = 0


def traffic(program: Program) -> Traffic:
    """The messages of a whole inference and of learning; what a parameter takes in is no message between vertices."""
    found, vertices = Traffic(), {v.name: v for v in program.pc.vertices}
    children = program.pc.children()

    def predicts(name: str, times: int) -> None:
        for p in vertices[name].parents:
            if p in vertices:
                found.forward += times
                found.bytes += times * size_in_bytes(vertices[p].type)

    def add(steps: Sequence[Step], times: int) -> None:
        for s in steps:
            if isinstance(s, Repeat | ForEach):
                add(s.body, times * turns(program, s))
            elif isinstance(s, Do) and s.vertex in vertices:
                read = set(names(parse(s.equation)))
                if "predict" in read:
                    predicts(s.vertex, times)
                for c in children[s.vertex] if "pull" in read else ():
                    if isinstance(s.carries, str) or s.carries.get(c.name):
                        found.backward += times
                        found.bytes += times * size_in_bytes(vertices[s.vertex].type)

    for v in program.pc.vertices:
        predicts(v.name, 1)
    add(program.infer, 1)
    return found


def turns(program: Program, loop: Repeat | ForEach) -> int:
    """How often a loop runs, which a test may end earlier."""
    if isinstance(loop, ForEach):
        return len(loop.rows)
    times = program.arguments[loop.times]
    assert isinstance(times, int)
    return times


def depth(program: Program) -> int:
    """The longest chain of vertices that wait for one another: the forward pass, inference, and one for learning."""
    return max(program.pc.levels().values(), default=0) + _depth(program, program.infer) + 1


def _depth(program: Program, steps: Sequence[Step]) -> int:
    found, run = 0, list[Step]()
    for s in steps:
        if isinstance(s, Repeat | ForEach):
            found += farthest(program, run)[0] + turns(program, s) * _depth(program, s.body)
            run = []
        else:
            run.append(s)
    return found + farthest(program, run)[0]
