"""Python expressions as trees: filled into templates, and printed. Nothing reads printed text again.

A `Name` may be any text that binds as tightly as a name does, such as the entry of a table.
"""

from __future__ import annotations

import ast
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Expr = ast.expr
TIGHT = 20
"""How tightly names, calls, indices and lists bind; operators bind less: see `_BINARY` and `binds`."""
PRODUCT, UNARY, POWER = 12, 13, 14
_BINARY: Mapping[type[ast.operator], tuple[str, int]] = {
    ast.Add: ("+", 11), ast.Sub: ("-", 11), ast.Mult: ("*", PRODUCT), ast.MatMult: ("@", PRODUCT),
    ast.Div: ("/", PRODUCT), ast.FloorDiv: ("//", PRODUCT), ast.Mod: ("%", PRODUCT), ast.Pow: ("**", POWER),
    ast.BitAnd: ("&", 9), ast.BitOr: ("|", 7),
}  # fmt: skip
_COMPARED: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=",
}  # fmt: skip


_ALWAYS_TIGHT = frozenset((ast.Name, ast.Call, ast.Attribute, ast.Subscript, ast.List, ast.Tuple))


def name(text: str) -> ast.Name:
    """A name, or other text that binds as tightly."""
    return ast.Name(text)


def call(function: str | Expr, *args: Expr, **named: Expr) -> ast.Call:
    """A call of a function by its name, or of what an expression is."""
    keywords = [ast.keyword(k, v) for k, v in named.items()]
    return ast.Call(name(function) if isinstance(function, str) else function, [*args], keywords)


def method(of: Expr, called: str, *args: Expr, **named: Expr) -> ast.Call:
    """A call of a method."""
    return call(ast.Attribute(of, called), *args, **named)


def literal(value: Any) -> Expr:
    """A number, a string, None, or lists and tuples of such."""
    if isinstance(value, list | tuple):
        return (ast.List if isinstance(value, list) else ast.Tuple)([*map(literal, value)])
    return ast.Constant(value)


def members(items: Iterable[Expr]) -> ast.List:
    """A list of expressions."""
    return ast.List([*items])


def quoted(text: str) -> str:
    """`text` as a Python string literal in double quotes, ASCII only."""
    written = json.dumps(str(text), ensure_ascii=False)
    return written if written.isascii() else "".join(map(_escaped, written))


def _escaped(character: str) -> str:
    code = ord(character)
    return character if code < 128 else f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


# templates


@functools.lru_cache(maxsize=4096)
def template(source: str) -> Expr:
    """An expression that a definition gives as Python source, over the names of its arguments."""
    return ast.parse(source, mode="eval").body


def fill(e: Any, values: Callable[[str], Expr | None]) -> Any:
    """`e` with values(name) in the place of each name for which there is one.

    An entry that is taken of a list is that entry, and a list that is unpacked among arguments its entries.
    """
    if isinstance(e, ast.Name):
        return values(e.id) or e
    if not isinstance(e, ast.AST) or not e._fields or isinstance(e, ast.Constant):
        return e
    fields: dict[str, Any] = {}
    for field in e._fields:
        old = getattr(e, field, None)
        if old.__class__ is list:
            fields[field] = [fill(x, values) for x in old]
        elif field != "ctx":
            fields[field] = fill(old, values)
    if isinstance(e, ast.Subscript):
        of, at = fields["value"], fields["slice"]
        if isinstance(of, ast.List | ast.Tuple) and isinstance(at, ast.Constant):
            return of.elts[int(str(at.value))]
    if isinstance(e, ast.Call | ast.List):
        key = "args" if isinstance(e, ast.Call) else "elts"
        fields[key] = [x for a in fields[key] for x in _unpacked(a)]
    return type(e)(**fields)


def _unpacked(e: Expr) -> Sequence[Expr]:
    return e.value.elts if isinstance(e, ast.Starred) and isinstance(e.value, ast.List) else [e]


# printing


def binds(e: Expr) -> int:
    """How tightly the outermost operator of an expression binds."""
    if type(e) in _ALWAYS_TIGHT:
        return TIGHT
    match e:
        case ast.BinOp(op=op):
            return _BINARY[type(op)][1]
        case ast.UnaryOp(op=op):
            return 5 if isinstance(op, ast.Not) else UNARY
        case ast.Compare():
            return 6
        case ast.BoolOp(op=op):
            return 4 if isinstance(op, ast.And) else 3
        case ast.IfExp():
            return 2
        case ast.Starred() | ast.Slice():
            return 1
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and str(value)[0] == "-":
            return UNARY
    return TIGHT


def text(e: Expr, least: int = 0) -> str:
    """An expression in one line, in parentheses where it binds less tightly than `least`."""
    if type(e) is ast.Name:
        return e.id
    return f"({_text(e)})" if binds(e) < least else _text(e)


def _text(e: Expr) -> str:
    match e:
        case ast.Name(id=called):
            return called
        case ast.Constant(value=value):
            return quoted(value) if isinstance(value, str) else repr(value)
        case ast.Attribute(value=of, attr=attribute):
            return f"{text(of, TIGHT)}.{attribute}"
        case ast.Call(func=function):
            return f"{text(function, TIGHT)}({', '.join(arguments(e))})"
        case ast.Subscript(value=of, slice=at):
            return f"{text(of, TIGHT)}[{_entries(at) if isinstance(at, ast.Tuple) else text(at)}]"
        case ast.Slice(lower=lower, upper=upper, step=step):
            ends = ":".join("" if end is None else text(end) for end in (lower, upper))
            return ends if step is None else f"{ends}:{text(step)}"
        case ast.List(elts=entries):
            return f"[{', '.join(map(text, entries))}]"
        case ast.Tuple():
            return f"({_entries(e)})"
        case ast.Dict(keys=keys, values=values):
            return f"{{{', '.join(f'{text(k)}: {text(v)}' for k, v in zip(keys, values, strict=True) if k)}}}"
        case ast.ListComp(elt=made, generators=[clause]):
            return f"[{text(made)} for {_entries(clause.target)} in {text(clause.iter)}]"
        case ast.Starred(value=of):
            return f"*{text(of)}"
    return _operators(e)


def _operators(e: Expr) -> str:
    own = binds(e)
    match e:
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return f"{text(left, own + 1)} ** {text(right, UNARY)}"
        case ast.BinOp(left=left, op=op, right=right):
            return f"{text(left, own)} {_BINARY[type(op)][0]} {text(right, own + 1)}"
        case ast.UnaryOp(op=op, operand=of):
            return f"{'not ' if isinstance(op, ast.Not) else '-'}{text(of, own)}"
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"{text(left, own + 1)} {_COMPARED[type(op)]} {text(right, own + 1)}"
        case ast.BoolOp(op=op, values=values):
            return (" and " if isinstance(op, ast.And) else " or ").join(text(v, own + 1) for v in values)
        case ast.IfExp(test=test, body=body, orelse=otherwise):
            return f"{text(body, own + 1)} if {text(test, own + 1)} else {text(otherwise, own)}"
    raise AssertionError(ast.dump(e))


def _entries(e: Expr) -> str:
    """What a tuple holds, as it stands in an index or in front of `in`; another expression as it is."""
    if not isinstance(e, ast.Tuple):
        return text(e)
    return ", ".join(map(text, e.elts)) + "," * (len(e.elts) == 1)


def arguments(e: ast.Call) -> list[str]:
    """The arguments of a call, each in one line."""
    return [*map(text, e.args), *(f"{k.arg}={text(k.value)}" for k in e.keywords)]
