"""Layer-parallel predictive coding: each process owns vertices with their parameters, and infers for them alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.analysis.cost import at
from pccompile.analysis.partition import by_cost, by_module, vertex_costs
from pccompile.api.compile import compile
from pccompile.api.pieces import PiecewiseModule
from pccompile.backends.torch import SWEEP, emit
from pccompile.diagnostics import CompileError, listing
from pccompile.frontends.autocast import without_autocast
from pccompile.ir import PCGraph, Program, TensorType, flat, verify_local, verify_program
from pccompile.ir.equations import names, parse
from pccompile.ops import OPS
from pccompile.passes.divide_graph import Part, divide_graph
from pccompile.passes.divide_program import Division, divide_program
from pccompile.pipeline import Options
from pccompile.report.tables import Page, Table
from pccompile.runtime.automatic_rates import measures
from pccompile.runtime.divergence import HINT, all_finite
from pccompile.runtime.loaded_program import Runtime, load
from pccompile.runtime.losses import refuse_targets, targets_of
from pccompile.runtime.neighbours import Asynchronous, Form, Link, Neighbours, Sent
from pccompile.runtime.squared_error import refuse_other_targets
from pccompile.runtime.states import Writes

FORWARD = 1 << 20
"""The number of the exchange of predictions; those of inference count from 0."""
WITHOUT_CLOCK = ("exact", "fixed-prediction", "meta-pcn", "strict")
"""The algorithms whose end does not depend on when messages come."""


def layer_parallel(
    model: nn.Module,
    args: tuple[Any, ...] | Tensor,
    target: Any,
    kwargs: Mapping[str, Any] | None = None,
    *,
    group: Any = None,
    ranks: Mapping[str, int] | None = None,
    asynchronous: Asynchronous | None = None,
    **options: Any,
) -> LayerParallel:
    """`model` divided between the processes of `group`, to be called in each of them with the same arguments.

    args, kwargs, target: an example of a batch and its target, with which every process is to be called later as well.
    group: a process group of torch.distributed, which is initialised; by default all processes.
    ranks: which rank owns the vertices of which modules, by path; what is in none of them goes with its parents. By
        default contiguous parts of about the same cost.
    asynchronous: inference goes on with the newest messages instead of waiting for them.
    options: algorithm, loss, granularity, steps and whatever else `pccompile.compile` takes.
    Raises CompileError for what cannot be divided: a parameter that two ranks read, an algorithm that sums over all
    vertices, feedback weights, roles, a way back from a higher rank to a lower one.
    """
    if not dist.is_initialized():
        hint = "torch.distributed.init_process_group first, as under torchrun"
        raise CompileError("layer_parallel needs processes", hint=hint)
    args = (args,) if isinstance(args, Tensor) else args
    pc = compile(model, args, kwargs, **options)
    if isinstance(pc, PiecewiseModule) or not isinstance(pc.options, Options):
        raise CompileError("a model that is compiled in pieces cannot be divided between processes")
    if measures(pc.options):
        raise CompileError("settings that are auto are measured by one process", hint="give rate and steps as numbers")
    runtime, tables, inputs = pc.program_for(args, dict(kwargs or {}), target)
    assert runtime.compiled is not None
    compiled, size = runtime.compiled, dist.get_world_size(group)
    refuse_without_clock(asynchronous, pc.options, size, group)
    lengths = lengths_of(compiled.pc, inputs)
    owners = by_module(compiled.program.pc, ranks) if ranks else by_cost(compiled.program.pc, lengths, size)
    if idle := sorted(set(range(size)) - set(owners.values())):
        raise CompileError(f"rank {idle[0]} owns nothing", hint=f"there are {size} processes")
    if beyond := sorted(set(owners.values()) - set(range(size))):
        raise CompileError(f"ranks names rank {beyond[0]}, and there are {size} processes, from rank 0 on")
    parts = divide_graph(compiled.program.pc, owners, size)
    division = divide_program(compiled.program, parts, owners)
    own = dist.get_rank(group)
    paths = {parts[own].pc.graph.origin.get(n, n) for n in parts[own].pc.graph.leaves}
    tensors = tuple({k: t for k, t in table.items() if k in paths} for table in tables)
    layers = LayerParallel(runtime, parts, division, owners, group, asynchronous)
    layers.adopt(model, *tensors)
    return layers


def refuse_without_clock(how: Asynchronous | None, options: Options, size: int, group: Any) -> None:
    """Raise CompileError where inference cannot go on without a clock as `how` says."""
    if how is None:
        return
    if options.algorithm not in WITHOUT_CLOCK or options.settings.get("stepper", "euler") != "euler":
        what = f"{options.algorithm} is not known to end where it should when messages are late"
        raise CompileError(what, hint=f"algorithms that are: {', '.join(WITHOUT_CLOCK)}, with the stepper euler")
    if not 0 <= how.lost < 1:
        raise CompileError(f"lost is {how.lost}", hint="the part of messages that does not arrive, from 0 on, below 1")
    if unknown := [r for r in how.pause if not 0 <= r < size]:
        raise CompileError(f"pause names rank {unknown[0]}, and there are {size} processes, from rank 0 on")
    if dist.get_backend(group) != "gloo":
        raise CompileError("messages without a clock go over gloo", hint='dist.new_group(backend="gloo")')


def lengths_of(pc: PCGraph, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """The free dimensions in a call."""
    return {name: inputs[s.tensor].shape[s.axis] for name, s in pc.graph.dims.items() if s.tensor in inputs}


class LayerParallel:
    """What one process has of a divided model.

    part: its parameters and buffers under their paths in the model. owners: the rank of each vertex. sent: the messages
    and bytes that this process has told others. source: its generated file. The program is of the mode, training or
    evaluation, in which the model was compiled, and of other batch sizes as far as they are free.
    """

    def __init__(
        self,
        runtime: Runtime,
        parts: Sequence[Part],
        division: Division,
        owners: Mapping[str, int],
        group: Any,
        asynchronous: Asynchronous | None,
    ) -> None:
        compiled = runtime.compiled
        assert compiled is not None
        self.pc, self.lengths = compiled.program.pc, runtime.lengths
        self.rank, self.size, self.group, self.asynchronous = dist.get_rank(group), len(parts), group, asynchronous
        self.owners, self.parts, self.transfers = dict(owners), parts, division.transfers
        self.loss_rank = self.owners[self.pc.clamped[0]]
        self.program = verify_program(replace(division.programs[self.rank], pc=verify_local(parts[self.rank].pc)))
        self.source = emit(self.program, compiled.loss if self.rank == self.loss_rank else None, outlining=None)
        self.functions = load(self.source.text, f"{self.program.algorithm}, rank {self.rank}")
        self.draws = draws(compiled.program)
        bare = replace(compiled.imported, tensors={})  # tensors of other ranks are not kept
        self.runtime = replace(runtime, compiled=replace(compiled, imported=bare), writes=Writes.of(bare))
        self.part, self.params, self.buffers = nn.Module(), dict[str, nn.Parameter](), dict[str, Tensor]()
        self.sent = Sent()

    def adopt(self, model: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Take over the tensors of this process; `model` is not kept."""
        named, kept = dict(model.named_parameters()), dict(model.named_buffers())
        for path in params:
            self.params[path] = named[path]
            if named[path]._backward_hooks or named[path]._post_accumulate_grad_hooks:
                what = f"{path} has a hook on its gradient, which does not come by autograd here"
                raise CompileError(what, hint="take it off, and change p.grad after layers.learn(...)")
            self._place(path).register_parameter(path.rpartition(".")[2], named[path])
        self.buffers = dict(buffers)
        for path in self.buffers.keys() & kept.keys():
            self._place(path).register_buffer(path.rpartition(".")[2], kept[path])
        self.device = next(iter((*self.params.values(), *self.buffers.values())), torch.empty(())).device

    def _place(self, path: str) -> nn.Module:
        module = self.part
        for name in path.split(".")[:-1]:
            if name not in module._modules:
                module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        return module

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that this process owns, for its optimizer."""
        return self.part.parameters()

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, on the rank that has its outputs; None on the others."""
        with self.drawing():
            outputs, _, neighbours, inputs = self._predict(args, kwargs)
            neighbours.flush()
        return self.runtime.interface.assemble(outputs, inputs) if self.rank == self.loss_rank else None

    def learn(self, *args: Any, target: Any, **kwargs: Any) -> Tensor:
        """Predict, infer and learn: adds to the `grad` of this process's parameters, as `backward` would.

        Returns the loss, float64 [], the same on every rank.
        """
        given = targets_of(target)
        refuse_targets(given)
        with torch.no_grad(), self.drawing():
            outputs, context, neighbours, _ = self._predict(args, kwargs, given)
            loss = torch.zeros((), dtype=torch.float64, device=self.device)
            if self.rank == self.loss_rank:
                value, errors = self.functions["clamp"](outputs, given)
                loss += value
                given = given if self.source.moving else errors
            elif not self.source.moving:
                given = []
            how = {"neighbours": neighbours} if self.program.exchanges else {}
            gradients = self.functions[SWEEP](self.params, context, given, **how)
            neighbours.flush()
            finite = all_finite([g for path, g in gradients.items() if path in self.params])
            outcome = torch.stack([loss, loss.new_tensor(finite is not None and not finite)])
            dist.all_reduce(outcome, group=self.group)
            if outcome[1]:
                self.notice(int(outcome[1]))
            for path, p in self.params.items():
                if (g := gradients.get(path)) is not None:
                    p.grad = g if p.grad is None else p.grad + g
        return outcome[0]

    def notice(self, ranks: int) -> None:
        """Raise CompileError, or warn once, where gradients of so many ranks are not finite."""
        what = f"{self.program.algorithm} ends in gradients that are not finite on {ranks} of {self.size} ranks"
        match self.runtime.options.on_divergence:
            case "raise":
                raise CompileError(what, hint=HINT)
            case "warn" if not self.runtime.warned:
                self.runtime.warned = True
                warnings.warn(f"{what}; {HINT}", RuntimeWarning, stacklevel=3)

    def _predict(
        self, args: Any, kwargs: Any, targets: Sequence[Tensor] | None = None
    ) -> tuple[Sequence[Tensor], list[Any], Neighbours, dict[str, Tensor]]:
        """This rank's outputs and context, once it has heard what it reads; what others read is told."""
        leaves, spec = pytree.tree_flatten((args, kwargs))
        interface = self.runtime.interface
        if mismatch := interface.mismatch(leaves, spec):
            raise CompileError(f"the program of {self.size} processes does not fit: {mismatch.what}")
        inputs = interface.named(leaves)
        if wanted := [k for k, t in inputs.items() if t.requires_grad and targets is not None]:
            what = f"input {wanted[0]} requires a gradient, which a divided model does not give it"
            raise CompileError(what, hint="detach it")
        inputs = {k: t.detach() for k, t in inputs.items()}
        if targets is not None:
            refuse_other_targets(self.runtime, inputs, targets)
        lengths = lengths_of(self.pc, inputs)
        neighbours = Neighbours(self.group, self.links(lengths), self.device, self.asynchronous)
        neighbours.sent = self.sent
        part = self.parts[self.rank]
        hearing = [leaf for r in range(self.size) for leaf, (of, _) in part.hears.items() if of == r]
        known = {**inputs, **dict(zip(hearing, neighbours.hear(FORWARD), strict=True))}
        outputs, context = self.functions["predict"](self.params, self.buffers, known)
        names = part.pc.graph.outputs
        told = [outputs[names.index(value)] for values in part.tells.values() for value in values]
        neighbours.tell(FORWARD, *told)
        return outputs, context, neighbours, inputs

    def links(self, lengths: Mapping[str, int]) -> list[Link]:
        """All that goes between ranks, in its order, where free dimensions have these lengths."""

        def form(type_: TensorType) -> Form:
            return tuple(at(d, lengths) for d in type_.shape), type_.dtype

        found: dict[tuple[int, int, int], list[Form]] = {}
        paced = {t.number for t in self.transfers if t.paced}
        for to, part in enumerate(self.parts):
            for leaf, (of, _) in part.hears.items():
                found.setdefault((FORWARD, of, to), []).append(form(part.pc.graph.inputs[leaf]))
        types = {v.name: v.type for v in self.pc.vertices}
        for t in self.transfers:
            found.setdefault((t.number, t.of, t.to), []).append(form(types[t.owner]))
        return [Link(*key, tuple(forms), key[0] in paced) for key, forms in found.items()]

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within, this rank draws from a stream of its own, where the model draws at all; outside they stay in step.

        The program makes the casts of autocast itself.
        """
        seed = int(torch.randint(1 << 62, ())) if self.draws else 0
        with without_autocast(self.device.type), torch.random.fork_rng(enabled=self.draws):
            if not self.draws:
                yield
                return
            torch.manual_seed(seed + self.rank)
            yield

    def summary(self) -> Page:
        """What each rank has."""
        costs = vertex_costs(self.pc, self.lengths)
        rows = []
        for rank, part in enumerate(self.parts):
            own = [v.name for v in self.pc.vertices if self.owners[v.name] == rank]
            numbers = sum(math.prod(at(d, {}) for d in t.shape) for t in part.pc.graph.params.values())
            share = sum(costs[v] for v in own) / max(sum(costs.values()), 1)
            rows.append((str(rank), listing(own, 4), f"{len(own):,}", f"{numbers:,}", f"{100 * share:.0f} %"))
        head = f"{self.program.algorithm} on {self.size} processes; this is rank {self.rank}"
        return Page((head, Table(("rank", "vertices", ">number", ">parameters", ">of the cost"), tuple(rows))))

    def __repr__(self) -> str:
        return str(self.summary())


def draws(program: Program) -> bool:
    """Whether prediction or inference draws random numbers."""
    noise = any("noise" in names(parse(d.equation)) for d in flat((*program.infer, *program.learn)))
    return noise or any(n.op in OPS and OPS[n.op].random for n in program.pc.graph.nodes)
