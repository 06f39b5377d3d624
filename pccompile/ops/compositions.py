"""Operations with a fused rule, written in simple ones: for backends that have no kernel for them."""

from __future__ import annotations

import math
from typing import Any

from pccompile.ir import DEVICE, Node, Ref
from pccompile.ops.builder import Builder
from pccompile.ops.functions import STOP

SMALLEST_SCORE = -1e29
"""Scores below it are those of what is masked: a row of nothing else has the safe softmax 0."""


def _add(b: Builder, x: Any, y: Any) -> Ref:
    return b("aten.add.Tensor", x, y)


def _sub(b: Builder, x: Any, y: Any) -> Ref:
    return b("aten.sub.Tensor", x, y)


def _shifted(b: Builder, x: Ref, dims: tuple[int, ...]) -> tuple[Ref, Ref]:
    """`x` less its largest entry along `dims`, and that entry, which carries no error: results do not depend on it."""
    largest = b(STOP, b("aten.amax.default", x, dims, True)) if b.shape(x) else b(STOP, x)
    return _sub(b, x, largest), largest


def softmax(b: Builder, n: Node) -> Ref:
    """exp(x − max x) / Σ exp(x − max x)."""
    dims = (n["dim"],)
    powers = b("aten.exp.default", _shifted(b, n["self"], dims)[0])
    return b("aten.div.Tensor", powers, b.sum(powers, dims, True) if b.shape(powers) else powers)


def safe_softmax(b: Builder, n: Node) -> Ref:
    """The softmax, 0 in rows all of whose entries are −∞."""
    x: Any = n["self"]
    dims = (n["dim"],)
    largest = b(STOP, b("aten.amax.default", x, dims, True))
    floor = b("aten.clamp_min.default", largest, SMALLEST_SCORE)
    powers = b("aten.exp.default", _sub(b, x, floor))
    total = b.sum(powers, dims, True)
    empty = b("aten.le.Scalar", b(STOP, total), 0)
    return b("aten.div.Tensor", powers, _add(b, total, b("aten._to_copy.default", empty, dtype=n.tensor.dtype)))


def log_softmax(b: Builder, n: Node) -> Ref:
    """x − max x − log Σ exp(x − max x)."""
    dims = (n["dim"],)
    shifted, _ = _shifted(b, n["self"], dims)
    powers = b("aten.exp.default", shifted)
    return _sub(b, shifted, b("aten.log.default", b.sum(powers, dims, True) if b.shape(powers) else powers))


def logsumexp(b: Builder, n: Node) -> Ref:
    """max x + log Σ exp(x − max x)."""
    x: Any = n["self"]
    dims: Any = n["dim"]
    dims = tuple(dims) if isinstance(dims, tuple) else (dims,)
    if not b.shape(x):
        return x
    dims = dims or tuple(range(len(b.shape(x))))
    shifted, largest = _shifted(b, x, dims)
    total = b("aten.log.default", b.sum(b("aten.exp.default", shifted), dims, True))
    return b.view(_add(b, largest, total), n.tensor.shape)


def _normalised(b: Builder, x: Ref, dims: tuple[int, ...], eps: Any) -> tuple[Ref, Ref, Ref]:
    """`x` less its mean over its deviation, the mean and the inverse deviation."""
    mean = b("aten.mean.dim", x, dims, True)
    centred = _sub(b, x, mean)
    variance = b("aten.mean.dim", b.mul(centred, centred), dims, True)
    inverse = b("aten.rsqrt.default", b("aten.add.Scalar", variance, eps))
    return b.mul(centred, inverse), mean, inverse


def _scaled(b: Builder, y: Ref, weight: Any, bias: Any, shape: tuple[Any, ...]) -> Ref:
    """`y` times a weight plus a bias, both in `shape`."""
    if weight is not None:
        y = b.mul(y, b.view(weight, shape))
    return y if bias is None else _add(b, y, b.view(bias, shape))


def layer_norm(b: Builder, n: Node) -> tuple[Ref, Ref, Ref]:
    """γ (x − μ) / σ + β over the last axes."""
    shape: Any = n["normalized_shape"]
    rank = len(b.shape(n["input"]))
    y, mean, inverse = _normalised(b, n["input"], tuple(range(rank - len(shape), rank)), n["eps"])
    return _scaled(b, y, n["weight"], n["bias"], shape), mean, inverse


def _channels(b: Builder, n: Node) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """The axes that a batch norm's statistics run over, and the shape in which its weights are repeated."""
    shape = b.shape(n["input"])
    rest = len(shape) - 2
    return (0, *range(2, len(shape))), (shape[1], *(1,) * rest)


