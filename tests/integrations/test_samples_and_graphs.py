"""Gradients of single samples, graphs of torch_geometric, files of safetensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import ConvNet, Residual, Transformer
from torch import Tensor, nn

import pccompile

pytestmark = pytest.mark.slow


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])


def by_func(model: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """The gradient of each sample by torch.func."""

    def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return loss(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    return torch.func.vmap(torch.func.grad(one), in_dims=(None, 0, 0))(dict(model.named_parameters()), x, y)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (net, (5, 4)),
    "residual": (Residual, (5, 4)),
    "transformer": (Transformer, (3, 5, 4)),
    "convolutions": (ConvNet, (4, 3, 8, 8)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten()), (3, 3, 5, 5)),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "squares": lambda o, t: 0.5 * (o - t).square().sum(),
    "mean of huber": lambda o, t: F.smooth_l1_loss(o, t),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_of_all_samples_in_one_run_are_those_of_torch_func(kind: str, loss: str) -> None:
    make, shape = MODELS[kind]
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    y = torch.randn_like(model(x).detach())
    pc = pccompile.compile(model, (x,), loss=LOSSES[loss])
    found, expected = pc.sample_gradients(x, y), by_func(model, x, y, LOSSES[loss])
    assert found.keys() == expected.keys()
    for path, gradients in expected.items():
        torch.testing.assert_close(found[path], gradients, rtol=1e-10, atol=1e-12)
        assert pc.get_parameter(path).grad is None
    chunks = pc.sample_gradients(x, y, chunk=2)
    assert all(torch.allclose(chunks[path], g, rtol=1e-12) for path, g in found.items())


@pytest.mark.parametrize(
    "algorithm, settings",
    [
        ("strict", {"steps": 6}),
        ("fixed-prediction", {"steps": 5, "rate": 0.3}),
        ("fixed-prediction", {"steps": 30, "lowering": "exponentials", "lowering_tolerance": 1e-4}),
        ("error-optimization", {"steps": 3}),
    ],
)
def test_gradients_of_all_samples_by_other_algorithms(algorithm: str, settings: dict[str, Any]) -> None:
    model = net()
    pc = pccompile.compile(model, (X,), algorithm=algorithm, loss=F.cross_entropy, **settings)
    found = pc.sample_gradients(X, Y)
    for i in range(len(X)):
        model.zero_grad()
        pc.loss(X[i : i + 1], target=Y[i : i + 1]).backward()
        for path, p in model.named_parameters():
            torch.testing.assert_close(found[path][i], p.grad, rtol=1e-10, atol=1e-12)


def test_clipped_gradients_of_samples() -> None:
    """What differential privacy needs: each sample's gradient cut to a length, then summed."""
    model = net()
    pc = pccompile.compile(model, (X,), loss=F.cross_entropy)
    found, expected = pc.sample_gradients(X, Y), by_func(model, X, Y, F.cross_entropy)
    sums = []
    for gradients in (found, expected):
        length = torch.stack([g.flatten(1).square().sum(1) for g in gradients.values()]).sum(0).sqrt()
        factor = (0.1 / length).clamp(max=1)
        sums.append({k: torch.einsum("n,n...->...", factor, g) for k, g in gradients.items()})
    torch.testing.assert_close(*sums)


def test_samples_that_do_not_stand_alone_are_refused() -> None:
    model, x = ConvNet().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    pc = pccompile.compile(model, (x,), loss=LOSSES["squares"])
    with pytest.raises(pccompile.CompileError, match="normalises by statistics of the batch"):
        pc.sample_gradients(x, torch.zeros(4, 5, dtype=torch.float64))
    whole = pccompile.compile(net(), (X,), loss=F.cross_entropy)
    with pytest.raises(pccompile.CompileError, match="samples in dimension 0"):
        whole.sample_gradients(X, Y[:3])


def test_opacus_of_a_compiled_model_is_no_silent_nothing() -> None:
    from opacus import GradSampleModule

    pc = pccompile.compile(net(), (X,))
    with pytest.raises(pccompile.CompileError, match="hook"):
        F.cross_entropy(GradSampleModule(pc)(X), Y).backward()


def test_torch_geometric() -> None:
    from torch_geometric.data import Data
    from torch_geometric.nn import GCNConv

    class Graphs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = GCNConv(4, 6), GCNConv(6, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x, edges)), edges)

    torch.manual_seed(0)
    model = Graphs().double()
    graph = Data(x=X, edge_index=torch.tensor([[0, 1, 2, 3, 4, 0], [1, 2, 3, 4, 0, 2]]))
    pc = pccompile.compile(model, (graph.x, graph.edge_index))
    gradients = []
    for run in (pc, model):
        model.zero_grad()
        F.cross_entropy(run(graph.x, graph.edge_index), Y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_torch_geometric_data_as_an_argument() -> None:
    from torch_geometric.data import Data

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3).double()

        def forward(self, data: Data) -> Tensor:
            return self.fc(torch.zeros_like(data.x).index_add(0, data.edge_index[1], data.x[data.edge_index[0]]))

    model, graph = Whole(), Data(x=X, edge_index=torch.tensor([[0, 1, 2, 3], [1, 2, 3, 4]]))
    pc = pccompile.compile(model, (graph,))  # Dynamo opens it, in pieces
    gradients = []
    for run in (pc, model):
        model.zero_grad()
        F.cross_entropy(run(graph), Y).backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)
    with pytest.raises(pccompile.CompileError, match="pass the tensors in it") as refusal:
        pccompile.compile(model, (graph,), capture="export")
    assert "torch_geometric.data.data.Data" in str(refusal.value)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    model = net()
    pc = pccompile.compile(model, (X,))
    save_model(pc, str(tmp_path / "net.safetensors"))
    torch.manual_seed(1)
    other = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    for target in (other, pccompile.compile(other, (X,))):
        load_model(target, str(tmp_path / "net.safetensors"))
        torch.testing.assert_close(target(X), model(X))
