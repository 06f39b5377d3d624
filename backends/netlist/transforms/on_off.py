"""Signed errors as pairs of channels that are never negative: what hardware with unsigned messages and traces needs."""

from __future__ import annotations

import msgspec

from pccompile.backends.netlist.format import Plasticity, Population, Projection, Spec
from pccompile.backends.netlist.netlist import Netlist
from pccompile.backends.netlist.operations import OPERATIONS
from pccompile.backends.netlist.transforms import fresh
from pccompile.diagnostics import CompileError

replace = msgspec.structs.replace
Channels = dict[str, tuple[str, str]]


def on_off(net: Netlist) -> Netlist:
    """`net` in which what leaves an error or gate unit ε are relu(ε) and relu(−ε), each in a population of its own.

    Each projection and plasticity rule that read ε reads both, with gains of opposite sign; ε itself is read by its two
    channels alone. States and learning are equal up to rounding. Raises CompileError where ε is compared.
    """
    spec = net.spec
    read = {n for p in spec.projections if not _is_channel(p, spec) for n in p.reads}
    read |= {n for r in spec.plasticity for n in (r.pre, r.post) if n is not None}
    populations, channels, added = dict(spec.populations), Channels(), []
    names = {p.name for p in spec.projections}
    for name, p in spec.populations.items():
        if p.role in ("error", "gate") and p.unit != "map" and name in read:
            pair = []
            for suffix, gain in (("on", 1.0), ("off", -1.0)):
                channel = fresh(f"{name}.{suffix}", populations)
                populations[channel] = Population(
                    shape=p.shape, unit="map", role=p.role, vertex=p.vertex, function="relu(x)", bits=p.bits
                )
                names.add(label := fresh(f"{name}->{channel}", names))
                added.append(Projection(name=label, pre=name, post=f"{channel}:in", op="one_to_one", gain=gain))
                pair.append(channel)
            channels[name] = (pair[0], pair[1])
    projections = [q for p in spec.projections for q in _split(p, spec, channels, names)]
    made = replace(
        spec,
        populations=populations,
        projections=(*projections, *added),
        plasticity=tuple(r for rule in spec.plasticity for r in _rules(rule, channels)),
    )
    return Netlist(made, net.tensors, net.drawn)


def _is_channel(p: Projection, spec: Spec) -> bool:
    """Whether a projection feeds a channel."""
    target = spec.populations[p.target]
    return target.function == "relu(x)" and target.role in ("error", "gate") and OPERATIONS[p.op].unitwise


def _split(p: Projection, spec: Spec, channels: Channels, names: set[str]) -> list[Projection]:
    """A projection from both channels of each population that it read; the first keeps its name."""
    if channels.keys().isdisjoint(p.reads) or _is_channel(p, spec):
        return [p]
    if spec.populations[p.target].unit == "select":
        raise CompileError(f"population {p.target} compares {p.pre}, whose sign would be lost")
    found = [p]
    for end in ("pre", "with_"):
        if (name := getattr(p, end)) in channels:
            on, off = channels[name]
            found = [
                replace(q, **{end: side, "gain": q.gain * sign}) for q in found for side, sign in ((on, 1), (off, -1))
            ]
    for i, q in enumerate(found[1:], 1):
        names.add(label := fresh(f"{p.name}.off", names))
        found[i] = replace(q, name=label)
    return found


def _rules(rule: Plasticity, channels: Channels) -> list[Plasticity]:
    """A rule for each pair of channels that it reads; only the first decays the parameter."""
    posts = [(name, sign) for name, sign in zip(channels.get(rule.post, (rule.post,)), (1, -1), strict=False)]
    pres: list[tuple[str | None, int]] = [(rule.pre, 1)]
    if rule.pre in channels:
        pres = list(zip(channels[str(rule.pre)], (1, -1), strict=True))
    found = [replace(rule, post=post, pre=pre, gain=rule.gain * s * t) for post, s in posts for pre, t in pres]
    return [found[0], *(replace(r, decay=0.0) for r in found[1:])]
