"""A compiled model where an nn.Module is expected."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.models import ConvNet, Residual, distance, gradients, half_squares, mlp, seeded
from helpers.training import ALGORITHMS, data, grads, pair
from torch import Tensor, nn
from zoo import ZOO

import pccompile

# the same parameters


def test_parameters_buffers_and_keys_are_the_models_own() -> None:
    model = ConvNet()
    pc = pccompile.compile(model, (torch.randn(2, 3, 8, 8),))
    assert [id(p) for p in pc.parameters()] == [id(p) for p in model.parameters()]
    assert list(pc.state_dict()) == list(model.state_dict())
    assert all(b is dict(model.named_buffers())[k] for k, b in pc.named_buffers())


def test_compiling_changes_no_parameter_and_no_buffer() -> None:
    model = ConvNet()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    pccompile.compile(model, (torch.randn(2, 3, 8, 8),))
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_output_is_the_models(algorithm: str) -> None:
    x = data(5, 4)
    plain, pc = pair(Residual, x, **ALGORITHMS[algorithm])
    assert torch.equal(pc(x), plain(x))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.Adam(p, 0.01),
        lambda p: torch.optim.LBFGS(p, 0.5),
    ],
    ids=["sgd", "adam", "lbfgs"],
)
def test_optimizers_take_the_same_steps(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    x, y = data(5, 4), data(5, 3)
    models = pair(mlp, x)
    for model in models:
        steps = optimizer(model.parameters())

        def closure(model: nn.Module = model, steps: torch.optim.Optimizer = steps) -> Tensor:
            steps.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            return loss

        for _ in range(4):
            steps.step(closure)
    plain, pc = (dict(m.named_parameters()) for m in models)
    assert all((pc[k] - p).abs().max() < 1e-10 for k, p in plain.items())


# gradients where they are expected


def test_gradients_accumulate() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    for model in (plain, pc):
        for part in (x[:2], x[2:]):
            half_squares(model(part)).backward()
    assert distance(grads(pc), grads(plain)) < 1e-12


def test_two_calls_before_one_backward() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    for model in (plain, pc):
        (half_squares(model(x)) + half_squares(model(2 * x)) * 3).backward()
    assert distance(grads(pc), grads(plain)) < 1e-12


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.body(x))
        return {"left": self.left(h), "right": self.right(h)}


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
def test_a_head_without_a_loss_has_no_gradient(algorithm: str) -> None:
    x = data(5, 4)
    pc = pccompile.compile(seeded(TwoHeads), (x,), **ALGORITHMS[algorithm])
    half_squares(pc(x)["left"]).backward()
    plain = seeded(TwoHeads)
    half_squares(plain(x)["left"]).backward()
    assert pc.model.right.weight.grad is None
    assert distance(grads(pc), grads(plain)) < 1e-8


def test_frozen_parameters_have_no_gradient_until_they_are_unfrozen() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    for model in (plain, pc):
        first = next(model.parameters()).requires_grad_(False)
        half_squares(model(x)).backward()
        assert first.grad is None
        first.requires_grad_(True)
        half_squares(model(x)).backward()
    assert distance(grads(pc), grads(plain)) < 1e-12


def test_a_model_that_is_all_frozen_sends_feedback_to_its_input() -> None:
    x = data(5, 4).requires_grad_()
    plain, pc = pair(mlp, x.detach())
    for model in (plain, pc):
        model.requires_grad_(False)
    (found,), (wanted,) = (torch.autograd.grad(half_squares(m(x)), x) for m in (pc, plain))
    torch.testing.assert_close(found, wanted)


def test_a_tied_weight_gets_both_contributions() -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        return model

    x = data(5, 4)
    plain, pc = pair(make, x)
    for model in (plain, pc):
        half_squares(model(x)).backward()
    assert pc.model[2].weight is pc.model[0].weight
    assert distance(grads(pc), grads(plain)) < 1e-12


def test_gradients_of_inputs() -> None:
    x = data(5, 4).requires_grad_()
    plain, pc = pair(mlp, x.detach())
    found, wanted = (torch.autograd.grad(half_squares(m(torch.sin(x))), x)[0] for m in (pc, plain))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["dict_output", "dataclass_output", "siamese"])
def test_several_inputs_and_structured_outputs(name: str) -> None:
    case = ZOO[name]
    draw = torch.Generator().manual_seed(0)
    x, y = case.inputs(draw, torch.float64), case.target(draw, torch.float64)
    plain, pc = seeded(case.build), pccompile.compile(seeded(case.build), x)
    assert type(pc(*x)) is type(plain(*x))
    assert distance(gradients(pc, case.loss(pc(*x), y)), gradients(plain, case.loss(plain(*x), y))) < 1e-11


def test_keyword_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor, *, scale: Tensor, power: int = 1) -> Tensor:
            return torch.tanh(self.fc(x)) ** power * scale

    x, scale = data(5, 4), data(5, 1)
    plain, pc = seeded(Scaled), pccompile.compile(seeded(Scaled), (x,), {"scale": scale, "power": 3})
    found, wanted = (half_squares(m(x, scale=scale, power=3)) for m in (pc, plain))
    assert distance(gradients(pc, found), gradients(plain, wanted)) < 1e-12


def test_backward_works_twice_with_retain_graph() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    for model in (plain, pc):
        loss = half_squares(model(x))
        loss.backward(retain_graph=True)
        loss.backward()
    assert distance(grads(pc), grads(plain)) < 1e-12


def test_backward_again_without_retain_graph_is_refused() -> None:
    x = data(5, 4)
    loss = half_squares(pair(mlp, x)[1](x))
    loss.backward()
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_no_grad_and_inference_mode() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    with torch.no_grad():
        assert not pc(x).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(pc(x).clone(), plain(x).clone())
    assert pc(x).requires_grad


def test_clipping_sees_the_gradients() -> None:
    x = data(5, 4)
    norms = []
    for model in pair(mlp, x):
        (100 * half_squares(model(x))).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        assert torch.cat([p.grad.flatten() for p in model.parameters()]).norm() <= 1.0 + 1e-9
    torch.testing.assert_close(*norms)


def test_parameters_hooks_hear_the_gradient() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x)
    heard = []
    for p in pc.parameters():
        p.register_post_accumulate_grad_hook(lambda p: heard.append(p))
    half_squares(pc(x)).backward()
    assert sorted(map(id, heard)) == sorted(map(id, pc.parameters()))


@pytest.mark.parametrize("power", [1, 2])
def test_one_forward_pass_serves_several_losses(power: int) -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    found = []
    for model in (plain, pc):
        output = model(x)
        torch.autograd.grad(output.sum(), list(model.parameters()), retain_graph=True)
        found.append(gradients(model, (output**power).sum()))
    assert distance(found[1], found[0]) < 1e-12


def test_the_output_may_be_changed_in_place() -> None:
    x = data(5, 4)
    found = [gradients(model, half_squares(model(x).mul_(2))) for model in pair(mlp, x)]
    assert distance(found[1], found[0]) < 1e-12
