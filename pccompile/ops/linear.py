"""Linear operations: the message is the adjoint. Most of them move entries about and compute nothing: wiring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pccompile.ir import Dim, Node, Ref, TensorType
from pccompile.ops.builder import Builder
from pccompile.ops.registry import Sample, define, normal, rewrite
from pccompile.ops.trace import decompose


def linear(name: str, rule: Any, *samples: Sample, wiring: bool = True, **more: Any) -> None:
    """Define a linear operation of `self` by its adjoint: rule(b, node, err) is the message to `self`.

    `more` are fields of its OpDef.
    """
    define(name, "linear", lambda b, n, e: {"self": rule(b, n, e)}, wiring=wiring, samples=samples, **more)


def axis(dim: Any, rank: int) -> int:
    """A dimension counted from the front."""
    return int(dim) % max(rank, 1)


def _back(b: Builder, n: Node, e: Ref) -> Ref:
    return b.view(e, b.shape(n["self"]))


def _inverse(b: Builder, n: Node, e: Ref) -> Ref:
    dims: Sequence[int] = n["dims"]
    rank = len(dims)
    return b("aten.permute.default", e, tuple(sorted(range(rank), key=lambda i: dims[i] % rank)))


def _reduced(b: Builder, n: Node, e: Ref) -> Ref:
    return b.reduce_to(e, b.type(n["self"]))


def reduced_dims(b: Builder, n: Node) -> tuple[int, ...]:
    """The dimensions over which a reduction runs."""
    rank = len(b.shape(n["self"]))
    dims = n.args.get("dim")
    if dims is None or dims == () or rank == 0:
        return tuple(range(rank))
    return tuple(axis(d, rank) for d in (dims if isinstance(dims, tuple) else (dims,)))


def restore(b: Builder, n: Node, e: Ref) -> Ref:
    """`e`, the shape of a reduction's result, repeated to the shape of its argument."""
    shape = b.shape(n["self"])
    if not n.args.get("keepdim", False):
        dims = reduced_dims(b, n)
        e = b.view(e, tuple(1 if i in dims else d for i, d in enumerate(shape)))
    return b.expand_to(e, shape)


def _mean(b: Builder, n: Node, e: Ref) -> Ref:
    count = b.numel(b.shape(n["self"])[d] for d in reduced_dims(b, n))
    return restore(b, n, b("aten.div.Tensor", e, count))


linear(
    "aten.reshape.default",
    _back,
    lambda: (normal(4, 6), (2, 12)),
    spell="self.reshape(shape)",
    rows="self",
    permutes=True,
    distributes=True,
)
linear(
    "aten.unsqueeze.default",
    _back,
    lambda: (normal(4, 6), 1),
    spell="self.unsqueeze(dim)",
    rows="self",
    distributes=True,
)
for name in (
    "aten.view.default",
    "aten.flatten.using_ints",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
    "aten.squeeze.default",
    "aten.unflatten.int",
    "aten._unsafe_view.default",
    "aten.view_as.default",
    "aten.reshape_as.default",
):
    rewrite(name, lambda b, n: b.view(n["self"], n.tensor.shape))
for name in ("aten.clone.default", "aten.alias.default", "aten.lift_fresh_copy.default"):
    rewrite(name, lambda b, n: n["self"], identity=True)
define(  # generated code lays values out with it
    "aten.contiguous.default",
    "composite",
    expand=lambda b, n: n["self"],
    spell="self.contiguous()",
    identity=True,
    returns_argument=True,
)
for name in ("aten.positive.default", "aten.conj.default", "aten.resolve_conj.default", "aten.resolve_neg.default"):
    rewrite(name, decompose, returns_argument=True)

linear(
    "aten.permute.default",
    _inverse,
    lambda: (normal(2, 3, 4), (2, 0, 1)),
    spell="self.permute(dims)",
    permutes=True,
    distributes=True,
)
linear(
    "aten.transpose.int",
    lambda b, n, e: b("aten.transpose.int", e, n["dim0"], n["dim1"]),
    lambda: (normal(2, 3, 4), 0, -1),
    spell="self.transpose(dim0, dim1)",
    transposes=True,
    permutes=True,
    distributes=True,
)
linear(
    "aten.t.default",
    lambda b, n, e: b("aten.t.default", e),
    lambda: (normal(2, 3),),
    spell="self.t()",
    transposes=True,
    permutes=True,
    distributes=True,
)
rewrite(
    "aten.numpy_T.default",
    lambda b, n: b("aten.permute.default", n["self"], tuple(reversed(range(len(n.tensor.shape))))),
)
rewrite("aten.mT.default", lambda b, n: b("aten.transpose.int", n["self"], -2, -1))
linear(
    "aten.expand.default",
    _reduced,
    lambda: (normal(4, 1), (4, 3)),
    lambda: (normal(3), (2, 4, 3)),
    spell="self.expand(size)",
    rows="self",
    distributes=True,
)
linear("aten._to_copy.default", _reduced, lambda: (normal(4, 3),), spell="self.to(dtype)")
for name in ("aten.to.dtype", "aten.to.dtype_layout", "aten.to.device", "aten.type_as.default", "aten.to.other"):
    rewrite(
        name,
        lambda b, n: (
            n["self"]
            if b.type(n["self"]).dtype == n.tensor.dtype
            else b("aten._to_copy.default", n["self"], dtype=n.tensor.dtype)
        ),
        returns_argument=True,
    )


