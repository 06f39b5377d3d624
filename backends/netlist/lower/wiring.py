"""Operations that only move entries about: done on the numbers of the units, they cost nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from pccompile.backends.netlist.lower.lowering import Lowering, Unsupported
from pccompile.backends.netlist.lower.registry import lowers, lowers_where
from pccompile.backends.netlist.lower.values import Choice, Complex, Const, Param, Signal, Tokens, Values
from pccompile.ir import Node, Ref, refs
from pccompile.ops.functions import STOP

PLACES = ("index", "indices", "mask", "condition")
"""What arguments are called that say where entries are read or written, and are not moved themselves."""


@lowers(
    "aten.cat.default",
    "aten.stack.default",
    "aten.constant_pad_nd.default",
    "aten.tril.default",
    "aten.triu.default",
    "aten.diag_embed.default",
    "aten.select_backward.default",
    "aten.slice_backward.default",
    "aten.slice_scatter.default",
    "aten.select_scatter.default",
    "aten.diagonal_scatter.default",
    "aten.index_copy.default",
)
def moved(lo: Lowering, n: Node) -> Values:
    """The result of a mover: the operation itself, run on the numbers of the units."""
    sources, fill = list(moves(n)), n.args.get("value")
    if any(isinstance(lo.value(r), Complex) for r in sources):
        if fill:
            raise Unsupported("a number is written among complex ones")
        parts = {r: lo.parts(r) for r in sources}
        return Complex(np.stack([run(lo, n, {r: ids[..., i] for r, ids in parts.items()}, 0) for i in (0, 1)], -1))
    written = int(lo.ids(fill)[()]) if isinstance(fill, int | float) and fill else 0
    return Signal(run(lo, n, {r: lo.ids(r) for r in sources}, written))


def moves(n: Node) -> Iterator[Ref]:
    """The tensors whose entries a mover moves."""
    return refs(a for name, a in n.args.items() if name not in PLACES)


@lowers_where(lambda op: op.wiring and op.name.startswith("aten."), tokens="self")
@lowers(
    "aten.unfold.default",
    "aten.as_strided.default",
    "aten.index_select.default",
    "aten.channel_shuffle.default",
    "aten.rot90.default",
    "aten.alias_copy.default",
    tokens="self",
)
def picked(lo: Lowering, n: Node) -> Values:
    """The result of a mover whose entries are all entries of its argument: of a choice, too, they are choices."""
    value = lo.value(n["self"])
    if isinstance(value, Tokens):
        return Tokens(value.source, run(lo, n, {n["self"]: value.places}, 0))
    if isinstance(value, Choice):
        return Choice(value.by, run(lo, n, {n["self"]: value.units}, 0), value.positions)
    return moved(lo, n)


def run(lo: Lowering, n: Node, arrays: dict[Ref, np.ndarray], written: int) -> np.ndarray:
    """The node on integers; a number that it writes among them is the number of the unit that holds it."""
    tensors: dict[str, torch.Tensor] = {r: torch.from_numpy(np.array(a)) for r, a in arrays.items()}
    for i in n.inputs:
        if i not in tensors:
            index = lo.value(i)
            if not isinstance(index, Const):
                raise Unsupported("the places that it reads or writes depend on values")
            tensors[i] = index.tensor
    args = dict(n.args)
    if isinstance(args.get("value"), int | float):
        args["value"] = written
    result = lo.evaluated(Node(n.name, n.op, args, n.type), tensors)
    return np.asarray(result.numpy())


def written_once(written: np.ndarray, result: np.ndarray) -> np.ndarray:
    """`result`, if all of what was written is in it. Raises Unsupported: autograd gives what was lost an error, too."""
    ids = written[written > 0]
    if not np.isin(ids, result).all():
        raise Unsupported("it writes to one place more than once, and which value stays is not defined")
    return result


@lowers("aten.t.default", "aten.transpose.int", tokens="self")
def transposed(lo: Lowering, n: Node) -> Values:
    """A transposed matrix; of a parameter it is the same parameter, read the other way."""
    value = lo.value(n["self"])
    if isinstance(value, Param) and len(lo.tensors[value.name].shape) == 2:
        swapped = n.op == "aten.t.default" or {n["dim0"] % 2, n["dim1"] % 2} == {0, 1}
        return Param(value.name, value.transposed != swapped)
    return picked(lo, n)


@lowers(STOP)
def stopped(lo: Lowering, n: Node) -> Values:
    """The same values in units that carry no error."""
    return passive(lo, lo.ids(n["x"]))


def passive(lo: Lowering, ids: np.ndarray) -> Signal:
    """A copy of a signal that carries no error; the signal itself where it carries none."""
    if not lo.c.carries(ids):
        return Signal(ids)
    name = lo.population("sum", ids.shape, [ids], passive=True)
    lo.c.project(ids, name)
    return Signal(lo.c.ids(name))


@lowers("aten.gather.default", tokens="self")
def gathered(lo: Lowering, n: Node) -> Values:
    """Entries at given places, or at places that a select population chose."""
    index = lo.value(n["index"])
    if not isinstance(index, Choice):
        return picked(lo, n)
    x = np.moveaxis(lo.ids(n["self"]), n["dim"], -1)
    table = _candidates(index, x, n["dim"])
    return _routed(lo, index.by, index.units, table)


def _routed(lo: Lowering, by: str, units: np.ndarray, table: np.ndarray) -> Signal:
    """A population in the shape of `units`, each unit reading from its row of `table` what units[i] of `by` chose."""
    name, elements = lo.population("sum", units.shape, [table]), _deciders(lo, by, units)
    for source in lo.c.sources(table):
        first, size = lo.c.first[source], lo.c.populations[source].size
        slots = lo.c.tensor("index", np.where((table >= first) & (table < first + size), table - first, -1))
        lo.c.connect(source, name, "route", by=by, index=slots, elements=elements)
    return Signal(lo.c.ids(name))


@lowers("aten.index.Tensor", tokens="self")
def indexed(lo: Lowering, n: Node) -> Values:
    """Entries at given places, or whole rows that a select population chose: the weights of an expert."""
    first, *rest = n["indices"]
    index = None if first is None else lo.value(first)
    if not isinstance(index, Choice) or rest or not index.positions.size:
        return picked(lo, n)
    rows = lo.ids(n["self"])[index.positions[index.units]]
    rows = np.moveaxis(rows, index.units.ndim, -1)
    units = np.broadcast_to(
        index.units.reshape(*index.units.shape, *(1,) * (rows.ndim - 1 - index.units.ndim)), rows.shape[:-1]
    )
    return _routed(lo, index.by, units, rows.reshape(units.size, -1))


def _candidates(index: Choice, x: np.ndarray, dim: int) -> np.ndarray:
    """For each entry of an index tensor, what it reads in each slot: [entries, slots]."""
    units = np.moveaxis(index.units, dim, -1)
    leading = units.shape[:-1]
    rows = np.broadcast_to(x[tuple(slice(0, s) for s in leading)][..., None, :], (*units.shape, x.shape[-1]))
    table = np.take_along_axis(rows, index.positions[units], -1)
    return np.moveaxis(table, -2, dim if dim >= 0 else dim - 1).reshape(index.units.size, -1)


def _deciders(lo: Lowering, by: str, units: np.ndarray) -> str | None:
    """The table of the units of `by` that decide for each entry; None where they are all of them in order."""
    units = units.reshape(-1)
    if units.size == lo.c.populations[by].size and bool((units == np.arange(units.size)).all()):
        return None
    return lo.c.tensor("index", units)


@lowers("aten.scatter.src", "aten.scatter.value")
def scattered(lo: Lowering, n: Node) -> Values:
    """Entries written at given places, or at places that a select population chose, among zeros."""
    index = lo.value(n["index"])
    if not isinstance(index, Choice):
        signal = moved(lo, n)
        if n.op == "aten.scatter.src" and isinstance(index, Const) and isinstance(signal, Signal):
            written_once(lo.ids(n["src"])[tuple(slice(0, s) for s in index.tensor.shape)], signal.ids)
        return signal
    base = lo.ids(n["self"])
    if base.any():
        raise Unsupported("it writes at chosen places over values that are not 0")
    dim: int = n["dim"]
    source = lo.ids(n["src"]) if n.op == "aten.scatter.src" else np.broadcast_to(lo.ids(n["value"]), index.units.shape)
    source = source[tuple(slice(0, s) for s in index.units.shape)]
    pre = lo.relayed(source)
    places = np.moveaxis(np.arange(base.size).reshape(base.shape), dim, -1)
    table = _candidates(index, places, dim)
    name = lo.population("sum", base.shape, [source])
    elements = _deciders(lo, index.by, index.units)
    slots = lo.c.tensor("index", table)
    lo.c.connect(pre, name, "route", by=index.by, index=slots, elements=elements, transpose=True)
    return Signal(lo.c.ids(name))


@lowers("aten.embedding.default", tokens="indices")
def embedded(lo: Lowering, n: Node) -> Values:
    """Rows of a table: those of fixed indices are wiring; for tokens, one-hot units are multiplied with the table."""
    indices, table = lo.value(n["indices"]), lo.value(n["weight"])
    padding: int = n["padding_idx"]
    if n["scale_grad_by_freq"]:
        raise Unsupported("scale_grad_by_freq divides by how often a token occurs, which no synapse knows")
    if isinstance(indices, Tokens) and not (isinstance(table, Param) and not table.transposed):
        lo.freeze(n["indices"])
        indices = lo.value(n["indices"])
    if isinstance(indices, Tokens):
        assert isinstance(table, Param)
        return _from_tokens(lo, n, indices, table, padding)
    if not isinstance(indices, Const):
        raise Unsupported("an embedding of an index that was chosen")
    ids = lo.ids(n["weight"])[indices.tensor.numpy()]
    if padding >= 0 and bool((indices.tensor == padding).any()):
        still = passive(lo, ids).ids
        ids = np.where((indices.tensor == padding).numpy()[..., None], still, ids)
    return Signal(ids)


def one_hot(lo: Lowering, tokens: Tokens, classes: int) -> np.ndarray:
    """The units of an input population that holds each token as one active unit among `classes`: [*shape, classes]."""
    key = (tokens.source, classes)
    if key not in lo.tables:
        shape = tuple(lo.examples[tokens.source].shape)
        lo.tables[key] = lo.c.ids(lo.token_population(tokens.source, shape, classes))
    return np.asarray(lo.tables[key].reshape(-1, classes)[tokens.places])


def _from_tokens(lo: Lowering, n: Node, tokens: Tokens, table: Param, padding: int) -> Signal:
    path = lo.parameter(table.name)
    classes, width = lo.c.tensors[path].shape
    hot = one_hot(lo, tokens, classes)
    carries = table.name in lo.active and n.name in lo.active
    name = lo.c.population(f"{n.name}.v", (*tokens.places.shape, width), "sum", "value", n.name, carries)
    if padding < 0:
        lo.c.connect(lo.relayed(hot), name, "dense", param=path, transpose=True)
        return Signal(lo.c.ids(name))
    hidden = hot.copy()
    hidden[..., padding] = 0
    lo.c.connect(lo.relayed(hidden, "tokens"), name, "dense", param=path, transpose=True)
    still = lo.c.tensor("weights", lo.c.tensors[path][padding])
    pairs = np.stack([np.arange(hot.size // classes * width), np.repeat(np.arange(hot.size // classes), width)])
    only = lo.relayed(hot[..., padding], "padding")
    index = lo.c.tensor("index", pairs)
    elements = lo.c.tensor("index", np.tile(np.arange(width), hot.size // classes))
    lo.c.connect(only, name, "sparse", index=index, param=still, elements=elements)
    return Signal(lo.c.ids(name))
