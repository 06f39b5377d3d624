"""Lines that fit a page: long lists and calls over several lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from pccompile.backends.torch.spell import quoted

WIDTH = 120
STEP = "    "
OPENING, CLOSING = "([{", ")]}"


def listed(names: Sequence[str], indent: str = STEP, room: int = WIDTH - 30) -> str:
    """`[a, b, c]`, for a statement that begins at `indent`; over several lines where it takes more than `room`."""
    line = f"[{', '.join(names)}]"
    if len(line) < room:
        return line
    return "\n".join(["[", *filled(names, indent + STEP), f"{indent}]"])


def dictionary(entries: Mapping[str, str], more: str = "", indent: str = STEP) -> str:
    """`{"a": x, …}`, an entry a line, for a statement that begins at `indent`. more: a dictionary of others."""
    if more and not entries:
        return more
    first = [f"{indent}{STEP}**{more},"] if more else []
    return "\n".join(["{", *first, *(f"{indent}{STEP}{quoted(k)}: {v}," for k, v in entries.items()), f"{indent}}}"])


def filled(items: Sequence[str], indent: str) -> list[str]:
    """`items` with a comma behind each, as many on a line as fit."""
    rows = [indent]
    for item in items:
        if len(rows[-1]) + len(item) + 2 > WIDTH and rows[-1] != indent:
            rows.append(indent)
        if len(indent) + len(item) >= WIDTH:
            *first, last = _expression(item, indent)
            rows[-1:] = [*first, f"{last},", indent]
        else:
            rows[-1] += f"{item}, "
    return [row.rstrip() for row in rows if row != indent]


def recorded(shown: Mapping[tuple[str, str], str]) -> str:
    """The call that shows a trace of inference these values, slot by slot and vertex by vertex."""
    slots: dict[str, list[str]] = {}
    for (slot, name), text in shown.items():
        slots.setdefault(slot, []).append(f"{quoted(name)}: {text}")
    entries = [f"{quoted(slot)}: {{{', '.join(parts)}}}" for slot, parts in slots.items()]
    return f"record({{{', '.join(entries)}}})"


def folded(line: str) -> list[str]:
    """`line` as it is, or where it is too long, a call's arguments or an assignment's value on lines of their own."""
    indent = line[: len(line) - len(line.lstrip())]
    if len(line) <= WIDTH or line.startswith(f"{indent}#"):
        return [line]
    at = re.search(r" \+?= ", _blanked(line))
    head, value = (line[: at.end()], line[at.end() :]) if at else (indent, line[len(indent) :])
    if opened := _opened(value, indent):
        return [head + opened[0].lstrip(), *opened[1:]]
    return [f"{head}(", *_expression(value, indent + STEP), f"{indent})"] if at else [line]


def _expression(text: str, indent: str) -> list[str]:
    """An expression over several lines, where it is too long for one that ends in a comma."""
    if len(indent) + len(text) < WIDTH:
        return [indent + text]
    if opened := _opened(text, indent):
        return opened
    operands = _operands(text)
    return [line for o in operands for line in _expression(o, indent)] if len(operands) > 1 else [indent + text]


def _opened(text: str, indent: str) -> list[str]:
    """A call, a list or a group, with a little more behind it perhaps, its contents on lines of their own.

    Behind the last entry of a call or a list a comma means nothing; behind that of a group or an index it would.
    """
    start = re.match(r"[-+*@ ]*(for [\w, ]+ in )?(del \(|[\w.]*\(|\[)", text)
    end = _closing(text, start.end() - 1) if start else -1
    if start is None or len(text) - end > WIDTH // 2 or len(_operands(text)) > 1:
        return []
    inside, group = text[start.end() : end], start.group().lstrip("-+*@ ") == "("
    if clauses := _clauses(inside):
        lines = [line for clause in clauses for line in _expression(clause, indent + STEP)]
    else:
        lines = _expression(inside, indent + STEP) if group else filled(_arguments(inside), indent + STEP)
    return [indent + start.group(), *lines, indent + text[end:]]


def _clauses(text: str) -> list[str]:
    """What a comprehension makes, and what it goes through; nothing for other text."""
    depth, blank = 0, _blanked(text)
    for i, c in enumerate(blank):
        depth += (c in OPENING) - (c in CLOSING)
        if depth == 0 and blank[i:].startswith(" for "):
            return [text[:i], text[i + 1 :]]
    return []


def _operands(text: str) -> list[str]:
    """The operands of a sum or a product, each but the first behind its sign."""
    depth, cuts, blank = 0, [0], _blanked(text)
    for i, c in enumerate(blank):
        depth += (c in OPENING) - (c in CLOSING)
        if depth == 0 and i and re.match(r" [-+*@] ", blank[i:]):
            cuts.append(i + 1)
    return [text[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


def _closing(text: str, start: int) -> int:
    """Where the bracket closes that opens at `start`."""
    depth = 0
    for i, c in enumerate(_blanked(text)):
        depth += ((c in OPENING) - (c in CLOSING)) * (i >= start)
        if depth == 0 and i > start:
            return i
    return -1


def _arguments(text: str) -> list[str]:
    """The parts of a call's arguments, split at the commas between them."""
    depth, start, parts = 0, 0, []
    for i, c in enumerate(_blanked(text)):
        depth += (c in OPENING) - (c in CLOSING)
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [p for p in (*parts, text[start:].strip()) if p]


def _blanked(text: str) -> str:
    """`text` with the contents of its string literals, which `quoted` wrote, made blank."""
    found, inside, skip = [], False, False
    for c in text:
        if inside and (skip or c == "\\"):
            skip = not skip
            found.append(" ")
            continue
        if c == '"':
            inside = not inside
        found.append(" " if inside else c)
    return "".join(found)


def deleted(names: Iterable[str], depth: int) -> str:
    """The line that frees values."""
    line = f"del {', '.join(names)}"
    return line if len(line) < WIDTH - len(STEP) * depth else f"del ({line[4:]})"