def batch_norm(b: Builder, n: Node) -> tuple[Ref, ...]:
    """γ (x − μ) / σ + β with the batch's statistics; the running ones are moved towards them."""
    if n.args.get("training") is False:
        return batch_norm_running(b, n)
    dims, shape = _channels(b, n)
    y, mean, inverse = _normalised(b, n["input"], dims, n["eps"])
    results = (_scaled(b, y, n["weight"], n["bias"], shape), mean, inverse)
    if n.args.get("running_mean") is None or n.op != "aten._native_batch_norm_legit_functional.default":
        return tuple(r if i == 0 else b.view(r, (shape[0],)) for i, r in enumerate(results))
    flat_mean, flat_inverse = (b.view(r, (shape[0],)) for r in results[1:])
    x: Any = n["input"]
    count = math.prod(d for i, d in enumerate(b.shape(x)) if i != 1)
    variance = _sub(b, b("aten.pow.Tensor_Scalar", flat_inverse, -2), n["eps"])
    unbiased = b.mul(variance, count / max(count - 1, 1))
    moved = (_moved(b, n[r], v, n["momentum"]) for r, v in (("running_mean", flat_mean), ("running_var", unbiased)))
    return results[0], flat_mean, flat_inverse, *moved


def _moved(b: Builder, running: Any, now: Ref, momentum: Any) -> Ref:
    return _add(b, b.mul(running, 1 - momentum), b.mul(now, momentum))


def batch_norm_running(b: Builder, n: Node) -> tuple[Ref, ...]:
    """γ (x − μ) / σ + β with the running statistics."""
    _, shape = _channels(b, n)
    inverse = b("aten.rsqrt.default", b("aten.add.Scalar", n["running_var"], n["eps"]))
    centred = _sub(b, n["input"], b.view(n["running_mean"], shape))
    y = _scaled(b, b.mul(centred, b.view(inverse, shape)), n["weight"], n["bias"], shape)
    if isinstance(n.type, tuple) and len(n.type) == 5:
        return y, n["running_mean"], inverse, n["running_mean"], n["running_var"]
    return y, n["running_mean"], inverse


