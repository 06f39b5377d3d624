"""The two roads of a model, to a torch program and to a netlist: which passes run, in which order.

Between two stages the pipeline verifies what the first has made, and tells a hook, which shows and times it.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pccompile.algorithms import ALGORITHMS, Choice
from pccompile.algorithms.refusals import refuse_energies, refuse_roles
from pccompile.backends.netlist import Lowerable, Netlist, NetlistOptions, build, has_circuit, with_probabilities
from pccompile.backends.torch import Loss, Source, emit
from pccompile.diagnostics import Collector, CompileError, printable
from pccompile.frontends.capture import export
from pccompile.frontends.exported import import_program
from pccompile.frontends.imported import Imported, Locate
from pccompile.frontends.process import capturing
from pccompile.frontends.signature import CaptureForm
from pccompile.ir import LASTING, Graph, PCGraph, Program, Ref, live, verify, verify_local, verify_program
from pccompile.ops import Typer
from pccompile.ops.packed import LAYERS
from pccompile.passes.activity import active
from pccompile.passes.canonicalise import canonicalise
from pccompile.passes.choices import DERIVATIVES, FEEDBACK
from pccompile.passes.dce import dce
from pccompile.passes.derive_rules import derive_rules
from pccompile.passes.energies import Energies, learned_updates, with_energies
from pccompile.passes.feedback import HOME, with_feedback
from pccompile.passes.insert_vertices import insert_vertices
from pccompile.passes.mirror import mirrored
from pccompile.passes.precisions import Precision
from pccompile.passes.predicate_rows import predicate_rows
from pccompile.passes.roles import NO_ROLES, Roles, with_roles
from pccompile.passes.settle_layouts import settle_layouts
from pccompile.passes.settle_presence import settle_presence
from pccompile.passes.simplify import simplify
from pccompile.passes.stop_unsent import stop_unsent, unsent
from pccompile.passes.wavefront import wavefront

Pass = Callable[[Graph, Typer], Graph]
TO_VERTICES: Mapping[str, Pass] = {
    "canonicalise": canonicalise,
    "dce": lambda graph, typer: dce(graph),
    "settle-layouts": lambda graph, typer: settle_layouts(graph),
    "settle-presence": lambda graph, typer: settle_presence(graph),
}
"""What is done to a graph, in this order, before its operations become vertices."""
TO_CIRCUIT: Mapping[str, Pass] = {
    "canonicalise": lambda graph, typer: dce(canonicalise(graph, typer)),
    "predicate-rows": predicate_rows,
}
"""What is done to a graph, in this order, before a loss is put at its end and it is simplified for a circuit."""

Hook = Callable[[str, object, float], None]
"""Called after each stage with its name, its result and the seconds of CPU that it took."""
LOSSES_OUTSIDE = ("refuse", "linearise")
"""A loss of an algorithm's outputs is refused where inference needs it, or clamps them by its linearisation."""
DIVERGENCE = ("raise", "warn", "ignore")
"""Raise a CompileError, warn once for each program, or do nothing."""


