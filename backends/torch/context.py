"""What prediction hands on, where blocks make and read it: kept together, read by its place, or taken as it goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from pccompile.backends.torch.code import Expr, name
from pccompile.backends.torch.layout import listed
from pccompile.backends.torch.spell import Spelled
from pccompile.backends.torch.statements import Block, Function, Loop, Statement, loops_of
from pccompile.ir import Ref

FEWEST = 2
"""So many values at least are kept together."""
MOST = 3
"""In so many pieces at most."""


def taken_once(f: Function, context: Collection[Ref]) -> list[Ref]:
    """The values of `context` that a call of a block and nothing else reads, in the order in which they are taken.

    A block takes them itself where all its calls have them to take, so that it can free them; otherwise a call hands
    them on as they leave the context. There are none in a function with loops.
    """
    if any(isinstance(x, Loop) for x in f.lines):
        return []
    reads = Counter([*f.results.values(), *(r for x in f.lines for r in x.reads)])
    once = {r for s in f.statements() if s.block for r in s.reads if r in context and reads[r] == 1}
    for block, calls in _calls(f).items():
        columns = zip(block.values, *(s.args["values"] for s in calls), strict=True)
        block.taken = tuple(own for own, *values in columns if once.issuperset(values))
        block.freed = frozenset(block.taken)
    taken: list[Ref] = []
    for s in f.statements():
        if s.block:
            pairs = list(zip(s.block.values, s.args["values"], strict=True))
            taken += [r for own, r in pairs if r in once and own not in s.block.taken]
            taken += [r for own, r in pairs if own in s.block.taken]
    return taken


def take_none(f: Function) -> None:
    """Let no block take anything itself."""
    for block in _calls(f):
        block.taken, block.freed = (), frozenset()


def read_by_calls(f: Function, context: Mapping[Ref, int]) -> dict[Ref, int]:
    """The values of `context` that nothing but calls of blocks reads, each with its place; blocks are handed them in
    this order."""
    others = {r for s in f.statements() if not s.block for r in s.reads} | {*f.results.values()}
    for loop in loops_of(f.lines):
        others |= {r for c in loop.carried for r in (c.start, c.next)} | {*loop.shown}
    places: dict[Ref, int] = {}
    for block, calls in _calls(f).items():
        places |= {r: context[r] for s in calls for r in s.reads if r in context and r not in others}
        middle = calls[len(calls) // 2].args["values"]
        order = sorted(range(len(middle)), key=lambda i: (middle[i] in places, places.get(middle[i], 0)))
        block.values = tuple(block.values[i] for i in order)
        for s in calls:
            s.args = {**s.args, "values": tuple(s.args["values"][i] for i in order)}
    return places


def kept_together(f: Function, context: Mapping[Ref, int]) -> dict[Ref, list[Ref]]:
    """By calls: those of their results that are for the context only, and stand there in a few pieces."""
    parts: dict[Ref, list[Statement]] = {}
    reads = Counter([*f.results.values(), *(r for x in f.lines for r in x.reads)])
    for s in f.statements():
        if s.op == "getitem":
            parts.setdefault(s.args["of"], []).append(s)
    members_of: dict[Ref, list[Ref]] = {}
    for block, calls in _calls(f).items():
        if len(block.returned) < FEWEST or any(len(parts.get(s.target, ())) != len(block.returned) for s in calls):
            continue
        rows = [[p.target for p in sorted(parts[s.target], key=lambda p: int(p.args["index"]))] for s in calls]
        kept = [
            i for i, column in enumerate(zip(*rows, strict=True)) if all(r in context and not reads[r] for r in column)
        ]
        middle = rows[len(rows) // 2]
        order = [i for i in range(len(middle)) if i not in kept] + sorted(kept, key=lambda i: context[middle[i]])
        block.returned = tuple(block.returned[i] for i in order)
        for s, row in zip(calls, rows, strict=True):
            for p in parts[s.target]:
                p.args = {**p.args, "index": order.index(p.args["index"])}
            members = [row[i] for i in order][len(order) - len(kept) :]
            if len(members) >= FEWEST and len(pieces("kept", members, context)) <= MOST:
                members_of[s.target] = members
    return members_of


def pieces(name: str, members: Sequence[Ref], context: Mapping[Ref, int]) -> dict[Ref, str]:
    """A list called `name` as parts that stand together in the context, each by its first value."""
    texts: dict[Ref, str] = {}
    i = 0
    while i < len(members):
        j = i + 1
        while j < len(members) and context[members[j]] == context[members[i]] + j - i:
            j += 1
        whole = i == 0 and j == len(members)
        texts[members[i]] = f"{name}[{i}]" if j == i + 1 else f"*{name}" if whole else f"*{name}[{i}:{j}]"
        i = j
    return texts


def opened(names: Sequence[str], part: str, by_place: bool) -> list[str]:
    """The lines that read the context, or the `part` of it that has these names; `_` is what is not needed.

    by_place: some of it is read by its place, so that what is named may be too.
    """
    if all(name == "_" for name in names):
        return []
    whole = f"    {listed(names)} = context{part}"
    single = [f"    {name} = context[{i}]" for i, name in enumerate(names) if name != "_"]
    return single if by_place and not part and len(single) < len(whole.splitlines()) else [whole]


def arguments(s: Statement, block: Block, spelled: Spelled, places: Mapping[Ref, int]) -> list[Expr]:
    """The arguments of a call: tables, values, those that stand together in the context as a part of it, and words."""
    values = [r for own, r in zip(block.values, s.args["values"], strict=True) if own not in block.taken]
    parts: list[Expr] = []
    i = 0
    while i < len(values):
        first = places.get(values[i])
        j = i + 1
        while first is not None and j < len(values) and places.get(values[j]) == first + j - i:
            j += 1
        together = None if first is None or j == i + 1 else f"*context[{first}:{first + j - i or ''}]"
        parts.append(spelled(values[i]) if together is None else name(together))
        i = j
    context = ["context"] if block.taken else []
    return [*map(name, (*block.tables, *context)), *parts, *map(name, (*s.args["words"], *block.more))]


def _calls(f: Function) -> dict[Block, list[Statement]]:
    calls: dict[Block, list[Statement]] = {}
    for s in f.statements():
        if s.block:
            calls.setdefault(s.block, []).append(s)
    return calls
