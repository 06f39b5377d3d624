"""What every call of a program does in the same way: which tensors take part, in which order, and what is done to them.

It is worked out once for a program, so that a call makes no tables of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    an entry of a table, as table and entry. writes: whether a call writes into its model or its arguments.
    """

    kept: tuple[str, ...] | None
    sources: tuple[tuple[int, str], ...]
    gradients: tuple[tuple[str, bool], ...]
    places: tuple[tuple[int, ...], ...]
    errors: frozenset[int]
    still: tuple[int, ...]
    itself: Mapping[int, tuple[int, str]]
    writes: bool

    @classmethod
    def of(cls, source: Source, reaching: Mapping[str, frozenset[int]], writes: Writes, jit: bool) -> CallPlan:
        """The plan of a generated file. reaching: the clamped outputs that each gradient depends on."""
        graph, names = writes.imported.graph, source.outputs
        tables = {"params": 0, "buffers": 1, "inputs": 2}
        carrying = [names[i] for i in source.errors]
        itself = {
            i: (2, name) if name in graph.inputs else (0, graph.origin[name])
            for i, name in enumerate(names)
            if name in graph.inputs or name in graph.params
        }
        return cls(
            None if jit or source.moving or len(carrying) > 1 else tuple(sorted(source.reads)),
            tuple((tables[g.table], g.entry) for g in source.gradients),
            tuple((g.key, bool(reaching[g.key])) for g in source.gradients),
            tuple(tuple(i for i, o in enumerate(names) if o == name) for name in carrying),
            frozenset(range(len(carrying))),
            tuple(i for i, name in enumerate(names) if name not in carrying),
            itself,
            bool(writes),
        )


__all__ = ["CallPlan"]
