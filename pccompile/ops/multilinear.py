"""Operations that are linear in each argument. For a parameter the message is Hebbian: presynaptic value × error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from pccompile.ir import DEVICE, Arg, Dim, Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.random import dropped
from pccompile.ops.registry import Shapes, define, normal, rewrite
from pccompile.ops.trace import unless_complex


def flat(b: Builder, x: Ref) -> Ref:
    """`x` as a matrix: all dimensions but the last in one."""
    shape = b.shape(x)
    return x if len(shape) == 2 else b.view(x, (b.numel(shape[:-1]), shape[-1]))


def transposed(b: Builder, x: Ref) -> Ref:
    """The matrix `x`, or each matrix of a batch, transposed."""
    return b("aten.t.default", x) if len(b.shape(x)) == 2 else b("aten.transpose.int", x, -2, -1)


def product(b: Builder, x: Ref, y: Ref) -> Ref:
    """The matrix product; of each pair where there is a batch."""
    if len(b.shape(x)) == len(b.shape(y)) == 2:
        return b("aten.mm.default", x, y)
    return b("aten.matmul.default", x, y)


def _terms(factor: str) -> Any:
    """The operations of a product that sums over the last axis of an argument."""
    return lambda a, s, out: 2 * Builder.numel(out) * s(a[factor])[-1]


def _linear(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    x, weight, bias = (n[a] for a in ("input", "weight", "bias"))
    if len(b.shape(weight)) == 1:
        e = b("aten.unsqueeze.default", e, -1)
        weight = b.view(weight, (1, *b.shape(weight)))
    messages: dict[str, Ref | None] = {}
    rows = e if len(b.shape(e)) == 2 else flat(b, b.view(e, (1, *b.shape(e))) if len(b.shape(e)) == 1 else e)
    if x in b.wants:
        messages["input"] = b.view(b("aten.mm.default", rows, weight), b.shape(x))
    if n["weight"] in b.wants:
        inputs = flat(b, x if len(b.shape(x)) > 1 else b.view(x, (1, *b.shape(x))))
        messages["weight"] = b.view(b("aten.mm.default", transposed(b, rows), inputs), b.shape(n["weight"]))
    if bias in b.wants:
        messages["bias"] = b.view(b.sum(rows, (0,)), b.shape(bias))
    return messages


define(
    "aten.linear.default",
    "multilinear",
    unless_complex(_linear),
    spell=lambda a: "F.linear(input, weight)" if a["bias"] is None else "F.linear(input, weight, bias)",
    equation="W x + b",
    product=("input", "weight"),
    operations=_terms("input"),
    sent={"input": "{weight}ᵀ {e}", "weight": "{e} xᵀ", "bias": "{e}"},
    rows="input",
    samples=(
        lambda: (normal(5, 3), normal(4, 3), normal(4)),
        lambda: (normal(2, 5, 3), normal(4, 3)),
        lambda: (normal(3), normal(4, 3), normal(4)),
    ),
)


def _mm(first: str, second: str) -> Any:
    def rule(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
        x, y = n[first], n[second]
        return {
            first: product(b, e, transposed(b, y)) if x in b.wants else None,
            second: product(b, transposed(b, x), e) if y in b.wants else None,
        }

    return rule


def _matmul(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    x, y = n["self"], n["other"]
    ranks = len(b.shape(x)), len(b.shape(y))
    x = b("aten.unsqueeze.default", x, 0) if ranks[0] == 1 else x
    y = b("aten.unsqueeze.default", y, -1) if ranks[1] == 1 else y
    if ranks[0] == 1:
        e = b("aten.unsqueeze.default", e, len(b.shape(e)) if ranks[1] == 1 else len(b.shape(e)) - 1)
    if ranks[1] == 1:
        e = b("aten.unsqueeze.default", e, -1)
    messages: dict[str, Ref | None] = {}
    if n["self"] in b.wants:
        messages["self"] = b.view(b.reduce_to(product(b, e, transposed(b, y)), b.type(x)), b.shape(n["self"]))
    if n["other"] in b.wants:
        pull = b("aten.mm.default", transposed(b, flat(b, x)), flat(b, e)) if len(b.shape(y)) == 2 < len(b.shape(x)) \
            else product(b, transposed(b, x), e)  # fmt: skip
        messages["other"] = b.view(b.reduce_to(pull, b.type(y)), b.shape(n["other"]))
    return messages


for name, first, second, shapes in (
    ("aten.mm.default", "self", "mat2", ((5, 3), (3, 4))),
    ("aten.bmm.default", "self", "mat2", ((2, 5, 3), (2, 3, 4))),
):
    define(
        name,
        "multilinear",
        unless_complex(_mm(first, second)),
        spell="self @ mat2",
        equation="x y",
        product=(first, second),
        operations=_terms(first),
        sent={first: f"{{e}} {{{second}}}ᵀ", second: f"{{{first}}}ᵀ {{e}}"},
        rows="self" if name == "aten.mm.default" else "",
        samples=(lambda shapes=shapes: tuple(normal(*s) for s in shapes),),
    )
define(
    "aten.matmul.default",
    "multilinear",
    unless_complex(_matmul),
    spell="self @ other",
    equation="x y",
    product=("self", "other"),
    operations=_terms("self"),
    sent={"self": "{e} {other}ᵀ", "other": "{self}ᵀ {e}"},
    rows="self",
    samples=(
        lambda: (normal(5, 3), normal(3, 4)),
        lambda: (normal(2, 5, 3), normal(3, 4)),
        lambda: (normal(2, 1, 5, 3), normal(4, 3, 2)),
        lambda: (normal(3), normal(3, 4)),
        lambda: (normal(5, 3), normal(3)),
        lambda: (normal(3), normal(3)),
        lambda: (normal(2, 5, 3), normal(3)),
    ),
)
define("aten.mv.default", "traced", operations=_terms("self"))
define("aten.dot.default", "traced", operations=_terms("self"))
rewrite(
    "aten.addmm.default",
    lambda b, n: _scaled_sum(b, n["self"], b("aten.mm.default", n["mat1"], n["mat2"]), n["beta"], n["alpha"]),
    operations=_terms("mat1"),
    in_place="addmm_",
)
rewrite(
    "aten.baddbmm.default",
    lambda b, n: _scaled_sum(b, n["self"], b("aten.bmm.default", n["batch1"], n["batch2"]), n["beta"], n["alpha"]),
    operations=_terms("batch1"),
)


def _scaled_sum(b: Builder, start: Any, term: Ref, beta: Any, alpha: Any) -> Ref:
    term = term if alpha == 1 else b.mul(term, alpha)
    if beta == 0:
        return term
    return b("aten.add.Tensor", start if beta == 1 else b.mul(start, beta), term)


def _bilinear(b: Builder, n: Node) -> Ref:
    """x₁ᵀ Wₖ x₂ + bₖ: one product with all Wₖ side by side, then one with x₂."""
    x1, x2, weight, bias = (n[a] for a in ("input1", "input2", "weight", "bias"))
    count, first, second = b.shape(weight)
    wide = b.view(b("aten.permute.default", weight, (1, 0, 2)), (first, count * second))
    rows: Any = flat(b, b.view(x1, (1, *b.shape(x1))) if len(b.shape(x1)) == 1 else x1)
    left = b.view(b("aten.mm.default", rows, wide), (b.shape(rows)[0], count, second))
    right = b.view(x2, (b.shape(rows)[0], second, 1))
    y = b.view(b("aten.bmm.default", left, right), n.tensor.shape)
    return y if bias is None else b("aten.add.Tensor", y, bias)


rewrite("aten.bilinear.default", _bilinear)


def _convolution(b: Builder, n: Node, e: Ref) -> dict[str, Ref | None]:
    x, weight, bias = (n[a] for a in ("input", "weight", "bias"))
    want = (x in b.wants, weight in b.wants, bias in b.wants)
    sizes = None if bias is None else b.shape(bias)
    options = [n[a] for a in ("stride", "padding", "dilation", "transposed", "output_padding", "groups")]
    call = b("aten.convolution_backward.default", e, x, weight, sizes, *options, want)
    return {a: b.get(call, i) if want[i] else None for i, a in enumerate(("input", "weight", "bias"))}


def _slides(a: Mapping[str, Arg], shapes: Shapes, result: tuple[Dim, ...]) -> Dim:
    """Each weight meets each place that it slides over: those of the output, of a transposed one those of the input."""
    x = shapes(a["input"])
    places = x if a["transposed"] else result
    return 2 * x[0] * Builder.numel(places[2:]) * Builder.numel(shapes(a["weight"]))


def _slides_back(a: Mapping[str, Any], shapes: Shapes, result: tuple[Dim, ...]) -> Dim:
    """The gradients of the input and of the weight are as many products as the convolution itself."""
    once = _slides(a, shapes, shapes(a["grad_output"]))
    return sum(once for wanted in a["output_mask"][:2] if wanted)


def _spell_convolution(a: Any) -> str:
    rank, extra = len(a["stride"]), ""
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
    for key, default in defaults.items():
        if any(v != default for v in a[key]):
            one = f"{key}[0]" if len(set(a[key])) == 1 else key
            extra += f", {key}={one}"
    extra += ", groups=groups" if a["groups"] != 1 else ""
    bias = ", bias" if a["bias"] is not None else ""
    return f"F.conv{'_transpose' if a['transposed'] else ''}{rank}d(input, weight{bias}{extra})"


define(
    "aten.convolution.default",
    "multilinear",
    unless_complex(_convolution),
    spell=_spell_convolution,
    equation="W ∗ x + b",
    product=("input", "weight"),
    operations=_slides,
    sent={"input": "{weight} ⋆ {e}", "weight": "{e} ⋆ x", "bias": "Σ {e}"},
    samples=(
        lambda: (normal(2, 3, 6, 5), normal(4, 3, 3, 3), normal(4), [2, 1], [1, 0], [1, 1], False, [0, 0], 1),
        lambda: (normal(2, 4, 6), normal(4, 2, 3), None, [1], [1], [2], False, [0], 2),
        lambda: (normal(2, 4, 5, 4), normal(4, 3, 2, 2), normal(3), [2, 2], [0, 0], [1, 1], True, [1, 1], 1),
    ),
)


define("aten.convolution_backward.default", "traced", operations=_slides_back, gradients=True)


def _spread(value: Any, rank: int) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, tuple) else (value,)
    return values * rank if len(values) == 1 else values


def _convolved(b: Builder, x: Ref, weight: Any, bias: Any, options: tuple[Any, ...]) -> Ref:
    """A convolution; of complex numbers by three of real ones, as torch does it."""
    if not b.type(x).dtype.is_complex:
        return b("aten.convolution.default", x, weight, bias, *options)
    (x0, x1), (w0, w1) = _real_parts(b, x), _real_parts(b, weight)
    first, second, both = (
        b("aten.convolution.default", u, w, None, *options)
        for u, w in ((x0, w0), (x1, w1), (b("aten.add.Tensor", x0, x1), b("aten.add.Tensor", w0, w1)))
    )
    real = b("aten.sub.Tensor", first, second)
    imaginary = b("aten.sub.Tensor", b("aten.sub.Tensor", both, first), second)
    y = b("aten.complex.default", real, imaginary)
    if bias is None:
        return y
    return b("aten.add.Tensor", y, b.view(bias, (b.shape(bias)[0], *(1,) * (len(b.shape(x)) - 2))))


def _real_parts(b: Builder, z: Ref) -> tuple[Ref, Ref]:
    pair = b("aten.view_as_real.default", z)
    return b("aten.select.int", pair, -1, 0), b("aten.select.int", pair, -1, 1)


def _conv(rank: int, transpose: bool) -> Any:
    def expand(b: Builder, n: Node) -> Ref:
        x: Any = n["input"]
        batched = len(b.shape(x)) == rank + 2
        x = x if batched else b("aten.unsqueeze.default", x, 0)
        stride, padding, dilation = (_spread(n[a], rank) for a in ("stride", "padding", "dilation"))
        out_padding = _spread(n["output_padding"], rank) if transpose else (0,) * rank
        options = (stride, padding, dilation, transpose, out_padding, n["groups"])
        y = _convolved(b, x, n["weight"], n["bias"], options)
        return y if batched else b.view(y, n.tensor.shape)

    return expand


for rank in (1, 2, 3):
    rewrite(f"aten.conv{rank}d.default", _conv(rank, False))
    rewrite(f"aten.conv_transpose{rank}d.{'input' if rank > 1 else 'default'}", _conv(rank, True))


def _attention(b: Builder, n: Node) -> Ref:
    """Scaled dot-product attention, written out: softmax(q kᵀ · scale + mask) v."""
    q, k, v = (n[a] for a in ("query", "key", "value"))
    if n["enable_gqa"]:
        repeat = b.shape(q)[-3] // b.shape(k)[-3]
        k, v = (b("aten.repeat_interleave.self_int", t, repeat, -3) for t in (k, v))
    scale = n["scale"] if n["scale"] is not None else 1 / math.sqrt(b.shape(q)[-1])
    scores = b.mul(b("aten.matmul.default", q, b("aten.transpose.int", k, -2, -1)), scale)
    softmax, mask = "aten._softmax.default", n["attn_mask"]
    if n["is_causal"]:
        rows, columns = b.shape(scores)[-2:]
        ones = b("aten.ones.default", (rows, columns), dtype=torch.bool, device=DEVICE)
        scores = b(
            "aten.masked_fill.Scalar", scores, b("aten.logical_not.default", b("aten.tril.default", ones)), -math.inf
        )
    elif mask is not None:
        softmax = "aten._safe_softmax.default"
        if b.type(mask).dtype == torch.bool:
            scores = b("aten.masked_fill.Scalar", scores, b("aten.logical_not.default", mask), -math.inf)
        else:
            scores = b("aten.add.Tensor", scores, mask)
    weights = b(softmax, scores, -1, False) if softmax == "aten._softmax.default" else b(softmax, scores, -1)
    if n["dropout_p"]:
        weights = dropped(b, weights, n["dropout_p"])
    return b("aten.matmul.default", weights, v)


rewrite("aten.scaled_dot_product_attention.default", _attention)
