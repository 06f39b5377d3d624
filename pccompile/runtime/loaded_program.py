"""A generated file, loaded: what is called when a compiled model runs."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import sympy
from torch import Tensor
from torch.utils import _pytree as pytree

from pccompile.algorithms import Choice
from pccompile.analysis.compare import Checked
from pccompile.backends.torch import SWEEP, Source, emit
from pccompile.frontends.forward_hooks import Observation
from pccompile.frontends.imported import Imported
from pccompile.frontends.numbers import Read
from pccompile.frontends.objects import open_objects
from pccompile.frontends.signature import Varied
from pccompile.ir import Ref, TensorType
from pccompile.pipeline import Compiled, Options
from pccompile.runtime import jit
from pccompile.runtime.call_plan import CallPlan, PlainCalls
from pccompile.runtime.states import Writes

FORMS = 64
"""So many forms of calls are remembered with the program that they fit."""


def load(source: str, name: str) -> dict[str, Any]:
    """The functions of a generated file. `name` is what tracebacks and debuggers call it."""
    filename = f"<pccompile {name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"__name__": "pccompile_generated"}
    exec(compile(source, filename, "exec"), scope)
    return scope


def parted(learned: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What learning returns: the gradients by key, and what lasts between calls by path."""
    return learned if isinstance(learned, tuple) else (learned, {})


@functools.cache
def _spec(count: int) -> pytree.TreeSpec:
    return pytree.tree_structure(((0,) * count, {}))


def flattened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], pytree.TreeSpec]:
    """The leaves and the structure of a call's arguments."""
    if not kwargs and all(isinstance(a, Tensor) for a in args):
        return list(args), _spec(len(args))
    return pytree.tree_flatten(open_objects((args, kwargs)))


def layout(tensor: Tensor, absolute: bool) -> tuple[int, ...]:
    """The strides of a tensor, nothing for one whose entries lie side by side in their order.

    absolute: and after them, where in its memory it starts.
    """
    strides = () if tensor.is_contiguous() else tensor.stride()
    return (*strides, int(tensor.storage_offset())) if absolute else strides


@dataclass(frozen=True)
class Mismatch:
    """Why a call does not fit a program. of_input: a tensor of the call does not, and not its form."""

    what: str
    of_input: bool = True


