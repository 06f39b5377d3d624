"""The self-check of large models: on a part of the example, and with shared products."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.models import mlp, seeded
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from pccompile.analysis.compare import difference
from pccompile.runtime import comparison, derivative_reads, smaller_example
from pccompile.runtime.shared_products import Products
from pccompile.runtime.trial_run import backward
from pccompile.runtime.weight_factors import weight_factors
from validity.faults import drawn

SIZES: list[tuple[int, ...]] = []
"""The shapes of the first input in each run of a `Seen` by eager torch."""


class Seen(nn.Module):
    """Layers and a function of them, which notes what they are run on."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.function = nn.ModuleList(layers or [nn.Linear(4, 4), nn.Linear(4, 3)]), function

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_exporting():
            SIZES.append(tuple(x.shape))
        return self.function(self.layers, x, *args, **kwargs)


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model counts as a large one."""
    monkeypatch.setattr(smaller_example, "WORK", 0)
    SIZES.clear()


def plain(layers: Any, x: Tensor) -> Tensor:
    return layers[1](torch.tanh(layers[0](x)))


def refusing(layers: Any, x: Tensor) -> Tensor:
    if not torch.compiler.is_exporting() and len(x) < 5:
        raise ValueError("too few")
    return plain(layers, x)


def test_two_samples_are_compared_where_the_batch_is_free() -> None:
    x = torch.randn(6, 4, requires_grad=True)
    pc = pccompile.compile(Seen(plain), (x,))
    assert SIZES == [(2, 4)]
    assert pc.checked.gradients == 5
    assert pc.notes == ("compared with eager torch on a part of the example: 2 of 6 entries of batch",)
    assert x.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_of_inputs_are_compared_in_every_mode(mode: Callable[[], Any]) -> None:
    x = torch.randn(6, 4, requires_grad=True)
    model = Seen(plain)
    with mode():
        pc = pccompile.compile(model, (x,))
    assert SIZES == [(2, 4)]
    assert pc.checked.gradients == 5


def test_all_inputs_are_cut_alike() -> None:
    def function(layers: Any, x: Tensor, pair: dict[str, Tensor], *, rows: Tensor) -> Tensor:
        return plain(layers, x + pair["y"])[rows] * pair["z"]

    kwargs = {"rows": torch.tensor([0, 1, 1, 0, 1, 0])}
    pair = {"y": torch.randn(6, 4), "z": torch.randn(3)}
    pc = pccompile.compile(Seen(function), (torch.randn(6, 4), pair), kwargs)
    assert SIZES == [(2, 4)]
    assert pc.checked.outputs == 1


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda layers, x: plain(layers, x.reshape(6, 4)), id="captured for its sizes"),
        pytest.param(refusing, id="refused by the model"),
        pytest.param(lambda layers, x: plain(layers, x * (x > 4)), id="gradients of 0"),
    ],
)
def test_otherwise_the_whole_example_is_compared(function: Callable[..., Tensor]) -> None:
    x = torch.randn(6, 4)
    x[4] = 5.0
    pc = pccompile.compile(Seen(function), (x,))
    assert SIZES[-1] == (6, 4)
    assert pc.checked.outputs == 1
    assert pc.notes == ()


def test_a_model_that_runs_on_no_part_is_said() -> None:
    def never(layers: Any, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            raise ValueError("not today")
        return plain(layers, x)

    pc = pccompile.compile(Seen(never), (torch.randn(6, 4),))
    assert pc.notes == ("not compared with eager torch: it does not run there (not today)",)


def test_where_samples_meet_more_are_needed() -> None:
    def normalised(layers: Any, x: Tensor) -> Tensor:
        return layers[1](layers[0](x))

    pccompile.compile(Seen(normalised, nn.Linear(4, 4), nn.BatchNorm1d(4)), (torch.randn(20, 4),))
    assert {s[0] for s in SIZES} == {smaller_example.MEETING}
    SIZES.clear()
    pccompile.compile(Seen(normalised, nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), (torch.randn(10, 3, 6, 6),))
    assert {s[0] for s in SIZES} == {2}


def test_other_free_lengths_are_cut_less() -> None:
    free = {"x": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}

    class Long(Seen):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    pc = pccompile.compile(Long(plain), (torch.randn(6, 50, 4),), dynamic_shapes=free)
    assert SIZES == [(2, smaller_example.LENGTH, 4)]
    assert pc.checked.gradients == 4


def test_small_models_are_computed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(comparison, "Products", None)
    pccompile.compile(Seen(plain), (torch.randn(6, 4),))
    assert SIZES == [(6, 4)]


@pytest.mark.parametrize("key", ["a.weight", "b.weight", "c.bias"])
@pytest.mark.parametrize("how", [r"\1.mul_(1.001)", r"(\1 * 1.001)", r"\1.flip(0)"])
def test_what_is_done_to_a_shared_gradient_is_found(key: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_imported = derivative_reads.compile_imported

    def misprinted(*args: Any, **kwargs: Any) -> Any:
        made = compile_imported(*args, **kwargs)
        text = re.sub(
            rf'("{re.escape(key)}": )(\S.*?)(,?)$',
            rf"\1{how.replace(chr(92) + '1', chr(92) + '2')}\3",
            made.source.text,
            flags=re.M,
        )
        assert text != made.source.text
        return dataclasses.replace(made, source=dataclasses.replace(made.source, text=text))

    monkeypatch.setattr(derivative_reads, "compile_imported", misprinted)
    model, x = drawn("stack")
    with pytest.raises(CompileError, match=re.escape(key)):
        pccompile.compile(model, (x,))


def test_products_are_shared_by_what_agrees_alone() -> None:
    a, b = torch.randn(5, 4), torch.randn(4, 3)
    products = Products(1e-6)
    with products.recorded():
        first = a @ b
    with products.replayed([first]):
        third = (a * 1.001) @ b
        second = a.clone() @ b.clone()
        fourth = a @ b
    assert torch.equal(third, (a * 1.001) @ b)
    assert second.data_ptr() == first.data_ptr()
    assert fourth.data_ptr() != first.data_ptr(), "each product is given once"
    assert not products.spoilt
    second.mul_(2)
    assert products.spoilt


def test_a_product_is_shared_by_what_adds_it() -> None:
    a, b, total = torch.randn(5, 4), torch.randn(4, 3), torch.ones(5, 3)
    products = Products(1e-6)
    with products.recorded():
        first = a @ b
    first_again = first.clone()
    with products.replayed([first]):
        assert total.addmm_(a, b) is total
        other = torch.ones(5, 3).addmm_(a, b, alpha=2.0)
    assert torch.allclose(total, 1 + first)
    assert torch.allclose(other, 1 + 2 * first)
    assert torch.equal(first, first_again)


def test_embeddings_gradients_are_shared_for_the_same_indices_alone() -> None:
    g, i = torch.randn(3, 4), torch.tensor([0, 2, 1])
    products = Products(1e-6)

    def gradient(indices: Tensor) -> Tensor:
        return torch.ops.aten.embedding_dense_backward(g, indices, 5, -1, False)

    with products.recorded():
        first = gradient(i)
    with products.replayed([first]):
        other, same = gradient(i.flip(0)), gradient(i.clone())
    assert same.data_ptr() == first.data_ptr()
    assert torch.equal(other, gradient(i.flip(0)))


def test_what_was_written_into_is_not_shared() -> None:
    a, b = torch.randn(5, 4), torch.randn(4, 3)
    products, old = Products(1e-6), a.clone()
    with products.recorded():
        first = a @ b
    a.zero_()
    with products.replayed([]):
        assert torch.equal(old @ b, first)
        assert (a @ b).abs().max() == 0


def test_factors_are_of_weights_that_one_product_reads() -> None:
    torch.manual_seed(0)
    first, once, twice, table = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 4), nn.Embedding(4, 4)
    h = torch.tanh(once(first(torch.randn(3, 4))))
    y = twice(twice(h)) @ table.weight.t() + table(torch.tensor([0, 1, 2])) + h @ torch.ones(4, 4)
    learning = {"first": first.weight, "once": once.weight, "twice": twice.weight, "table": table.weight}
    (wanted,) = torch.autograd.grad(y.sum(), [once.weight], retain_graph=True)
    factors = weight_factors([y], learning)
    assert list(factors) == ["once"]
    torch.autograd.grad(y.sum(), [first.weight])
    assert torch.allclose(factors["once"].product(), wanted)
    assert 0 < factors["once"].sketch().norm() <= wanted.norm() * 1.0001


def test_a_product_that_backward_passes_by_is_no_agreement() -> None:
    """Whether its weight has a gradient cannot be told without asking for that."""
    x, w, v = torch.randn(3, 4), nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(3, 4))
    scale = nn.Parameter(torch.randn(4))
    learning = {"w": w, "v": v}
    with pytest.raises(RuntimeError, match="the product that reads w has no error"):
        backward([(x * scale) @ w + v.sum()], learning, by_factors=True)
    assert backward([(x * scale) @ w + v.sum()], learning).gradients["w"] is not None


def test_gradients_of_a_product_with_a_plain_matrix_have_factors() -> None:
    x, w, v = torch.randn(3, 4), nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(2, 4))
    y = (x @ v.t()).tanh() @ nn.Parameter(torch.randn(2, 4)) @ w
    factors = weight_factors([y], {"w": w})
    torch.autograd.grad(y.sum(), [v], retain_graph=True)
    assert torch.allclose(factors["w"].product(), torch.autograd.grad(y.sum(), [w])[0])


def test_what_agrees_at_a_glance_is_not_summed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    a = torch.randn(1000)
    off = a * (1 + 1e-6)
    assert difference("", off, a, 1e-5).relative_error == pytest.approx(1e-6, rel=0.1)
    for found, expected in (
        (a * 1.1, a),
        (a * 0, a * 0),
        (a * 1e-30, a * 1e-30),
        (a / 0, a / 0),
        (a * float("nan"), a),
    ):
        at_a_glance, exact = difference("", found, expected, 1e-5), difference("", found, expected)
        assert str(at_a_glance) == str(exact)


def test_captured_operations_are_compared_too() -> None:
    """They stand in for a model with hooks."""
    model = seeded(mlp, torch.float32)
    model.register_forward_hook(lambda module, args, result: None)
    assert pccompile.compile(model, (torch.randn(6, 4),)).checked.gradients == 6
