"""Update equations that several algorithms share.

The free-energy gradient of a value is hold − pull, that of a parameter or an input is −pull. Where every energy is half
the squared error, what a vertex sends and holds is its error, and slots of their own are not made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pccompile.diagnostics import Collector
from pccompile.ir import Do, PCGraph, Vertex
from pccompile.ops import definition

AT_ONCE = 12
"""A parameter that more vertices read takes their messages in such portions, so that their errors need not all wait."""

Carries = str | Mapping[str, Mapping[str, float]]
FORCE = "pull - error"
"""−∂F/∂v at a vertex, where its energy is half the squared error."""


def energetic(pc: PCGraph) -> bool:
    """Whether a vertex has another energy than half the squared error."""
    return any(v.energy for v in pc.vertices)


def sent(pc: PCGraph) -> str:
    """The slot of what vertices send to their parents and parameters."""
    return "sent" if energetic(pc) else "error"


def held(pc: PCGraph) -> str:
    """The slot of what holds a value where it is predicted."""
    return "held" if energetic(pc) else "error"


def each(owners: Iterable[Vertex | str], *equations: str, **how: Any) -> tuple[Do, ...]:
    """Every equation, `slot = expression`, for all owners before the next equation: they move together."""
    names = [o if isinstance(o, str) else o.name for o in owners]
    return tuple(_do(name, e, how) for e in equations for name in names)


def along(owners: Iterable[Vertex | str], *equations: str, **how: Any) -> tuple[Do, ...]:
    """All equations for an owner before the next owner: what one does is seen by those behind it."""
    names = [o if isinstance(o, str) else o.name for o in owners]
    return tuple(_do(name, e, how) for name in names for e in equations)


def _do(name: str, equation: str, how: Mapping[str, Any]) -> Do:
    slot, _, expression = equation.partition(" = ")
    return Do(name, slot, expression, **how)


def start(pc: PCGraph) -> tuple[Do, ...]:
    """Every value where its energy is least, parents first: where the model predicts it, unless an energy differs."""
    if all(v.energy is None or v.energy.rest == "prediction" for v in pc.latent):
        return each(pc.latent, "value = prediction")
    return forwards(pc, lambda v: v.energy.rest if v.energy else "prediction")


def forwards(pc: PCGraph, value: Callable[[Vertex], str]) -> tuple[Do, ...]:
    """Predictions in the order of the graph, each hidden value set by its equation before its children read it."""
    ends, steps = set(pc.ends), list[Do]()
    for v in pc.vertices:
        steps += along([v], "prediction = predict", at="value")
        steps += [] if v.name in ends else along([v], f"value = {value(v)}")
    return tuple(steps)


def look(pc: PCGraph, clamp: str = "clamp") -> tuple[Do, ...]:
    """Predictions at the present values, errors, and what vertices send and hold; `clamp` sets errors of outputs."""
    return (
        *each(pc.vertices, "prediction = predict", at="value"),
        *each(pc.clamped, f"error = {clamp}"),
        *each(pc.observed, "error = clamp"),
        *each(pc.latent, "error = value - prediction"),
        *exchange(pc),
    )


def exchange(pc: PCGraph) -> tuple[Do, ...]:
    """What vertices send and hold at their present errors, where that is not the error itself."""
    if not energetic(pc):
        return ()
    weighted = [v.name for v in pc.vertices if v.name in pc.clamped and v.energy]
    plain = [name for name in pc.ends if name not in weighted]
    return (
        *each(plain, "sent = error"),
        *each(weighted, "sent = send"),
        *each(pc.latent, "sent = send", "held = hold"),
    )


def forces(pc: PCGraph) -> tuple[Do, ...]:
    """All forces −∂F/∂v, before any value moves: a message reads the values of a child's other parents."""
    return each(pc.latent, f"force = pull - {held(pc)}", at="value", carries=sent(pc))


def move(pc: PCGraph, *equations: str) -> tuple[Do, ...]:
    """All forces, then the values."""
    return (*forces(pc), *each(pc.latent, *equations or (EULER,)))


EULER = "value = value + rate * force"


def clamped(pc: PCGraph) -> Iterator[Do]:
    """The outputs' errors, set by the loss."""
    for name in pc.clamped:
        yield Do(name, "error", "clamp")


def learners(pc: PCGraph) -> tuple[str, ...]:
    """Parameters and inputs whose gradient is wanted and that an output depends on."""
    return tuple(name for name in pc.graph.leaves if name in pc.reached)


def learn(pc: PCGraph, at: str = "prediction", carries: Carries = "error", equation: str = "-pull") -> Iterator[Do]:
    """The free-energy gradient of every parameter."""
    for name in learners(pc):
        yield Do(name, "gradient", equation, at, carries)


def sweep(pc: PCGraph, inference: Sequence[Do], carries: Carries) -> Iterator[Do]:
    """`inference` on −ε, each parameter's gradient following as soon as the last of its vertices has its error.

    The rules are linear in the errors, so turning the sign of the outputs' errors turns that of the messages, and what
    arrives at a parameter is its gradient: no pass over the weights is spent on the sign.
    """
    children = pc.children()
    last = {d.vertex: i for i, d in enumerate(inference)}
    after: dict[int, list[Do]] = {}
    for name in learners(pc):
        order = sorted((c.name for c in children[name]), key=last.__getitem__)
        if len(order) <= AT_ONCE:
            at = last[order[-1]] if order else 0
            after.setdefault(at, []).append(Do(name, "gradient", "pull", "prediction", carries))
            continue
        for i in range(0, len(order), AT_ONCE):
            some = {c: {carries: 1.0} if isinstance(carries, str) else carries[c] for c in order[i : i + AT_ONCE]}
            equation = "gradient + pull" if i else "pull"
            after.setdefault(last[[*some][-1]], []).append(Do(name, "gradient", equation, "prediction", some))
    for i, d in enumerate(inference):
        yield d
        yield from after.get(i, ())


def refuse_draws(pc: PCGraph) -> None:
    """Raise CompileError where a vertex draws a sample: predictions that move would draw another at each step."""
    problems = Collector()
    for v in pc.vertices:
        for n in v.prediction:
            if n.name in v.how and definition(n.op).random:
                what = f"{n.op.split('.')[1].strip('_')} draws a sample that changes with its parameters"
                problems.add(what, v.where, "use an algorithm whose predictions stay: exact or fixed-prediction")
    problems.raise_if_any()