def group_norm(b: Builder, n: Node) -> tuple[Ref, Ref, Ref]:
    """γ (x − μ) / σ + β, the statistics those of a sample's group of channels."""
    x: Any = n["input"]
    shape = b.shape(x)
    split = b.view(x, (n["N"], n["group"], n["C"] // n["group"] * n["HxW"]))
    y, mean, inverse = _normalised(b, split, (2,), n["eps"])
    scaled = _scaled(b, b.view(y, shape), n["weight"], n["bias"], (n["C"], *(1,) * (len(shape) - 2)))
    flat = (n["N"], n["group"])
    return scaled, b.view(mean, flat), b.view(inverse, flat)


def _steps(b: Builder, n: Node) -> list[int]:
    """The time steps in the order in which they are computed."""
    length: Any = b.shape(n["x"])[0]
    return list(range(length - 1, -1, -1) if n["reverse"] else range(length))


def _linear(b: Builder, x: Any, weight: Any, bias: Any) -> Ref:
    return b("aten.linear.default", x, weight, bias)


def _at(b: Builder, x: Any, t: int) -> Ref:
    return b("aten.select.int", x, 0, t)


def _parts(b: Builder, x: Ref, count: int) -> list[Ref]:
    """`x` cut into equal parts of its last axis."""
    width = b.shape(x)[-1] // count
    return [b("aten.slice.Tensor", x, len(b.shape(x)) - 1, i * width, (i + 1) * width) for i in range(count)]


def _stacked(b: Builder, states: dict[int, Ref]) -> Ref:
    return b("aten.stack.default", tuple(states[t] for t in sorted(states)), 0)


def rnn_layer(b: Builder, n: Node) -> Ref:
    """h_t = f(W x_t + U h_{t−1} + b), one step after another."""
    h, states = n["h"], {}
    drive = _linear(b, n["x"], n["w_ih"], n["b_ih"])
    for t in _steps(b, n):
        total = _add(b, _at(b, drive, t), _linear(b, h, n["w_hh"], n["b_hh"]))
        h = states[t] = b(f"aten.{n['nonlinearity']}.default", total)
    return _stacked(b, states)


def lstm_layer(b: Builder, n: Node) -> tuple[Ref, Ref, Ref, Ref]:
    """The states, the last cell, and the gates and cells of all steps."""
    h, c = n["h"], n["c"]
    states, gates, cells = {}, {}, {}
    drive = _linear(b, n["x"], n["w_ih"], n["b_ih"])
    for t in _steps(b, n):
        total = _add(b, _at(b, drive, t), _linear(b, h, n["w_hh"], n["b_hh"]))
        i, f, g, o = _parts(b, total, 4)
        i, f, o = (b("aten.sigmoid.default", gate) for gate in (i, f, o))
        g = b("aten.tanh.default", g)
        c = cells[t] = _add(b, b.mul(f, c), b.mul(i, g))
        h = states[t] = b.mul(o, b("aten.tanh.default", c))
        gates[t] = b("aten.cat.default", (i, f, g, o), 1)
    return _stacked(b, states), c, _stacked(b, gates), _stacked(b, cells)


def gru_layer(b: Builder, n: Node) -> tuple[Ref, Ref]:
    """The states, and the gates of all steps with what the state contributes to the new one."""
    h, states, gates = n["h"], {}, {}
    drive = _linear(b, n["x"], n["w_ih"], n["b_ih"])
    for t in _steps(b, n):
        given, kept = _parts(b, _at(b, drive, t), 3), _parts(b, _linear(b, h, n["w_hh"], n["b_hh"]), 3)
        r, z = (b("aten.sigmoid.default", _add(b, given[i], kept[i])) for i in (0, 1))
        new = b("aten.tanh.default", _add(b, given[2], b.mul(r, kept[2])))
        h = states[t] = _add(b, new, b.mul(z, _sub(b, h, new)))
        gates[t] = b("aten.cat.default", (r, z, new, kept[2]), 1)
    return _stacked(b, states), _stacked(b, gates)


def variance(b: Builder, n: Node) -> Ref:
    """Σ (x − μ)² / (N − correction)."""
    x: Any = n["self"]
    rank = len(b.shape(x))
    dims: Any = n["dim"] or tuple(range(rank))
    count = math.prod(b.shape(x)[d] for d in dims)
    centred = _sub(b, x, b("aten.mean.dim", x, dims, True))
    correction = 1 if n["correction"] is None else n["correction"]
    return b("aten.div.Tensor", b.sum(b.mul(centred, centred), dims, n["keepdim"]), max(count - correction, 0))


def _hat(b: Builder, at: Ref, places: Ref) -> Ref:
    """How much of each of `places` a linear interpolation takes at `at`."""
    below = b("aten.floor.default", at)
    rest, dtype = _sub(b, at, below), b.type(at).dtype
    here = b("aten._to_copy.default", b("aten.eq.Tensor", below, places), dtype=dtype)
    above = b("aten.eq.Tensor", b("aten.add.Scalar", below, 1), places)
    there = b("aten._to_copy.default", above, dtype=dtype)
    return _add(b, b.mul(here, b("aten.rsub.Scalar", rest, 1)), b.mul(there, rest))


def grid_sample(b: Builder, n: Node) -> Ref:
    """Bilinear sampling as a sum over all pixels, Σ_ij x_ij h(u, i) h(v, j).

    h(u, i) is 1 − (u − ⌊u⌋) where i = ⌊u⌋, u − ⌊u⌋ where i = ⌊u⌋ + 1, else 0: at a pixel the slope is that to the
    right, as torch has it. Raises NotImplementedError for other interpolations, and for padding by reflection.
    """
    if n["interpolation_mode"] != 0 or n["padding_mode"] == 2:
        raise NotImplementedError("only bilinear sampling with zeros or the border outside")
    x: Any = n["input"]
    size = b.shape(x)[2:]
    hats = []
    for axis, length in zip((1, 0), size, strict=True):
        at = b("aten.select.int", n["grid"], -1, axis)
        scale = (length - 1) / 2 if n["align_corners"] else length / 2
        at = b("aten.add.Scalar", b.mul(at, scale), (length - 1) / 2)
        if n["padding_mode"] == 1:
            at = b("aten.clamp.default", at, 0, length - 1)
        places = b("aten.arange.start", 0, length, dtype=b.type(x).dtype, device=DEVICE)
        hats.append(_hat(b, b("aten.unsqueeze.default", at, -1), places))
    rows, columns = hats  # [N, out, out, H] and [N, out, out, W]
    pairs = b.mul(b("aten.unsqueeze.default", rows, -1), b("aten.unsqueeze.default", columns, -2))
    count, high, wide = (b.shape(rows)[i] for i in range(3))
    flat = b.view(pairs, (count, high * wide, math.prod(size)))
    image = b.view(x, (count, b.shape(x)[1], math.prod(size)))
    sampled = b("aten.bmm.default", image, b("aten.transpose.int", flat, 1, 2))
    return b.view(sampled, n.tensor.shape)


def product(b: Builder, n: Node) -> Ref:
    """Π x along an axis, as a tree of pairs."""
    x: Any = n["self"]
    if "dim" not in n.args:
        x = b.view(x, (b.numel(b.shape(x)),))
    dim, count = n.args.get("dim", 0), b.shape(x)[n.args.get("dim", 0)] if b.shape(x) else 1
    if not b.shape(x):
        return x
    factors = [b("aten.select.int", x, dim, i) for i in range(count)]
    while len(factors) > 1:
        pairs = [b.mul(*factors[i : i + 2]) for i in range(0, len(factors) - 1, 2)]
        factors = pairs + factors[len(pairs) * 2 :]
    return b.view(factors[0], n.tensor.shape)


def variance_and_mean(b: Builder, n: Node) -> tuple[Ref, Ref]:
    """The variance, and the mean that it is taken about."""
    x: Any = n["self"]
    dims: Any = n["dim"] or tuple(range(len(b.shape(x))))
    return variance(b, n), b("aten.mean.dim", x, dims, n["keepdim"])


def deviation(b: Builder, n: Node) -> Ref:
    """The square root of the variance."""
    return b("aten.sqrt.default", variance(b, n))


def deviation_and_mean(b: Builder, n: Node) -> tuple[Ref, Ref]:
    """The deviation, and the mean that it is taken about."""
    found, mean = variance_and_mean(b, n)
    return b("aten.sqrt.default", found), mean
