"""Under which keys the functions of a generated file return gradients."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from pccompile.ir import Graph


@dataclass(frozen=True)
class Gradient:
    """A gradient that `learn` returns under `key`: that of entry `entry` of `table`: "params", "buffers" or "inputs".

    `name` is what the graph calls it. A key is the path of a parameter or a buffer, or "input x" for an input x, with a
    number behind it where a parameter has that path.
    """

    key: str
    name: str
    table: str
    entry: str


def gradient_keys(graph: Graph) -> dict[str, Gradient]:
    """What the gradients of parameters, buffers and inputs are called in a file's results."""
    gradients: dict[str, Gradient] = {}
    taken = set(graph.origin.values())
    for name in graph.leaves:
        if name not in graph.inputs:
            table = "params" if name in graph.params else "buffers"
            path = graph.origin.get(name, name)
            gradients[name] = Gradient(path, name, table, path)
            continue
        keys = (f"input {name}{f' {i}' if i else ''}" for i in itertools.count())
        key = next(key for key in keys if key not in taken)
        taken.add(key)
        gradients[name] = Gradient(key, name, "inputs", name)
    return gradients


def table_of(slot: str) -> str:
    """What the dictionary of a slot is called that inference hands to learning."""
    return f"{slot}s"
