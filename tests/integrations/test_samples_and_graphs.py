"""Gradients of single samples, graphs of torch_geometric, files of safetensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pccompile

pytestmark = pytest.mark.slow


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1])


def by_sample(run: nn.Module, parameters: list[nn.Parameter]) -> list[list[Tensor]]:
    """The gradients of each sample, one call after the other."""
    return [
        list(torch.autograd.grad(F.cross_entropy(run(x[None]), y[None]), parameters)) for x, y in zip(X, Y, strict=True)
    ]


def test_gradients_of_single_samples_are_those_of_torch_func() -> None:
    model = net()
    pc = pccompile.compile(model, (X,))

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x[None],)), y[None])

    expected = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(dict(model.named_parameters()), X, Y)
    found = by_sample(pc, list(model.parameters()))
    for i, gradients in enumerate(found):
        for gradient, every in zip(gradients, expected.values(), strict=True):
            torch.testing.assert_close(gradient, every[i])


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