def _copy(b: Builder, n: Node) -> Ref:
    """The source, in the type and shape of what it is copied over."""
    source: Any = n["src"]
    if b.type(source).dtype != n.tensor.dtype:
        source = b("aten._to_copy.default", source, dtype=n.tensor.dtype)
    return b.expand_to(source, n.tensor.shape)


rewrite("aten.copy.default", _copy)
linear(
    "aten.select.int",
    lambda b, n, e: b("aten.select_backward.default", e, b.shape(n["self"]), n["dim"], n["index"]),
    lambda: (normal(4, 3), 1, -1),
    spell="self.select(dim, index)",
    rows="self",
    along="dim",
)
define("aten.select_backward.default", "traced", distributes=True)


def _slice(a: Mapping[str, Any]) -> str:
    if isinstance(a["dim"], int) and a["dim"] >= 0:
        stop = "" if a["end"] is None or (isinstance(a["end"], int) and a["end"] >= 2**62) else "end"
        step = "" if a["step"] == 1 else ":step"
        return f"self[{':, ' * a['dim']}{'' if a['start'] in (None, 0) else 'start'}:{stop}{step}]"
    return "torch.ops.aten.slice.Tensor(self, dim, start, end, step)"


linear(
    "aten.slice.Tensor",
    lambda b, n, e: b(
        "aten.slice_backward.default",
        e,
        b.shape(n["self"]),
        n["dim"],
        0 if n["start"] is None else n["start"],
        2**63 - 1 if n["end"] is None else n["end"],
        n["step"],
    ),
    lambda: (normal(4, 6), 1, 1, 5, 2),
    lambda: (normal(4, 6), 0, 1),
    spell=_slice,
    rows="self",
    along="dim",
)
define("aten.slice_backward.default", "traced", distributes=True)


def _pieces(b: Builder, n: Node, sizes: Sequence[Dim], dim: Any) -> tuple[Ref, ...]:
    rank = len(b.shape(n["self"]))
    start: Any = 0
    found = []
    for size in sizes:
        found.append(b("aten.slice.Tensor", n["self"], axis(dim, rank), start, start + size))
        start = start + size
    return tuple(found)


def _split(b: Builder, n: Node) -> tuple[Ref, ...]:
    assert isinstance(n.type, tuple)
    dim = axis(n["dim"], len(b.shape(n["self"])))
    return _pieces(b, n, [t.shape[dim] for t in n.type if isinstance(t, TensorType)], dim)


for name in ("aten.split.Tensor", "aten.split.sizes", "aten.split_with_sizes.default", "aten.chunk.default",
             "aten.unsafe_split.Tensor", "aten.unsafe_split_with_sizes.default", "aten.unsafe_chunk.default",
             "aten.tensor_split.sections", "aten.tensor_split.indices"):  # fmt: skip
    rewrite(name, _split)


def _unbind(b: Builder, n: Node) -> tuple[Ref, ...]:
    assert isinstance(n.type, tuple)
    return tuple(
        b("aten.select.int", n["self"], axis(n["dim"], len(b.shape(n["self"]))), i) for i in range(len(n.type))
    )


rewrite("aten.unbind.int", _unbind)
rewrite(
    "aten.narrow.default",
    lambda b, n: b(
        "aten.slice.Tensor", n["self"], axis(n["dim"], len(n.tensor.shape)), n["start"], n["start"] + n["length"]
    ),
)


def _cat_rule(b: Builder, n: Node, e: Ref) -> dict[str, Any]:
    tensors: Sequence[Ref] = n["tensors"]
    dim = axis(n["dim"], len(n.tensor.shape))
    start: Any = 0
    parts: list[Ref | None] = []
    for t in tensors:
        shape = b.shape(t)
        if len(shape) != len(n.tensor.shape):  # torch lets an empty one-dimensional tensor stand anywhere
            parts.append(None)
            continue
        wanted = t in b.wants
        parts.append(b("aten.slice.Tensor", e, dim, start, start + shape[dim]) if wanted else None)
        start = start + shape[dim]
    return {"tensors": tuple(parts)}


def _stack_rule(b: Builder, n: Node, e: Ref) -> dict[str, Any]:
    tensors: Sequence[Ref] = n["tensors"]
    dim = axis(n["dim"], len(n.tensor.shape))
    return {"tensors": tuple(b("aten.select.int", e, dim, i) if t in b.wants else None for i, t in enumerate(tensors))}


