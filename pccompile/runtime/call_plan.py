"""What every call of a program does in the same way: which tensors take part, in which order, and what is done to them.

It is worked out once for a program, so that a call makes no tables of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pccompile.backends.torch import Source
from pccompile.runtime.states import Writes


@dataclass(frozen=True)
class CallPlan:
    """The order of a program's tensors. Tables are the parameters, the buffers and the inputs, by number.

    kept: parameters that the backward pass reads; those of a file for torch.compile, of one with several errors and of
    one whose predictions move are all kept, since other functions than the sweep may run for them; None stands for all.
    sources: the table and the entry of each tensor that gets a gradient. gradients: in the same order the key of each,
    and whether any output that has an error reaches it. places: for each clamped output, where among the outputs its
    value stands. errors: the numbers of all clamped outputs. still: outputs without an error. itself: outputs that are
    an entry of a table, as table and entry. writes: whether a call writes into its model or its arguments. plain:
    whether `plain_step` suffices, where the sweep is sent nothing but tensors and no derivative is the author's own.
    """

    kept: tuple[str, ...] | None
    sources: tuple[tuple[int, str], ...]
    gradients: tuple[tuple[str, bool], ...]
    places: tuple[tuple[int, ...], ...]
    errors: frozenset[int]
    still: tuple[int, ...]
    itself: Mapping[int, tuple[int, str]]
    writes: bool
    plain: bool

    @classmethod
    def of(
        cls, source: Source, reaching: Mapping[str, frozenset[int]], writes: Writes, jit: bool, steps: bool
    ) -> CallPlan:
        """The plan of a generated file. reaching: the clamped outputs that each gradient depends on.

        steps: whether inference takes steps or is compiled, so that more than the sweep is called.
        """
        graph, names = writes.imported.graph, source.outputs
        tables = {"params": 0, "buffers": 1, "inputs": 2}
        carrying = [names[i] for i in source.errors]
        itself = {
            i: (2, name) if name in graph.inputs else (0, graph.origin[name])
            for i, name in enumerate(names)
            if name in graph.inputs or name in graph.params
        }
        one = len(names) == len(carrying) == 1 and not itself
        return cls(
            None if jit or source.moving or len(carrying) > 1 else tuple(sorted(source.reads)),
            tuple((tables[g.table], g.entry) for g in source.gradients),
            tuple((g.key, bool(reaching[g.key])) for g in source.gradients),
            tuple(tuple(i for i, o in enumerate(names) if o == name) for name in carrying),
            frozenset(range(len(carrying))),
            tuple(i for i, name in enumerate(names) if name not in carrying),
            itself,
            bool(writes),
            one and not (steps or writes or source.moving or source.updates or source.lasting),
        )


@dataclass(frozen=True, slots=True)
class PlainCalls:
    """What the calls of a program run that has one output, sends nothing but tensors to its sweep and moves nothing.

    predict, sweep: functions of the file. kept: the parameters that the sweep reads. keys: the key of each gradient,
    in the order of `CallPlan.sources`; None for one that the output does not depend on.
    """

    predict: Callable[..., Any]
    sweep: Callable[..., dict[str | None, Tensor]]
    kept: tuple[str, ...]
    keys: tuple[str | None, ...]


__all__ = ["CallPlan", "PlainCalls"]