@dataclass
class Interface:
    """How a model is called: which leaves of its arguments are tensors, and how its result is put together.

    `types` are the input types by name, `inputs` a name or None for each leaf of the arguments, `results` for each leaf
    of the result a position among the graph's outputs, or a constant; `numbers` are those leaves that the model returns
    as Python numbers. `unmet` says which condition on lengths does not hold, of those that
    there are by now (`conditions`). `observations` are hooks that run after
    the program; they are shown what `results` has after the leaves of `out_spec`. `layouts` says how the inputs lie in
    memory, where the model reads them so; `absolute`: and where in it they start.
    """

    types: Mapping[str, TensorType]
    inputs: tuple[str | None, ...]
    constants: tuple[Any, ...]
    results: tuple[tuple[bool, Any], ...]
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    unmet: Callable[[Mapping[Any, int]], str]
    conditions: Callable[[], int]
    numbers: frozenset[int] = frozenset()
    observations: Sequence[Observation] = ()
    layouts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    absolute: bool = False
    fitting: set[Any] = field(default_factory=set, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, imported: Imported, leaves: Sequence[Any]) -> Interface:
        """The interface of an imported model that was traced with `leaves`."""
        position = {o: i for i, o in enumerate(imported.graph.outputs)}
        results = tuple((True, position[o]) if isinstance(o, Ref) else (False, o) for o in imported.outputs)
        constants = tuple(None if name else leaf for name, leaf in zip(imported.inputs, leaves, strict=True))
        observations = imported.hooks.observations if imported.hooks else ()
        specs = imported.in_spec, imported.out_spec.child(0) if observations else imported.out_spec
        numbers = frozenset(i for i, o in enumerate(imported.outputs) if isinstance(o, Read))
        conditions = imported.typer.unmet, imported.typer.conditions
        strided = any(n.op.startswith("aten.as_strided") for n in imported.graph.nodes)
        named = {n: t for n, t in zip(imported.inputs, leaves, strict=True) if n is not None and strided}
        layouts = {n: layout(t, imported.absolute) for n, t in named.items()}
        own = constants, results, *specs, *conditions, numbers, observations, layouts, imported.absolute
        return cls(imported.graph.inputs, imported.inputs, *own)

    def mismatch(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Mismatch | None:
        """Why a call does not fit, in the model's own names, if it does not. Takes the flattened `(args, kwargs)`."""
        plain = not self.layouts and None not in self.inputs and all(isinstance(leaf, Tensor) for leaf in leaves)
        form = (self.conditions(), *[(leaf.dtype, leaf.shape) for leaf in leaves]) if plain else None
        if form in self.fitting and spec == self.in_spec:
            return None
        reason = self._mismatch(leaves, spec)
        if reason is None and form is not None:
            self.fitting = {*self.fitting, form} if len(self.fitting) < FORMS else {form}
        return reason

    def _mismatch(self, leaves: Sequence[Any], spec: pytree.TreeSpec) -> Mismatch | None:
        if spec != self.in_spec:
            what = f"the arguments have another structure: expected {len(self.inputs)} leaves, got {len(leaves)}"
            return Mismatch(what, of_input=False)
        known: dict[Any, int] = {}
        for name, leaf, constant in zip(self.inputs, leaves, self.constants, strict=True):
            if name is None:
                if type(leaf) is not type(constant) or leaf != constant:
                    what = f"an argument that is no tensor was {constant!r} and is {leaf!r}"
                    return Mismatch(what, of_input=False)
                continue
            type_ = self.types[name]
            if not isinstance(leaf, Tensor):
                return Mismatch(f"input {name}: expected a tensor {type_}, got {type(leaf).__name__}")
            if leaf.dtype != type_.dtype or leaf.dim() != len(type_.shape):
                return Mismatch(f"input {name}: expected {type_}, got {TensorType(tuple(leaf.shape), leaf.dtype)}")
            for axis, (size, dim) in enumerate(zip(leaf.shape, type_.shape, strict=True)):
                if size != (dim if isinstance(dim, int) else known.setdefault(dim, size)):
                    what = f"input {name}: expected {dim} entries in dimension {axis} of {type_}, got {size}"
                    return Mismatch(what)
            if self.layouts and layout(leaf, self.absolute) != self.layouts[name]:
                return Mismatch(f"input {name}: it lies in memory in another order, which as_strided reads")
        condition = self.unmet({dim: size for dim, size in known.items() if not isinstance(dim, int)})
        if not condition:
            return None
        return Mismatch(f"input lengths: expected {condition}, which the model's own branches decided on")

    def varied(self, leaves: Sequence[Any]) -> Varied:
        """The fixed dimensions of the inputs that have another length in a call with these flattened arguments."""
        if len(leaves) != len(self.inputs):
            return frozenset()
        pairs = [
            (i, leaf, self.types[name]) for i, (name, leaf) in enumerate(zip(self.inputs, leaves, strict=True)) if name
        ]
        return frozenset(
            (i, axis)
            for i, leaf, type_ in pairs
            if isinstance(leaf, Tensor) and leaf.dim() == len(type_.shape)
            for axis, (size, dim) in enumerate(zip(leaf.shape, type_.shape, strict=True))
            if isinstance(dim, int) and size != dim
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a call, by name."""
        return self.named(pytree.tree_leaves((args, dict(kwargs))))

    def named(self, leaves: Sequence[Any]) -> dict[str, Tensor]:
        """The tensors among the flattened arguments of a call, by name."""
        return {name: leaf for name, leaf in zip(self.inputs, leaves, strict=True) if name is not None}

    def assemble(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor] | None = None) -> Any:
        """The model's result, from the graph's outputs; `inputs` give the lengths that stand in it."""
        if self.alone:
            return outputs[0]
        leaves = self._leaves(outputs, inputs or {}, self.results[: self.out_spec.num_leaves])
        return pytree.tree_unflatten(leaves, self.out_spec)

    def shown(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> list[Any]:
        """What the hooks among `observations` are shown."""
        return self._leaves(outputs, inputs, self.results)[self.out_spec.num_leaves :]

    @functools.cached_property
    def alone(self) -> bool:
        """Whether the model returns its first output and nothing else."""
        return self.results[:1] == ((True, 0),) and self.out_spec.is_leaf() and 0 not in self.numbers

    def _leaves(self, outputs: Sequence[Tensor], inputs: Mapping[str, Tensor], results: Any) -> list[Any]:
        leaves = [outputs[v] if found else self.length(v, inputs) for found, v in results]
        for i in self.numbers:
            if i < len(leaves):
                leaves[i] = leaves[i].item()
        return leaves

    def length(self, value: Any, inputs: Mapping[str, Tensor]) -> Any:
        """`value`, or the number that it is for these inputs where it is an expression over free dimensions."""
        if not isinstance(value, sympy.Expr):
            return value
        sizes = {
            dim: size
            for name, type_ in self.types.items()
            if name in inputs
            for dim, size in zip(type_.shape, inputs[name].shape, strict=True)
        }
        return int(value.subs({s: sizes[s] for s in value.free_symbols}))


@dataclass
class EnergyAlarm:
    """How the errors of a program that iterates are watched, see `energy_alarm`.

    on: whether they are; None as long as nobody has looked. calls: how often inference has run, of which each
    `every`th is looked at, and `quiet`: until which call none is. flag: on a GPU that of the last look. reads: the
    arguments that learning takes.
    revise(tables, inputs, targets): other numbers where the rate is automatic. keep(rate): a smaller one for the calls
    to come. scopes: loaded programs that measure.
    """

    on: bool | None = None
    calls: int = 0
    every: int = 1
    quiet: int = 0
    flag: tuple[Tensor, Any] | None = None
    reads: frozenset[str] = frozenset()
    revise: Callable[..., dict[str, float] | None] | None = None
    keep: Callable[[float], None] | None = None
    scopes: dict[str, dict[str, Any]] = field(default_factory=dict)


class Reads(Protocol):
    """What derivatives read that an author wrote, see `derivative_reads`."""

    def watch(self) -> None:
        """Begin to compare: the program has been checked, for which other tensors stand in the model for a moment."""

    def hold(self) -> bool:
        """Whether the program may be used for a call."""

    def refuse_changes(self) -> None:
        """Raise CompileError where a backward pass of eager torch would read another value than the call did."""


@dataclass
class Runtime:
    """The functions of one compiled program, and what they return.

    `reaching` says which of the clamped outputs each gradient depends on, so that a parameter that none of the outputs
    used in a loss reaches gets no gradient, as with autograd. `checked` is the comparison with eager torch, if any,
    `notes` what else a reader should know. `writes` is what a call leaves behind besides its results. `asking` says
    which clamped outputs are behind the results of custom Functions. `partial` has what takes the place of the backward
    sweep where a loss uses some of the outputs only. `rated` has the program with the choices that were made for
    automatic settings. `fitting` has forms of targets that go with the outputs, `by_sample` functions for single
    samples. `flag` and `warned` belong to `divergence.notice`. `mirrored`: weights stand in place of their feedback
    weights, so that gradients must be those of backpropagation. `alarm` belongs to `energy_alarm`. `reads` says whether
    what the author's own derivatives read is as it was, where there are any. `taken` is what the loss takes. `plain` is
    what calls run for which `plain_step` suffices, once one has been made.
    """

    source: Source
    interface: Interface
    reaching: Mapping[str, frozenset[int]]
    name: str
    writes: Writes
    compiled: Compiled | None = None
    checked: Checked | None = None
    options: Options = field(default_factory=Options)
    notes: tuple[str, ...] = ()
    flag: tuple[Tensor, Any] | None = None
    warned: bool = False
    mirrored: bool = False
    asking: Mapping[str, tuple[frozenset[int], ...]] = field(default_factory=dict)
    reads: Reads | None = None
    taken: Interface | None = None
    plain: PlainCalls | None = field(default=None, init=False)
    rated: dict[tuple[Choice, ...], Runtime] = field(default_factory=dict, init=False)
    partial: dict[frozenset[int], Callable[..., Any] | None] = field(default_factory=dict, init=False)
    alarm: EnergyAlarm = field(default_factory=EnergyAlarm, init=False)
    fitting: set[Any] = field(default_factory=set, init=False)
    by_sample: Any = field(default=None, init=False)
    _scope: dict[str, Any] = field(default_factory=dict)
    _functional: dict[str, Any] = field(default_factory=dict, init=False)
    _jitted: dict[str, Callable[..., Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.options.jit and self.source.updates:
            jit.refuse_updates(self.options.algorithm)

    def __getstate__(self) -> dict[str, Any]:
        hidden: dict[str, Any] = {
            "_scope": {},
            "compiled": None,
            "interface": None,
            "writes": None,
            "flag": None,
            "reads": None,
            "taken": None,
            "plain": None,
            "by_sample": None,
        }
        hidden |= {"partial": {}, "rated": {}, "alarm": EnergyAlarm(), "_jitted": {}, "_functional": {}}
        return {k: v for k, v in {**self.__dict__, **hidden}.items() if k not in ("plan", "in_loss")}

    @property
    def iterates(self) -> bool:
        """Whether inference takes steps, which may diverge."""
        return self.compiled is not None and "steps" in self.compiled.program.arguments

    @functools.cached_property
    def in_loss(self) -> frozenset[int]:
        """The clamped outputs that the loss of the program reads."""
        results = ((i, o) for i, o in enumerate(self.source.errors) if o < self.writes.results)
        loss = self.compiled.loss if self.compiled is not None else None
        return frozenset(i for i, o in results if loss is None or loss.outputs[o] in loss.pc.reached)

    @functools.cached_property
    def plan(self) -> CallPlan:
        """What every call does in the same way."""
        steps = self.options.jit or self.iterates
        return CallPlan.of(self.source, self.reaching, self.writes, self.options.jit, steps)

    def bare(self, name: str) -> Callable[..., Any]:
        """As `function`, without torch.no_grad around it: for callers under which gradients are switched off."""
        found = self.function(name)
        bare: Callable[..., Any] = getattr(found, "__wrapped__", found)
        return bare

    @property
    def lengths(self) -> dict[str, int]:
        """The free dimensions, as the call had them that the model was captured with."""
        return {str(dim): size for dim, size in self.compiled.imported.typer.example().items()} if self.compiled else {}

    def function(self, name: str, plain: bool = False) -> Callable[..., Any]:
        """One of the file's functions, behind torch.compile where the options say so. plain: as it is in any case."""
        if not self._scope:
            self._scope = load(self.source.text, self.name)
        found: Callable[..., Any] = self._scope[name]
        if plain or not self.options.jit or (name in jit.PASSES and self.iterates):
            return found
        return self._compiled(name, found if name in jit.PASSES or self.compiled is None else None)

    def _compiled(self, name: str, function: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """A function of the file that is made for torch.compile, or another one, behind it."""
        if name not in self._jitted:
            if function is None and not self._functional:
                assert self.compiled is not None
                text = emit(self.compiled.program, self.compiled.loss, functional=True, lengths=self.lengths).text
                self._functional = load(text + jit.joined(self.source.moving), f"{self.name} for torch.compile")
            self._jitted[name] = jit.Compiled(function or self._functional[name])
        return self._jitted[name]

    def forward(self, params: Any, buffers: Any, inputs: Any, targets: Any) -> Any:
        """Prediction and the loss, compiled as one: outputs, context, the loss and its errors."""
        return self._compiled(jit.FORWARD)(params, buffers, inputs, targets)

    def swept(self, params: Any, context: Any, targets: Any) -> tuple[Any, Tensor | None]:
        """What inference and learning return, and whether all gradients are finite, where that is known."""
        if not (self.options.jit and self.iterates):
            return self.bare(SWEEP)(params, context, targets), None
        learned, finite = self._compiled(jit.CHECKED)(params, context, targets)
        return learned, finite

    def clamp(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the errors that it gives the outputs."""
        result: tuple[Tensor, list[Tensor]] = self.function("clamp")(outputs, targets)
        return result
