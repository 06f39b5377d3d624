"""Changes of a model after it was compiled."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from validity.changing_model import BACKWARD, CLOSURE, HERE, SET_CLOSURE, Net


@dataclass(frozen=True)
class Change:
    """What happens to a model. `names` are words of which a refusal must have one: what of the model's own it names."""

    name: str
    apply: Callable[[nn.Module, pytest.MonkeyPatch], object]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name


CHANGES: list[Change] = []


def change(*names: str) -> Callable[[Callable[[Any, pytest.MonkeyPatch], object]], Any]:
    """Add a function to the list of changes."""

    def add(function: Callable[[Any, pytest.MonkeyPatch], object]) -> Any:
        CHANGES.append(Change(function.__name__, function, names))
        return function

    return add


def sets(name: str, *names: str, **attributes: Any) -> None:
    """A change that sets attributes, of submodules where there is a `__` in their names."""

    def apply(model: Any, patch: pytest.MonkeyPatch) -> None:
        for k, v in attributes.items():
            *owners, last = k.split("__")
            setattr(model.get_submodule(".".join(owners)), last, v)

    CHANGES.append(Change(name, apply, names))


sets("float_attribute", tau=0.3)
sets("flag", residual=False)
sets("integer_becomes_float", power=2.0)
sets("integer", power=3)
sets("dropout_p", drop__p=0.6)
sets("momentum", bn__momentum=0.7)
sets("momentum_none", bn__momentum=None)
sets("eps", bn__eps=0.5)
sets("negative_slope", act__negative_slope=0.9)
sets("bias_none", fc1__bias=None)
sets("function_attribute", function=torch.sin)
sets("tensor_attribute", mask=torch.tensor([0.5, 1.0, 0.25, 1.0, 2.0], dtype=torch.float64))
sets("tensor_of_one_element", one=torch.tensor(0.5, dtype=torch.float64))
sets("tensor_of_another_shape", mask=torch.full((1,), 0.5, dtype=torch.float64))
sets("number_for_a_tensor", mask=0.5)
sets("submodule_of_another_kind", act=nn.Softplus())
sets("submodule_none", drop=nn.Identity())
sets("alpha_of_a_custom_backward", alpha=2.0)
sets("buffer_replaced", scale=torch.full((5,), 0.75, dtype=torch.float64))


