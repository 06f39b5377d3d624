"""In-place operations of an exported program, made functional.

`torch.export` keeps `relu_`, `+=` and slice assignment as the user wrote them. Where nothing else looks at the same
memory afterwards, an in-place operation is its functional twin under another name; that covers ordinary models and is
done here. What writes through a view that is still read goes through torch's own functionalisation.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError, Location, first_line
from pccompile.ops import definition
from pccompile.ops.functions import overwritten, stop_gradient
from pccompile.ops.random import bernoulli_like

STATISTICS = torch.ops.aten._native_batch_norm_legit_functional.default
NO_GRAD = "pccompile_no_grad"
"""Marks operations that change a value in place where gradients are off."""
UNFOLLOWED = ("aten.einsum.default",)
"""Operators that may return a view without saying so, also to torch's own functionalisation."""


def op_name(target: Any) -> str:
    """The dialect's name of an fx target: `aten.add.Tensor`, `hop.cond`, or the function's own name."""
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.split('::')[1]}.{target._overloadname}"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"hop.{target.name()}"
    return getattr(target, "__name__", str(target))


def mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that `node` writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    arguments = node.target._schema.arguments
    positional = zip(arguments, node.args, strict=False)
    named = ((a, node.kwargs[a.name]) for a in arguments if a.name in node.kwargs)
    written: list[fx.Node] = []
    for a, value in (*positional, *named):
        if a.alias_info is not None and a.alias_info.is_write:
            written += [v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, fx.Node)]
    return written


def twin(target: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """The functional operator that computes what the in-place operator `target` writes."""
    name = op_name(target)
    if name == "aten.bernoulli_.float":
        return bernoulli_like()
    namespace, packet, which = name.split(".")
    for twin_name in (packet.removesuffix("_"), f"{packet}functional"):
        found = getattr(getattr(getattr(torch.ops, namespace), twin_name, None), which, None)
        if isinstance(found, torch._ops.OpOverload) and not found._schema.is_mutable:
            return found
    return None


def _in_full(n: fx.Node) -> tuple[Any, ...]:
    """The arguments of an in-place call by position, its own defaults written out: those of its twin may be others."""
    rest = [a for a in n.target._schema.arguments[len(n.args) :] if not a.kwarg_only]  # type: ignore[union-attr]
    return (*n.args, *(a.default_value for a in rest if a.name not in n.kwargs))


def storage(n: fx.Node) -> int | None:
    """The memory that the value of `n` lies in; None where it is no tensor or has no memory."""
    return memory_of(n.meta.get("val"))


def memory_of(value: Any) -> int | None:
    """The memory that a value lies in; None where it is no tensor or has no memory."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    if torch._C._functorch.is_functorch_wrapped_tensor(value):
        return None  # within torch.vmap
    return value.untyped_storage()._cdata  # type: ignore[no-any-return]


def sharing(n: fx.Node) -> list[fx.Node]:
    """The arguments that lie in the same memory as the result of `n`."""
    own = storage(n)
    return [] if own is None else [i for i in n.all_input_nodes if storage(i) == own]


def sources_of(n: fx.Node) -> list[fx.Node]:
    """The values that torch's own operators made the view `n` of."""
    call = n.args[0] if n.target is operator.getitem else n
    if not isinstance(call, fx.Node) or not isinstance(call.target, torch._ops.OpOverload):
        return []
    own = storage(n)
    return [i for i in call.all_input_nodes if storage(i) == own] if call.target.namespace == "aten" else []


def viewed(node: fx.Node) -> list[fx.Node]:
    """The arguments whose memory the result of `node` may share."""
    if node.target is operator.getitem:
        return [node.args[0]]  # type: ignore[list-item]
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    shared = sharing(node) + [
        value
        for a, value in zip(node.target._schema.arguments, node.args, strict=False)
        if a.alias_info is not None and isinstance(value, fx.Node)
    ]
    if definition(op_name(node.target)).returns_argument and isinstance(node.args[0], fx.Node):
        shared.append(node.args[0])
    return shared


def rename_in_place(graph: fx.Graph) -> tuple[bool, dict[fx.Node, fx.Node]]:
    """Replace in-place operations by their twins, where renaming is enough.

    Returns whether that was possible for all of them, and for each placeholder that was written to, its last value.
    Nothing has changed where it was not possible.
    """
    nodes = list(graph.nodes)
    position = {n: i for i, n in enumerate(nodes)}
    if not _renaming_is_enough(nodes, position):
        return False, {}
    root: dict[fx.Node, fx.Node] = {}
    written: dict[fx.Node, fx.Node] = {}
    for n in nodes:
        if not mutated(n):
            continue
        (target,) = mutated(n)
        n.target, n.args = twin(n.target), _in_full(n)
        value = _in_type(graph, n)
        value = _keeping_gradient(graph, target, value) if n.meta.get(NO_GRAD) else value
        root[value] = root.get(target, target)
        for user in list(target.users):
            if user in position and position[user] > position[n]:
                user.replace_input_with(target, value)
        if root[value].op == "placeholder":
            written[root[value]] = value
    return True, written


def _in_type(graph: fx.Graph, n: fx.Node) -> fx.Node:
    """What the twin `n` of an in-place operator computes, in the type of the value that it was written into."""
    wanted = n.meta["val"].dtype
    args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda a: a.meta["val"])
    if {t.dtype for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)} == {wanted}:
        return n
    computed = n.target(*args, **kwargs)  # type: ignore[operator]
    if computed.dtype == wanted:
        return n
    with graph.inserting_after(n):
        value = graph.call_function(torch.ops.aten.to.dtype, (n, wanted))
    value.meta, n.meta = n.meta, {**n.meta, "val": computed}
    n.replace_all_uses_with(value, delete_user_cb=lambda u: u is not value)
    return value


