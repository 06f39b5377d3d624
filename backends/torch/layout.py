"""Lines that fit a page: long lists and calls over several lines."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pccompile.backends.torch.code import TIGHT, Expr, binds, call, literal, name, quoted, text

WIDTH = 120
STEP = "    "
CUT = (ast.Add, ast.Sub, ast.Mult, ast.MatMult)
"""The operators before which a line may end."""


def listed(names: Sequence[str], indent: str = STEP, room: int = WIDTH - 30) -> str:
    """`[a, b, c]`, for a statement that begins at `indent`; over several lines where it takes more than `room`."""
    line = f"[{', '.join(names)}]"
    if len(line) < room:
        return line
    return "\n".join(["[", *filled(map(name, names), indent + STEP), f"{indent}]"])


def dictionary(entries: Mapping[str, str], more: str = "", indent: str = STEP) -> str:
    """`{"a": x, …}`, an entry a line, for a statement that begins at `indent`. more: a dictionary of others."""
    if more and not entries:
        return more
    first = [f"{indent}{STEP}**{more},"] if more else []
    return "\n".join(["{", *first, *(f"{indent}{STEP}{quoted(k)}: {v}," for k, v in entries.items()), f"{indent}}}"])


def table(entries: Mapping[str, Expr]) -> ast.Dict:
    """`{"a": x, …}`."""
    return ast.Dict([*map(literal, entries)], [*entries.values()])


def recorded(shown: Mapping[tuple[str, str], Expr]) -> Expr:
    """The call that shows a trace of inference these values, slot by slot and vertex by vertex."""
    slots: dict[str, dict[str, Expr]] = {}
    for (slot, vertex), value in shown.items():
        slots.setdefault(slot, {})[vertex] = value
    return call("record", table({slot: table(values) for slot, values in slots.items()}))


@dataclass(frozen=True)
class Piece:
    """Part of an expression: `of`, between parentheses where it binds less than `least`, with text around it."""

    of: Expr
    before: str = ""
    behind: str = ""
    least: int = 0

    def __str__(self) -> str:
        return f"{self.before}{text(self.of, self.least)}{self.behind}"


def filled(items: Iterable[Expr | ast.keyword], indent: str) -> list[str]:
    """`items` with a comma behind each, as many on a line as fit."""
    rows = [indent]
    for item in items:
        piece = Piece(item.value, f"{item.arg}=") if isinstance(item, ast.keyword) else Piece(item)
        flat = str(piece)
        if len(rows[-1]) + len(flat) + 2 > WIDTH and rows[-1] != indent:
            rows.append(indent)
        if len(indent) + len(flat) >= WIDTH:
            *first, last = _lines(piece, indent)
            rows[-1:] = [*first, f"{last},", indent]
        else:
            rows[-1] += f"{flat}, "
    return [row.rstrip() for row in rows if row != indent]


def folded(head: str, value: Expr) -> list[str]:
    """The statement `head`, indented as it is, which ends in ` = ` or the like or is empty, and behind it `value`.

    Where it is too long, a call's arguments or an assignment's value stand on lines of their own.
    """
    line, start = f"{head}{text(value)}", head.lstrip()
    if len(line) <= WIDTH:
        return [line]
    indent = head[: len(head) - len(start)]
    if opened := _opened(Piece(value), indent):
        return [f"{head}{opened[0].lstrip()}", *opened[1:]]
    return [f"{head}(", *_lines(Piece(value), indent + STEP), f"{indent})"] if start else [line]


def deleted(names: Iterable[str], indent: str) -> list[str]:
    """The lines that free values."""
    line = f"{indent}del {', '.join(names)}"
    if len(line) < WIDTH:
        return [line]
    return [f"{indent}del (", *filled(map(name, names), indent + STEP), f"{indent})"]


def _lines(piece: Piece, indent: str) -> list[str]:
    """An expression over several lines, where it is too long for one that ends in a comma."""
    line = f"{indent}{piece}"
    if len(line) < WIDTH:
        return [line]
    if opened := _opened(piece, indent):
        return opened
    operands = [*_operands(piece)]
    return [row for o in operands for row in _lines(o, indent)] if len(operands) > 1 else [line]


def _operands(piece: Piece) -> Iterator[Piece]:
    """The operands of a sum or a product, each but the first behind its sign."""
    e = piece.of
    if not isinstance(e, ast.BinOp) or not isinstance(e.op, CUT) or binds(e) < piece.least:
        yield piece
        return
    sign, own = text(ast.BinOp(name(""), e.op, name(""))).strip(), binds(e)
    yield from _operands(Piece(e.left, piece.before, "", own))
    yield from _operands(Piece(e.right, f"{sign} ", piece.behind, own + 1))


def _opened(piece: Piece, indent: str) -> list[str]:
    """A call, a list or a group, with a little more behind it perhaps, its contents on lines of their own.

    Behind the last entry of a call or a list a comma means nothing; behind that of a group or an index it would.
    """
    inside, least, behind = piece.of, piece.least, piece.behind
    before = piece.before
    while True:
        if binds(inside) < least:
            start, rows = "(", _lines(Piece(inside), indent + STEP)
            break
        match inside:
            case ast.UnaryOp(op=ast.USub(), operand=of):
                inside, least, before = of, binds(inside), f"{before}-"
                continue
            case ast.Call(func=function, args=args, keywords=keywords) if _dotted(function):
                start, rows = f"{text(function)}(", filled([*args, *keywords], indent + STEP)
            case ast.List(elts=entries):
                start, rows = "[", filled(entries, indent + STEP)
            case ast.ListComp(elt=made, generators=[clause]):
                through = Piece(clause.iter, f"for {text(clause.target).strip('()')} in ")
                start, rows = "[", [*_lines(Piece(made), indent + STEP), *_lines(through, indent + STEP)]
            case ast.Call(func=of) | ast.Attribute(value=of) | ast.Subscript(value=of) if not isinstance(of, ast.Name):
                behind = text(_upon(inside, name(""))) + behind
                inside, least = of, TIGHT
                continue
            case _:
                return []
        break
    closing = "]" if start == "[" else ")"
    if len(behind) + 1 > WIDTH // 2:
        return []
    return [f"{indent}{before}{start}", *rows, f"{indent}{closing}{behind}"]


def _dotted(e: Expr) -> bool:
    """Whether an expression is a name, or an attribute of one: no text behind it begins with a bracket."""
    while isinstance(e, ast.Attribute):
        e = e.value
    return isinstance(e, ast.Name) and e.id.replace(".", "").isidentifier()


def _upon(e: Expr, of: Expr) -> Expr:
    """A call, an attribute or an index of something else."""
    match e:
        case ast.Call(args=args, keywords=keywords):
            return ast.Call(of, args, keywords)
        case ast.Attribute(attr=attribute):
            return ast.Attribute(of, attribute)
        case ast.Subscript(slice=at):
            return ast.Subscript(of, at)
    raise AssertionError(ast.dump(e))
