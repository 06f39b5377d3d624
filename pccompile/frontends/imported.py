"""A captured model: its graph, and what is needed to call that as the model is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import fx
from torch.utils import _pytree as pytree

from pccompile.diagnostics import Location
from pccompile.frontends.forward_hooks import HookRecord
from pccompile.frontends.paths import Reading
from pccompile.frontends.places import Place
from pccompile.frontends.states import State
from pccompile.ir import Graph, Ref
from pccompile.ops import Typer

Locate = Callable[[fx.Node], Location | None]


@dataclass(frozen=True)
class Imported:
    """A graph with what is needed to call it as the model is called.

    `inputs` gives for each leaf of the flattened arguments its name in the graph (None where it is no tensor),
    `outputs` for each leaf of the flattened result a name or, for a leaf that is not a tensor, its value. `writes` are
    the last values of inputs that the model changes in place, and `states` the attributes that it writes; both are
    among the graph's outputs. `learning`: it depends on which tensors require a gradient. `constants` are those of the
    graph's tensors that have no place in the model. `hooks` are those that run after the program, and what they are
    shown. `lifted` are those of the graph's buffers that lie in plain attributes which are states. `absolute`: it
    reads places that are counted from where the memory of an input starts. `path` is what Python read from tensors: the
    program is of the calls on which it reads the same. `asked` are the tensors among the arguments of which forward
    itself asks that they require a gradient (`x.requires_grad_()`).
    """

    graph: Graph
    typer: Typer
    inputs: tuple[str | None, ...]
    outputs: tuple[Ref | object, ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    tensors: Mapping[str, torch.Tensor]
    writes: Mapping[str, Ref] = field(default_factory=dict)
    learning: bool = False
    constants: frozenset[str] = frozenset()
    hooks: HookRecord | None = None
    states: tuple[State, ...] = ()
    lifted: frozenset[str] = frozenset()
    absolute: bool = False
    path: tuple[Reading, ...] = ()
    asked: tuple[int, ...] = ()

    @functools.cached_property
    def places(self) -> dict[str, tuple[Place, int]]:
        """For each buffer that is a leaf of a state, the attribute that holds it, and the leaf's index in that."""
        named = [(leaf, s.place, i) for s in self.states for i, leaf in enumerate(s.before) if isinstance(leaf, Ref)]
        return {
            name: (place, i)
            for name, place, i in named
            if name in self.lifted or (place.registered and self.graph.origin[name] == str(place))
        }