def _keeping_gradient(graph: fx.Graph, old: fx.Node, new: fx.Node) -> fx.Node:
    """What `old` is after `new` has been written into it where gradients are off."""
    with graph.inserting_after(new):
        value = graph.call_function(overwritten(), (old, new))
    value.meta = {k: v for k, v in new.meta.items() if k != NO_GRAD}
    new.replace_all_uses_with(value, delete_user_cb=lambda u: u is not value)
    return value


def _renaming_is_enough(nodes: list[fx.Node], position: dict[fx.Node, int]) -> bool:
    """Whether no view of what an in-place operation writes, nor what that is a view of, is read afterwards."""
    if any(_reads_statistics(n) for n in nodes):
        return False
    memory: dict[fx.Node, set[fx.Node]] = {}
    tensor: dict[fx.Node, fx.Node] = {n: n for n in nodes}
    for n in nodes:
        memory[n] = {n}
        for source in (*viewed(n), *mutated(n)):
            merged = memory[source] | memory[n]
            memory.update(dict.fromkeys(merged, merged))
        if not mutated(n):
            continue
        if len(mutated(n)) > 1 or twin(n.target) is None:  # type: ignore[arg-type]
            return False
        tensor[n] = tensor[mutated(n)[0]]
        views = [m for m in memory[n] if tensor[m] is not tensor[n]]
        if any(v.op == "placeholder" or any(position[u] > position[n] for u in v.users) for v in views):
            return False
    return True


def _reads_statistics(n: fx.Node) -> bool:
    """Whether others than batch norms use the running statistics that a batch norm writes, which no schema says."""
    if n.target is not torch.ops.aten.batch_norm.default or not n.args[5]:
        return False
    statistics = [a for a in n.args[3:5] if isinstance(a, fx.Node)]
    return any(user.target is not n.target for a in statistics for user in a.users)


