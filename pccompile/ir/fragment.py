"""A program inside an operation: a branch, or the body of a loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import sympy

from pccompile.ir.graph import Arg, Node, Ref, TensorType


@dataclass(frozen=True, eq=False)
class Fragment:
    """A function of tensors that an operation calls: `results` computed from `parameters` by `nodes`.

    It sees nothing but its parameters and the free dimensions. `name` and `about` are for the reader. The last
    `decisions` of the results say which branches were taken inside.
    """

    name: str
    parameters: Mapping[str, TensorType]
    nodes: tuple[Node, ...]
    results: tuple[Ref, ...]
    about: str = ""
    decisions: int = 0

    @property
    def types(self) -> tuple[TensorType, ...]:
        """The types of its results."""
        known = {**self.parameters, **{n.name: n.tensor for n in self.nodes if isinstance(n.type, TensorType)}}
        return tuple(known[r] for r in self.results)

    def __str__(self) -> str:
        body = "; ".join(map(str, self.nodes))
        return f"{self.name}({', '.join(self.parameters)}) {{{body}; return {', '.join(map(repr, self.results))}}}"


def lengths(args: Iterable[Arg]) -> Iterator[str]:
    """The names of the free dimensions that `args` are written with, through tuples and programs."""
    for a in args:
        if isinstance(a, sympy.Expr):
            yield from sorted(map(str, a.free_symbols))
        elif isinstance(a, tuple):
            yield from lengths(a)
        elif isinstance(a, Fragment):
            for n in a.nodes:
                yield from lengths(n.args.values())
