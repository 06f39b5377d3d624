"""How an operation is written in Python."""

from __future__ import annotations

import ast
import builtins
import functools
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch

from pccompile.backends.torch.code import Expr, call, fill, literal, members, method, name, template, text
from pccompile.backends.torch.statements import Stop
from pccompile.ir import DEVICE, Arg, Fragment, Ref
from pccompile.ir.names import Namer, identifier
from pccompile.ops import OPS, definition, overload
from pccompile.ops.expressions import dim_code

MORE, TOGETHER = "more", "more_together"
"""In a spelling, what programs within an operation need beside their arguments; and that as one list, if it is any."""
LINEAR = "aten.linear.default"
SETTLED = '''
def settled(moves, against, below):
    """Whether each of `moves` is small against what stands beside it in `against`."""
    lengths, limits = (torch.stack([n.double() for n in torch._foreach_norm(t)]) for t in (moves, against))
    return bool((lengths <= below * limits).all())
'''

WEIGHTED_SUMS = '''
def weighted_sum(weights, terms):
    """The sum of `terms` times `weights`. A number stands for the term at this place, a tuple for the sum of some."""
    if isinstance(weights, int):
        return terms[weights]
    if isinstance(weights, tuple):
        total = terms[weights[0]] + terms[weights[1]]
        for place in weights[2:]:
            total += terms[place]
        return total
    parts = [(weight, term) for weight, term in zip(weights, terms) if weight]
    parts.sort(key=lambda part: part[0] != 1)
    (weight, total), *rest = parts
    if weight == 1:
        (weight, term), *rest = rest
        total = torch.add(total, term, alpha=weight)
    else:
        total = total * weight
    for weight, term in rest:
        total.add_(term, alpha=weight)
    return total


def weighted_sums(rows, terms):
    """For each row of weights, the sum of `terms`."""
    return [weighted_sum(weights, terms) for weights in rows]
'''

Spelled = Callable[[Ref], Expr]
"""How a value is written where it is read."""


class Speller:
    """Spells calls, and remembers which operators and helpers the file must name at its top.

    used: names that stand at the top of the file besides. `namer` names what else is to stand there.
    """

    def __init__(self, used: Iterable[str] = ()) -> None:
        self.namer = Namer((*used, *dir(builtins), *_helper_names()))
        self.fragments: dict[Fragment, str] = {}
        self.printed: Callable[[Speller, Sequence[Fragment]], Sequence[str]] = lambda speller, fragments: ()
        self.kernels: dict[str, str] = {}
        self.reusing: set[str] = set()
        self._kernel_names: dict[str, str] = {}
        self.helpers: dict[str, str] = {}
        self.modules: set[str] = {"torch"}
        self.dims: set[str] = set()
        self.device = False

    def arg(self, arg: Arg, spelled: Spelled) -> Expr:
        """An argument."""
        if isinstance(arg, Ref):
            return spelled(arg)
        if isinstance(arg, Fragment):
            return name(self.fragments[arg])
        if isinstance(arg, tuple):
            return members(self.arg(a, spelled) for a in arg)
        if isinstance(arg, sympy.Expr):
            self.dims |= {str(s) for s in arg.free_symbols}
            return template(dim_code(arg))
        if arg is DEVICE:
            self.device = True
            return name("device")
        if isinstance(arg, float) and not math.isfinite(arg):
            self.modules.add("math")
            return template("math.nan" if math.isnan(arg) else "math.inf" if arg > 0 else "-math.inf")
        return literal(arg) if isinstance(arg, str | bool | int | float | complex | None) else name(repr(arg))

    def call(self, op: str, args: Mapping[str, Arg], spelled: Spelled) -> Expr:
        """The call `op(args)`."""
        known = definition(op)
        if known.helper:
            self.helpers[op] = known.helper
        if known.spell:
            called = [a for a in args.values() if isinstance(a, Fragment)]
            more = [*map(name, self.printed(self, called))] if called else []
            source = known.spell if isinstance(known.spell, str) else known.spell(args)
            self.modules |= {m for m in ("math", "F") if f"{m}." in source}

            def value(called: str) -> Expr | None:
                if called in (MORE, TOGETHER):
                    return members(more if called == MORE or not more else [members(more)])
                return self.arg(args[called], spelled) if called in args else None

            filled: Expr = fill(template(source), value)
            return filled
        if op == "getitem":
            return ast.Subscript(spelled(args["of"]), literal(args["index"]))
        return call(self.kernel(op), *self.arguments(op, args, spelled), **self.named(op, args, spelled))

    def written(self, op: str, args: Mapping[str, Arg], spelled: Spelled, memory: str) -> Expr:
        """The call `op(args)` with its result in what `memory` names, made anew where that is None."""
        own = self.arguments(op, args, spelled)
        named = self.named(op, args, spelled) | {"out": name(memory)}
        if op == LINEAR:
            self.modules.add("F")
            return call("F.linear", *own, **named)
        kernel = self.kernel(op)
        if not kernel.startswith("torch."):
            self.reusing.add(op)
        return call(kernel, *own, **named)

    def settled(self, stop: Stop, spelled: Spelled) -> Expr:
        """Whether a loop may end early: whether each first value is small against the second."""
        self.helpers["settled"] = SETTLED
        moves, against = (members(spelled(pair[i]) for pair in stop.pairs) for i in (0, 1))
        return call("settled", moves, against, name(stop.below))

    def mix(self, args: Mapping[str, Arg], spelled: Spelled) -> Expr:
        """Weighted sums of the members of lists."""
        self.helpers["mix"] = WEIGHTED_SUMS
        lists = [*map(spelled, args["lists"])]
        terms = lists[0] if len(lists) == 1 else members(map(ast.Starred, lists))
        if passes_on(args):
            return terms
        return call(f"weighted_sum{'' if args['one'] else 's'}", weights(args), terms)

    def kernel(self, op: str) -> str:
        """The function that runs `op`: torch's own name for it, or a name given at the top of the file."""
        base = op.split(".")[1]
        if op.startswith("aten.") and _in_torch(base):
            return f"torch.{base}"
        self.kernels[op] = self._kernel_name(op)
        return self.kernels[op]

    def _kernel_name(self, op: str) -> str:
        if op not in self._kernel_names:
            plain, full = kernel_names(op)
            self._kernel_names[op] = self.namer(full if plain in self.namer.used else plain)
        return self._kernel_names[op]

    def words(self, ops: Iterable[str]) -> set[str]:
        """The names from the top of the file that calls of `ops` may be written with: no value is called so."""
        called = dict.fromkeys(op for op in ops if kernel_names(op))
        names = {name for op in called for name in (*kernel_names(op), self._kernel_name(op))}
        return names.union(BUILTINS, _helper_names(), self.fragments.values())

    def arguments(self, op: str, args: Mapping[str, Arg], spelled: Spelled) -> list[Expr]:
        """The positional arguments of a call of an operator, those at the end left out that are as its schema has."""
        dense = definition(op).dense
        positional = [a for a in overload(op)._schema.arguments if not a.kwarg_only]
        while positional and _is_default(positional[-1], args):
            positional.pop()
        own = ((a.name, args[a.name], self.arg(args[a.name], spelled)) for a in positional)
        return [method(e, "contiguous") if n in dense and isinstance(arg, Ref) else e for n, arg, e in own]

    def named(self, op: str, args: Mapping[str, Arg], spelled: Spelled) -> dict[str, Expr]:
        """The arguments of a call that go by their names, those left out that are as its schema has them."""
        named = [a for a in overload(op)._schema.arguments if a.kwarg_only and args[a.name] is not None]
        return {a.name: self.arg(args[a.name], spelled) for a in named if not _is_default(a, args)}


