"""Tools that look into a model by forward hooks, and those that average models."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import pytest
import torch
import torchinfo
from captum.attr import LayerActivation, LayerGradCam, Saliency
from helpers.models import half_squares
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

import pccompile


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn, self.act, self.fc2 = nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.bn(self.fc1(x))))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().double().eval()


X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("layer", ["fc1", "act", "fc2"])
@pytest.mark.parametrize("of_input", [False, True], ids=["output", "input"])
def test_captum_layer_activation(layer: str, of_input: bool) -> None:
    model = net()
    pc = pccompile.compile(model, (X,))
    results = [
        LayerActivation(m, model.get_submodule(layer)).attribute(X, attribute_to_layer_input=of_input)
        for m in (pc, model)
    ]
    torch.testing.assert_close(*results)


def test_captum_saliency() -> None:
    model = net()
    pc = pccompile.compile(model, (X,))
    a, b = (Saliency(m).attribute(X.clone().requires_grad_(), target=1) for m in (pc, model))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layer", ["fc1", "act", "fc2"])
def test_captum_gradients_of_layers_are_no_silent_nothing(layer: str) -> None:
    model = net()
    pc = pccompile.compile(model, (X,))
    with pytest.raises(RuntimeError, match="appears to not have been used in the graph"):
        LayerGradCam(pc, model.get_submodule(layer)).attribute(X, target=1)


def test_torchinfo_counts_what_it_counts_in_eager() -> None:
    model = net()
    pc = pccompile.compile(model, (X,))
    found, expected = (torchinfo.summary(m, input_data=X, verbose=0) for m in (pc, copy.deepcopy(model)))
    assert found.total_params == expected.total_params
    assert found.total_mult_adds == expected.total_mult_adds


def test_averaged_weights_and_their_statistics() -> None:
    models = [net().train(), net().train()]
    runs = [pccompile.compile(models[0], (X,)), models[1]]
    averages = [AveragedModel(m) for m in runs]
    data = [X + i for i in range(4)]
    for run, model, average in zip(runs, models, averages, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for x in data:
            optimizer.zero_grad()
            half_squares(run(x)).backward()
            optimizer.step()
            average.update_parameters(run)
        update_bn(data, average)
    for (name, a), b in zip(averages[0].state_dict().items(), averages[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    torch.testing.assert_close(averages[0](X), averages[1](X))


def test_hooks_by_which_a_package_collects_its_own_hidden_states() -> None:
    """transformers hooks its modules at the first call, and forward returns what the hooks have seen in that call."""
    from transformers import BertConfig, BertModel  # slow to import

    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(
        BertConfig(vocab_size=11, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **sizes)
    ).double()
    ids = torch.arange(6).view(2, 3)

    def hidden(m: nn.Module) -> tuple[torch.Tensor, ...]:
        return tuple(m(ids, output_hidden_states=True, return_dict=False)[2])

    eager = hidden(model)
    assert len(eager) == 3
    pc = pccompile.compile(model, (ids,), {"output_hidden_states": True, "return_dict": False})
    torch.testing.assert_close(hidden(pc), eager)
    gradients = []
    for m in (model, pc):
        model.zero_grad()
        sum(h.square().sum() * (i + 1) for i, h in enumerate(hidden(m))).backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_recorder_of_the_package_of_its_model_runs_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That a hook is installed beside the model does not make it a part of forward."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "a_wheel.py").write_text(
        "from torch import nn\n"
        "SEEN = []\n"
        "def record(module, args, result):\n    SEEN.append(result.detach().clone())\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n        return self.fc(x).tanh()\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(folder))
    package = importlib.import_module("a_wheel")
    model = package.Net().double()
    model.fc.register_forward_hook(package.record)
    pc = pccompile.compile(model, (X,))
    package.SEEN.clear()
    pc(X)
    pc(2 * X)
    torch.testing.assert_close(package.SEEN, [model.fc.forward(X), model.fc.forward(2 * X)])