@change()
def tensor_attribute_in_place(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.mask.mul_(0.5)


@change()
def tensor_attribute_that_learns(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.mask.requires_grad_()


@change()
def dictionary_entry(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.config["slope"] = 0.7


@change()
def nested_entry(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.config["nested"][1]["shift"] = 0.4


@change()
def namespace_entry(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.settings.temperature = 0.5


@change()
def set_entry(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.settings.names.discard("double")


@change()
def helper_object(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.exponent.scale = 0.3


@change()
def instance_forward(m: Any, patch: pytest.MonkeyPatch) -> None:
    def doubled(self: Any, x: Tensor) -> Tensor:
        return 2 * type(self).forward(self, x)

    m.fc1.forward = types.MethodType(doubled, m.fc1)  # which a copy of the model binds to its own layer


@change()
def class_forward(m: Any, patch: pytest.MonkeyPatch) -> None:
    if type(m.act).forward is nn.LeakyReLU.forward:
        patch.setattr(nn.LeakyReLU, "forward", lambda self, x: torch.sin(x))


@change()
def class_method(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Net, "mix", lambda self, x: x - 0.5 * x.roll(2, -1))


@change()
def instance_method(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.mix = types.MethodType(lambda self, x: 0.5 * x, m)


@change()
def class_attribute(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Net, "offset", 0.5)


@change()
def global_number(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HERE, "GAIN", 0.5)


@change()
def global_tensor(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HERE, "SHIFT", torch.zeros(5, dtype=torch.float64))


@change()
def global_function(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HERE, "helper", torch.cos)


@change()
def closure_number(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(HERE, "CLOSURE", CLOSURE)  # as an example of a global that is set to what it was
    SET_CLOSURE(0.5)


@change()
def global_of_a_custom_backward(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(BACKWARD, "gain", 3.0)


@change()
def evaluation(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.eval()


@change()
def one_module_in_evaluation(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.bn.eval()


@change()
def frozen_parameter(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.weight.requires_grad_(False)


@change()
def parameter_replaced(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.weight = nn.Parameter(torch.sin(m.fc1.weight.detach() * 3))


@change()
def parameter_of_another_shape(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.head[0].weight = nn.Parameter(m.head[0].weight.detach()[:3])
    m.head[0].bias = nn.Parameter(m.head[0].bias.detach()[:3])


@change()
def parameter_data_of_another_shape(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.head[0].weight.data = m.head[0].weight.data[:2].clone()
    m.head[0].bias.data = m.head[0].bias.data[:2].clone()


@change()
def parameter_data(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.weight.data = torch.cos(m.fc1.weight.data)


@change()
def parameter_becomes_a_tensor(m: Any, patch: pytest.MonkeyPatch) -> None:
    weight = m.fc1.weight.detach().clone().requires_grad_()
    del m.fc1.weight
    m.fc1.weight = weight


@change()
def parameter_becomes_a_buffer(m: Any, patch: pytest.MonkeyPatch) -> None:
    weight = m.fc1.weight.detach().clone()
    del m.fc1.weight
    m.fc1.register_buffer("weight", weight)


@change()
def untied(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc3.weight = nn.Parameter(m.fc3.weight.detach().clone())


@change()
def tied(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.layers[0].weight = m.fc2.weight


@change()
def loaded_by_assignment(m: Any, patch: pytest.MonkeyPatch) -> None:
    state = {k: v.detach() * 0.5 if v.is_floating_point() else v for k, v in m.state_dict().items()}
    m.load_state_dict(state, assign=True)


@change()
def emptied_and_filled(m: Any, patch: pytest.MonkeyPatch) -> None:
    state = {k: torch.sin(v.detach()) if v.is_floating_point() else v.clone() for k, v in m.state_dict().items()}
    m.to_empty(device="cpu")
    m.load_state_dict(state)


@change()
def submodule_of_the_same_kind(m: Any, patch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(3, 5).double()
    layer.load_state_dict({k: torch.cos(v.detach()) for k, v in m.fc1.state_dict().items()})
    m.fc1 = layer


@change()
def list_longer(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.layers.append(nn.Softplus())


@change()
def list_shorter(m: Any, patch: pytest.MonkeyPatch) -> None:
    del m.layers[0]


@change()
def sequence_of_another_order(m: Any, patch: pytest.MonkeyPatch) -> None:
    first, second = m.head[0], m.head[1]
    m.head[0], m.head[1] = second, first


@change()
def statistics_removed(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.bn.track_running_stats = False
    m.bn.running_mean = m.bn.running_var = m.bn.num_batches_tracked = None


@change("the state fc1.weight")
def pruned(m: Any, patch: pytest.MonkeyPatch) -> None:
    prune.l1_unstructured(m.fc1, "weight", 0.5)


@change()
def pruned_for_good(m: Any, patch: pytest.MonkeyPatch) -> None:
    prune.ln_structured(m.fc1, "weight", 0.4, n=2, dim=0)
    prune.remove(m.fc1, "weight")


@change("the state fc1.weight")
def old_weight_norm(m: Any, patch: pytest.MonkeyPatch) -> None:
    torch.nn.utils.weight_norm(m.fc1)


@change()
def weight_norm(m: Any, patch: pytest.MonkeyPatch) -> None:
    parametrizations.weight_norm(m.fc1)


@change()
def parametrized(m: Any, patch: pytest.MonkeyPatch) -> None:
    parametrize.register_parametrization(m.fc1, "weight", nn.Softplus())


@change()
def parametrized_for_good(m: Any, patch: pytest.MonkeyPatch) -> None:
    parametrize.register_parametrization(m.fc1, "weight", nn.Softplus())
    parametrize.remove_parametrizations(m.fc1, "weight")


@change("fc1")
def forward_hook(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.register_forward_hook(lambda module, args, output: 2 * output)


@change("fc1")
def forward_pre_hook(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.register_forward_pre_hook(lambda module, args: (torch.sin(args[0]),))


@change("fc1")
def forward_hook_with_kwargs(m: Any, patch: pytest.MonkeyPatch) -> None:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        return torch.sin(output)

    m.fc1.register_forward_hook(hook, with_kwargs=True, always_call=True)


@change("head")
def hook_in_front(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.head.register_forward_hook(lambda module, args, output: output + 1)
    m.head.register_forward_hook(lambda module, args, output: output * 3, prepend=True)


@change("Net", "forward hook")
def hook_of_the_model(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.register_forward_hook(lambda module, args, output: torch.tanh(output))


def _double_softplus(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
    return 2 * output if isinstance(module, nn.LeakyReLU) else None


@change("global")
def global_forward_hook(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(nn.modules.module._global_forward_hooks, -1, _double_softplus)


@change("fc1")
def backward_hook(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.register_full_backward_hook(lambda module, sent, received: (2 * sent[0],))


@change("fc1")
def backward_pre_hook(m: Any, patch: pytest.MonkeyPatch) -> None:
    m.fc1.register_full_backward_pre_hook(lambda module, received: (2 * received[0],))


@change("global")
def global_backward_hook(m: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(nn.modules.module._global_backward_hooks, -1, lambda module, sent, received: None)
    patch.setattr(nn.modules.module, "_global_is_full_backward_hook", True)
