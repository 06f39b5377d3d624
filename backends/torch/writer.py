"""Writes statements. Equal operations on equal values are written once; what does not move in a loop, before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pccompile.backends.torch.statements import Carried, Key, Label, Line, Loop, Role, Statement, label_of
from pccompile.ir import Arg, Ref
from pccompile.ops import OPS, bind


class Writer:
    """Appends statements to one function after another; `labels` says what a reader should see a value called."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.labels: dict[Ref, Label] = {}
        self.known: dict[object, Ref] = {}
        self.made: dict[Ref, Statement] = {}
        self.vertex = ""
        self._outer: list[Line] | None = None
        self._inner: set[Ref] = set()
        self._count = 0

    def fresh(self, label: Label) -> Ref:
        """A new value's name."""
        self._count += 1
        name = Ref(f"v{self._count}")
        self.labels[name] = label
        return name

    def __call__(self, op: str, *args: Arg, label: Label | None = None, **kwargs: Arg) -> Ref:
        """The value of `op(args)`, arguments as the operator's schema has them and of one shape."""
        return self.call(op, bind(op, args, kwargs), label or Label(op.split(".")[1]), even=True)

    def call(self, op: str, args: Mapping[str, Arg], label: Label, even: bool = False) -> Ref:
        """The value of `op(args)`, written unless it is there already."""
        key = (op, tuple((type(a), a) for a in args.values()))
        random = op in OPS and OPS[op].random
        if key not in self.known or random:
            self.known[key] = self.write(op, args, label, even)
        return self.known[key]

    def write(self, op: str, args: Mapping[str, Arg], label: Label, even: bool = False) -> Ref:
        """Append `op(args)`, before the loop if we are in one and nothing that it reads moves."""
        statement = Statement(self.fresh(label), op, args, self.vertex, even)
        self.made[statement.target] = statement
        if self._outer is not None and not set(statement.reads) & self._inner:
            self._outer.append(statement)
        else:
            self.lines.append(statement)
            if self._outer is not None:
                self._inner.add(statement.target)
        return statement.target

    def leaf(self, table: str, key: str, label: Label) -> Ref:
        """An entry of one of the model's tables."""
        return self.call("leaf", {"table": table, "key": key}, label)

    def given(self, text: str, label: Label) -> Ref:
        """A Python expression over the function's arguments."""
        return self.call("given", {"text": text}, label)

    def name(self, value: Ref, label: Label) -> Ref:
        """`value` under the name `label`: its own, if it has just been made, else an alias."""
        if self.labels[value] == label:
            return value
        for lines in (self.lines, self._outer):
            last = lines[-1] if lines else None
            if isinstance(last, Statement) and last.target == value and last.op != "leaf":
                last.vertex = self.vertex
                while value in self.made and (value == last.target or self.labels[value].role is Role.SUM):
                    self.labels[value] = label
                    first = self.made[value].args.get("self")
                    value = first if self.made[value].op == "aten.add.Tensor" and isinstance(first, Ref) else Ref("")
                return last.target
        return self.write("alias", {"of": value}, label)

    @contextmanager
    def loop(self, times: str, starts: Mapping[Key, Ref]) -> Iterator[dict[Key, Ref]]:
        """A loop that carries a value for each key of `starts`; what the dict holds at the end is handed on."""
        assert self._outer is None, "loops do not nest"
        phis = {(slot, name): self.fresh(label_of(slot, name)) for slot, name in starts}
        state = dict(phis)
        self._outer, self.lines, self._inner = self.lines, [], set(phis.values())
        yield state
        body = [s for s in self.lines if isinstance(s, Statement)]
        carried = [Carried(phis[k], starts[k], state[k]) for k in starts]
        self.known = {k: v for k, v in self.known.items() if v not in self._inner}
        self.lines, self._outer = self._outer, None
        self.lines.append(Loop(times, carried, body))

    def take(self) -> list[Line]:
        """The lines written so far; writing goes on in another function."""
        lines, self.lines = self.lines, []
        return lines
