"""Where other predictive-coding code goes wrong, one test each."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.models import ConvNet, distance, gradients, half_squares, mlp, seeded
from helpers.written import compare, linear, module, x64
from torch import Tensor, nn

import pccompile
from pccompile import CompileError

PROBE = """
import random, numpy, torch

def state():
    streams = torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state())
    return streams, torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()

before = state()
import pccompile, pccompile.api.compile, pccompile.runtime.module, pccompile.backends.torch
assert state() == before
"""


def test_no_work_at_import_time() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_package_alone_does_not_import_torch() -> None:
    script = "import sys, pccompile; assert 'torch' not in sys.modules; print(pccompile.__version__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == pccompile.__version__, done.stderr


# factors and sums


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_there_is_no_hidden_factor_of_2(factor: float) -> None:
    """One linear layer, L = c ‖y − Wx‖²: ∂L/∂W = −2c (y − Wx) xᵀ, by hand."""
    x, y = x64(1, 4), x64(1, 4)
    pc = pccompile.compile(nn.Linear(4, 4, bias=False).double(), (x,))
    (found,) = gradients(pc, factor * ((pc(x) - y) ** 2).sum()).values()
    by_hand = -2 * factor * (y - x @ pc.model.weight.detach().t()).t() @ x
    torch.testing.assert_close(found, by_hand)


def test_the_update_is_applied_once() -> None:
    x = x64(3, 4)
    pc = pccompile.compile(seeded(mlp), (x,))
    before = [p.detach().clone() for p in pc.parameters()]
    half_squares(pc(x)).backward()
    assert all(map(torch.equal, before, pc.parameters()))
    torch.optim.SGD(pc.parameters(), 0.25).step()
    assert all(torch.allclose(b - 0.25 * p.grad, p) for b, p in zip(before, pc.parameters(), strict=True))


def test_a_value_that_one_child_reads_k_times_gets_k_messages() -> None:
    make = module(lambda self, x: (lambda h: h * h * h + torch.cat([h, h], 1)[:, 2:6])(self.a(x)), a=linear())
    assert compare(make, x64(3, 4)) < 1e-12


def test_a_fan_out_needs_the_sum() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return torch.sin(h) + self.b(h) + h.exp() + h

    assert compare(module(forward, a=linear(), b=linear()), x64(3, 4)) < 1e-12


def test_a_parameter_used_in_two_places_gets_both_contributions() -> None:
    make = module(lambda self, x: self.a(torch.tanh(self.a(x))) + x @ self.a.weight, a=linear())
    assert compare(make, x64(3, 4)) < 1e-12


def test_gradients_are_added_to_what_is_there() -> None:
    x = x64(3, 4)
    pc = pccompile.compile(seeded(mlp), (x,))
    for p in pc.parameters():
        p.grad = torch.ones_like(p)
    wanted = gradients(pc, half_squares(pc(x)))
    half_squares(pc(x)).backward()
    assert distance({k: p.grad - 1 for k, p in pc.named_parameters()}, wanted) < 1e-12


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (1, 1), ()])
def test_the_message_to_a_broadcast_operand_has_its_shape(shape: tuple[int, ...]) -> None:
    class Broadcast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(shape))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) * self.scale + self.scale / 2

    x = x64(3, 4)
    pc = pccompile.compile(Broadcast().double(), (x,), dynamic_shapes={"x": None} if shape[:1] == (3,) else None)
    half_squares(pc(x)).backward()
    found = pc.model.scale.grad.clone()
    pc.model.scale.grad = None
    half_squares(pc.model(x)).backward()
    torch.testing.assert_close(found, pc.model.scale.grad)


# values without gradients, ties, kinks


def test_a_value_without_a_child_is_harmless() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.a(x)
        torch.exp(h).sum()
        return self.b(h)

    assert compare(module(forward, a=linear(), b=linear()), x64(3, 4)) < 1e-12


def test_ties_are_broken_as_autograd_breaks_them() -> None:
    """Two equal layers, so that every comparison is a tie."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        both = torch.stack([a, b], -1)
        pooled = F.max_pool1d(both.flatten(1).unsqueeze(1), 2).squeeze(1)
        return torch.cat([torch.maximum(a, b), both.amax(-1), both.max(-1).values, pooled, F.relu(a - b)], 1)

    assert compare(module(forward, a=linear(), b=linear()), x64(3, 4)) < 1e-12


def test_integer_and_boolean_values_pass_through() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.a(x)
        return torch.where(h > 0, h, h * 0.1), h.argmax(1), h > 0

    x = x64(3, 4)
    plain, pc = seeded(module(forward, a=linear())), pccompile.compile(seeded(module(forward, a=linear())), (x,))
    found, wanted = pc(x), plain(x)
    assert all(map(torch.equal, found, wanted))
    assert distance(gradients(pc, half_squares(found[0])), gradients(plain, half_squares(wanted[0]))) < 1e-12