BUILTINS = ("range", "next", "iter", "max", "min", "int", "float")
"""The functions of Python itself that generated code calls."""


@functools.cache
def _helper_names() -> frozenset[str]:
    """The names of all functions that operations may bring along."""
    texts = (op.helper for op in OPS.values())
    return frozenset(name for text in (*texts, WEIGHTED_SUMS) for name in re.findall(r"^def (\w+)", text, re.MULTILINE))


def kernel_names(op: str) -> tuple[str, ...]:
    """What the file may call an operator, without and with the name of its overload."""
    _, *parts = op.split(".")
    return (identifier(parts[0]), identifier("_".join(parts))) if parts else ()


def result_count(op: str) -> int | None:
    """How many results an operation has; None where that is one, or not fixed."""
    if not op.startswith(("aten.", "pccompile.")) or definition(op).infer:
        return None
    returns = overload(op)._schema.returns
    return len(returns) if len(returns) > 1 else None


def passes_on(args: Mapping[str, Arg]) -> bool:
    """Whether sums of the members of a list are these members as they are."""
    matrix = args["matrix"]
    if args["one"] or len(args["lists"]) > 1 or isinstance(matrix, str) or len(matrix) != len(matrix[0]):
        return False
    return all(w == (i == j) for i, row in enumerate(matrix) for j, w in enumerate(row))


def weights(args: Mapping[str, Arg]) -> Expr:
    """The weights of sums of members of lists as lists, or the name that they have."""
    if isinstance(args["matrix"], str):
        return name(args["matrix"])
    rows = [*map(_row, args["matrix"])]
    return literal(rows[0] if args["one"] else rows)


def weights_text(args: Mapping[str, Arg]) -> str:
    """The weights of sums of members of lists as Python source, or the name that they have."""
    return text(weights(args))


def _row(row: Sequence[float]) -> int | tuple[int, ...] | list[float]:
    """Weights as a list, where others than 0 and 1 are among them, or the places of those that are 1."""
    places = tuple(i for i, w in enumerate(row) if w)
    if {*row} <= {0.0, 1.0}:
        return places[0] if len(places) == 1 else places
    return [int(w) if w in (0, 1) else w for w in row]


def _is_default(argument: Any, args: Mapping[str, Arg]) -> bool:
    """Whether an argument of a schema is given as it is by default."""
    value, default = args[argument.name], argument.default_value
    default = tuple(default) if isinstance(default, list) else default
    return argument.has_default_value() and type(value) is type(default) and bool(value == default)


@functools.cache
def _in_torch(base: str) -> bool:
    return not base.startswith("_") and isinstance(getattr(torch, base, None), types.BuiltinFunctionType)
