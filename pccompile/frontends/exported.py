"""torch.export to Graph: nn.Module, fx.GraphModule and ExportedProgram come in here."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from pccompile.diagnostics import CaptureError, CompileError, Location
from pccompile.frontends.autocast import write_casts
from pccompile.frontends.call_nodes import CallNodes
from pccompile.frontends.capture import NOTES, CaptureNotes
from pccompile.frontends.functional import functionalise, name_dtypes
from pccompile.frontends.imported import Imported, Locate
from pccompile.frontends.memory import counts_from_memory
from pccompile.frontends.model_tensors import ModelTensors
from pccompile.frontends.regions import inline_regions
from pccompile.frontends.results import results_of
from pccompile.frontends.states import WrittenStates, in_place, keys, resolved, unread
from pccompile.ir import Arg, Graph, Ref, TensorType


def import_program(
    program: ExportedProgram,
    model: nn.Module | None = None,
    locate: Locate | None = None,
    constant: frozenset[int] = frozenset(),
) -> Imported:
    """An exported program as a Graph. `model` gives the parameters' identity (ties) and which of them are frozen.

    constant: the positions of inputs that carry no gradient.
    Raises CompileError for what the dialect cannot say.
    """
    notes: CaptureNotes = program.graph_module.meta.get(NOTES) or CaptureNotes()
    write_casts(program.graph_module, notes.autocast)
    absolute = any(counts_from_memory(m.graph) for m in program.graph_module.modules() if isinstance(m, fx.GraphModule))
    inline_regions(program)
    name_dtypes(program.graph)
    program, written = functionalise(program, constant)
    imported = _Importer(program, model, locate, notes.states).run(written)
    return replace(imported, learning=notes.learning, hooks=notes.hooks, absolute=absolute, asked=notes.asked)


class _Importer:
    def __init__(
        self, program: ExportedProgram, model: nn.Module | None, locate: Locate | None, captured: WrittenStates
    ) -> None:
        self.program, self.captured = program, captured
        self.signature = program.graph_signature
        self.calls = CallNodes(program, locate)
        self.env, self.types = self.calls.env, self.calls.types
        self.typer, self.problems = self.calls.typer, self.calls.problems
        self.inputs: dict[str, TensorType] = {}
        self.params: dict[str, TensorType] = {}
        self.buffers: dict[str, TensorType] = {}
        self.model_tensors = ModelTensors(program, model, self.calls.namer)
        self.wanted: set[str] = set()
        self.targets: dict[str, Arg] = {}
        self.lifted: set[str] = set()
        self.written: Mapping[fx.Node, fx.Node] = {}
        self.registered = {str(s.place) for s in captured.states if s.place.registered}

    def run(self, written: Mapping[fx.Node, fx.Node]) -> Imported:
        self.written = written
        specs = {s.arg.name: s for s in self.signature.input_specs if hasattr(s.arg, "name")}
        for n in self.program.graph.nodes:
            if n.op == "placeholder":
                self._placeholder(n, specs[n.name])
            elif n.op == "call_function":
                self.calls.add(n)
            elif n.op == "get_attr":
                self._constant(n)
        self._refuse_writes(specs)
        updates = {self.env[p]: self.env[v] for p, v in written.items() if self.env[p] in self.buffers}
        for name, other in self.model_tensors.overlaps(updates):
            what = f"{name} is changed in place and shares memory with {other}"
            self.problems.add(what, hint="keep one of them, and take the view of it in forward")
        self.problems.raise_if_any()
        return self._imported(updates)

    def _refuse_writes(self, specs: Mapping[str, Any]) -> None:
        """Raise CompileError for what was collected, tensors among it that a model must not change in place."""
        for p in self.written:
            if specs[p.name].kind == InputKind.CONSTANT_TENSOR:
                what = f"forward changes {specs[p.name].target} in place, a tensor that no module holds"
                self.problems.add(what, hint="register it as a buffer of a module")
            if self.env[p] in self.params:
                where = Location(self.model_tensors.origin[str(self.env[p])])
                self.problems.add("a parameter is changed in place", where, "change it outside the model")
        kind = CompileError if self.problems.problems else CaptureError
        self.problems.extend(self.calls.readings.problems)
        self.problems.raise_if_any(kind)

    def _imported(self, updates: dict[str, Any]) -> Imported:
        """The graph, and how it is called. updates: the new values of buffers."""
        spec, readings = self.program.call_spec, self.captured.readings
        leaves = self.calls.compared(results_of(self.program, self.env), readings)
        assert spec.in_spec is not None
        assert spec.out_spec is not None
        out_spec, added = spec.out_spec, len(leaves)
        if self.captured.states or readings:
            out_spec = out_spec.child(0)
            added = out_spec.num_leaves
        states = resolved(self.captured, self.targets, leaves[added:])
        writes = {str(self.env[p]): self.env[v] for p, v in self.written.items() if self.env[p] in self.inputs}
        results = dict.fromkeys(o for o in leaves[:added] if isinstance(o, Ref))
        outputs = results | dict.fromkeys(o for o in (*leaves[added:], *writes.values()) if isinstance(o, Ref))
        graph = Graph(
            self.inputs,
            self.params,
            self.buffers,
            tuple(self.calls.nodes),
            tuple(outputs),
            self.model_tensors.origin,
            updates,
            self.calls.dims,
            frozenset(self.wanted),
            {k: v for s in states for k, v in zip(keys(s), s.after, strict=True) if isinstance(v, Ref)},
            len(outputs) - len(results),
        )
        inputs = tuple(self._input_name(s.arg) for s in self.signature.input_specs if s.kind == InputKind.USER_INPUT)
        call = inputs, leaves[:added], spec.in_spec, out_spec
        return Imported(
            graph,
            self.typer,
            *call,
            self.model_tensors.tensors,
            writes,
            constants=frozenset(self.model_tensors.constants),
            states=(*states, *in_place(states, self._buffers_of(updates))),
            lifted=frozenset(self.lifted),
            path=readings,
        )

    def _buffers_of(self, updates: Iterable[str]) -> dict[str, Ref]:
        """The model's own buffers among `updates` that may carry an error, by path."""
        own = (n for n in updates if n not in self.model_tensors.constants and n not in self.lifted)
        return {self.model_tensors.origin[n]: Ref(n) for n in own if self.buffers[n].differentiable}

    def _input_name(self, arg: object) -> str | None:
        if not isinstance(arg, TensorArgument):
            return None
        node = next(n for n in self.program.graph.nodes if n.name == arg.name)
        return str(self.env[node])

    def _placeholder(self, n: fx.Node, spec: Any) -> None:
        value = n.meta.get("val")
        learns = spec.kind == InputKind.PARAMETER or getattr(value, "requires_grad", False)
        if learns and isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            self.problems.add(f"{spec.target or n.name} is sparse and takes a gradient", hint="use a dense tensor")
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(value, torch.Tensor):
                name = self.calls.namer(n.name)
                self.inputs[name] = self.types[name] = self.typer.type_of(value)
                self.calls.rename_source(n.name, name)
                self.env[n] = Ref(name)
            else:
                self.env[n] = self.typer.dim(value) if isinstance(value, torch.SymInt) else value
            return
        if not isinstance(value, torch.Tensor):
            self.problems.add(f"input {n.name} of kind {spec.kind.name} is not supported")
            self.env[n] = None
            return
        taken = n.users or n in self.written  # by forward, out of a module's own table
        if spec.target in unread(self.captured) and (spec.target in self.captured.tensors or not taken):
            self.env[n] = None
            return
        lifted, parameter = self.captured.tensors.get(spec.target), spec.kind == InputKind.PARAMETER
        tensor, owned = self.model_tensors.owned(spec) if lifted is None else (lifted, True)
        tensor = tensor if owned else self.captured.originals.get(id(tensor), tensor)
        path = self.captured.origins.get(spec.target, spec.target)
        name, new = self.model_tensors.enter(path, tensor, owned, alone=owned)
        self.env[n] = self.targets[spec.target] = Ref(name)
        if not new:
            return
        state = lifted is not None or n in self.written or path in self.registered
        learns = parameter or (owned and tensor.requires_grad and not state)
        table = self.params if learns else self.buffers
        table[name] = self.types[name] = self.typer.type_of(value)
        if lifted is not None:
            self.lifted.add(name)
        if learns and tensor.requires_grad and table[name].differentiable:
            self.wanted.add(name)

    def _constant(self, n: fx.Node) -> None:
        constant = operator.attrgetter(str(n.target))(self.program.graph_module)
        if isinstance(constant, torch.Tensor):
            name, new = self.model_tensors.enter(str(n.target), constant, owned=False)
            self.env[n] = Ref(name)
            if new:
                self.buffers[name] = self.types[name] = self.typer.type_of(constant)
        else:
            self.env[n] = constant
