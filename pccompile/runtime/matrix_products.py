"""Matrix products of compiled functions: each once, and by oneDNN where it multiplies faster than what torch calls.

Torch multiplies matrices of float32 by MKL, which takes no wide instructions on processors of other makers; oneDNN, by
which torch convolves, does, and multiplies up to twice as fast there. Which of them is faster depends on the processor
and on the lengths, so both are timed where a function is compiled, on matrices of these lengths. They round
differently; where torch is told to be deterministic nothing is timed, and products stay as they are.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

MM, ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
PERMUTE = torch.ops.aten.permute.default
ONEDNN: Any = torch.ops.mkldnn._linear_pointwise.default if torch._C._has_mkldnn else None
LEAST = 2**20
"""Products of fewer multiplications take less time than it takes to call oneDNN, and are not timed."""
GAIN = 1.2
"""oneDNN is called where torch takes so many times as long."""


class MatrixProducts(CustomGraphPass):
    """A pass of inductor, run when all operations are ATen's and none writes into memory."""

    def __call__(self, graph: fx.Graph) -> None:
        """Change the products of `graph`."""
        known: dict[Any, fx.Node] = {}
        for node in graph.nodes:
            if node.target in (MM, ADDMM) and not node.kwargs:
                first = known.setdefault((node.target, *map(_operand, node.args)), node)
                if first is not node and not any(map(_hands_on, node.users)):
                    node.replace_all_uses_with(first)
        for node in list(graph.nodes):
            if node.target in (MM, ADDMM) and not node.kwargs and node.users and _faster(node):
                _by_onednn(graph, node)
        graph.eliminate_dead_code()

    def uuid(self) -> bytes:
        """What inductor's cache of graphs knows this pass by."""
        return get_hash_for_files((__file__,))


def _hands_on(user: fx.Node) -> bool:
    """Whether a node may let another see the memory that it reads, such as that of a gradient, which is its own."""
    return not isinstance(user.target, torch._ops.OpOverload) or user.target.is_view


def _operand(argument: Any) -> Any:
    """What a product reads; transposes of one matrix are one."""
    if isinstance(argument, fx.Node) and argument.target is PERMUTE:
        of, order = argument.args
        return of, tuple(cast(list[int], order))
    return argument


def _faster(node: fx.Node) -> bool:
    """Whether oneDNN takes less time for a product. Of float32 on a CPU only, with a weight that has no gaps."""
    allowed = ONEDNN is not None and torch._C._get_mkldnn_enabled()
    if not allowed or torch.are_deterministic_algorithms_enabled():
        return False
    values = [a.meta.get("val") if isinstance(a, fx.Node) else None for a in node.args]
    if not all(isinstance(v, Tensor) and v.dtype == torch.float32 and v.device.type == "cpu" for v in values):
        return False
    left, right = (_form(v) for v in values[-2:])
    if left is None or right is None or min(right[1]) != 1 or max(right[1]) != right[0][right[1].index(1)]:
        return False
    return left[0][0] * left[0][1] * right[0][1] >= LEAST and _measured(left, right, torch.get_num_threads())


Form = tuple[tuple[int, ...], tuple[int, ...]]


def _form(matrix: Any) -> Form | None:
    """Lengths and strides, of free lengths those of the first call; None where there are none."""
    lengths, strides = (
        [getattr(n.node, "hint", None) if isinstance(n, torch.SymInt) else int(n) for n in numbers]
        for numbers in (matrix.shape, matrix.stride())
    )
    return None if None in (*lengths, *strides) else cast(Form, (tuple(lengths), tuple(strides)))


@functools.cache
def _measured(left: Form, right: Form, threads: int) -> bool:
    """Whether oneDNN multiplies matrices of these forms faster."""
    a, b = (torch.empty_strided(*form).zero_() for form in (left, right))
    choices: list[Callable[[], Any]] = [lambda: torch.mm(a, b), lambda: ONEDNN(a, b.t(), None, "none", [], "")]
    repeats = max(1, min(5, 2**24 // (a.numel() * b.shape[1])))
    times = [[_seconds(choice, repeats) for choice in choices] for _ in range(5)]
    torchs, onednns = (min(column) for column in zip(*times, strict=True))
    return bool(torchs > GAIN * onednns)


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


def _by_onednn(graph: fx.Graph, node: fx.Node) -> None:
    """Let oneDNN compute a product; it adds a row to each row, and what else is added is added behind it."""
    operands: Any = node.args
    *added, left, right = operands
    row = added[0] if added and added[0].meta["val"].dim() == 1 else None
    with graph.inserting_before(node):
        weight = graph.call_function(PERMUTE, (right, [1, 0]))
        weight.meta["val"] = right.meta["val"].permute(1, 0)
        product = graph.call_function(ONEDNN, (left, weight, row, "none", [], ""))
        # as it is, since inductor's own form of it copies weights that are stored by columns
        product.meta |= {"val": node.meta["val"], "should_fallback": True}
        if added and row is None:
            product = graph.call_function(torch.ops.aten.add.Tensor, (added[0], product))
            product.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(product)
