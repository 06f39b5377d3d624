"""Calls of operations in an exported program as operations of a Graph."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from pccompile.diagnostics import Collector, CompileError, Location
from pccompile.frontends.control import CONTROL, Nested
from pccompile.frontends.functional import op_name
from pccompile.frontends.imported import Locate
from pccompile.frontends.numbers import Read, is_read, lengths_of, number, only_asserted, relied_on, with_operands
from pccompile.frontends.paths import Reading
from pccompile.frontends.results import Results, compared
from pccompile.frontends.user_places import label_of, place_of
from pccompile.ir import DEVICE, Arg, Node, Ref, Source, TensorType, Type, refs
from pccompile.ir.names import Namer
from pccompile.ops import Builder, Typer, bind
from pccompile.ops.functions import FUNCTION, call_of
from pccompile.ops.lengths import SIZED
from pccompile.ops.tensor_split import PIECE, SPLIT
from pccompile.ops.trace import STRIDED, own_strides


class CallNodes:
    """What the nodes of an exported program are in a Graph.

    nodes: the operations so far. env: the value of each fx node, types: those of names. dims: where free lengths are
    read. problems: why the program cannot be imported; readings: numbers that it reads from tensors and decides by.
    """

    def __init__(self, program: ExportedProgram, locate: Locate | None) -> None:
        self.program, self.locate = program, locate
        self.nodes: list[Node] = []
        self.env: dict[fx.Node, Arg] = {}
        self.types: dict[str, Type] = {}
        self.dims: dict[str, Source] = {}
        self.problems, self.readings = Collector(), Collector()
        self.parts: dict[Arg, str] = {}
        self.read_as: dict[fx.Node, Arg] = {}
        self.namer = Namer()
        self.namer.used |= {str(s) for n in program.graph.nodes for s in lengths_of(n)}
        self.typer = self._typer()

    def _typer(self) -> Typer:
        """A typer whose dimensions have names that a person would give."""
        placeholders = {n.name: n for n in self.program.graph.nodes if n.op == "placeholder"}
        modes = [getattr(n.meta.get("val"), "fake_mode", None) for n in self.program.graph.nodes]
        mode = next((m for m in modes if m is not None), None)
        names: dict[sympy.Symbol, sympy.Symbol] = {}
        for name in self.program.graph_signature.user_inputs:
            value = placeholders[name].meta.get("val") if isinstance(name, str) and name in placeholders else None
            if not isinstance(value, torch.Tensor):
                continue
            for axis, size in enumerate(value.shape):
                if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol and size.node.expr not in names:
                    label = self.namer("batch" if axis == 0 and not names else f"{name}_size{axis}")
                    names[size.node.expr] = sympy.Symbol(label, integer=True, positive=True)
                    self.dims[label] = Source(name, axis)
        return Typer(mode, names)

    def add(self, n: fx.Node) -> None:
        """Take in a call of a function."""
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
            args = [self._arg(a) for a in self._positional(n)]
            kwargs = {} if n.target in STRIDED else {k: self._arg(a) for k, a in n.kwargs.items()}
            bound = bind(op, args, kwargs)
            if op == FUNCTION:
                bound["key"] = call_of(bound["key"])
            if op == SPLIT:
                self._pieces(n, bound)
            else:
                self._append(n, op, bound)

    def rename_source(self, tensor: str, name: str) -> None:
        """Read the lengths of an input under the name that it has in the graph."""
        self.dims |= {k: Source(name, s.axis) for k, s in self.dims.items() if s.tensor == tensor}

    def _relied_on(self, n: fx.Node) -> None:
        """Check a length that data decides where the model was captured on the assumption that it is another one."""
        if (length := relied_on(n)) is None or self.env[length[0]] not in self.types:
            return
        tensor, axis, size = length
        b = self._builder(tensor)
        checked = b(SIZED, self._arg(tensor), axis, self._arg(size))
        (self.read_as if tensor.op == "placeholder" else self.env)[tensor] = checked  # an input keeps its name
        self._keep(b)

    def _pieces(self, n: fx.Node, bound: Mapping[str, Arg]) -> None:
        """Each piece of a tensor that is split at places which a tensor holds, as an operation of its own."""
        pieces = []
        for i, piece in enumerate(n.meta["val"]):
            type_ = self.typer.type_of(piece)
            self._append(n, PIECE, {**bound, "index": i, "type": type_}, type_)
            pieces.append(self.env[n])
        self.env[n] = tuple(pieces)

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

    def _positional(self, n: fx.Node) -> tuple[Any, ...]:
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
        operand = number(b, n.target, tuple(self._arg(a) for a in n.args), value)
        self._keep(b)
        if operand is not None:
            self.env[n] = operand
        return operand is not None

    def compared(self, leaves: Results, readings: Sequence[Reading]) -> Results:
        """The leaves of a result, of which the last are compared with what Python read there."""
        if not readings:
            return leaves
        b = self._builder(next(reversed(self.program.graph.nodes)))
        results = compared(b, leaves, readings)
        self._keep(b)
        return results

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
