"""Products that oneDNN computes in compiled functions: those that torch computes, however their matrices lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pccompile.runtime import matrix_products
from pccompile.runtime.matrix_products import ADDMM, MM, ONEDNN, MatrixProducts

pytestmark = pytest.mark.skipif(ONEDNN is None, reason="torch without oneDNN")


def products(a: Tensor, b: Tensor, row: Tensor, other: Tensor) -> list[Tensor]:
    """Products of matrices that lie by rows, by columns, in larger ones, and in one number."""
    square = a.t() @ a
    wide = torch.cat([b, b], 1)
    return [
        a @ b,
        a @ b.t().contiguous().t(),
        a.t() @ other,
        torch.addmm(row, a, b),
        torch.addmm(other, a, b),
        square @ square.t(),
        a @ wide[:, 2 : 2 + b.shape[1]],
        a @ row[0].expand(b.shape),
        row[0].expand(a.shape) @ b,
        (other[:, :3] @ b[:3]).relu_().neg_(),
        a @ b,
        (b.t() @ a.t()).t(),
        (b.t() @ a.t()).t(),
        (a @ b).exp(),
    ]


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (5, 6), (6, 7), (7,), (5, 7)
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in shapes)


def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_products, "LEAST", 0)
    monkeypatch.setattr(matrix_products, "_measured", lambda *forms: True)


def changed(*given: Tensor) -> fx.GraphModule:
    traced = make_fx(products, tracing_mode="fake")(*given)
    MatrixProducts()(traced.graph)
    traced.recompile()
    return traced


def count(graph: fx.Graph, *targets: object) -> int:
    return sum(n.target in targets for n in graph.nodes)


@pytest.mark.slow
def test_compiled_products_are_those_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.compile_fx import compile_fx

    everywhere(monkeypatch)
    patches = {"post_grad_custom_post_pass": MatrixProducts(), "force_disable_caches": True}
    run = torch.compile(products, backend=lambda g, e: compile_fx(g, e, config_patches=patches), dynamic=False)
    expected = products(*operands(torch.float64))
    for result, reference in zip(run(*operands()), expected, strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5)


def test_products_by_onednn_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    traced = changed(*operands())
    assert count(traced.graph, ONEDNN) >= 8
    assert count(traced.graph, MM) == 2  # whose second matrix is one number, or lies in a larger one
    for result, reference in zip(traced(*operands()), products(*operands(torch.float64)), strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5)


def test_equal_products_are_computed_once_but_for_results_which_have_memory_of_their_own() -> None:
    given = operands()
    before, after = make_fx(products)(*given), changed(*given)
    assert count(after.graph, MM, ADDMM) == count(before.graph, MM, ADDMM) - 1
    assert len({r.data_ptr() for r in after(*given)}) == len(before(*given))


@pytest.mark.parametrize("case", ["float64", "deterministic", "switched off", "slower", "small"])
def test_products_stay_with_torch(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    everywhere(monkeypatch)
    if case == "slower":
        monkeypatch.setattr(matrix_products, "_measured", lambda *forms: False)
    if case == "small":
        monkeypatch.undo()
    torch.use_deterministic_algorithms(case == "deterministic")
    torch._C._set_mkldnn_enabled(case != "switched off")
    try:
        graph = changed(*operands(torch.float64 if case == "float64" else torch.float32)).graph
    finally:
        torch.use_deterministic_algorithms(False)
        torch._C._set_mkldnn_enabled(True)
    assert count(graph, ONEDNN) == 0


def test_both_are_timed() -> None:
    forms = ((64, 128), (128, 1)), ((128, 128), (1, 128))
    assert matrix_products._measured(*forms, torch.get_num_threads()) in (True, False)
