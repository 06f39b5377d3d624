"""Values that were detached: they share memory with what they were detached from, and have gradients of their own.

What is written through such a value is seen by whoever reads its source, whose gradient stays what it was. Where
nothing that is written has a gradient, that is a write into the source where gradients are off. Else the detached value
gets a memory of its own, and each of the two follows what is written into the other.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CompileError
from pccompile.frontends.functional import NO_GRAD, memory_of, mutated, op_name, sharing, sources_of, stopped, storage
from pccompile.ops.functions import stop_gradient

CLONE, COPY = torch.ops.aten.clone.default, torch.ops.aten.copy_.default


def follow_detached(graph: fx.Graph) -> None:
    """Let who reads a detached value, its source, or a view of either see what was written into their memory by then.

    Raises CompileError where a copy of what is written would have other views than it.
    """
    position = {n: i for i, n in enumerate(graph.nodes)}
    shared = [n for n in graph.nodes if _shares_memory(n)]
    if not shared:
        return
    learning = _with_gradient(graph)
    alone = {n for n in shared if _only_reader(n)}
    apart = [n for n in shared if n not in alone and _learns(n, learning, position)]
    if apart:
        _follow_each_other(graph, [(_own_memory(graph, n), _source(n)) for n in apart])
    waiting = [n for n in graph.nodes if _shares_memory(n) and n not in alone]
    while waiting:
        waiting += _write_through(graph, waiting.pop(), learning)
    _read_anew(graph, alone)


def _shares_memory(n: fx.Node) -> bool:
    """Whether a value is detached from another, with which it shares memory."""
    return n.target is stop_gradient() and storage(n) == storage(_source(n)) is not None


def _read_anew(graph: fx.Graph, alone: set[fx.Node]) -> None:
    """Let what reads a detached value after its memory was written to detach it once more."""
    position = {n: i for i, n in enumerate(graph.nodes)}
    writes: dict[int | None, list[int]] = {}
    for n in graph.nodes:
        for target in mutated(n):
            writes.setdefault(storage(target), []).append(position[n])
    for n in [n for n in graph.nodes if _shares_memory(n) and n not in alone]:
        later = [w for w in writes.get(storage(n), ()) if w > position[n]]
        for seen in _behind(n) if later else ():
            for reader in [u for u in seen.users if u in position and seen not in sources_of(u)]:
                if later[0] < position[reader]:
                    with graph.inserting_before(reader):
                        reader.replace_input_with(seen, _anew(graph, seen))


def _source(detached: fx.Node) -> fx.Node:
    """What a value was detached from."""
    source = detached.args[0]
    assert isinstance(source, fx.Node)
    return source


def _only_reader(detached: fx.Node) -> bool:
    """Whether a value is new and read by nothing but what detaches it, as where a layer is made in `forward`.

    It lies side by side in memory: what is detached by an operator of ours does, and has other views else.
    """
    source, value = _source(detached), detached.meta["val"]
    if value.stride() != value.clone().stride():
        return False
    while source.op == "call_function" and len(source.users) == 1:
        before = sharing(source)
        if len(before) != 1:
            return not before
        (source,) = before
    return False


def _write_through(graph: fx.Graph, detached: fx.Node, learning: set[fx.Node]) -> list[fx.Node]:
    """Let what changes a detached value or a view of it in place change its source, without its gradient.

    Returns the detached values that stand for what those writes return.
    """
    source, returned = _source(detached), []
    for seen in _behind(detached):
        for writer in [u for u in seen.users if seen in mutated(u)]:
            with graph.inserting_before(writer):
                target = source if seen is detached else _view_of(graph, seen, detached, source)
                given = {a: stopped(graph, a) if _root(a) in learning else a for a in writer.all_input_nodes}
            given[seen] = target
            writer.args = fx.node.map_arg(writer.args, given.__getitem__)
            writer.kwargs = fx.node.map_arg(writer.kwargs, given.__getitem__)
            writer.meta[NO_GRAD] = True
            with graph.inserting_after(writer):
                after = stopped(graph, target)
            after.meta = dict(seen.meta)
            writer.replace_all_uses_with(after, delete_user_cb=lambda u, own=after: u is not own)  # type: ignore[misc]
            returned.append(after)
    return returned


def _view_of(graph: fx.Graph, seen: fx.Node, detached: fx.Node, source: fx.Node) -> fx.Node:
    """The view of `source` that `seen` is of what was detached from it."""
    if seen is detached:
        return source
    before = seen.all_input_nodes if seen.target is operator.getitem else sources_of(seen)
    known = {b: _view_of(graph, b, detached, source) for b in before}
    return graph.node_copy(seen, lambda a: known.get(a, a))


def _behind(detached: fx.Node) -> list[fx.Node]:
    """A detached value and the views of it."""
    chain = [detached]
    for n in chain:
        users = [g for u in n.users for g in ([u] if storage(u) is not None else u.users)]
        chain += [u for u in users if n in sources_of(u) and not mutated(u) and u not in chain]
    return chain


def _anew(graph: fx.Graph, seen: fx.Node) -> fx.Node:
    """`seen`, a view of a detached value, of what its memory holds at the place where nodes are being inserted."""

    def again(argument: fx.Node) -> fx.Node:
        return _anew(graph, argument) if storage(argument) == storage(seen) and _is_detached(argument) else argument

    if seen.target is operator.getitem:
        call = graph.node_copy(_source(seen), again)
        return graph.node_copy(seen, lambda a: call)
    return graph.node_copy(seen, again)


def _is_detached(n: fx.Node) -> bool:
    """Whether a value is a view of one that is detached from another, with which it shares memory."""
    while not _shares_memory(n):
        before = sources_of(n)
        if not before:
            return False
        n = before[0]
    return True


# detached values into which something is written that has a gradient, which is read


def _root(n: fx.Node) -> fx.Node:
    """The value that `n` is a view of, or itself, with which it has its gradient in common."""
    while n.target is not stop_gradient() and (before := mutated(n) or sources_of(n)):
        n = before[0]
    return n


def _with_gradient(graph: fx.Graph) -> set[fx.Node]:
    """The values that may carry a gradient, for each view of a value that value: what is written into it is its own."""
    roots = set[fx.Node]()
    for n in graph.nodes:
        value = n.meta.get("val")
        exact = isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex())
        if exact or n.target is stop_gradient():
            continue
        if n.op in ("placeholder", "get_attr") or any(_root(i) in roots for i in n.all_input_nodes):
            roots.add(_root(n))
    return roots


def _members(detached: fx.Node) -> list[fx.Node]:
    """A detached value, the views of it, and what writes into them."""
    found = [detached]
    for n in found:
        users = [g for u in n.users for g in (u.users if _is_many(u) else [u])]
        found += [u for u in users if u not in found and n in (*mutated(u), *sources_of(u))]
    return found


def _is_many(n: fx.Node) -> bool:
    """Whether an operation has several results."""
    return isinstance(n.meta.get("val"), tuple | list)


def _learns(detached: fx.Node, learning: set[fx.Node], position: dict[fx.Node, int]) -> bool:
    """Whether something with a gradient is written into a detached value, and read there afterwards."""
    members = _members(detached)
    writers = [n for n in members if any(_root(a) in learning for a in n.all_input_nodes if a not in mutated(n))]
    first = min((position[w] for w in writers if mutated(w)), default=len(position))
    readers = {u for n in members for u in n.users if not _is_many(u)} - {*members}
    return any(position.get(u, 0) > first for u in readers)


def _own_memory(graph: fx.Graph, detached: fx.Node) -> fx.Node:
    """Give a detached value, its views, and what is detached from them in turn, a memory of their own; the value there.

    Raises CompileError where a copy of it, which lies side by side in memory, has other views.
    """
    with graph.inserting_after(detached):
        own = graph.call_function(CLONE, (detached,))
    own.meta = {**detached.meta, "val": detached.meta["val"].clone()}
    detached.replace_all_uses_with(own, delete_user_cb=lambda u: u is not own)
    memory, moved = storage(detached), {own}
    for n in graph.nodes:
        known = n.target is operator.getitem or getattr(n.target, "namespace", "") in ("aten", "pccompile")
        if not known or moved.isdisjoint(n.all_input_nodes):
            continue
        lay_there = storage(n) == memory or (_is_many(n) and any(storage(u) == memory for u in n.users))
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda i: i.meta["val"])
        value = args[0].detach() if n.target is stop_gradient() else n.target(*args, **kwargs)
        lies_there = storage(own) in [memory_of(v) for v in pytree.tree_leaves(value)]
        if lies_there != lay_there:
            what = f"{op_name(n.target)} of a detached value that is changed in place, not side by side in memory"
            raise CompileError(f"{what}, returns a view there and a copy elsewhere", hint="clone the detached value")
        if lies_there:
            n.meta["val"] = value
            moved.add(n)
    return own


def _follow_each_other(graph: fx.Graph, pairs: list[tuple[fx.Node, fx.Node]]) -> None:
    """Copy what is written into either of a detached value and its source into the other, where that is read later."""
    nodes = list(graph.nodes)
    position = {n: i for i, n in enumerate(nodes)}
    last_read: dict[int | None, int] = {}
    for i, n in enumerate(nodes):
        last_read.update((storage(read), i) for read in n.all_input_nodes)
    last_read |= {storage(n): len(nodes) for n in nodes if n.op == "placeholder"}
    ways = [(a, b, max(position[a], position[b])) for pair in pairs for a, b in (pair, pair[::-1])]

    def copies(written: int | None, at: int, seen: set[int | None]) -> list[tuple[fx.Node, fx.Node]]:
        """What is to be copied from where to where once a memory was written at a place."""
        found = []
        for source, target, since in ways:
            if storage(source) == written and storage(target) not in seen and since < at:
                beyond = copies(storage(target), at, seen := seen | {storage(target)})
                if beyond or last_read.get(storage(target), -1) > at:
                    found += [(source, target), *beyond]
        return found

    for n in nodes:
        after = n
        for source, target in [c for w in mutated(n) for c in copies(storage(w), position[n], {storage(w)})]:
            with graph.inserting_after(after):
                after = graph.call_function(COPY, (target, source))
            after.meta = {**n.meta, "val": target.meta["val"], NO_GRAD: True}
