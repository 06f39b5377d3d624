"""The order of the stages: frontend, passes, algorithm, backend. The driver verifies, shows and times between them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from pccompile.algorithms import ALGORITHMS, Choice
from pccompile.backends.torch import Loss, Source, emit
from pccompile.diagnostics import CompileError, printable
from pccompile.frontends.capture import export
from pccompile.frontends.exported import import_program
from pccompile.frontends.imported import Imported, Locate
from pccompile.frontends.places import Place
from pccompile.ir import FLAT, LASTING, Do, Graph, PCGraph, Program, verify, verify_local, verify_program
from pccompile.ir.equations import substituted
from pccompile.ops import Typer
from pccompile.passes.activity import active
from pccompile.passes.canonicalise import canonicalise
from pccompile.passes.dce import dce
from pccompile.passes.derive_rules import derive_rules
from pccompile.passes.energies import Energies, with_energies
from pccompile.passes.feedback import DERIVATIVES, HOME, KINDS, with_feedback
from pccompile.passes.insert_vertices import insert_vertices
from pccompile.passes.mirror import mirrored
from pccompile.passes.precisions import Precision
from pccompile.passes.roles import NO_ROLES, Roles, with_roles
from pccompile.passes.settle_layouts import settle_layouts
from pccompile.passes.settle_presence import settle_presence
from pccompile.passes.stop_unsent import stop_unsent, unsent
from pccompile.passes.wavefront import wavefront

Hook = Callable[[str, object, float], None]
"""Called after each stage with its name, its result and the seconds of CPU that it took."""


_CAPTURE = threading.RLock()
"""Held while a model is captured and compiled: torch.export and what is patched for it are one for all threads."""
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
            ("feedback", self.feedback, KINDS),
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


def silent(stage: str, result: object, seconds: float) -> None:
    """A hook that says nothing."""
    del stage, result, seconds


Result = TypeVar("Result")


class Stages:
    """Runs stages one after another, checks what each makes, and tells the hook."""

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
            case Program():
                verify_program(result)
        self.hook(name, result, time.process_time() - start)
        return result


@contextmanager
def capturing() -> Iterator[None]:
    """Within: a model may be captured and compiled, by one thread at a time.

    torch.inference_mode is left, and not torch.no_grad: no gradient could ever pass the tensors that a program keeps.
    """
    with _CAPTURE:
        learns = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learns):
            yield


def import_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    locate: Locate | None = None,
    hook: Hook = silent,
    still: frozenset[int] = frozenset(),
    fixed: bool = False,
    places: tuple[Place, ...] = (),
) -> Imported:
    """`model` as an operation graph; `still` as for import_program, `fixed` and `places` as for export.

    Raises CompileError where it cannot be captured.
    """
    stage = Stages(hook)
    with capturing():
        program = stage("export", lambda: export(model, args, kwargs, dynamic_shapes, fixed, places))
        return stage("import", lambda: import_program(program, model, locate, still))


def to_vertices(
    imported: Imported, granularity: str, hook: Hook = silent, finish: Callable[[PCGraph], PCGraph] | None = None
) -> tuple[Graph, PCGraph]:
    """The passes: canonical operations, then vertices, then their local rules, or what `finish` makes of them."""
    stage, typer = Stages(hook), imported.typer
    graph = stage("import-graph", lambda: imported.graph)
    graph = stage("canonicalise", lambda: canonicalise(graph, typer))
    graph = stage("dce", lambda: dce(graph))
    graph = stage("settle-layouts", lambda: settle_layouts(graph))
    graph = stage("settle-presence", lambda: settle_presence(graph))
    return _with_rules(stage, graph, typer, granularity, finish)


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
            program = replace(program, learn=(*program.learn, *learned_slots(program.pc)))
        program = wavefront(verify_program(program))
        return replace(program, facts=(*facts, *program.facts)) if facts else program

    return Stages(hook)("schedule", scheduled)


def learned_slots(pc: PCGraph) -> Iterator[Do]:
    """How the slots of energies learn, where inference has ended; those of outputs that are silent stay."""
    energies = {v.name: v.energy for v in pc.vertices}
    for kept in pc.lasting:
        if kept.learned and energies.get(kept.owner) != FLAT:
            # the error of a vertex that is given is what it sends, Π ε
            by = {"error": f"error / {kept.slot}"} if kept.owner in pc.observed else {}
            yield Do(kept.owner, kept.slot, substituted(kept.learned, by))


def refuse_energies(options: Options, pc: PCGraph | None = None) -> None:
    """Raise CompileError where the algorithm has no use for energies, or not for those that `pc` has."""
    algorithm = ALGORITHMS[options.algorithm]
    if algorithm.energies == "none":
        able = ", ".join(a.name for a in ALGORITHMS.values() if a.energies == "any")
        what = f"{algorithm.name} knows no energy but half the squared error, and no precision"
        raise CompileError(what, hint=f"algorithms that do: {able}")
    if algorithm.measures(options.settings):
        what = (
            f"{algorithm.name}: what is automatic is measured for half the squared error, without energies or precision"
        )
        raise CompileError(what, hint="give rate and steps as numbers")
    if pc and not algorithm.estimates and (learned := [k for k in pc.lasting if k.learned]):
        able = ", ".join(a.name for a in ALGORITHMS.values() if a.energies != "none" and a.estimates)
        what = f"{algorithm.name}: the precision of {learned[0].owner} cannot learn by errors that tend to 0"
        raise CompileError(what, hint=f"algorithms whose errors are those where free energy is least: {able}")
    for v in pc.latent if pc and algorithm.energies == "of the error" else ():
        if v.energy and not v.energy.of_error:
            what = f"{algorithm.name} takes energies of v - vhat alone; the energy of {v.name} is {v.energy}"
            raise CompileError(what, v.where, hint="use strict")


def refuse_roles(options: Options) -> None:
    """Raise CompileError where the algorithm cannot infer inputs, or be given hidden values."""
    algorithm = ALGORITHMS[options.algorithm]
    if not algorithm.roles:
        able = ", ".join(a.name for a in ALGORITHMS.values() if a.roles)
        what = f"{algorithm.name} infers no inputs and takes no hidden values: its predictions stay"
        raise CompileError(what, hint=f"algorithms that do: {able}")
    if algorithm.measures(options.settings):
        what = f"{algorithm.name}: what is automatic is measured with inputs that are given"
        raise CompileError(what, hint="give rate and steps as numbers")


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
            refuse_energies(options)
        if roles:
            refuse_roles(options)
            can_move = {n for n, t in imported.graph.inputs.items() if t.differentiable}
            wanted = imported.graph.wanted | (can_move & roles.inputs.keys())
            imported = replace(imported, graph=replace(imported.graph, wanted=wanted))
        graph, plain = to_vertices(imported, options.vertices, hook, play if roles else None)
        pc = plain
        if not roles:
            pc = fed_back(cost(with_mirrors(plain, imported.typer, options, hook)), imported.typer, options, hook)
        if own:
            refuse_energies(options, pc)
        pc = replace(pc, home=options.kept)
        program = schedule(pc, options, hook)
        program = replace(program, also=("prediction",)) if roles.shown else program
        if not options.transposes:
            program = replace(program, facts=(*program.facts, f"Messages to values: {options.messages}"))
        source = stage("emit", lambda: emit(program, loss, record))
    own = options.transposes and ALGORITHMS[options.algorithm].mirrors is None
    return Compiled(imported, graph, program.pc, program, source, loss, None if own else plain)
