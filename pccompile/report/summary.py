"""A compiled model on one page."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor, nn

from pccompile.algorithms import ALGORITHMS
from pccompile.algorithms.law import PathLengths
from pccompile.diagnostics import listing
from pccompile.ops import definition
from pccompile.pipeline import Compiled
from pccompile.report.explain import rules
from pccompile.report.tables import Page, count
from pccompile.runtime.module import CompiledModule

OUTSIDE = "a loss of pc(x) clamps the outputs by its linearisation: pc.loss(x, target=y) has another gradient"


def summary(pc: CompiledModule) -> Page:
    """Algorithm, size, rules, predicted gradient error and warnings, a line each."""
    compiled, options = pc.compiled, pc.options
    graph = compiled.graph
    learned = [compiled.imported.tensors[p] for p in graph.params if p in compiled.pc.graph.wanted]
    settings = {
        **compiled.program.arguments,
        **{k: v for k, v in options.settings.items() if v is not None and k not in compiled.program.arguments},
    }
    granularity = options.granularity or ALGORITHMS[options.algorithm].granularity
    lines = [
        f"algorithm    {', '.join([options.algorithm, *(f'{k} {v}' for k, v in settings.items())])}",
        f"granularity  a vertex is one {GRAINS[granularity]}",
        f"vertices     {len(compiled.pc.vertices):,}, longest path to an output {count(longest(compiled), 'edge')}",
        f"parameters   {size(learned)} learn, of {size([compiled.imported.tensors[p] for p in graph.params])}",
        *own_leaves(compiled),
        f"rules        {rules(compiled.pc.vertices).removeprefix('rules: ')}",
        *(f"facts        {fact}" for fact in compiled.program.facts if fact not in pc.notes),
        *([f"checked      {pc.checked}"] if pc.checked else []),
        *(f"note         {n}" for n in pc.notes),
        *(f"warning      {w}" for w in warnings(pc, compiled)),
        *([f"warning      {OUTSIDE}"] if compiled.source.moving and pc.options.outside_loss != "refuse" else []),
    ]
    return Page(tuple(lines))


GRAINS = {"op": "operation", "layer": "layer"}


def own_leaves(compiled: Compiled) -> Iterator[str]:
    """How many weights messages read in the place of the model's own, and mirrored layers have."""
    graph = compiled.pc.graph
    for title, mirror in (("feedback     ", False), ("mirrors      ", True)):
        leaves = [leaf for leaf, f in compiled.pc.feedback.items() if f.mirror is mirror]
        types = [graph.params.get(leaf) or graph.buffers[leaf] for leaf in leaves]
        if types:
            entries = sum(math.prod(map(int, t.shape)) for t in types)
            moving = "learn" if graph.params.keys() & set(leaves) else "stand still"
            yield f"{title}{count(len(types), 'tensor')} with {entries:,} entries {moving}"


def size(tensors: list[Tensor]) -> str:
    """`12 tensors with 3,456 entries`."""
    return f"{count(len(tensors), 'tensor')} with {sum(t.numel() for t in tensors):,} entries"


def longest(compiled: Compiled) -> int:
    """The edges of the longest path from a vertex to an output."""
    return PathLengths(compiled.pc).longest


def warnings(pc: CompiledModule, compiled: Compiled) -> Iterator[str]:
    """What a user would want to know before training."""
    graph, children = compiled.pc.graph, compiled.pc.children()
    unread = [graph.origin[p] for p in sorted(graph.wanted) if p in graph.params and not children[p]]
    model: nn.Module = pc.__dict__["model"]
    inside = {id(compiled.imported.tensors[p]) for p in compiled.graph.params}
    unread += [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
    if unread:
        yield f"no output depends on {listing(dict.fromkeys(unread))}: no gradient"
    flat = [v.name for v in compiled.pc.vertices for n in v.prediction if definition(n.op).flat]
    still = [n.name for n in compiled.pc.context if definition(n.op).flat]
    if flat or still:
        yield f"{listing([*flat, *still])} has a derivative of zero: nothing is sent to what comes before it"
    traced = sum(how == "traced" for v in compiled.pc.vertices for how in v.how.values())
    if traced:
        yield f"{count(traced, 'rule')} traced from torch's own derivatives: correct, not written in local form"
    frozen = [graph.origin[p] for p in graph.params if p not in graph.wanted]
    if frozen:
        yield f"{listing(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen"
