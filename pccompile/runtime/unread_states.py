"""States that a model writes and never reads, under an inference that takes in what the loss says and nothing else.

A weight that a hook makes anew before each call, by pruning or weight normalisation, is one. Nothing of it reaches
later calls, so it is no output that an error could come back to, and no vertex of its own. What the model holds after a
call is the value that eager torch would hold; whoever asks for a gradient through it is told that there is none.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from torch import Tensor

from pccompile.diagnostics import CompileError, Location
from pccompile.frontends.imported import Imported
from pccompile.frontends.states import State
from pccompile.ir import Node, Ref
from pccompile.ir.names import Namer
from pccompile.ops.functions import STOP
from pccompile.passes.activity import active
from pccompile.runtime.hook_calls import only_shown


def set_apart(imported: Imported, needs_loss: bool) -> tuple[Imported, frozenset[str]]:
    """`imported` with the states that it does not read behind a stop-gradient, where they carry an error; their names.

    needs_loss: inference takes in a loss; without it errors come back to states as to other outputs, and nothing
    changes. A value that is written elsewhere too stays as it is.
    """
    if not needs_loss:
        return imported, frozenset()
    graph, types = imported.graph, imported.graph.types
    count = len(graph.outputs) - graph.further
    elsewhere = {*imported.writes.values(), *graph.updates.values(), *_values(imported, read=True)}
    unread = (_values(imported, read=False) & active(graph)) - elsewhere
    namer = Namer((*types, *graph.dims))
    apart = {v: Ref(namer(f"{v}_kept")) for v in dict.fromkeys(graph.outputs[count:]) if v in unread}
    stops = tuple(Node(kept, STOP, {"x": Ref(v)}, types[v]) for v, kept in apart.items())
    graph = replace(
        graph,
        nodes=(*graph.nodes, *stops),
        outputs=(*graph.outputs[:count], *(apart.get(v, v) for v in graph.outputs[count:])),
        states={path: v if v in elsewhere else apart.get(v, v) for path, v in graph.states.items()},
    )

    def moved(state: State) -> State:
        return replace(state, after=tuple(apart.get(a, a) if isinstance(a, Ref) else a for a in state.after))

    states = tuple(map(moved, imported.states))
    return replace(imported, graph=graph, states=states), frozenset(apart.values())


def _values(imported: Imported, read: bool) -> set[str]:
    return {a for s in imported.states if s.read is read for a in s.after if isinstance(a, Ref)}


def unseen(value: Tensor, path: str) -> Tensor:
    """What a state holds after a call, from which a gradient is refused by the name of its place."""
    return only_shown(value, functools.partial(_refusal, path))


def _refusal(path: str) -> CompileError:
    what = f"a loss reads the state {path}, through which inference by the loss that was compiled in sends nothing"
    hint = 'compute it from the parameters where the loss needs it, or use algorithm="exact"'
    return CompileError(what, Location(path), hint)
