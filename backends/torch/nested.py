"""Programs that operations call, a branch or the body of a loop, as functions of the generated file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pccompile.backends.torch.optimise import mask_unread, without_dead
from pccompile.backends.torch.printer import Printer
from pccompile.backends.torch.spell import Speller
from pccompile.backends.torch.statements import Function, Label, Statement
from pccompile.backends.torch.writer import Writer
from pccompile.ir import Fragment, Node, map_refs
from pccompile.ir.names import Namer


def fragments_of(calls: Iterable[Statement | Node]) -> Iterator[Fragment]:
    """The programs that `calls` name, and those that these name."""
    for call in calls:
        for a in call.args.values():
            if isinstance(a, Fragment):
                yield from fragments_of(a.nodes)
                yield a


def print_fragments(speller: Speller, fragments: Sequence[Fragment], reserved: Iterable[str]) -> list[str]:
    """Add functions for `fragments` to the file; return what they need besides their parameters, each the same."""
    parts = [_Nested(f, speller, reserved) for f in fragments]
    dims = sorted(set().union(*(p.dims for p in parts)))
    device = ["device"] if any(p.device for p in parts) else []
    for p in parts:
        speller.helpers[p.name] = p.source([*dims, *device])
    speller.dims |= set(dims)
    speller.device |= bool(device)
    return [*dims, *device]


class _Nested:
    def __init__(self, fragment: Fragment, speller: Speller, reserved: Iterable[str]) -> None:
        self.name, self.about = speller.fragments[fragment], fragment.about
        outer = speller.dims, speller.device
        speller.dims, speller.device = set(), False
        namer = Namer(reserved)
        w = Writer()
        self.parameters = [namer(p) for p in fragment.parameters]
        env = {p: w.given(name, Label(name)) for p, name in zip(fragment.parameters, self.parameters, strict=True)}
        for n in fragment.nodes:
            env[n.name] = w.call(n.op, {k: map_refs(a, env.__getitem__) for k, a in n.args.items()}, Label(n.name))
        f = without_dead(Function(w.take(), {("result", str(i)): env[r] for i, r in enumerate(fragment.results)}))
        mask_unread(f)
        printer = Printer(f, w.labels, {}, {}, speller, lambda vertex: "", [*reserved, *self.parameters])
        self.lines = printer.run({})
        texts = dict(zip(env.values(), [*self.parameters], strict=False))
        self.results = [texts.get(r) or printer.names.text(r) for r in f.results.values()]
        self.dims, self.device = speller.dims, speller.device
        speller.dims, speller.device = outer

    def source(self, more: Sequence[str]) -> str:
        """The function, which also takes `more`."""
        head = f"def {self.name}({', '.join([*self.parameters, *more])}):"
        head += f'\n    """{self.about}"""' if self.about else ""
        return "\n".join([head, *self.lines, f"    return ({''.join(f'{r}, ' for r in self.results).strip()})"])