@dataclass(frozen=True)
class Options:
    """How a model is compiled. None stands for the algorithm's own default.

    energies, precision: what vertices cost instead of half the squared error: see passes.energies.
    roles: what inference infers besides hidden values, and what it is given: see passes.roles.
    feedback, derivatives: what messages to values read and leave out: see passes.feedback. home: the path of the
    weights that they read. kept: the path of what lasts between calls.
    choices: what has been chosen for settings that are "auto".
    outside_loss: what `backward` of a loss does that inference did not see, where it should have: see LOSSES_OUTSIDE.
    on_divergence: what happens where inference ends in what is no number: see DIVERGENCE.
    jit: the generated functions run behind torch.compile.
    """

    algorithm: str = "exact"
    granularity: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    energies: Energies = None
    precision: Precision = None
    outside_loss: str = "refuse"
    on_divergence: str = "warn"
    feedback: str = "transpose"
    derivatives: str = "exact"
    home: str = HOME
    kept: str = LASTING
    choices: tuple[Choice, ...] = ()
    roles: Roles = NO_ROLES
    jit: bool = False

    def __post_init__(self) -> None:
        for what, value, known in (
            ("algorithm", self.algorithm, ALGORITHMS),
            ("outside_loss", self.outside_loss, LOSSES_OUTSIDE),
            ("on_divergence", self.on_divergence, DIVERGENCE),
            ("feedback", self.feedback, FEEDBACK),
            ("derivatives", self.derivatives, DERIVATIVES),
        ):
            if value not in known:
                raise CompileError(f"unknown {what} {printable(repr(value))}", hint=f"one of {', '.join(known)}")

    @property
    def vertices(self) -> str:
        """The granularity: the one that was asked for, or the algorithm's own."""
        return self.granularity or ALGORITHMS[self.algorithm].granularity

    @property
    def transposes(self) -> bool:
        """Whether messages are those of the free energy, Jᵀ s."""
        return self.feedback == "transpose" and self.derivatives == "exact"

    @property
    def messages(self) -> str:
        """What messages are, for a reader."""
        dropped = "derivatives dropped" if self.derivatives == "dropped" else ""
        return ", ".join(filter(None, (f"{self.feedback} feedback", dropped)))


@dataclass(frozen=True)
class Compiled:
    """Everything that compilation made, stage by stage.

    plain: the vertices with messages Jᵀ s, where they have others, or as the model has them, where they have mirrors.
    """

    imported: Imported
    graph: Graph
    pc: PCGraph
    program: Program
    source: Source
    loss: Loss | None = None
    plain: PCGraph | None = None


@dataclass(frozen=True)
class Circuitry:
    """A netlist with what it was made of: `graph` in simple operations, its tensors and example inputs by name.

    results: the names of the model's outputs.
    """

    netlist: Netlist
    graph: Graph
    tensors: Mapping[str, Tensor]
    examples: Mapping[str, Tensor]
    results: tuple[str, ...]


def silent(stage: str, result: object, seconds: float) -> None:
    """A hook that says nothing."""
    del stage, result, seconds


Result = TypeVar("Result")


class Stages:
    """Runs stages one after another, checks what each makes, and tells the hook.

    A program is checked where it is scheduled, before a pass reads it.
    """

    def __init__(self, hook: Hook = silent) -> None:
        self.hook = hook

    def __call__(self, name: str, run: Callable[[], Result]) -> Result:
        """The result of stage `name`. Raises CompileError where it is not valid."""
        start = time.process_time()
        result = run()
        match result:
            case Graph():
                verify(result)
            case PCGraph():
                verify_local(result)
        self.hook(name, result, time.process_time() - start)
        return result

    def run(self, passes: Mapping[str, Pass], graph: Graph, typer: Typer) -> Graph:
        """`graph` after all of `passes`, each of them a stage."""
        for name, change in passes.items():
            graph = self(name, functools.partial(change, graph, typer))
        return graph


def import_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    form: CaptureForm | None = None,
    locate: Locate | None = None,
    hook: Hook = silent,
) -> Imported:
    """`model` as an operation graph. Raises CompileError."""
    form = form or CaptureForm()
    stage = Stages(hook)
    with capturing():
        program = stage("export", lambda: export(model, args, kwargs or {}, form))
        return stage("import", lambda: import_program(program, model, locate, form.constant))


def to_vertices(
    imported: Imported, granularity: str, hook: Hook = silent, finish: Callable[[PCGraph], PCGraph] | None = None
) -> tuple[Graph, PCGraph]:
    """The passes: canonical operations, then vertices, then their local rules, or what `finish` makes of them."""
    stage, typer = Stages(hook), imported.typer
    graph = stage("import-graph", lambda: imported.graph)
    return _with_rules(stage, stage.run(TO_VERTICES, graph, typer), typer, granularity, finish)


