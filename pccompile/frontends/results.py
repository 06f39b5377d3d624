"""What an exported program returns, and which of that is compared with what Python read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from pccompile.frontends.paths import Reading
from pccompile.ir import Arg, Ref
from pccompile.ops import Builder
from pccompile.ops.paths import ON_PATH

Results = tuple[Ref | object, ...]


def results_of(program: ExportedProgram, env: Mapping[fx.Node, Arg]) -> Results:
    """The leaves of what a program returns, as `env` calls them."""
    returned = next(n for n in reversed(program.graph.nodes) if n.op == "output").args[0]
    found: list[Ref | object] = []
    for spec, value in zip(program.graph_signature.output_specs, returned, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            found.append(env[value] if isinstance(value, fx.Node) else getattr(spec.arg, "value", value))
    return tuple(found)


def compared(b: Builder, leaves: Results, readings: Sequence[Reading]) -> Results:
    """The leaves, of which the last are compared with what Python read there, by operations that `b` writes."""
    count = len(leaves) - len(readings)
    pairs = zip(leaves[count:], readings, strict=True)
    checked = [b(ON_PATH, tensor, reading.values, str(reading.where)) for tensor, reading in pairs]
    return (*leaves[:count], *checked)
