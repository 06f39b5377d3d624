"""What a statement computes, as an expression."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from pccompile.backends.torch.code import Expr, call, literal, members, method, name, quoted, template
from pccompile.backends.torch.dataflow import Dataflow
from pccompile.backends.torch.spell import Speller
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

    def of(self, s: Statement) -> Expr:
        """What a statement computes."""
        spelled, inlined = self.names.spelled, self.names.inlined
        if s.each:
            return self.of_each(s)
        match s.op:
            case "leaf":
                entry = name(self.entry(s.args["table"], s.args["key"]))
                return method(entry, "clone") if s.args.get("clone") else entry
            case "given":
                if "table" in s.args:
                    return name(self.entry(s.args["table"], s.args["key"]))
                given = template(s.args["text"])
                self.speller.device |= any(isinstance(e, ast.Name) and e.id == "device" for e in ast.walk(given))
                return given
            case "alias":
                return spelled(s.args["of"])
            case "several":
                return members(map(spelled, s.args["of"]))
            case "pick":
                return ast.Subscript(spelled(s.args["of"]), literal(s.args["index"]))
            case "mix":
                return self.speller.mix(s.args, spelled)
            case "clamp" | "clamp_constants":
                outputs = ast.Tuple([*map(spelled, s.args["outputs"])])
                constants = [spelled(s.args["constants"])] if "constants" in s.args else []
                return call("clamp_errors" if s.op == "clamp" else s.op, outputs, name("targets"), *constants)
        if self.flow.labels[s.target].role is Role.GRADIENT and s.op in ("aten.neg.default", "aten.mul.Tensor"):
            source = s.args["self"]
            if source in inlined and fresh(self.flow.made[source], self.flow.made):
                return scaled(inlined[source], s)
        if s.over and s.op == "aten.mul.Tensor" and self._views_its_own(s):
            return method(inlined[s.args["self"]], "mul_", self.speller.arg(s.args["other"], spelled))
        return self.speller.call(s.op, s.args, spelled)

    def of_each(self, s: Statement) -> Expr:
        """The list of what a statement computes of each member of its lists."""
        lists: dict[Ref, str] = {}
        each = self._member(s, lists)
        through, own = [self.names.spelled(r) for r in lists], [name(n) for n in lists.values()]
        whole = through[0] if len(own) == 1 else call("zip", *through)
        target = own[0] if len(own) == 1 else ast.Tuple([*own])
        return ast.ListComp(each, [ast.comprehension(target, whole, [], 0)])

    def _member(self, s: Statement, lists: dict[Ref, str]) -> Expr:
        """What a statement computes of the members that are called as `lists` says, which grows by what it reads."""

        def spelled(value: Ref) -> Expr:
            inner = self.flow.made.get(value)
            if value not in s.each:
                return self.names.spelled(value)
            if inner is not None and inner.each and value in self.names.inlined:
                return self._member(inner, lists)
            if len(lists) == len(self.members):
                self.members.append(self.names.namer("error"))
            return name(lists.setdefault(value, self.members[len(lists)]))

        return self.speller.call(s.op, s.args, spelled)

    def _views_its_own(self, s: Statement) -> bool:
        """Whether a statement reads another shape of memory that nothing else reads."""
        reader, source = s, self.flow.made.get(s.args["self"])
        while source is not None and source.target in self.names.inlined and definition(source.op).permutes:
            reader, source = source, self.flow.made.get(source.args["self"])
        return s.even and reader is not s and source is not None and self.flow.alone(source.target, reader)


def scaled(of: Expr, s: Statement) -> Expr:
    """A tensor, negated or multiplied by a number in place, as `s` says."""
    return method(of, "neg_") if s.op == "aten.neg.default" else method(of, "mul_", literal(s.args["other"]))
