"""The right-hand sides of update equations: Python arithmetic over slots, arguments and terms.

    + − * / **  and functions: those of torch by its names for one element (sqrt exp log sign abs sin cos tanh sigmoid
    softplus log1p expm1 erf atan), clip(x, low, high), where(a > b, x, y), mean(x) over the samples,
    average(x) over the samples and all elements of the owner, and over the last dimension softmax(x), logsoftmax(x)
    and total(x), the sum; across(slot) for each sample, the sum of all elements of a slot over all vertices that have
    it, which is not local

`parse` reads one; `names` and `calls` say what it is about. Nothing here knows of graphs or of torch.
"""

from __future__ import annotations

import ast
import copy
import functools
from collections.abc import Iterator, Mapping

TERMS = ("predict", "pull", "clamp", "zero", "seed", "noise", "send", "hold", "given", "heard")
"""Names in an equation that stand for what a vertex can do, and for no slot.

predict, pull, clamp: see Do. zero: zeros, seed: minus ones like the vertex's value. noise: a fresh sample of a standard
normal. send, hold: −∂E/∂v̂ and ∂E/∂v of the vertex's energy, the error where nothing else is said. given: the value of
an observed vertex. heard: what a neighbour has told in the last exchange.
"""
_ROOTS = ("sqrt", "exp", "log", "log1p", "expm1")
ELEMENTWISE = (*_ROOTS, "sign", "abs", "sin", "cos", "atan", "tanh", "sigmoid", "softplus", "erf")
FUNCTIONS = dict.fromkeys(ELEMENTWISE, 1) | {
    "mean": 1,
    "average": 1,
    "softmax": 1,
    "logsoftmax": 1,
    "total": 1,
    "across": 1,
    "clip": 3,
    "where": 3,
}
"""Functions with the number of their arguments."""
OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow)
COMPARISONS = (ast.Gt, ast.GtE, ast.Lt, ast.LtE)


class EquationError(ValueError):
    """An equation that is no arithmetic: says what is wrong in it."""


@functools.lru_cache(maxsize=4096)
def parse(equation: str) -> ast.expr:
    """The equation as a tree. Raises EquationError where it is anything but sums, products, powers and functions."""
    try:
        tree = ast.parse(equation, mode="eval").body
    except SyntaxError as e:
        raise EquationError(f"no expression ({e.msg})") from None
    _check(tree)
    return tree


def names(tree: ast.expr) -> Iterator[str]:
    """The slots, arguments and terms that an equation reads, in order, functions left out."""
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    yield from (n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called)


def substituted(equation: str, by: Mapping[str, str]) -> str:
    """The equation with these names replaced by expressions."""
    known = {name: parse(expression) for name, expression in by.items()}

    class Substitution(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return known.get(node.id, node)

    return ast.unparse(Substitution().visit(copy.deepcopy(parse(equation))))


def calls(tree: ast.expr) -> Iterator[ast.Call]:
    """The functions of an equation, but for square roots, which are a power of numbers too."""
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) != "sqrt")


def outside(tree: ast.expr, *functions: str) -> Iterator[str]:
    """The slots, arguments and terms that an equation reads other than as arguments of these functions."""
    match tree:
        case ast.Call(func=ast.Name(id=name)) if name in functions:
            return
        case ast.Call(args=args):
            for argument in args:
                yield from outside(argument, *functions)
        case ast.Name(id=name):
            yield name
        case _:
            for part in ast.iter_child_nodes(tree):
                if isinstance(part, ast.expr):
                    yield from outside(part, *functions)


def added_up(tree: ast.expr) -> Iterator[str]:
    """The slots of all vertices that an equation adds up."""
    for call in calls(tree):
        if ast.unparse(call.func) == "across":
            yield ast.unparse(call.args[0])


def _check(e: ast.expr) -> None:
    match e:
        case ast.Name():
            return
        case ast.Constant(value=int() | float()) if not isinstance(e.value, bool):
            return
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _check(inner)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, OPERATORS):
            _check(left)
            return _check(right)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if isinstance(op, COMPARISONS):
            _check(left)
            return _check(right)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
            if len(args) != FUNCTIONS[name]:
                raise EquationError(f"{name} takes {FUNCTIONS[name]} arguments, not {len(args)}")
            if name == "across" and not isinstance(args[0], ast.Name):
                raise EquationError("across takes the name of a slot: assign what it is to add up first")
            for a in args:
                _check(a)
            return None
        case ast.Call(func=ast.Name(id=name)):
            raise EquationError(f"no function {name}; there are {', '.join(FUNCTIONS)}")
    raise EquationError(f"{ast.unparse(e)} is no sum, product, power or function")
