"""What a rule multiplies an error by: the names that one message of a vertex really reads.

An operation of torch may give several gradients at once, each of which reads some of its arguments only.
"""

from __future__ import annotations

from pccompile.ir import Vertex
from pccompile.ops import definition

UNREAD = (("bias",), ("bias", "weight"), ())
"""Arguments that the first two results of a kernel of gradients do not read; the third is a sum of the error."""


def factors(v: Vertex, parent: str) -> set[str]:
    """The parents, and what the prediction computes, that the message of `v` to `parent` reads beside the error.

    What is computed of one parent alone, such as a weight's transpose, counts as that parent.
    """
    rules = {n.name: n for n in v.rules}
    found, seen, todo = set[str](), set[str](), [str(v.messages[parent])]
    while todo:
        name = todo.pop()
        if name in seen or name not in rules:
            found |= {name} if name not in rules else set()
            continue
        seen.add(name)
        n = rules[name]
        of = rules.get(str(n.args.get("of"))) if n.op == "getitem" else None
        if of is None or not definition(of.op).gradients:
            todo += map(str, n.inputs)
            continue
        index = n.args["index"]
        assert isinstance(index, int)
        if index == 2:
            todo.append(str(of.args.get("grad_output", of.args.get("grad_out"))))
        else:
            unread = {str(of.args[a]) for a in UNREAD[index] if a in of.args}
            todo += [i for i in map(str, of.inputs) if i not in unread]
    behind = computed_of(v)
    return {next(iter(behind[f])) if len(behind[f]) == 1 else f for f in found & behind.keys()}


def computed_of(v: Vertex) -> dict[str, set[str]]:
    """For each parent, itself, and for what the prediction of `v` computes the parents that it is computed of."""
    behind: dict[str, set[str]] = {p: {p} for p in v.parents}
    for n in v.prediction:
        behind[n.name] = {p for i in n.inputs for p in behind.get(str(i), ())}
    return behind
