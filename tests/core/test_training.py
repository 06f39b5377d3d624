"""A compiled model where an nn.Module is expected."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ZOO

import pccompile
from core.models import ConvNet, Residual, distance, gradients, half_squares, mlp, seeded
from core.training import ALGORITHMS, data, grads, pair, programs

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


def test_hooks_of_modules_do_not_run_inside_inference() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x, algorithm="strict")
    calls: list[int] = []
    for module in pc.model:
        module.register_forward_hook(lambda *_: calls.append(1))
    half_squares(pc(x)).backward()
    assert not calls


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


# modes, dtypes, shapes


def test_train_and_eval_mode_each_have_their_program() -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x)
    for mode in (False, True, False):
        plain.train(mode)
        pc.train(mode)
        assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-9
    assert programs(pc) == 2


def test_mode_set_on_the_inner_model_is_seen() -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x)
    plain.eval()
    pc.model.eval()
    torch.testing.assert_close(pc(x), plain(x))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_running_statistics_are_updated_once_a_batch(algorithm: str) -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x, **ALGORITHMS[algorithm])
    for _ in range(2):
        plain(x)
        half_squares(pc(x)).backward()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(pc.named_buffers())[name], buffer)


def test_loss_updates_running_statistics_once() -> None:
    x = data(6, 3, 8, 8)
    plain, pc = pair(ConvNet, x, algorithm="strict")
    plain(x)
    pc.loss(x, target=data(6, 5)).backward()
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(pc.named_buffers())[name], buffer)


@pytest.mark.parametrize("algorithm", ["exact", "fixed-prediction"])
def test_dropout_draws_one_mask_from_the_stream_that_eager_draws_it_from(algorithm: str) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 30), nn.Dropout(0.4), nn.Tanh(), nn.Linear(30, 2))

    x = data(5, 4)
    plain, pc = pair(make, x, **ALGORITHMS[algorithm])
    found = []
    for model in (plain, pc):
        torch.manual_seed(3)
        found.append(gradients(model, half_squares(model(x))))
    assert distance(found[1], found[0]) < 1e-8


def test_a_model_that_is_converted_after_compilation() -> None:
    x = data(5, 4, dtype=torch.float32)
    pc = pccompile.compile(seeded(mlp, torch.float32), (x,)).to(torch.float64)
    plain = seeded(mlp, torch.float32).to(torch.float64)
    assert (
        distance(gradients(pc, half_squares(pc(x.double()))), gradients(plain, half_squares(plain(x.double())))) < 1e-12
    )


def test_other_batch_sizes_need_no_other_program() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    for size in (5, 2, 1, 17):
        x = data(size, 4)
        assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12
    assert programs(pc) == 1


def test_another_image_size_is_compiled_again() -> None:
    plain, pc = pair(ConvNet, data(2, 3, 8, 8))
    for size in (8, 11, 8):
        x = data(2, 3, size, size)
        assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-9
    assert programs(pc) == 2


def test_a_batch_of_one_can_be_the_example() -> None:
    plain, pc = pair(mlp, data(1, 4))
    x = data(6, 4)
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12


def test_float32_is_right_to_its_own_precision() -> None:
    x = data(5, 4, dtype=torch.float32)
    plain, pc = pair(Residual, x)
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-5


def test_autocast_outside_does_not_reach_inference() -> None:
    x = data(5, 4, dtype=torch.float32)
    plain, pc = pair(mlp, x)
    loss = half_squares(pc(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(pc, loss)
    assert distance(found, gradients(plain, half_squares(plain(x)))) < 1e-5


# copies


def test_a_deepcopy_learns_apart() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x)
    twin = copy.deepcopy(pc)
    wanted = gradients(pc, half_squares(pc(x)))
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert distance(gradients(pc, half_squares(pc(x))), wanted) == 0
    assert not twin(x).any()
    assert not set(map(id, pc.parameters())) & set(map(id, twin.parameters()))


def test_a_pickle_comes_back_with_the_same_gradients() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x, algorithm="fixed-prediction", steps=3)
    twin = pickle.loads(pickle.dumps(pc))
    assert distance(gradients(twin, half_squares(twin(x))), gradients(pc, half_squares(pc(x)))) == 0


def test_a_state_dict_goes_both_ways(tmp_path: Path) -> None:
    x = data(6, 3, 8, 8)
    trained = pccompile.compile(seeded(ConvNet), (x,))
    trained(x)
    torch.save(trained.state_dict(), tmp_path / "state.pt")
    plain = seeded(ConvNet, seed=1)
    plain.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(plain.eval()(x), trained.eval()(x))
    other = pccompile.compile(seeded(ConvNet, seed=2), (x,))
    other.load_state_dict(plain.state_dict())
    torch.testing.assert_close(other.eval()(x), plain(x))


def test_assigned_parameters_are_used() -> None:
    """load_state_dict(assign=True) replaces the Parameter objects."""
    x = data(5, 4)
    _, pc = pair(mlp, x)
    plain = seeded(mlp, seed=5)
    pc.load_state_dict(copy.deepcopy(plain.state_dict()), assign=True)
    torch.testing.assert_close(pc(x), plain(x))
    assert distance(gradients(pc, half_squares(pc(x))), gradients(plain, half_squares(plain(x)))) < 1e-12


def test_a_replaced_layer_is_used() -> None:
    x = data(5, 4)
    _, pc = pair(mlp, x)
    pc.model[0] = seeded(lambda: nn.Linear(4, 6), seed=5)
    torch.testing.assert_close(pc(x), pc.model(x))


def test_functional_call_replaces_the_parameters() -> None:
    x = data(5, 4)
    plain, pc = pair(mlp, x)
    other = {name: 2 * p.detach() for name, p in plain.named_parameters()}
    torch.testing.assert_close(*(torch.func.functional_call(m, other, (x,)) for m in (pc, plain)))


@pytest.mark.parametrize("what", ["weights", "input"])
def test_a_tensor_that_changes_between_forward_and_backward_is_an_error(what: str) -> None:
    """As with autograd: its old numbers are needed and gone."""
    x = data(5, 4)
    _, pc = pair(mlp, x)
    loss = half_squares(pc(x))
    with torch.no_grad():
        (pc.model[2].weight if what == "weights" else x).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def _worker(rank: int, meeting: Path, found: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    pc = pccompile.compile(seeded(mlp), (torch.randn(6, 4, dtype=torch.float64),))
    model = nn.parallel.DistributedDataParallel(pc)
    model(torch.full((6, 4), rank + 1.0, dtype=torch.float64)).square().sum().backward()
    found[rank] = grads(pc)
    dist.destroy_process_group()


def test_data_parallel_training_averages_the_gradients(tmp_path: Path) -> None:
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(_worker, (tmp_path / "meeting", found), nprocs=2)
        ranks = [found[0], found[1]]
    plain = seeded(mlp)
    (sum(plain(torch.full((6, 4), r, dtype=torch.float64)).square().sum() for r in (1.0, 2.0)) / 2).backward()
    for rank in ranks:
        assert distance(rank, grads(plain)) < 1e-12


def test_the_sweep_frees_what_prediction_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak of memory is that of backpropagation: autograd holds nothing that inference has read already."""
    pc, x = pccompile.compile(ConvNet(), (torch.randn(2, 3, 8, 8),)), torch.randn(2, 3, 8, 8)
    runtime = pc.prepare((x,))
    sweep, alive = runtime.function("infer_and_learn"), []

    def watched(params: Any, context: list[Any], errors: Any) -> Any:
        saved = [weakref.ref(c) for c in context if isinstance(c, Tensor) and c.shape != x.shape]
        found = sweep(params, context, errors)
        alive.append((len(saved), sum(s() is not None for s in saved)))
        return found

    monkeypatch.setitem(runtime._scope, "infer_and_learn", watched)
    half_squares(pc(x)).backward()
    half_squares(pc(x)).backward(retain_graph=True)
    (before, after), (_, kept) = alive
    assert (before > 5, after, kept) == (True, 0, before)
