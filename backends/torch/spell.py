"""How an operation is written in Python."""

from __future__ import annotations

import ast
import builtins
import functools
import json
import math
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import sympy
import torch

from pccompile.ir import DEVICE, Arg, Fragment, Ref
from pccompile.ir.names import Namer, identifier
from pccompile.ops import OPS, definition, overload
from pccompile.ops.expressions import dim_code


def quoted(text: str) -> str:
    """`text` as a Python string literal in double quotes, ASCII only."""
    literal = json.dumps(str(text), ensure_ascii=False)
    return literal if literal.isascii() else "".join(map(_escaped, literal))


def _escaped(character: str) -> str:
    code = ord(character)
    return character if code < 128 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


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

Text = Callable[[Ref], str]


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

    def arg(self, arg: Arg, text: Text) -> str:
        """Python source of an argument."""
        if isinstance(arg, Ref):
            return text(arg)
        if isinstance(arg, Fragment):
            return self.fragments[arg]
        if isinstance(arg, tuple):
            return f"[{', '.join(self.arg(a, text) for a in arg)}]"
        if isinstance(arg, sympy.Expr):
            self.dims |= {str(s) for s in arg.free_symbols}
            return dim_code(arg)
        if arg is DEVICE:
            self.device = True
            return "device"
        if isinstance(arg, float) and not math.isfinite(arg):
            self.modules.add("math")
            return "math.nan" if math.isnan(arg) else "math.inf" if arg > 0 else "-math.inf"
        return quoted(arg) if isinstance(arg, str) else repr(arg)

    def call(self, op: str, args: Mapping[str, Arg], text: Text) -> str:
        """Python source of `op(args)`."""
        known = definition(op)
        if known.helper:
            self.helpers[op] = known.helper
        if known.spell:
            texts: dict[str, Any] = {k: _inside(self.arg(a, text), a) for k, a in args.items()}
            if called := [a for a in args.values() if isinstance(a, Fragment)]:
                texts["more"] = ", ".join(self.printed(self, called))
            if op == "pcc.map":
                texts["args"] = [self.arg(a, text) for a in args["args"]]
            spelled = known.spell(texts, args)
            self.modules |= {m for m in ("math", "F") if f"{m}." in spelled}
            return spelled
        if op == "getitem":
            return f"{text(args['of'])}[{args['index']}]"
        return f"{self.kernel(op)}({', '.join(self.arguments(op, args, text))})"

    def written(self, op: str, args: Mapping[str, Arg], text: Text, memory: str) -> str:
        """Python source of `op(args)` with its result in what `memory` names, made anew where that is None."""
        arguments = [*self.arguments(op, args, text), f"out={memory}"]
        if op == LINEAR:
            self.modules.add("F")
            return f"F.linear({', '.join(arguments)})"
        name = self.kernel(op)
        if not name.startswith("torch."):
            self.reusing.add(op)
        return f"{name}({', '.join(arguments)})"

    def settled(self, pairs: Sequence[tuple[Ref, Ref]], below: str, text: Text) -> str:
        """Python source of whether a loop may end early: whether each first value is small against the second."""
        self.helpers["settled"] = SETTLED
        moves, against = (f"[{', '.join(text(pair[i]) for pair in pairs)}]" for i in (0, 1))
        return f"settled({moves}, {against}, {below})"

    def mix(self, args: Mapping[str, Arg], text: Text) -> str:
        """Python source of weighted sums of the members of lists."""
        self.helpers["mix"] = WEIGHTED_SUMS
        lists = [*map(text, args["lists"])]
        terms = lists[0] if len(lists) == 1 else f"[{', '.join(f'*{t}' for t in lists)}]"
        if passes_on(args):
            return terms
        return f"weighted_sum{'' if args['one'] else 's'}({weights_text(args)}, {terms})"

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

    def arguments(self, op: str, args: Mapping[str, Arg], text: Text) -> list[str]:
        """The arguments of a call of an operator, those left out that are as its schema has them."""
        declared = overload(op)._schema.arguments
        dense = definition(op).dense
        positional = [a for a in declared if not a.kwarg_only]
        while (
            positional
            and positional[-1].has_default_value()
            and _equal(args[positional[-1].name], positional[-1].default_value)
        ):
            positional.pop()
        named = [a for a in declared if a.kwarg_only and args[a.name] is not None]
        named = [a for a in named if not (a.has_default_value() and _equal(args[a.name], a.default_value))]
        given = [
            f"{atom(self.arg(args[a.name], text))}.contiguous()"
            if a.name in dense and isinstance(args[a.name], Ref)
            else self.arg(args[a.name], text)
            for a in positional
        ]
        return given + [f"{a.name}={self.arg(args[a.name], text)}" for a in named]


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


def weights_text(args: Mapping[str, Arg]) -> str:
    """The weights of sums of members of lists as Python lists, or the name that they have."""
    if isinstance(args["matrix"], str):
        return args["matrix"]
    rows = [*map(_row_text, args["matrix"])]
    return rows[0] if args["one"] else f"[{', '.join(rows)}]"


def _row_text(row: Sequence[float]) -> str:
    """Weights as a list, where others than 0 and 1 are among them, or the places of those that are 1."""
    places = tuple(i for i, w in enumerate(row) if w)
    if {*row} <= {0.0, 1.0}:
        return str(places[0] if len(places) == 1 else places)
    return f"[{', '.join(str(int(w)) if w in (0, 1) else repr(w) for w in row)}]"


def _equal(value: Arg, default: Any) -> bool:
    default = tuple(default) if isinstance(default, list) else default
    return type(value) is type(default) and bool(value == default)


@functools.cache
def _in_torch(base: str) -> bool:
    return not base.startswith("_") and isinstance(getattr(torch, base, None), types.BuiltinFunctionType)


def _inside(text: str, arg: Arg) -> str:
    return atom(text) if isinstance(arg, Ref | sympy.Expr) else text


@functools.lru_cache(maxsize=4096)
def atom(text: str) -> str:
    """`text`, in parentheses unless it binds more tightly than any operator."""
    if text.isidentifier():
        return text
    body = ast.parse(text, mode="eval").body
    tight = isinstance(body, ast.Name | ast.Call | ast.Attribute | ast.Subscript | ast.Constant | ast.List)
    return text if tight else f"({text})"
