"""Whether a netlist holds together: everything that simulators, passes and exporters rely on."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from pccompile.backends.netlist.expressions import function
from pccompile.backends.netlist.format import (
    Plasticity,
    Population,
    Port,
    Projection,
    Spec,
    Tensor,
    Tensors,
    order,
    ports_of,
)
from pccompile.backends.netlist.operations import OPERATIONS, RULES, Populations, operation
from pccompile.backends.netlist.simulate.formats import LARGEST_TABLE, WIDEST
from pccompile.diagnostics import Collector
from pccompile.limits import limit

MOST_AXES = 32
LONGEST_NAME = 1000
MOST_PROBLEMS = 100
_ONLY: dict[str, tuple[str, ...]] = {
    "bias": ("sum",), "bias_axis": ("sum",), "function": ("map",), "leak": ("integrator",), "rate": ("integrator",),
    "ranks": ("select",), "smallest": ("select",), "guard": ("integrator",), "table": ("map",),
    "port_bits": ("map", "product"),
}  # fmt: skip
"""The unit kinds that have a field."""

_PLAIN = Population(shape=(), unit="input", role="value", vertex="")
_UNSET = {"param": None, "index": None, "elements": None, "by": None, "with_": None, "subscripts": None,
          "stride": (), "padding": (), "dilation": (),
          "groups": 1}  # fmt: skip


def check(spec: Spec, tensors: Tensors) -> None:
    """Raise CompileError with all that is wrong with a netlist, or the first hundred things."""
    found = Collector()
    for problem in itertools.islice(problems(spec, tensors), MOST_PROBLEMS):
        found.add(problem)
    found.raise_if_any()


def problems(spec: Spec, tensors: Tensors) -> Iterator[str]:
    """What is wrong with a netlist, a sentence each."""
    yield from _names(spec)
    good = {}
    for name in {**spec.tensors, **tensors}:
        wrong = list(_tensor(name, spec.tensors.get(name), tensors.get(name)))
        yield from wrong
        if not wrong:
            good[name] = tensors[name]
    sound = {}
    for name, p in spec.populations.items():
        wrong = list(_shape(f"population {name}", p.shape))
        yield from wrong
        if not wrong:
            sound[name] = p
            yield from (f"population {name}: {w}" for w in _population(p, good))
    yield from _amount(spec, sound)
    yield from _phases(spec)
    yield from _projections(spec, sound, good)
    yield from _plasticity(spec, sound, good)
    yield from _ports(spec, sound, good)


def _names(spec: Spec) -> Iterator[str]:
    kinds: dict[str, Iterable[str]] = {
        "population": spec.populations, "projection": [p.name for p in spec.projections], "tensor": spec.tensors,
        "phase": [p.name for p in spec.phases], "netlist": [spec.name],
        "vertex": [p.vertex for p in spec.populations.values()],
        "port": [*spec.inputs, *spec.targets, *spec.clamps, *spec.outputs, *spec.draws, *spec.fixed, *spec.arguments],
    }  # fmt: skip
    for kind, names in kinds.items():
        for name, count in Counter(list(names)).items():
            if not name.isprintable() or len(name) > LONGEST_NAME or (not name and kind not in ("vertex", "netlist")):
                yield f"a {kind} is called {name[:80]!r}: names are printable and of 1 to {LONGEST_NAME} characters"
            if count > 1 and kind in ("projection", "phase"):
                yield f"{count} {kind}s are called {name}"
    for name, count in Counter(spec.arguments).items():
        if count > 1:
            yield f"argument {name} is there {count} times"


def _shape(owner: str, shape: tuple[int, ...]) -> Iterator[str]:
    if len(shape) > MOST_AXES or any(s < 0 for s in shape):
        yield f"{owner}: shape {list(shape[:MOST_AXES])} has a negative length or more than {MOST_AXES} axes"
    elif math.prod(shape) > limit("units"):
        yield f"{owner}: {math.prod(shape)} units or entries; {_most('units')}"


def _tensor(name: str, said: Tensor | None, array: np.ndarray | None) -> Iterator[str]:
    if said is None or array is None:
        yield f"tensor {name} is not described" if said is None else f"tensor {name} is missing"
    elif array.shape != said.shape or str(array.dtype) != said.dtype:
        yield (f"tensor {name} is {array.dtype} {list(array.shape)}, "
               f"described as {said.dtype} {list(said.shape)}")  # fmt: skip
    elif not np.isfinite(array).all():
        yield f"tensor {name} has entries that are not finite"
    else:
        yield from (f"tensor {name}: {w}" for w in _bits(said.bits))


def _population(p: Population, tensors: Tensors) -> Iterator[str]:
    """What is wrong with a population of a sound shape."""
    for field, units in _ONLY.items():
        if p.unit not in units and getattr(p, field) != getattr(_PLAIN, field):
            yield f"{field} means nothing for units of kind {p.unit}"
    if p.unit == "map":
        yield from _function(p.function)
    if p.unit == "sum" and (p.bias is not None or p.bias_axis is not None):
        yield from _bias(p, tensors)
    if p.unit == "integrator":
        yield from _rates(p)
    if p.ranks is not None:
        ranks = tensors.get(p.ranks)
        if ranks is None or ranks.dtype.kind != "i" or ranks.size != p.size:
            yield f"ranks {p.ranks} are not a tensor of {p.size} whole numbers"
    yield from _bits(p.bits)
    for bits in p.port_bits or ():
        yield from (f"port_bits: {w}" for w in _bits(bits))
    if p.port_bits is not None and p.unit in ("map", "product") and len(p.port_bits) != len(ports_of(p.unit)):
        yield f"port_bits has {len(p.port_bits)} formats for {len(ports_of(p.unit))} ports"
    if p.guard is not None and not 0 <= p.guard <= WIDEST:
        yield f"guard {p.guard} is not within 0 to {WIDEST}"
    if p.table is not None and not (0 < p.table[0] <= LARGEST_TABLE and abs(p.table[1]) <= WIDEST):
        yield f"table {list(p.table)} is no log2 of 2 to 2**{LARGEST_TABLE} entries and of a range within 2**{WIDEST}"


def _bits(bits: tuple[int, int] | None) -> Iterator[str]:
    if bits is not None and not (2 <= bits[0] <= WIDEST and abs(bits[1]) <= 2 * WIDEST):
        yield f"bits {list(bits)} are no total of 2 to {WIDEST} and a fraction within {2 * WIDEST}"


def _function(source: str | None) -> Iterator[str]:
    try:
        if source is None:
            raise ValueError("units of kind map need a function")
        function(source)
    except ValueError as e:
        yield str(e)


def _bias(p: Population, tensors: Tensors) -> Iterator[str]:
    bias = tensors.get(str(p.bias))
    if bias is None or bias.dtype.kind != "f":
        yield f"bias {p.bias} is not a tensor of numbers"
    elif p.bias_axis is None:
        if bias.size != p.size:
            yield f"bias {p.bias} has {bias.size} entries for {p.size} units"
    elif not 0 <= p.bias_axis < len(p.shape) or bias.shape != (p.shape[p.bias_axis],):
        yield f"bias {p.bias} of shape {list(bias.shape)} does not lie along axis {p.bias_axis} of {list(p.shape)}"


def _rates(p: Population) -> Iterator[str]:
    if not (0 < p.rate < math.inf and 0 <= p.rate * p.leak < 2):
        yield f"rate {p.rate} and leak {p.leak}: an integrator settles for 0 < rate and 0 <= rate × leak < 2"


def _most(name: str) -> str:
    return f"at most {limit(name)} are taken (--budget {name}=… raises that)"


def _amount(spec: Spec, sound: Mapping[str, Population]) -> Iterator[str]:
    total = sum(math.prod(p.shape) for p in sound.values())
    if total > limit("units"):
        yield f"{total} units; {_most('units')}"
    delays: Counter[str] = Counter()
    for p in spec.projections:
        for name in p.reads:
            if name in sound:
                delays[name] = max(delays[name], p.delay)
    kept = sum(d * max(1, math.prod(sound[name].shape)) for name, d in delays.items())
    if kept > limit("units"):
        yield f"delays keep {kept} states; {_most('units')}"


def _phases(spec: Spec) -> Iterator[str]:
    for phase in spec.phases:
        if phase.ticks < 0:
            yield f"phase {phase.name} has {phase.ticks} ticks"
        if phase.ticks > limit("ticks"):
            yield f"phase {phase.name} has {phase.ticks} ticks; {_most('ticks')}"


def _projections(spec: Spec, sound: Mapping[str, Population], tensors: Tensors) -> Iterator[str]:
    dangling = False
    into: dict[str, list[Projection]] = {name: [] for name in spec.populations}
    for p in spec.projections:
        wrong = list(_ends(p, spec))
        dangling = dangling or bool(wrong)
        if not wrong:
            into[p.target].append(p)
            if all(n in sound for n in (*p.reads, p.target, *([] if p.by is None else [p.by]))):
                wrong = list(projection_problems(p, sound, tensors))
        yield from (f"projection {p.name}: {w}" for w in wrong)
    for name, population in sound.items():
        if population.unit == "select":
            yield from (f"population {name}: {w}" for w in _select(population, into[name], tensors))
    for p in spec.projections:
        if p.by is not None and p.by in sound and "by" in OPERATIONS[p.op].needs:
            yield from (f"projection {p.name}: {w}" for w in _winners(p, into[p.by], tensors))
    if not dangling:
        try:
            order(spec)
        except ValueError as e:
            yield str(e)


def _ends(p: Projection, spec: Spec) -> Iterator[str]:
    """References of a projection that lead nowhere, and numbers that are none."""
    yield from (f"it reads {name}, which is no population" for name in p.reads if name not in spec.populations)
    target = spec.populations.get(p.target)
    if target is None:
        yield f"it reaches {p.post}, which is no population:port"
    elif p.port not in ports_of(target.unit):
        yield f"it reaches {p.post}; units of kind {target.unit} have {', '.join(ports_of(target.unit)) or 'no ports'}"
    if p.by is not None and (p.by not in spec.populations or spec.populations[p.by].unit != "select"):
        yield f"it is routed by {p.by}, which is no select population"
    if not math.isfinite(p.gain):
        yield f"gain {p.gain} is not finite"
    if p.delay < 0:
        yield f"delay {p.delay} is negative"


def _select(p: Population, into: list[Projection], tensors: Tensors) -> Iterator[str]:
    """A select population compares what one gather brings, and each unit has something to choose from."""
    if len(into) != 1 or not OPERATIONS[into[0].op].gathers or into[0].transpose:
        yield f"select needs one gather; {len(into)} projections reach it"
        return
    index, ranks = tensors.get(str(into[0].index)), tensors.get(str(p.ranks))
    if index is None or index.ndim != 2 or index.shape[0] != p.size or not p.size:
        return
    candidates = (index >= 0).sum(1)
    wanted = np.zeros(p.size) if ranks is None or ranks.size != p.size else ranks.reshape(-1)
    if (wanted < 0).any() or (wanted >= candidates).any():
        unit = int(np.flatnonzero((wanted < 0) | (wanted >= candidates))[0])
        yield f"unit {unit} is to hold rank {int(wanted[unit])} of {candidates[unit]} candidates"


def _winners(p: Projection, into: list[Projection], tensors: Tensors) -> Iterator[str]:
    """Each slot that can win must be in the table of a route."""
    table = tensors.get(str(p.index))
    compared = tensors.get(str(into[0].index)) if len(into) == 1 else None
    if table is None or compared is None or not table.ndim == compared.ndim == 2:
        return
    if table.shape[1] < compared.shape[1]:
        yield f"its index has {table.shape[1]} slots, {p.by} chooses among {compared.shape[1]}"


def _plasticity(spec: Spec, sound: Mapping[str, Population], tensors: Tensors) -> Iterator[str]:
    named, phases = spec.named(), {p.name for p in spec.phases}
    for i, rule in enumerate(spec.plasticity):
        wrong = []
        if rule.phase not in phases:
            wrong.append(f"no phase is called {rule.phase}")
        wrong += [f"{k} {v} is not finite" for k, v in (("rate", rule.rate), ("gain", rule.gain), ("decay", rule.decay))
                  if not math.isfinite(v)]  # fmt: skip
        wrong += [f"{name} is no population" for name in (rule.pre, rule.post)
                  if name is not None and name not in spec.populations]  # fmt: skip
        if all(n is None or n in sound for n in (rule.pre, rule.post)):
            wrong += plasticity_problems(rule, named, sound, tensors)
        yield from (f"plasticity {i} of {rule.param}: {w}" for w in wrong)


def _ports(spec: Spec, sound: Mapping[str, Population], tensors: Tensors) -> Iterator[str]:
    presented = {"input": spec.inputs, "target": spec.targets, "clamp": spec.clamps, "draw": spec.draws}
    for kind, ports in {**presented, "output": spec.outputs}.items():
        for name, port in ports.items():
            p = spec.populations.get(port.population)
            if p is None:
                yield f"{kind} {name}: {port.population} is no population"
                continue
            if kind != "output" and p.unit != "input":
                yield f"{kind} {name}: {port.population} is of kind {p.unit} and cannot be set"
            if port.example is not None and (kind != "draw" or port.example not in tensors):
                yield f"{kind} {name}: its example {port.example} is no tensor of random numbers"
            if port.argument is not None and kind != "input":
                yield f"{kind} {name} takes no argument"
            if port.population in sound:
                yield from (f"{kind} {name}: {w}" for w in _port(port, p))
    for name, port in spec.inputs.items():
        if (name if port.argument is None else port.argument) not in spec.arguments:
            yield f"input {name} is not among the arguments"
    for name, fixed in spec.fixed.items():
        yield from _shape(f"fixed input {name}", fixed.shape)
        if name not in spec.arguments:
            yield f"fixed input {name} is not among the arguments"
        if not re.fullmatch(r"[0-9a-f]{64}", fixed.digest):
            yield f"fixed input {name}: its digest is no SHA-256"


def _port(port: Port, p: Population) -> Iterator[str]:
    """Whether what is presented has the population's size."""
    if port.encode is None:
        if list(_shape("port", port.shape)) or math.prod(port.shape) != p.size:
            yield f"shape {list(port.shape)} does not fit {list(p.shape)}"
        return
    shape = p.shape if port.states is None else port.states
    if list(_shape("port", shape)) or math.prod(shape) != p.size:
        yield f"states {list(shape)} do not fit {list(p.shape)}"
        return
    axes = len(shape)
    if not -axes <= port.axis < axes:
        yield f"{list(shape)} has no axis {port.axis}"
    elif math.prod(s for i, s in enumerate(shape) if i != port.axis % axes) != math.prod(port.shape):
        yield f"shape {list(port.shape)} of whole numbers does not fit {list(shape)} without axis {port.axis}"


