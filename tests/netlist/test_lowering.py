"""What single operations become as circuits, where wiring, choices and constants meet; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile
from pccompile import CompileError
from pccompile.backends.netlist import NetlistOptions

IDS = torch.tensor([[1, 2, 0], [3, 3, 4]])


class Model(nn.Module):
    """A function of an input, a matrix [5, 4] and a vector [4]."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        torch.manual_seed(0)
        self.table, self.scale = nn.Parameter(torch.randn(5, 4).double()), nn.Parameter(torch.randn(4).double())

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs, self.table, self.scale)


def _x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def masked(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    mask = torch.tensor([[True, False, True]])
    return torch.softmax((x @ w[:3].t() * s.sum()).masked_fill(mask, -torch.inf), 1)


def dispatched(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    score, index = torch.topk(x @ w.t(), 2, 1)
    gates = torch.zeros(x.shape[0], 5, dtype=x.dtype).scatter(1, index, torch.softmax(score, 1))
    return gates @ w * s


def routed(x: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """Rows that a mask picks are worked on by themselves and put back where they came from."""
    total = x * s
    for i in range(3):
        rows, columns = torch.where(x[:, :2] @ w[:2, :3] > 0.3 * i - 0.5)
        picked = torch.softmax(x[rows] @ w[:4], 1) * (columns + 1)[:, None]
        total = total.index_add(0, rows, picked)
    return total


CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "padded tokens": (lambda i, w, s: F.embedding(F.pad(i, (1, 1), value=4), w) * s, (IDS,)),
    "turned tokens": (lambda i, w, s: F.embedding(i.t().flip(0), w) * s, (IDS,)),
    "masked tokens": (lambda i, w, s: F.embedding(i.masked_fill(i == 3, 2), w) * s, (IDS,)),
    "lower triangle of tokens": (lambda i, w, s: F.embedding(i.tril(), w) * s, (IDS,)),
    "padding token": (lambda i, w, s: F.embedding(i, w, padding_idx=3) * s, (IDS,)),
    "masked scores": (masked, (_x(2, 4),)),
    "dispatch": (dispatched, (_x(3, 4),)),
    "choice as a number": (lambda x, w, s: (x @ w.t()).argmax(1, True) * (x * s), (_x(3, 4),)),
    "choice compared": (lambda x, w, s: ((x @ w.t()).argmax(1) == 2)[:, None] * (x * s), (_x(6, 4),)),
    "rows by choice": (lambda x, w, s: w[torch.topk(x @ w.t(), 2, 1)[1]].sum(1) * s, (_x(3, 4),)),
    "rows by a mask": (routed, (_x(5, 4),)),
    "gather by choice": (lambda x, w, s: (x * s).gather(1, (x @ w[:4]).sort(1)[1].flip(1)), (_x(3, 4),)),
    "rows of a parameter": (lambda x, w, s: x[:, :1] * w[2] + w[1:4].sum(0) * s, (_x(3, 4),)),
    "parameter twice": (lambda x, w, s: torch.tanh(x @ w.t()) @ w, (_x(3, 4),)),
    "bias that is computed": (lambda x, w, s: F.linear(x, w, w @ s), (_x(3, 4),)),
    "division": (lambda x, w, s: (x * s) / (x.exp() + 2), (_x(3, 4),)),
    "power": (lambda x, w, s: (x.abs() + 1) ** (x * s), (_x(3, 4),)),
    "maximum": (lambda x, w, s: torch.maximum(x * s, x @ w[:4]), (_x(3, 4),)),
    "computed mask": (lambda x, w, s: torch.where(x @ w[:4] > 0, x * s, -x), (_x(3, 4),)),
    "sampled at pixels": (lambda x, w, s: F.grid_sample(w[None, None], (x.round() / 2).view(1, 2, 3, 2) + 0 * s[:2],
                                                       align_corners=True), (_x(3, 4) / 9,)),
    "one number": (lambda x, w, s: (x * s).sum(), (_x(3, 4),)),
    "product of all": (lambda x, w, s: (x * s).prod(1), (_x(3, 4),)),
    "overlapping windows": (lambda x, w, s: (x * s).unfold(1, 2, 1).amax(-1), (_x(3, 4),)),
    "kernel that is computed": (lambda x, w, s: F.conv1d(x[:, None], (w[:2, :2] * 2)[:, None]) * s[:3], (_x(3, 4),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_circuits_are_their_models(name: str) -> None:
    function, inputs = CASES[name]
    model = Model(function)
    options = NetlistOptions(loss="none", rate=1.0)
    report = pccompile.verify_circuit(model, inputs, options=options)
    assert report.passed, str(report)
    net = pccompile.compile(model, inputs, backend="netlist", loss="none", rate=1.0)
    found = next(iter(net.simulate(inputs, ticks=1).outputs.values()))
    torch.testing.assert_close(torch.as_tensor(found[0]), model(*inputs).detach(), rtol=1e-10, atol=1e-12)


REFUSED: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], str]] = {
    "places written twice": (
        lambda x, w, s: (x * s).index_put((torch.tensor([0, 0]),), w[:2]), (_x(3, 4),), "more than once"),
    "infinities that cancel": (
        lambda x, w, s: torch.logaddexp(x * s, torch.full((4,), -torch.inf).double()), (_x(3, 4),), "cancel"),
    "lengths by values": (lambda x, w, s: (x * s)[x[:, 0] > 0], (_x(3, 4),), "depend"),
    "sums over chosen rows": (lambda x, w, s: (x * s)[torch.where(x[:, 0] > 0)[0]].sum(0), (_x(3, 4),), "row by row"),
    "chosen rows as a result": (lambda x, w, s: (x * s)[torch.where(x[:, 0] > 0)[0]], (_x(3, 4),), "row by row"),
    "chosen rows among themselves": (
        lambda x, w, s: (x * s).index_add(0, (r := torch.where(x[:, 0] > 0)[0]), torch.softmax(x[r] * s, 0)),
        (_x(3, 4),), "row by row"),
    "places by values": (lambda x, w, s: w[x[:, 0].long()] * s, (_x(3, 4).abs(),), "depend on values"),
    "frequencies": (lambda i, w, s: F.embedding(i, w, scale_grad_by_freq=True) * s, (IDS,), "scale_grad_by_freq"),
    "two angles": (lambda x, w, s: torch.atan2(x * s, x @ w[:4]), (_x(3, 4),), "atan2"),
    "a computed kernel, transposed": (lambda x, w, s: F.conv_transpose1d(x[:, None], w[None, :2, :2]) * s[0],
                                      (_x(3, 4),), "transposed convolution whose kernel is computed"),
    "a decomposition": (lambda x, w, s: torch.linalg.inv(w[:4] * s), (_x(3, 4),), "linalg_inv"),
    "an index for a result": (lambda x, w, s: F.max_pool1d(x * s, 2, return_indices=True)[1] + (x * s).sum(),
                              (_x(1, 3, 4),), "pooling window"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_circuit_says_so(name: str) -> None:
    function, inputs, said = REFUSED[name]
    with pytest.raises(CompileError, match=said):
        pccompile.compile(Model(function), inputs, backend="netlist", loss="none")


def test_an_input_that_is_wiring_holds_for_its_value_only() -> None:
    edges = torch.tensor([0, 2, 2])
    model = Model(lambda x, index, w, s: torch.zeros(3, 4).double().index_add(0, index, x * s))
    net = pccompile.compile(model, (_x(3, 4), edges), backend="netlist")
    assert set(net.spec.fixed) == {net.spec.arguments[1]}
    net.simulate((_x(3, 4), edges))
    with pytest.raises(CompileError, match="is wiring of this circuit"):
        net.simulate((_x(3, 4), edges.flip(0)))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"rate": 2.0}, "would not settle"),
        ({"ticks": 0}, "ticks are too few"),
        ({"steps": 3}, "a netlist has no setting steps"),
        ({"loss": "hinge"}, "a circuit's loss is one of"),
        ({"algorithm": "strict"}, "does fixed prediction"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(CompileError, match=said):
        pccompile.compile(nn.Linear(3, 2), (torch.randn(1, 3),), backend="netlist", **settings)


def test_same_model_same_bytes(tmp_path: Any) -> None:
    function, inputs = CASES["dispatch"]
    for folder in ("a", "b"):
        pccompile.compile(Model(function), inputs, backend="netlist").save(tmp_path / folder, "net")
    for file in ("net.pcnet.json", "net.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
