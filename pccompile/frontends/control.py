"""`torch.cond`, `while_loop`, `scan` and `map` as operations that call programs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from pccompile.diagnostics import NOWHERE, CompileError, Location
from pccompile.frontends.functional import op_name, rename_in_place
from pccompile.frontends.memory import settle_memory
from pccompile.ir import DEVICE, Arg, Fragment, Ref, TensorType
from pccompile.ir.names import Namer
from pccompile.ops import Builder, Typer
from pccompile.ops.trace import inline

CONTROL = ("hop.cond", "hop.while_loop", "hop.scan", "hop.map_impl")
ABOUT = {
    "yes": "The branch that is taken where the condition holds.",
    "no": "The branch that is taken where the condition does not hold.",
    "test": "Whether there is another round.",
    "body": "One round of the loop.",
}
Call = tuple[str, dict[str, Arg]]


class Nested:
    """Reads the programs that control flow calls. `modules` is where they are found, `name` what they are called by."""

    def __init__(self, modules: torch.nn.Module, typer: Typer, name: str, where: Location = NOWHERE) -> None:
        self.modules, self.typer, self.name, self.where = modules, typer, name, where

    def call(self, op: str, args: Sequence[Any], types: Any) -> Call:
        """An operation of the dialect for the call `op(args)`, in which programs are still nodes of fx.

        types: the type of each value that the arguments name. Raises CompileError.
        """
        if op == "hop.cond":
            pred, yes, no, operands = args
            if not isinstance(pred, Ref):
                raise self.refusal("torch.cond on a size or a number", "write it as a Python if")
            first, second = (self.fragment(b, k, operands, types) for k, b in (("yes", yes), ("no", no)))
            branches = {"yes": _deciding(first, 0, second.decisions), "no": _deciding(second, first.decisions, 0)}
            return "pcc.cond", {"pred": pred, "operands": _tensors(operands), **branches}
        if op == "hop.while_loop":
            test, body, carried, extra = args
            given = (*carried, *extra)
            parts = {k: self.fragment(f, k, given, types) for k, f in (("test", test), ("body", body))}
            return "pcc.while_loop", {**parts, "carried": self.whole(carried), "extra": _tensors(extra)}
        body, carried, rows, extra = args if op == "hop.scan" else (args[0], (), *args[1:])
        row_types = {Ref(f"{r}_row"): _row(types[r]) for r in self.whole(rows)}
        given = (*carried, *row_types, *extra)
        part = self.fragment(body, "body", given, {**types, **row_types})
        return "pcc.scan", {"body": part, "carried": self.whole(carried), "rows": rows, "extra": _tensors(extra)}

    def whole(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """`values`, which must all be tensors."""
        if not all(isinstance(v, Ref) for v in values):
            raise self.refusal("a loop carries a number that is no tensor", "carry it as a tensor")
        return tuple(values)

    def fragment(self, body: fx.Node, role: str, operands: Sequence[Any], types: Any) -> Fragment:
        """The program that `body` names, called with `operands`. Raises CompileError."""
        module = self.modules.get_submodule(str(body.target))
        assert isinstance(module, fx.GraphModule)
        settle_memory(module.graph)
        possible, written = rename_in_place(module.graph)
        if not possible or written:
            raise self.refusal("control flow changes a value in place", "make a new tensor there instead")
        refs = [o for o in operands if isinstance(o, Ref)]
        namer = Namer()
        parameters: dict[str, TensorType] = {Ref(namer(o)): types[o] for o in refs}
        names = iter(parameters)
        given = [next(names) if isinstance(o, Ref) else o for o in operands]
        b = Builder(parameters, self.typer, "", self.where)
        constants = {n.target: getattr(module, n.target) for n in module.graph.nodes if n.op == "get_attr"}
        name = f"{self.name}_{role}"
        inner = Nested(module, self.typer, name, self.where)

        def nested(n: fx.Node, args: Sequence[Any]) -> Ref:
            op = op_name(n.target)
            if op not in CONTROL:
                raise self.refusal(f"no rule for {op} within control flow", "compute it outside")
            call, bound = inner.call(op, args, b.types)
            return b(call, **bound)

        try:
            results = inline(b, module.graph, given, constants, nested=nested)
        except NotImplementedError as e:
            raise self.refusal(f"control flow: {e}", "pass it as an operand") from e
        if not all(isinstance(r, Ref) for r in results):
            raise self.refusal("control flow returns a number that is no tensor", "return tensors")
        decided = _decisions(b) if role in ("yes", "no") else []
        return Fragment(name, parameters, tuple(b.nodes), (*results, *decided), ABOUT[role], len(decided))

    def refusal(self, what: str, hint: str) -> CompileError:
        """A refusal at the place of the call."""
        return CompileError(what, self.where, hint)


def _decisions(b: Builder) -> list[Ref]:
    """Which way the branches among the operations of `b` go, and those inside of them."""
    found: list[Ref] = []
    for n in [n for n in b.nodes if n.op == "pcc.cond"]:
        yes = n["yes"]
        assert isinstance(yes, Fragment)
        first = len(yes.results) - yes.decisions
        found += [n["pred"], *(b.get(Ref(n.name), first + i) for i in range(yes.decisions))]
    return found


def _deciding(branch: Fragment, before: int, after: int) -> Fragment:
    """A branch that says of so many decisions of the other branch, before and after its own, that they were not met."""
    if not before + after:
        return branch
    b = Builder({**branch.parameters, **{n.name: n.type for n in branch.nodes}}, Typer(), "")
    unmet = b("aten.full.default", (), False, dtype=torch.bool, device=DEVICE)
    first = len(branch.results) - branch.decisions
    results = (*branch.results[:first], *[unmet] * before, *branch.results[first:], *[unmet] * after)
    nodes = (*branch.nodes, *b.nodes)
    return replace(branch, nodes=nodes, results=results, decisions=len(results) - first)


def _tensors(values: Sequence[Any]) -> tuple[Ref, ...]:
    return tuple(v for v in values if isinstance(v, Ref))


def _row(type_: Any) -> Any:
    return type(type_)(type_.shape[1:], type_.dtype)