def projection_problems(p: Projection, populations: Populations, tensors: Tensors) -> Iterator[str]:
    """What is wrong with a projection between two populations that are there."""
    needs, may = OPERATIONS[p.op].needs, OPERATIONS[p.op].may
    missing = [f for f in needs if getattr(p, f) == _UNSET[f]]
    without = [f for f in _UNSET if f not in (*needs, *may) and getattr(p, f) != _UNSET[f]]
    yield from (f"{p.op} needs {f.rstrip('_')}" for f in missing)
    yield from (f"{f.rstrip('_')} means nothing for {p.op}" for f in without)
    kinds = {"param": ("f", "numbers"), "index": ("i", "whole numbers"), "elements": ("i", "whole numbers")}
    wrong = [
        f"{field} {name} is not a tensor of {word}"
        for field, (kind, word) in kinds.items()
        if (name := getattr(p, field)) is not None and (name not in tensors or tensors[name].dtype.kind != kind)
    ]
    yield from wrong
    if not missing and not wrong:
        yield from operation(p, populations, tensors).problems()


def plasticity_problems(
    rule: Plasticity, named: Mapping[str, Projection], populations: Populations, tensors: Tensors
) -> Iterator[str]:
    """What is wrong with a rule whose populations are there."""
    array, kind, via = tensors.get(rule.param), RULES[rule.rule], named.get(str(rule.via))
    if array is None or array.dtype.kind != "f":
        yield f"{rule.param} is not a tensor of numbers"
    elif (rule.pre is None) == kind.has_pre:
        yield f"{rule.rule} {'needs' if kind.has_pre else 'has no'} pre"
    elif rule.axis is not None and kind.has_pre:
        yield f"axis means nothing for {rule.rule}"
    elif kind.takes_via and (via is None or via.op != kind.operation):
        yield f"{rule.rule} needs a {kind.operation} projection, and {rule.via} is none"
    else:
        yield from kind(rule, populations, via, tensors).problems()