def _with_rules(
    stage: Stages, graph: Graph, typer: Typer, granularity: str, finish: Callable[[PCGraph], PCGraph] | None
) -> tuple[Graph, PCGraph]:
    """`graph` and its vertices with their rules; what no operation sends anything to is cut off first."""
    pc = stage("insert-vertices", lambda: insert_vertices(graph, granularity=granularity))
    derived = stage("derive-rules", lambda: derive_rules(pc, typer))
    if pairs := unsent(derived):
        stopped = stage("stop-unsent", lambda: stop_unsent(graph, pairs))
        if not active(stopped).isdisjoint(stopped.outputs):
            return _with_rules(stage, stopped, typer, granularity, finish)
    return graph, finish(pc) if finish else derived  # where no gradient is left, the vertices say so: they are `unsent`


def schedule(pc: PCGraph, options: Options, hook: Hook = silent) -> Program:
    """The program of the algorithm that `options` name. Raises CompileError for settings that it does not have."""
    algorithm = ALGORITHMS[options.algorithm]
    settings, facts = algorithm.settle(algorithm.choose(options.settings), options.choices)

    def scheduled() -> Program:
        program = algorithm.schedule(pc, settings)
        if algorithm.energies != "none":
            program = replace(program, learn=(*program.learn, *learned_updates(program.pc)))
        program = wavefront(verify_program(program))
        return replace(program, facts=(*facts, *program.facts)) if facts else program

    return Stages(hook)("schedule", scheduled)


def refuse_feedback(options: Options) -> None:
    """Raise CompileError where something is to be measured of a free energy that messages do not follow."""
    if not options.transposes and ALGORITHMS[options.algorithm].measures(options.settings):
        what = f"{options.algorithm}: what is automatic is measured for messages by transposes, not {options.messages}"
        raise CompileError(what, hint="give rate and steps as numbers")


def with_mirrors(pc: PCGraph, typer: Typer, options: Options, hook: Hook = silent) -> PCGraph:
    """`pc` with mirrored layers, where the algorithm has them."""
    algorithm = ALGORITHMS[options.algorithm]
    if algorithm.mirrors is None:
        return pc
    if not options.transposes:
        raise CompileError(f"{algorithm.name} sends its messages by transposes, not with {options.messages}")
    weights = algorithm.mirrors(algorithm.choose(options.settings))
    return Stages(hook)("mirror", lambda: mirrored(pc, typer, weights, options.home))


def fed_back(pc: PCGraph, typer: Typer, options: Options, hook: Hook = silent) -> PCGraph:
    """`pc` with the messages that `options` name."""
    if options.transposes:
        return pc
    how = options.feedback, options.derivatives, options.home
    return Stages(hook)("feedback", lambda: with_feedback(pc, typer, *how))


def compile_imported(
    imported: Imported, options: Options, loss: Loss | None = None, record: bool = False, hook: Hook = silent
) -> Compiled:
    """An imported model all the way to source."""
    refuse_feedback(options)
    algorithm = ALGORITHMS[options.algorithm]
    stage, roles, own = Stages(hook), options.roles, options.energies is not None or options.precision is not None

    def cost(pc: PCGraph) -> PCGraph:
        return stage("energies", lambda: with_energies(pc, options.energies, options.precision)) if own else pc

    def derive(pc: PCGraph) -> PCGraph:
        return fed_back(derive_rules(pc, imported.typer), imported.typer, options, hook)

    def play(pc: PCGraph) -> PCGraph:
        priced = cost(with_mirrors(pc, imported.typer, options, hook))
        return stage("roles", lambda: with_roles(priced, roles, derive))

    with capturing():
        if own:
            refuse_energies(algorithm, options.settings)
        if roles:
            refuse_roles(algorithm, options.settings)
            can_move = {n for n, t in imported.graph.inputs.items() if t.differentiable}
            wanted = imported.graph.wanted | (can_move & roles.inputs.keys())
            imported = replace(imported, graph=replace(imported.graph, wanted=wanted))
        graph, plain = to_vertices(imported, options.vertices, hook, play if roles else None)
        pc = plain
        if not roles:
            pc = fed_back(cost(with_mirrors(plain, imported.typer, options, hook)), imported.typer, options, hook)
        if own:
            refuse_energies(algorithm, options.settings, pc)
        pc = replace(pc, home=options.kept)
        program = schedule(pc, options, hook)
        program = replace(program, also=("prediction",)) if roles.shown else program
        if not options.transposes:
            program = replace(program, facts=(*program.facts, f"Messages to values: {options.messages}"))
        source = stage("emit", lambda: emit(program, loss, record))
    own = options.transposes and algorithm.mirrors is None
    return Compiled(imported, graph, program.pc, program, source, loss, None if own else plain)


