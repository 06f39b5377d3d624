"""The right-hand sides of update equations as statements."""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from pccompile.backends.torch.code import quoted
from pccompile.backends.torch.statements import Label
from pccompile.backends.torch.writer import Writer
from pccompile.ir import Arg, Argument, Do, Ref
from pccompile.ir.equations import names
from pccompile.ops import bind

COMPARISONS = {ast.Gt: "gt", ast.GtE: "ge", ast.Lt: "lt", ast.LtE: "le"}
MIRRORED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}
"""What a comparison is with its sides exchanged: torch wants the tensor first."""

LOG_SOFTMAX = "aten._log_softmax.default"
LINEAR_FROM = 40.0
"""From here on softplus(x) is x to the last digit of float64."""


class Equations:
    """Writes expressions.

    term: the value of a name in an equation that is no argument. everywhere: a slot of all vertices that have it, by
    vertex. ranks: how many dimensions the value of each vertex has.
    """

    def __init__(
        self,
        w: Writer,
        arguments: Mapping[str, Argument],
        term: Callable[[Do, str], Arg],
        everywhere: Callable[[str], Mapping[str, Ref]],
        ranks: Mapping[str, int],
    ) -> None:
        self.w, self.arguments, self.term, self.everywhere, self.ranks = w, arguments, term, everywhere, ranks
        self.smaller: set[Ref] = set()
        """Values that are stretched to the shape of a vertex's: means, totals, and what lasts between calls."""
        self.numbers: set[Ref] = set()

    def write(self, op: str, *args: Arg) -> Ref:
        """The value of an operation, of one shape unless a smaller one takes part."""
        tensors = [a for a in args if isinstance(a, Ref) and a not in self.numbers]
        smaller = [a for a in tensors if a in self.smaller]
        value = self.w.call(op, bind(op, args, {}), Label(op.split(".")[1]), even=not smaller)
        if smaller and len(smaller) == len(tensors):
            self.smaller.add(value)
        return value

    def value(self, d: Do, e: ast.expr) -> Arg:
        """The value of an expression: a number where it is one, else what its statements end in."""
        if (number := self.number(d, e)) is not None:
            return number
        match e:
            case ast.Name(id=name):
                return self.term(d, name)
            case ast.UnaryOp(operand=inner):
                return self.negative(self.value(d, inner))
            case ast.BinOp(
                left=ast.Name(id=a),
                op=ast.Add(),
                right=ast.BinOp(left=r, op=ast.Mult(), right=ast.BinOp(left=b, op=ast.Sub(), right=ast.Name(id=c))),
            ) if a == c:
                end = self.value(d, b)
                return self.write("aten.lerp.Scalar", self.term(d, a), end, self.value(d, r))
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self.write("aten.pow.Tensor_Scalar", self.value(d, left), self.value(d, right))
            case ast.BinOp(
                left=left, op=ast.Add(), right=ast.BinOp(left=ast.Constant(value=c), op=ast.Mult(), right=right)
            ) if self.number(d, left) is None and self.number(d, right) is None:
                return self.write("aten.add.Tensor", self.value(d, left), self.value(d, right), c)
            case ast.BinOp(left=left, op=op, right=right):
                name = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}[type(op)]
                first, second = self.value(d, left), self.value(d, right)
                if not isinstance(first, Ref) and name in ("add", "mul"):
                    first, second = second, first
                return self.write(f"aten.{name}.Tensor", first, second)
            case ast.Compare(left=left, ops=[comparison], comparators=[right]):
                first, second, name = self.value(d, left), self.value(d, right), COMPARISONS[type(comparison)]
                if self.number(d, left) is not None:
                    first, second, name = second, first, MIRRORED[name]
                tensors = self.number(d, left) is None and self.number(d, right) is None
                kind = "Tensor" if tensors else "Scalar"
                return self.write(f"aten.{name}.{kind}", first, second)
            case ast.Call(func=ast.Name(id="across"), args=[ast.Name(id=slot)]):
                return self.across(d, slot)
            case ast.Call(func=ast.Name(id=name), args=args):
                return self.function(d, name, [self.value(d, a) for a in args])
        raise AssertionError(f"{d}: verify_program lets nothing else through")

    def function(self, d: Do, name: str, args: Sequence[Arg]) -> Ref:
        """A function of an equation."""
        match name:
            case "clip":
                return self.write("aten.clamp.default", *args)
            case "where":
                kind = "self" if isinstance(args[1], Ref) else "ScalarSelf"
                kind = kind if isinstance(args[2], Ref) else "Scalar" if kind == "ScalarSelf" else "ScalarOther"
                return self.write(f"aten.where.{kind}", *args)
            case "mean":
                return self.reduced(self.w("aten.mean.dim", args[0], (0,), True))
            case "average":
                return self.reduced(self.w("aten.mean.dim", args[0], tuple(range(self.ranks[d.vertex])), True))
            case "total":
                return self.reduced(self.w("aten.sum.dim_IntList", args[0], (-1,), True))
            case "softmax" | "logsoftmax":
                return self.write("aten._softmax.default" if name == "softmax" else LOG_SOFTMAX, args[0], -1, False)
            case "softplus":
                return self.write("aten.softplus.default", args[0], 1.0, LINEAR_FROM)
        return self.write(f"aten.{name}.default", *args)

    def across(self, d: Do, slot: str) -> Ref:
        """The sum of a slot over all vertices that have it, sample by sample, of the rank of this vertex's value."""
        sums: list[Ref] = []
        for vertex, value in self.everywhere(slot).items():
            dims = tuple(range(1, self.ranks[vertex]))
            sums.append(self.w("aten.sum.dim_IntList", value, dims, False) if dims else value)
        whole = functools.reduce(lambda x, y: self.w("aten.add.Tensor", x, y), sums)
        for _ in range(self.ranks[d.vertex] - 1):
            whole = self.w("aten.unsqueeze.default", whole, -1)
        return self.reduced(whole)

    def reduced(self, value: Ref) -> Ref:
        """`value`, which has the length 1 in a dimension."""
        self.smaller.add(value)
        return value

    def number(self, d: Do, e: ast.expr) -> Arg:
        """What an expression over numbers and arguments is, or how the file writes it; None where it reads tensors."""
        match e:
            case ast.Constant(value=number):
                return cast(Arg, number)
            case ast.UnaryOp(operand=ast.Constant(value=number)):
                return -cast(float, number)
        if not all(n in self.arguments for n in names(e)):
            return None
        text = number_text(e, self.arguments, d.vertex)
        words = [*names(e), *([d.vertex] if "[" in text else [])]
        value = self.w.given(text, Label("_".join(words) or "number"), tuple(names(e)))
        self.numbers.add(value)
        return value

    def negative(self, value: Arg) -> Ref:
        """−value; a factor that it was just multiplied by takes the sign."""
        assert isinstance(value, Ref)
        made = self.w.made.get(value)
        if made and made.op == "aten.mul.Tensor" and isinstance(made.args["other"], float):
            return self.w("aten.mul.Tensor", made.args["self"], -made.args["other"])
        return self.write("aten.neg.default", value)


def number_text(e: ast.expr, arguments: Mapping[str, Argument], vertex: str) -> str:
    """Python source of an expression over numbers; of an argument that is a table, the vertex's entry."""
    tables = {name for name in names(e) if not isinstance(arguments[name], int | float)}

    class Spelling(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Name(f"{node.id}[{quoted(vertex)}]") if node.id in tables else node

        def visit_Call(self, node: ast.Call) -> ast.expr:
            (argument,) = map(self.visit, node.args)
            return ast.BinOp(argument, ast.Pow(), ast.Constant(0.5))

    return ast.unparse(ast.fix_missing_locations(Spelling().visit(copy.deepcopy(e))))
