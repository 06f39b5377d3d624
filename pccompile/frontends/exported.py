"""torch.export to Graph: nn.Module, fx.GraphModule and ExportedProgram come in here."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from pccompile.diagnostics import CaptureError, Collector, CompileError, Location
from pccompile.frontends.autocast import write_casts
from pccompile.frontends.capture import AUTOCAST, HOOKS, LEARNING, STATES
from pccompile.frontends.control import CONTROL, Nested
from pccompile.frontends.functional import functionalise, name_dtypes, op_name
from pccompile.frontends.imported import Imported, Locate
from pccompile.frontends.memory import counts_from_memory
from pccompile.frontends.model_tensors import ModelTensors
from pccompile.frontends.numbers import Read, is_read, lengths_of, number, only_asserted, relied_on, with_operands
from pccompile.frontends.regions import inline_regions
from pccompile.frontends.states import WrittenStates, in_place, keys, resolved, unread
from pccompile.frontends.user_places import label_of, place_of
from pccompile.ir import DEVICE, Arg, Graph, Node, Ref, Source, TensorType, Type, refs
from pccompile.ir.names import Namer
from pccompile.ops import Builder, Typer, bind
from pccompile.ops.functions import FUNCTION, call_of
from pccompile.ops.lengths import SIZED
from pccompile.ops.tensor_split import PIECE, SPLIT
from pccompile.ops.trace import STRIDED, own_strides


def import_program(
    program: ExportedProgram,
    model: nn.Module | None = None,
    locate: Locate | None = None,
    still: frozenset[int] = frozenset(),
) -> Imported:
    """An exported program as a Graph. `model` gives the parameters' identity (ties) and which of them are frozen.

    still: the positions of inputs that carry no gradient.
    Raises CompileError for what the dialect cannot say.
    """
    captured = program.graph_module.meta.get(STATES) or WrittenStates()
    write_casts(program.graph_module, program.graph_module.meta.get(AUTOCAST))
    absolute = any(counts_from_memory(m.graph) for m in program.graph_module.modules() if isinstance(m, fx.GraphModule))
    inline_regions(program)
    learning, hooks = bool(program.graph_module.meta.get(LEARNING)), program.graph_module.meta.get(HOOKS)
    name_dtypes(program.graph)
    program, written = functionalise(program, still)
    imported = _Importer(program, model, locate, captured).run(written)
    return replace(imported, learning=learning, hooks=hooks, absolute=absolute)


class _Importer:
    def __init__(
        self, program: ExportedProgram, model: nn.Module | None, locate: Locate | None, captured: WrittenStates
    ) -> None:
        self.program, self.locate, self.captured = program, locate, captured
        self.signature = program.graph_signature
        self.nodes: list[Node] = []
        self.env: dict[fx.Node, Arg] = {}
        self.namer = Namer()
        self.inputs: dict[str, TensorType] = {}
        self.params: dict[str, TensorType] = {}
        self.buffers: dict[str, TensorType] = {}
        self.types: dict[str, Type] = {}
        self.model_tensors = ModelTensors(program, model, self.namer)
        self.dims: dict[str, Source] = {}
        self.wanted: set[str] = set()
        self.problems, self.readings = Collector(), Collector()
        self.parts: dict[Arg, str] = {}
        self.targets: dict[str, Arg] = {}
        self.read_as: dict[fx.Node, Arg] = {}
        self.lifted: set[str] = set()
        self.written: Mapping[fx.Node, fx.Node] = {}
        self.registered = {str(s.place) for s in captured.states if s.place.registered}
        self.namer.used |= {str(s) for n in program.graph.nodes for s in lengths_of(n)}
        self.typer = self._typer()

    def _typer(self) -> Typer:
        """A typer whose dimensions have names that a person would give."""
        placeholders = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        modes = [getattr(n.meta.get("val"), "fake_mode", None) for n in self.program.graph.nodes]
        mode = next((m for m in modes if m is not None), None)
        names: dict[sympy.Symbol, sympy.Symbol] = {}
        for name in self.signature.user_inputs:
            value = placeholders[name].meta.get("val") if isinstance(name, str) and name in placeholders else None
            if not isinstance(value, torch.Tensor):
                continue
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in names:
                    label = self.namer("batch" if axis == 0 and not names else f"{name}_size{axis}")
                    names[size.node.expr] = sympy.Symbol(label, integer=True, positive=True)
                    self.dims[label] = Source(name, axis)
        return Typer(mode, names)

    def run(self, written: Mapping[fx.Node, fx.Node]) -> Imported:
        self.written = written
        specs = {s.arg.name: s for s in self.signature.input_specs if hasattr(s.arg, "name")}
        for n in self.program.graph.nodes:
            if n.op == "placeholder":
                self._placeholder(n, specs[n.name])
            elif n.op == "call_function":
                self._call(n)
            elif n.op == "get_attr":
                self._constant(n)
        for p in written:
            if specs[p.name].kind == InputKind.CONSTANT_TENSOR:
                what = f"forward changes {specs[p.name].target} in place, a tensor that no module holds"
                self.problems.add(what, hint="register it as a buffer of a module")
            if self.env[p] in self.params:
                where = Location(self.model_tensors.origin[str(self.env[p])])
                self.problems.add("a parameter is changed in place", where, "change it outside the model")
        kind = CompileError if self.problems.problems else CaptureError
        self.problems.extend(self.readings.problems)
        self.problems.raise_if_any(kind)
        updates = {self.env[p]: self.env[v] for p, v in written.items() if self.env[p] in self.buffers}
        for name, other in self.model_tensors.overlaps(updates):
            what = f"{name} is changed in place and shares memory with {other}"
            self.problems.add(what, hint="keep one of them, and take the view of it in forward")
        self.problems.raise_if_any()
        leaves, spec = self._outputs(), self.program.call_spec
        assert spec.in_spec is not None
        assert spec.out_spec is not None
        out_spec, added = spec.out_spec, len(leaves)
        if self.captured.states:
            out_spec = out_spec.child(0)
            added = out_spec.num_leaves
        states = resolved(self.captured, self.targets, leaves[added:])
        writes = {str(self.env[p]): self.env[v] for p, v in written.items() if self.env[p] in self.inputs}
        results = dict.fromkeys(o for o in leaves[:added] if isinstance(o, Ref))
        outputs = results | dict.fromkeys(o for o in (*leaves[added:], *writes.values()) if isinstance(o, Ref))
        graph = Graph(
            self.inputs,
            self.params,
            self.buffers,
            tuple(self.nodes),
            tuple(outputs),
            self.model_tensors.origin,
            updates,
            self.dims,
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

    def _outputs(self) -> tuple[Ref | object, ...]:
        returned = next(n for n in reversed(self.program.graph.nodes) if n.op == "output").args[0]
        found: list[Ref | object] = []
        for spec, value in zip(self.signature.output_specs, returned, strict=True):
            if spec.kind == OutputKind.USER_OUTPUT:
                arg = spec.arg
                found.append(self.env[value] if isinstance(value, fx.Node) else getattr(arg, "value", value))
        return tuple(found)

    def _placeholder(self, n: fx.Node, spec: Any) -> None:
        value = n.meta.get("val")
        learns = spec.kind == InputKind.PARAMETER or getattr(value, "requires_grad", False)
        if learns and isinstance(value, torch.Tensor) and value.layout is not torch.strided:
            self.problems.add(f"{spec.target or n.name} is sparse and takes a gradient", hint="use a dense tensor")
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(value, torch.Tensor):
                name = self.namer(n.name)
                self.inputs[name] = self.types[name] = self.typer.type_of(value)
                self.dims = {k: Source(name, s.axis) if s.tensor == n.name else s for k, s in self.dims.items()}
                self.env[n] = Ref(name)
            else:
                self.env[n] = self.typer.dim(value) if isinstance(value, torch.SymInt) else value
            return
        if not isinstance(value, torch.Tensor):
            self.problems.add(f"input {n.name} of kind {spec.kind.name} is not supported")
            self.env[n] = None
            return
        if spec.target in unread(self.captured):
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
        found: Any = self.program.graph_module
        for part in str(n.target).split("."):
            found = getattr(found, part)
        if isinstance(found, torch.Tensor):
            name, new = self.model_tensors.enter(str(n.target), found, owned=False)
            self.env[n] = Ref(name)
            if new:
                self.buffers[name] = self.types[name] = self.typer.type_of(found)
        else:
            self.env[n] = found

    def _call(self, n: fx.Node) -> None:
        value = n.meta.get("val")
        if is_read(value) and self._number(n, value):
            return
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool):
            self._size(n, value)
            return
        op = op_name(n.target)
        if n.target is operator.getitem and isinstance(self.env[n.args[0]], tuple):  # type: ignore[index]
            self.env[n] = self.env[n.args[0]][n.args[1]]  # type: ignore[index]
        elif n.target is operator.getitem:
            of = self.env[n.args[0]]  # type: ignore[index]
            self._append(n, "getitem", {"of": of, "index": n.args[1]}, label=self.parts.get(of))
        elif op in CONTROL:
            self._control(n, op)
        elif not isinstance(n.target, torch._ops.OpOverload):
            where = self._where(n)
            self.problems.add(
                f"no rule for {op}", where, "torch control flow and python side effects are not supported here"
            )
            self.env[n] = Ref("unsupported")
        elif value is None and not n.users:
            self._relied_on(n)
        else:
            args = [self._arg(a) for a in self._given(n)]
            kwargs = {} if n.target in STRIDED else {k: self._arg(a) for k, a in n.kwargs.items()}
            bound = bind(op, args, kwargs)
            if op == FUNCTION:
                bound["key"] = call_of(bound["key"])
            if op == SPLIT:
                self._pieces(n, bound)
            else:
                self._append(n, op, bound)

    def _relied_on(self, n: fx.Node) -> None:
        """Check a length that data decides where the model was captured on the assumption that it is another one."""
        if (found := relied_on(n)) is None or self.env[found[0]] not in self.types:
            return
        tensor, axis, size = found
        b = self._builder(tensor)
        checked = b(SIZED, self._arg(tensor), axis, self._arg(size))
        (self.read_as if tensor.op == "placeholder" else self.env)[tensor] = checked  # an input keeps its name
        self._keep(b)

    def _pieces(self, n: fx.Node, bound: Mapping[str, Arg]) -> None:
        """Each piece of a tensor that is split at places which a tensor holds, as an operation of its own."""
        found = []
        for i, piece in enumerate(n.meta["val"]):
            type_ = self.typer.type_of(piece)
            self._append(n, PIECE, {**bound, "index": i, "type": type_}, type_)
            found.append(self.env[n])
        self.env[n] = tuple(found)

    def _control(self, n: fx.Node, op: str) -> None:
        name, types = label_of(n, op, self.locate, self.namer), self.types
        try:
            args = [a if isinstance(a, fx.Node) and a.op == "get_attr" else self._arg(a) for a in n.args]
            call, bound = Nested(self.program.graph_module, self.typer, name, self._where(n)).call(op, args, types)
            self._append(n, call, bound, self.typer.infer(call, bound, types))
            self.parts[self.env[n]] = f"{name}_result"
        except CompileError as e:
            self.problems.extend(e.problems)
            self.env[n] = Ref("unsupported")

    def _given(self, n: fx.Node) -> tuple[Any, ...]:
        """The positional arguments of a call, independent of how its tensors lie in memory."""
        if n.target not in STRIDED:
            return n.args
        try:
            arguments = own_strides(n)
        except NotImplementedError as e:
            self.problems.add(str(e), self._where(n), "write it with slices, reshape or unfold")
            return n.args
        *others, offset = arguments
        if isinstance(offset, torch.SymInt) and self._unknown(offset):
            if offset.node.has_hint():  # an input starts there: each place in memory has a program of its own
                return *others, int(offset.node.hint)
            what = "as_strided counts from where the memory of a tensor starts, which is within that of another"
            self.problems.add(what, self._where(n), "leave out storage_offset, or give the model a clone of its input")
        return arguments

    def _size(self, n: fx.Node, value: Any) -> None:
        if isinstance(value, int | float | bool):
            self.env[n] = value
            return
        expr = value.node.expr.xreplace(self.typer.names)
        if self._unknown(value) and not only_asserted(n):
            self._refuse_number(n)
        self.env[n] = expr if not expr.is_Integer else int(expr)

    def _unknown(self, value: Any) -> bool:
        """Whether a number depends on others than the lengths of inputs."""
        symbols = value.node.expr.xreplace(self.typer.names).free_symbols
        return bool({str(s) for s in symbols} - set(self.dims))

    def _refuse_number(self, n: fx.Node) -> None:
        hint = "compute it outside the model and pass it as an argument, or avoid .item()"
        self.readings.add(
            "a number that is read from a tensor's contents decides what is computed", self._where(n), hint
        )

    def _number(self, n: fx.Node, value: object) -> bool:
        """Take a number that is read from a tensor as a tensor, if that can be done."""
        b = self._builder(n)
        found = number(b, n.target, tuple(self._arg(a) for a in n.args), value)
        self._keep(b)
        if found is not None:
            self.env[n] = found
        return found is not None

    def _builder(self, n: fx.Node) -> Builder:
        b = Builder(self.types, self.typer, f"{n.name}_", self._where(n))
        b.reserved = self.namer.used
        return b

    def _keep(self, b: Builder) -> None:
        self.nodes += b.nodes
        self.types.update((m.name, m.type) for m in b.nodes)
        self.namer.used.update(m.name for m in b.nodes)

    def _append(
        self, n: fx.Node, op: str, args: Mapping[str, Arg], type_: Type | None = None, label: str | None = None
    ) -> None:
        type_ = self._type(n) if type_ is None else type_
        if any(isinstance(r, Read) for r in refs(args.values())):
            b = self._builder(n)
            call = with_operands(b, op, args, type_)
            self._keep(b)
            if call is None:
                self._refuse_number(n)
            op, args = call or (op, args)
        name = self.namer(label or label_of(n, op, self.locate, self.namer))
        if isinstance(type_, TensorType):
            self._new_dims(name, type_)
        self.nodes.append(Node(name, op, args, type_, self._where(n)))
        self.types[name] = type_
        self.env[n] = Ref(name)

    def _new_dims(self, name: str, type_: TensorType) -> None:
        """Lengths that depend on the data, such as the number of entries that are not zero, are read off the result."""
        for axis, d in enumerate(type_.shape):
            if isinstance(d, sympy.Symbol) and str(d) not in self.dims:
                self.dims[str(d)] = Source(name, axis)

    def _type(self, n: fx.Node) -> Type:
        value = n.meta["val"]
        if any(v.layout is not torch.strided for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor)):
            self.problems.add(f"the result of {op_name(n.target)} is sparse", self._where(n), "use a dense tensor")
        if isinstance(value, torch.Tensor):
            return self.typer.type_of(value)
        return tuple(self.typer.type_of(v) if isinstance(v, torch.Tensor) else None for v in value)

    def _arg(self, arg: Any) -> Arg:
        if isinstance(arg, fx.Node):
            return self.read_as.get(arg, self.env[arg])
        if isinstance(arg, list | tuple):
            return tuple(self._arg(a) for a in arg)
        if isinstance(arg, torch.device):
            return DEVICE
        return self.typer.dim(arg) if isinstance(arg, torch.SymInt) else arg

    def _where(self, n: fx.Node) -> Location:
        return place_of(n, self.locate)


__all__ = ["import_program"]