@pytest.mark.parametrize("value", [-90.0, 0.0, 90.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["softplus", "sigmoid", "silu", "mish", "gelu", "relu", "logsigmoid", "elu", "tanh"])
def test_activations_do_not_overflow(name: str, value: float, dtype: torch.dtype) -> None:
    f, x = getattr(F, name), torch.full((2, 1), value, dtype=dtype)
    model = module(lambda self, x: f(x * self.a.weight), a=nn.Linear(1, 1, bias=False))().to(dtype)
    with torch.no_grad():
        model.a.weight.fill_(1.0)
    pc = pccompile.compile(model, (x,))
    found, wanted = gradients(pc, pc(x).sum()), gradients(model, model(x).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


# states that others forget to derive


def test_the_embedding_and_the_first_hidden_state_learn() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.cell, self.start = nn.Embedding(5, 3), nn.GRUCell(3, 4), nn.Parameter(torch.randn(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.start.expand(x.shape[0], 4)
            for t in range(3):
                h = self.cell(self.embed(x[:, t]), h)
            return h

    x = torch.randint(5, (2, 3))
    plain, pc = seeded(Recurrent), pccompile.compile(seeded(Recurrent), (x,))
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12
    assert all(g.any() for g in gradients(pc, half_squares(pc(x))).values())


def test_batch_statistics_couple_the_samples() -> None:
    """∂(output of sample 0)/∂(input of sample 1) is not 0 under batch norm in training mode."""
    x = x64(4, 3).requires_grad_()
    pc = pccompile.compile(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double(), (x,))
    (found,) = torch.autograd.grad((pc(x)[0] ** 3).sum(), x)
    (wanted,) = torch.autograd.grad((pc.model(x)[0] ** 3).sum(), x)
    torch.testing.assert_close(found, wanted)
    assert found[1].any()


def test_one_dropout_mask_a_batch_in_strict_inference() -> None:
    """With a mask drawn anew at each step, the energy would jump."""
    model = seeded(lambda: nn.Sequential(nn.Linear(4, 20), nn.Dropout(0.5), nn.Linear(20, 3)))
    x = x64(5, 4)
    trace = pccompile.compile(model, (x,), algorithm="strict", rate=0.02).infer((x,), target=x64(5, 3), steps=30)
    assert (trace.free_energy.diff() <= 0).all()


def test_a_parameter_that_no_output_reaches_keeps_no_gradient_and_does_not_move() -> None:
    make = module(lambda self, x: torch.tanh(self.a(x)), a=linear(), spare=linear())
    x = x64(3, 4)
    pc = pccompile.compile(seeded(make), (x,))
    before = pc.model.spare.weight.clone()
    optimizer = torch.optim.SGD(pc.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        half_squares(pc(x)).backward()
        optimizer.step()
    assert pc.model.spare.weight.grad is None
    assert torch.equal(pc.model.spare.weight, before)


# sizes


@pytest.mark.parametrize("size", [7, 9, 11])
def test_odd_sizes_pool(size: int) -> None:
    assert compare(ConvNet, x64(3, 3, size, size)) < 1e-9


def test_a_summed_loss_with_strict_does_not_depend_on_the_batch() -> None:
    x, y = x64(8, 4), x64(8, 3)
    pc = pccompile.compile(seeded(mlp), (x,), algorithm="strict")
    whole = pc.infer((x,), target=y).values
    half = pc.infer((x[:4],), target=y[:4]).values
    for name, values in half.items():
        torch.testing.assert_close(whole[name][:, :4], values, rtol=1e-10, atol=1e-12)


def test_a_mean_loss_with_strict_does_depend_on_the_batch() -> None:
    """The loss is taken as it is given: a mean divides the outputs' precision by the batch size. The README says so."""
    x, y = x64(8, 4), x64(8, 3)
    pc = pccompile.compile(seeded(mlp), (x,), algorithm="strict", loss=F.mse_loss)
    whole = pc.infer((x,), target=y).values
    half = pc.infer((x[:4],), target=y[:4]).values
    assert all((whole[name][-1, :4] - values[-1]).abs().max() > 1e-4 for name, values in half.items())


def test_100_steps_are_not_enough_for_a_deep_network_and_the_program_says_so() -> None:
    deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(21))).double()
    x = x64(2, 3)
    pc = pccompile.compile(deep, (x,), algorithm="fixed-prediction")
    found, wanted = gradients(pc, half_squares(pc(x))), gradients(deep, half_squares(deep(x)))
    assert float(found["0.weight"].norm() / wanted["0.weight"].norm()) == pytest.approx(0.002, abs=2e-4)
    assert "0.998" in pc.compiled.program.facts[0]
    assert pc.compiled.program.facts[0] in pc.source


# names are data


def test_names_from_a_model_are_never_code() -> None:
    names = [
        "class",
        "params",
        "import os",
        "os'); raise SystemExit('",
        'a"b',
        "x\ny",
        "ε",
        "step",
        "torch",
        "F",
        "device",
    ]
    model = nn.ModuleDict({name: nn.Linear(3, 3) for name in names})

    def forward(x: Tensor) -> Tensor:
        for layer in model.values():
            x = torch.tanh(layer(x))
        return x

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, torch: Tensor) -> Tensor:
            return forward(torch)

    x = torch.randn(2, 3)
    pc = pccompile.compile(Named(), (x,))
    assert distance(gradients(pc, half_squares(pc(x))), gradients(pc, half_squares(pc.model(x)))) < 1e-5


def test_an_error_shows_control_characters_escaped() -> None:
    assert "\x1b" not in str(CompileError("red \x1b[31m text\nsecond"))