def simple_graph(imported: Imported, loss: str, hook: Hook = silent) -> tuple[Graph, list[str], dict[str, str]]:
    """A model in operations that have circuits, as far as it can be brought there; its results and their softmax."""
    stage, typer = Stages(hook), imported.typer
    graph = stage("import-graph", lambda: imported.graph)
    graph = stage.run(TO_CIRCUIT, graph, typer)
    original = dict(zip(imported.graph.outputs, graph.outputs, strict=True))
    probabilities: dict[str, str] = {}
    if loss == "cross-entropy":
        carrying = active(graph)
        outputs = tuple(dict.fromkeys(o for o in graph.outputs if o in carrying))
        graph, probabilities = with_probabilities(graph, typer, outputs)
    before = graph.outputs
    graph = stage("simplify", lambda: simplify(graph, typer, has_circuit))
    renamed = dict(zip(before, graph.outputs, strict=True))
    results = [renamed[original[o]] for o in imported.outputs if isinstance(o, Ref)]
    return graph, results, {renamed[o]: renamed[p] for o, p in probabilities.items()}


def lay_out(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    options: NetlistOptions | None = None,
    locate: Locate | None = None,
    hook: Hook | None = None,
    name: str = "",
) -> Circuitry:
    """The circuit of `model` for inputs of the shapes given. Raises CompileError with all that has no circuit."""
    options, hook = options or NetlistOptions(), hook or silent
    imported = import_model(model, args, kwargs, CaptureForm(free="nothing"), locate, hook)
    _refuse_states(imported)
    _refuse_packed(imported)
    if options.input_errors:
        floating = {k for k, t in imported.graph.inputs.items() if t.differentiable}
        imported = replace(imported, graph=replace(imported.graph, wanted=imported.graph.wanted | floating))
    graph, results, probabilities = simple_graph(imported, options.loss, hook)
    leaves = pytree.tree_leaves((args, dict(kwargs or {})))
    examples = {n: t for n, t in zip(imported.inputs, leaves, strict=True) if n is not None and isinstance(t, Tensor)}
    tensors = {k: t.detach() for k, t in imported.tensors.items()}
    source = Lowerable(graph, tensors, examples, active(graph), imported.typer)
    label = name or type(model).__name__
    netlist = Stages(hook)("netlist", lambda: build(source, options, label, results, probabilities))
    return Circuitry(netlist, graph, tensors, examples, tuple(results))


def compile_netlist(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    options: NetlistOptions | None = None,
    **more: Any,
) -> Netlist:
    """The netlist alone; arguments as for `lay_out`."""
    return lay_out(model, args, kwargs, options, **more).netlist


def _refuse_states(imported: Imported) -> None:
    """Raise CompileError where a model changes what its next call reads: a circuit has no place for that."""
    problems, graph = Collector(), imported.graph
    outputs = graph.outputs[: len(graph.outputs) - graph.further]
    read = {i for n in live(graph.nodes, outputs) for i in n.inputs}.union(outputs)
    hint = "pass it as an input and return its new value"
    for state in (s for s in imported.states if s.read):
        problems.add(f"forward writes the state {state.place}, which a circuit does not keep", hint=hint)
    for name in imported.writes:
        problems.add(f"forward changes the input {name} in place", hint="clone it first")
    for buffer in graph.updates:
        if buffer in read:
            problems.add(f"forward writes the state {graph.origin[buffer]}, which a circuit does not keep", hint=hint)
    problems.raise_if_any()


def _refuse_packed(imported: Imported) -> None:
    """Raise CompileError for recurrent layers over packed sequences: how many rows they have is data."""
    problems, hint = Collector(), "give it padded sequences, and read their states at each one's end"
    for n in imported.graph.nodes:
        if n.op in LAYERS.values():
            problems.add("the netlist has no circuit for a recurrent layer over packed sequences", n.where, hint)
    problems.raise_if_any()