def _detach_statistics(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Let no gradient flow through running statistics; return what stands for each of them."""
    detached = {}
    for n in list(graph.nodes):
        norm = n.args[0] if n.target is operator.getitem else None
        if isinstance(norm, fx.Node) and norm.target is STATISTICS and n.args[1] in (3, 4):
            with graph.inserting_after(n):
                detached[n] = graph.call_function(stop_gradient(), (n,))
            detached[n].meta = dict(n.meta)
            n.replace_all_uses_with(detached[n], delete_user_cb=functools.partial(operator.is_not, detached[n]))
    return detached


def _changed_leaves(n: fx.Node) -> set[str]:
    """The names of the placeholders, and of the values that are made, whose memory `n` changes."""
    open_, seen, found = mutated(n), set[fx.Node](), set()
    while open_:
        source = open_.pop()
        if source in seen:
            continue
        seen.add(source)
        before = [*viewed(source), *mutated(source)]
        if not before:
            found.add(source.name)
        open_ += before
    return found


def _spell_writes_without_gradient(program: ExportedProgram, constant: frozenset[int]) -> None:
    """Write what is changed in place where gradients are off as a change that has the gradient of what was there.

    Raises CompileError where a parameter is changed, or what is written cannot be computed apart.
    """
    specs = program.graph_signature.input_specs
    params = {s.arg.name: str(s.target) for s in specs if s.kind == InputKind.PARAMETER}
    plain = {s.arg.name for s in specs if s.kind == InputKind.BUFFER}
    plain |= {str(name) for i, name in enumerate(program.graph_signature.user_inputs) if i in constant}
    for n in [n for n in program.graph.nodes if n.meta.get(NO_GRAD) and mutated(n)]:
        changed = _changed_leaves(n)
        for name in changed & params.keys():
            hint = "change it outside the model"
            raise CompileError("a parameter is changed in place", Location(params[name]), hint)
        (target, *others), functional = mutated(n), twin(n.target)
        if others or functional is None:
            if not changed - plain:
                continue
            raise CompileError(
                f"{op_name(n.target)} changes a part of a value in place where gradients are off",
                hint="make a new tensor there instead, for example with torch.where",
            )
        meta = {k: v for k, v in n.meta.items() if k != NO_GRAD} | {"val": target.meta["val"]}
        with program.graph.inserting_before(n):
            value = _in_type(program.graph, _call(program.graph, functional, _in_full(n), n.kwargs, meta))
        with program.graph.inserting_before(n):
            value = _call(program.graph, overwritten(), (target, value), {}, meta)
            value = _call(program.graph, torch.ops.aten.copy_.default, (target, value), {}, meta)
        n.replace_all_uses_with(value)
        program.graph.erase_node(n)


def _call(graph: fx.Graph, function: Any, args: Any, kwargs: Any, meta: Mapping[str, Any]) -> fx.Node:
    """Append a call whose result is like what `meta` tells."""
    n = graph.call_function(function, args, kwargs)
    n.meta = dict(meta)
    return n


def stopped(graph: fx.Graph, value: fx.Node) -> fx.Node:
    """A value without its gradient, at the place where nodes are being inserted."""
    return _call(graph, stop_gradient(), (value,), {}, value.meta)


def name_dtypes(graph: fx.Graph) -> None:
    """Name the dtype of new float tensors: torch's default dtype may be another when the program runs."""
    for n in graph.nodes:
        value = n.meta.get("val")
        if not isinstance(n.target, torch._ops.OpOverload) or not isinstance(value, torch.Tensor):
            continue
        made = not any(isinstance(i.meta.get("val"), torch.Tensor) for i in n.all_input_nodes)
        if made and value.is_floating_point() and any(a.name == "dtype" for a in n.target._schema.arguments):
            n.update_kwarg("dtype", value.dtype)


def _vectorised(graph: fx.Graph) -> bool:
    """Whether there are calls of torch.vmap, whose operations have dimensions that the graph does not show."""
    return any(getattr(n.target, "__module__", "") == "torch._functorch.predispatch" for n in graph.nodes)


def functionalise(
    program: ExportedProgram, constant: frozenset[int] = frozenset()
) -> tuple[ExportedProgram, dict[fx.Node, fx.Node]]:
    """A program without in-place operations, and the values that its buffers and inputs take.

    constant: the positions of inputs that carry no gradient.
    """
    possible, written = (False, {}) if _vectorised(program.graph) else rename_in_place(program.graph)
    if possible:
        return program, _in_signature(program) | written
    changed = {storage(target) for n in program.graph.nodes for target in mutated(n)}
    for n in program.graph.nodes:
        if str(n.target) in UNFOLLOWED and sharing(n) and storage(n) in changed:
            raise CompileError(
                f"what {op_name(n.target)} returns as a view of its argument is changed in place, or its argument",
                hint="use permute, or clone it",
            )
    _spell_writes_without_gradient(program, constant)
    try:
        decomposed = program.run_decompositions({})
    except RuntimeError as e:
        unheld = "is mutated in the forward method" in str(e)
        what, hint = (
            ("a tensor that no module holds is changed in place", "register it as a buffer of a module")
            if unheld
            else (
                f"a value is changed in place through a view that cannot be followed: {first_line(e)}",
                "write it with slices, or make a new tensor there instead",
            )
        )
        raise CompileError(what, hint=hint) from e
    statistics = _detach_statistics(decomposed.graph)
    return decomposed, {p: statistics.get(v, v) for p, v in _in_signature(decomposed).items()}


def _in_signature(program: ExportedProgram) -> dict[fx.Node, fx.Node]:
    """The values that buffers and inputs take as a functional program's signature tells."""
    signature = program.graph_signature
    by_name = {n.name: n for n in program.graph.nodes}
    targets = {s.target: s.arg.name for s in signature.input_specs if s.kind in (InputKind.BUFFER, InputKind.PARAMETER)}
    updates = {targets[t]: v for v, t in signature.buffers_to_mutate.items()}
    updates |= {targets[t]: v for v, t in signature.parameters_to_mutate.items()}
    updates |= {t: v for v, t in signature.user_inputs_to_mutate.items()}
    return {by_name[p]: by_name[v] for p, v in updates.items()}
