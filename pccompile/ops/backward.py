"""Walks operations backwards by their rules: the messages of a vertex, and those of a program inside an operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pccompile.diagnostics import Collector, RuleError, first_line
from pccompile.ir import Arg, Fragment, Node, Ref, TensorType, Type, live, refs
from pccompile.ir.names import Namer
from pccompile.ops.builder import Builder
from pccompile.ops.functions import STOP
from pccompile.ops.registry import definition
from pccompile.ops.trace import traced_rule
from pccompile.ops.typer import Typer


class Backward:
    """What arrives at each value that `b` wants an error for, added up.

    `how` says how each rule was derived; `unsent` are the operations whose derivative is torch's or the model's own and
    sends nothing, not even zeros, to an argument that waits, with that argument.
    `feedback` says for weights what messages have in their place: nothing here.
    """

    def __init__(self, b: Builder, arrived: Mapping[str, Any], problems: Collector) -> None:
        self.b, self.problems = b, problems
        self.arrived: dict[str, Any] = dict(arrived)
        self.how: dict[str, str] = {}
        self.unsent: set[tuple[str, str]] = set()
        self.feedback: dict[str, str] = {}

    def run(self, nodes: Iterable[Node]) -> dict[str, Any]:
        """Send on what has arrived at `nodes`, the last of them first."""
        for n in reversed(tuple(nodes)):
            if n.name in self.arrived and n.name in self.b.wants and n.op != STOP:
                self.back(n)
        return self.arrived

    def back(self, node: Node) -> None:
        """Send what has arrived at `node` on to its arguments."""
        err = self.arrived[node.name]
        if node.op == "getitem":
            source, index = node["of"], node["index"]
            count = len(self.b.types[source])  # type: ignore[arg-type]
            whole = self.arrived.setdefault(str(source), [None] * count)
            whole[index] = self.added(whole[index], err)
            return
        err = tuple(err) if isinstance(err, list) else err
        self.how[node.name] = definition(node.op).family
        try:
            messages = self.messages(node, err)
        except (RuntimeError, NotImplementedError) as e:
            hint = "detach its result, or compute it outside the model"
            self.problems.add(f"no rule for {node.op}: {first_line(e)}", node.where, hint)
            return
        sent = set[str]()
        for argument, message in messages.items():
            sent |= self.deliver(node[argument], message)
        if self.how[node.name] == "traced":
            self.unsent |= {(node.name, a) for a in node.inputs if a in self.b.wants and a not in sent}

    def messages(self, node: Node, err: Any) -> Mapping[str, Any]:
        """What the operation's rule sends; torch's own derivative where the rule leaves out an argument that waits."""
        rule = definition(node.op).rule
        if rule is not None:
            sent = rule(self.b, node, err)
            if all(name in sent for name, a in node.args.items() if any(r in self.b.wants for r in refs([a]))):
                return sent
            self.how[node.name] = "traced"
        return traced_rule(self.b, node, err)

    def deliver(self, argument: Arg, message: Any) -> set[str]:
        """Add a message to what has arrived at an argument, and say at which; broadcasting and promotion are undone."""
        if isinstance(argument, tuple):
            pairs = zip(argument, message or (None,) * len(argument), strict=True)
            return set[str]().union(*(self.deliver(a, m) for a, m in pairs))
        if isinstance(argument, Ref) and message is not None and argument in self.b.wants:
            type_ = self.b.types[argument]
            if isinstance(type_, TensorType):
                message = self.b.reduce_to(message, type_)
            self.arrived[argument] = self.added(self.arrived.get(argument), message)
            return {argument}
        return set()

    def added(self, old: Ref | None, new: Ref) -> Ref:
        """The sum of two messages."""
        return new if old is None else self.b("aten.add.Tensor", old, new)


def reversed_fragment(
    fragment: Fragment, typer: Typer, wanted: Iterable[str], errors: Iterable[bool], name: str
) -> Fragment:
    """The messages of `fragment`: from its parameters and the errors of its results to those of `wanted` parameters.

    errors: which of the results have one. What no error reaches gets zeros. Raises RuleError.
    """
    types: dict[str, Type] = {**fragment.parameters, **{n.name: n.type for n in fragment.nodes}}
    problems, wanted = Collector(), list(wanted)
    namer = Namer(types)
    pairs = [(r, namer(f"err_{r}")) for r, there in zip(fragment.results, errors, strict=True) if there]
    given = {e: single(types[r]) for r, e in pairs}
    b = Builder({**types, **given}, typer, "sent_")
    b.wants = set(wanted) | _moved(fragment, wanted)
    backward = Backward(b, {}, problems)
    for r, e in pairs:
        backward.arrived[r] = backward.added(backward.arrived.get(r), Ref(e))
    arrived = backward.run(fragment.nodes)
    problems.raise_if_any(RuleError)
    sent = tuple(arrived[w] if w in arrived else b.zeros(fragment.parameters[w]) for w in wanted)
    nodes = live((*fragment.nodes, *b.nodes), sent)
    about = f"The messages of {fragment.name} to its parameters, Jᵀ err."
    return Fragment(name, {**fragment.parameters, **given}, nodes, sent, about)


def single(type_: Type) -> TensorType:
    """The type of a single tensor."""
    assert isinstance(type_, TensorType)
    return type_


def _moved(fragment: Fragment, wanted: Iterable[str]) -> set[str]:
    """The values that change with `wanted` and can carry an error."""
    moved = set(wanted)
    for n in fragment.nodes:
        kinds = n.type if isinstance(n.type, tuple) else (n.type,)
        carries = any(isinstance(t, TensorType) and t.differentiable for t in kinds)
        if carries and n.op != STOP and definition(n.op).family != "context" and any(i in moved for i in n.inputs):
            moved.add(n.name)
    return moved
