"""What a statement computes, as an expression."""

from __future__ import annotations

from collections.abc import Mapping

from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.spell import Speller, atom, quoted
from pccompile.backends.torch.statements import Role, Statement, fresh
from pccompile.backends.torch.value_names import ValueNames
from pccompile.ir import Ref
from pccompile.ops import definition


class Expressions:
    """The expressions of one function. keys: how entries of tables are written whose key differs from call to call."""

    def __init__(
        self, flow: Dataflow, names: ValueNames, speller: Speller, keys: Mapping[tuple[str, str], str]
    ) -> None:
        self.flow, self.names, self.speller, self.keys = flow, names, speller, keys
        self.members: list[str] = []
        """What members of lists are called where each of them is written about."""

    def entry(self, table: str, key: str) -> str:
        """An entry of a table."""
        return f"{table}[{self.keys.get((table, key)) or quoted(key)}]"

    def of(self, s: Statement) -> str:
        """What a statement computes."""
        spell, inlined = self.names.spell, self.names.inlined
        if s.each:
            return self.of_each(s)
        match s.op:
            case "leaf":
                return self.entry(s.args["table"], s.args["key"]) + (".clone()" if s.args.get("clone") else "")
            case "given":
                return self.entry(s.args["table"], s.args["key"]) if "table" in s.args else str(s.args["text"])
            case "alias":
                return spell(s.args["of"])
            case "several":
                return f"[{', '.join(map(spell, s.args['of']))}]"
            case "pick":
                return f"{spell(s.args['of'])}[{s.args['index']}]"
            case "mix":
                return self.speller.mix(s.args, spell)
            case "clamp" | "clamp_constants":
                outputs = ", ".join(map(spell, s.args["outputs"]))
                constants = f", {spell(s.args['constants'])}" if "constants" in s.args else ""
                name = "clamp_errors" if s.op == "clamp" else s.op
                return f"{name}(({outputs},), targets{constants})"
        if self.flow.labels[s.target].role is Role.GRADIENT and s.op in ("aten.neg.default", "aten.mul.Tensor"):
            source = s.args["self"]
            if source in inlined and fresh(self.flow.made[source], self.flow.made):
                return f"{atom(inlined[source])}.{scaling(s)}"
        if s.over and s.op == "aten.mul.Tensor" and self._views_its_own(s):
            return f"{atom(inlined[s.args['self']])}.mul_({self.speller.arg(s.args['other'], spell)})"
        return self.speller.call(s.op, s.args, spell)

    def of_each(self, s: Statement) -> str:
        """The list of what a statement computes of each member of its lists."""
        lists: dict[Ref, str] = {}
        text = self._member(s, lists)
        through = [self.names.spell(r) for r in lists]
        if len(lists) == 1:
            return f"[{text} for {', '.join(lists.values())} in {through[0]}]"
        return f"[{text} for {', '.join(lists.values())} in zip({', '.join(through)})]"

    def _member(self, s: Statement, lists: dict[Ref, str]) -> str:
        """What a statement computes of the members that are called as `lists` says, which grows by what it reads."""

        def spell(value: Ref) -> str:
            inner = self.flow.made.get(value)
            if value not in s.each:
                return self.names.spell(value)
            if inner is not None and inner.each and value in self.names.inlined:
                return self._member(inner, lists)
            if len(lists) == len(self.members):
                self.members.append(self.names.namer("error"))
            return lists.setdefault(value, self.members[len(lists)])

        return self.speller.call(s.op, s.args, spell)

    def _views_its_own(self, s: Statement) -> bool:
        """Whether a statement reads another shape of memory that nothing else reads."""
        reader, source = s, self.flow.made.get(s.args["self"])
        while source is not None and source.target in self.names.inlined and definition(source.op).permutes:
            reader, source = source, self.flow.made.get(source.args["self"])
        return s.even and reader is not s and source is not None and self.flow.alone(source.target, reader)


def scaling(s: Statement) -> str:
    """The method call that negates a tensor, or multiplies it by a number, in place."""
    return "neg_()" if s.op == "aten.neg.default" else f"mul_({s.args['other']!r})"
