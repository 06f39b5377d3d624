"""Blocks, the runs that a function repeats, as functions of the generated file; and their calls."""

from __future__ import annotations

from collections.abc import Iterable

from pccompile.backends.torch.code import name
from pccompile.backends.torch.layout import STEP, WIDTH, filled, listed
from pccompile.backends.torch.printer import Printer
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Block, Function
from pccompile.ir.names import Namer


def print_blocks(blocks: Iterable[Block], speller: Speller, reserved: Iterable[str], adds: bool) -> list[str]:
    """The functions of `blocks`, each followed by two empty lines. What they need besides is noted in the blocks.

    adds: whether sums are added up in the memory of their first term.
    """
    return [line for block in blocks for line in [*_function(block, speller, reserved, adds), "", ""]]


def _function(block: Block, speller: Speller, reserved: Iterable[str], adds: bool) -> list[str]:
    outer = speller.dims, speller.device
    speller.dims, speller.device = set(), False
    known = {*reserved, *block.tables, *block.words}
    namer = Namer(known)
    names = {r: namer(block.labels[r].text) for r in block.values}
    results = {("value", str(i)): r for i, r in enumerate(block.returned)} | dict(block.stored)
    heading = lambda vertex: block.headings.get(vertex, "")  # noqa: E731
    printer = Printer(Function([*block.lines], results), block.labels, names, {}, speller, heading, known, block.keys)
    printer.flow.adds, printer.freed = adds, set(block.freed)
    printer.flow.hand_over(block.owned)
    entries = {key: printer.expressions.entry(*place) for key, place in block.places.items()}
    alone = (key for key, r in block.stored.items() if key not in block.copied and r not in block.returned)
    printer.names.stored = {
        block.stored[key]: entries[key] for key in alone if block.stored[key] not in printer.flow.readers
    }
    lines = printer.run({})
    for key, r in block.stored.items():
        if printer.names.text(r) != entries[key]:
            lines += [f"    {entries[key]} = {printer.names.text(r)}{'.clone()' if key in block.copied else ''}"]
    block.more = (*sorted(speller.dims), *(["device"] if speller.device else []))
    speller.dims, speller.device = outer[0] | speller.dims, outer[1] or speller.device
    handed = [n for r, n in names.items() if r not in block.taken]
    given = [*block.tables, *(["context"] if block.taken else []), *handed, *block.words, *block.more]
    taken = [names[r] for r in block.taken]
    start = [f"    {listed(taken)} = [context.pop() for _ in range({len(taken)})]"] if len(taken) > 1 else []
    start += [f"    {taken[0]} = context.pop()"] if len(taken) == 1 else []
    head = [f"def {block.name}({', '.join(given)}):"]
    if len(head[0]) > WIDTH:
        head = [f"def {block.name}(", *filled(map(name, given), STEP), "):"]
    about = [f"    # {block.about}"] if block.about else []
    returned = [f"    return {', '.join(map(printer.names.text, block.returned))}"] if block.returned else []
    while lines and not lines[0] and not about and not start:
        lines.pop(0)
    return [*head, *about, *start, *lines, *returned]