define(
    "aten.cat.default",
    "linear",
    _cat_rule,
    spell="torch.cat(tensors, dim)",
    samples=(lambda: ([normal(2, 3), normal(4, 3)], 0), lambda: ([normal(2, 3), normal(2, 1), normal(2, 3)], -1)),
)
define(
    "aten.stack.default",
    "linear",
    _stack_rule,
    spell="torch.stack(tensors, dim)",
    samples=(lambda: ([normal(2, 3), normal(2, 3)], 1),),
)
linear("aten.sum.default", restore, lambda: (normal(4, 3),), wiring=False, spell="self.sum()")
linear(
    "aten.sum.dim_IntList",
    restore,
    lambda: (normal(4, 3, 2), (0, 2)),
    lambda: (normal(4, 3), (-1,), True),
    wiring=False,
    rows="self",
    along="dim",
    distributes=True,
)
linear("aten.mean.default", _mean, lambda: (normal(4, 3),), wiring=False, averages=True, spell="self.mean()")
linear(
    "aten.mean.dim",
    _mean,
    lambda: (normal(4, 3, 2), (0, 2)),
    lambda: (normal(4, 3), (-1,), True),
    wiring=False,
    averages=True,
    rows="self",
    along="dim",
)


def _pad(b: Builder, n: Node, e: Ref) -> Ref:
    return b("aten.constant_pad_nd.default", e, tuple(-p for p in n["pad"]), 0)


linear(
    "aten.constant_pad_nd.default",
    _pad,
    lambda: (normal(2, 3), (1, 2)),
    lambda: (normal(4, 5), (1, -1, 2, 0)),
    wiring=False,
)
linear("aten.flip.default", lambda b, n, e: b("aten.flip.default", e, n["dims"]), lambda: (normal(4, 3), (0,)))
linear("aten.tril.default", lambda b, n, e: b("aten.tril.default", e, n["diagonal"]), lambda: (normal(4, 4),))
linear("aten.triu.default", lambda b, n, e: b("aten.triu.default", e, n["diagonal"]), lambda: (normal(4, 4),))


def _cumsum(b: Builder, n: Node, e: Ref) -> Ref:
    """Each entry's error and those of all entries after it."""
    if not b.shape(e):
        return e
    dims = (n["dim"],)
    return b("aten.flip.default", b("aten.cumsum.default", b("aten.flip.default", e, dims), n["dim"]), dims)


linear("aten.cumsum.default", _cumsum, lambda: (normal(4, 3), 1), wiring=False)
linear(
    "aten.diagonal.default",
    lambda b, n, e: b("aten.diagonal_backward.default", e, b.shape(n["self"]), n["offset"], n["dim1"], n["dim2"]),
    lambda: (normal(4, 3),),
    lambda: (normal(2, 4, 3), 1, 0, -1),
)
linear(
    "aten.roll.default",
    lambda b, n, e: b("aten.roll.default", e, tuple(-s for s in n["shifts"]), n["dims"]),
    lambda: (normal(4, 3), (1, -1), (0, 1)),
    lambda: (normal(4, 3), (2,)),
)


def _repeat(b: Builder, n: Node, e: Ref) -> Ref:
    """The sum over all copies: each axis split into copies and entries."""
    repeats: Any = n["repeats"]
    shape = (1,) * (len(repeats) - len(b.shape(n["self"]))) + b.shape(n["self"])
    copies = [2 * i for i, r in enumerate(repeats) if r != 1]
    split = tuple(d for pair in zip(repeats, shape, strict=True) for d in pair)
    return b.view(b.sum(b.view(e, split), copies), b.shape(n["self"]))


linear(
    "aten.repeat.default",
    _repeat,
    lambda: (normal(3, 2), (2, 1, 3)),
    lambda: (normal(3, 2), (1, 2)),
    spell="self.repeat(repeats)",
)
for there, back in (("pixel_shuffle", "pixel_unshuffle"), ("pixel_unshuffle", "pixel_shuffle")):
    factor = f"{'up' if there == 'pixel_shuffle' else 'down'}scale_factor"
    linear(
        f"aten.{there}.default",
        lambda b, n, e, back=back, factor=factor: b(f"aten.{back}.default", e, n[factor]),
        lambda: (normal(2, 8, 4, 6), 2),
    )
linear(
    "aten.unfold.default",
    lambda b, n, e: b("aten.unfold_backward.default", e, b.shape(n["self"]), n["dimension"], n["size"], n["step"]),
    lambda: (normal(4, 7), 1, 3, 2),
    wiring=False,
)

WINDOW = ("kernel_size", "dilation", "padding", "stride")
linear(
    "aten.im2col.default",
    lambda b, n, e: b("aten.col2im.default", e, b.shape(n["self"])[-2:], *(n[a] for a in WINDOW)),
    lambda: (normal(2, 3, 5, 6), (2, 3), (1, 1), (1, 0), (2, 1)),
    wiring=False,
)
linear(
    "aten.col2im.default",
    lambda b, n, e: b("aten.im2col.default", e, *(n[a] for a in WINDOW)),
    lambda: (normal(2, 12, 12), (5, 4), (2, 2), (1, 1), (0, 0), (1, 1)),
    wiring=False,
)
